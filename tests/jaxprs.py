"""What a function is made of, before it is compiled."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def equations(function, *args):
    """Yields every equation of a function, those inside its loops included once."""
    yield from equations_of(jax.make_jaxpr(function)(*args).jaxpr)


def equations_of(jaxpr):
    """Yields every equation of a traced function."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from equations_of(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_jaxpr(x):
    return isinstance(x, ClosedJaxpr | Jaxpr)
