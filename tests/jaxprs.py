"""What a function is made of, before it is compiled."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def equations(function, *args):
    """Yields every equation of a function, those inside its loops included once."""
    yield from _equations(jax.make_jaxpr(function)(*args).jaxpr)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_jaxpr(x):
    return isinstance(x, ClosedJaxpr | Jaxpr)
