"""The fused attention is the plain one: by the kernel of a TPU, in Pallas' interpreter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.layout import Layout
from prompt_tuning.losses import Loss
from prompt_tuning.model import BaseParam, T5Config
from prompt_tuning.model.attention import attend_plainly
from prompt_tuning.model.fused_attention import Where, attention_over, fused
from prompt_tuning.model.fused_attention_tpu import group_of
from prompt_tuning.model.layers import mask_bias
from prompt_tuning.model.parameters import named
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.prompts import PromptParam
from tests.jaxprs import equations
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, T5_1_1, compiled, small_model

# B T S N H, whether there are biases by position, and whether padding asks.
CASES = {
    "self-attention": (2, 12, 12, 4, 8, True, False),
    "an odd number of heads": (2, 9, 9, 3, 64, True, False),
    "one head in a register": (1, 10, 10, 2, 128, True, False),
    "heads that fill no register": (2, 6, 9, 5, 96, False, False),
    "across": (3, 7, 12, 2, 64, False, True),
    "all biases": (2, 5, 8, 2, 64, True, True),
    "more queries than are taken at a time": (1, 530, 20, 1, 8, True, True),
    "many more": (1, 1100, 8, 1, 8, True, False),
}


def problem(case, dtype):
    B, T, S, N, H, has_relative, has_spoken = CASES[case]
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    arrays = (drawn(B, T, N, H) / 3, drawn(B, S, N, H), drawn(B, S, N, H), drawn(B, T, N, H))
    relative = 2 * drawn(1, N, T, S) if has_relative else None
    spoken = jnp.asarray(rng.random((B, T)) < 0.7) if has_spoken else None
    real = jnp.asarray(rng.random((B, S)) < 0.7).at[:, 0].set(True)
    return [x.astype(dtype) for x in arrays], relative, spoken, real


@functools.partial(jax.jit, static_argnames="kind")
def there_and_back(kind, arrays, relative, spoken, real):
    """Returns what is attended to, and the gradients of queries, keys and values."""
    *asked, gradient = arrays
    mask = mask_bias(jnp.ones((len(real), 1), bool) if spoken is None else spoken, real)
    biases = (mask,) if relative is None else (relative, mask)

    def attend(queries, keys, values):
        if kind == "plain":
            return attend_plainly(queries, (keys, values), *biases)
        return fused(Where(interpret=True), queries, keys, values, relative, spoken, real)

    attended, back = jax.vjp(attend, *asked)
    return attended, *back(gradient)


def distance(found, wanted):
    """Returns how far arrays are apart, as a part of the largest number in each."""
    pairs = [[np.asarray(x, np.float32) for x in pair] for pair in zip(found, wanted, strict=True)]
    return max(np.max(np.abs(one - other)) / np.max(np.abs(other)) for one, other in pairs)


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_attends_and_goes_back_as_the_plain_attention(case):
    arrays, *rest = problem(case, jnp.float32)
    found, wanted = (there_and_back(kind, arrays, *rest) for kind in ("fused", "plain"))
    assert distance(found, wanted) < 2e-6


def test_in_bfloat16_the_kernel_errs_as_the_plain_attention_does():
    wide, *rest = problem("self-attention", jnp.float32)
    narrow = [x.astype(jnp.bfloat16) for x in wide]
    exact = there_and_back("plain", [x.astype(jnp.float32) for x in narrow], *rest)
    found, plain = (there_and_back(kind, narrow, *rest) for kind in ("fused", "plain"))
    assert [x.dtype for x in found] == [jnp.bfloat16] * 4
    assert distance(found, exact) < 2 * distance(plain, exact)


def test_padding_that_asks_sees_everything_alike():
    (queries, keys, values, gradient), _, spoken, real = problem("across", jnp.float32)
    arrays = queries, keys, values, gradient
    found = there_and_back("fused", arrays, None, jnp.zeros_like(spoken), real)[0]
    mean = jnp.broadcast_to(jnp.mean(values, axis=1, keepdims=True), found.shape)
    np.testing.assert_allclose(found, mean, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "width", "group"), [(6, 64, 2), (64, 64, 2), (3, 64, 2), (32, 128, 1), (4, 8, 4)]
)
def test_a_program_takes_heads_that_fill_a_register_or_all(heads, width, group):
    assert group_of(heads, width) == group


def test_nothing_of_the_size_of_scores_is_kept_for_the_way_back():
    (queries, keys, values, _), relative, spoken, real = problem("across", jnp.float32)

    def attend(queries, keys, values):
        return fused(Where(interpret=True), queries, keys, values, relative, spoken, real)

    _, back = jax.vjp(attend, queries, keys, values)
    kept = {x.shape for x in jax.tree.leaves(back) if x.dtype == jnp.float32}
    assert kept == {queries.shape, keys.shape}


# Whole models.

FUSED_MODELS = ["T5 1.1 with a prompt", "T5 1.0 with a suffix", "T5 1.1 with scales"]


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def loss_and_gradient(graph, chosen, rest, key):
    def loss(chosen):
        return Loss()(nnx.merge(graph, chosen, rest)(BATCH, key=key), BATCH)[0]

    return jax.value_and_grad(loss)(chosen)


def compare(name, chosen, key, **changes):
    """Compares loss and gradients of a model with fused and with plain attention."""
    found, wanted = (
        loss_and_gradient(
            *nnx.split(small_model(name, attention=kind, **changes), chosen, ...), key
        )
        for kind in ("fused", "plain")
    )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    gradients = [named(one) for one in (found[1], wanted[1])]
    assert gradients[0].keys() == gradients[1].keys()
    for one, array in gradients[1].items():
        scale = np.max(np.abs(array))
        np.testing.assert_allclose(gradients[0][one], array, atol=2e-5 * scale, err_msg=one)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one, marks=[pytest.mark.slow] if i else [])
        for i, one in enumerate(FUSED_MODELS)
    ],
)
def test_a_model_learns_the_same_and_drops_the_same(name, key):
    compare(name, PromptParam, key, dropout_rate=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["projections", "full"])
def test_a_model_learns_the_same_whatever_is_computed_again(remat):
    compare("T5 1.1 with a prompt", PromptParam, None, remat=remat)


def test_a_tuned_model_has_gradients_of_its_biases():
    compare("T5 1.1", BaseParam, None)


def test_a_model_says_the_same_at_padding_as_well():
    found, wanted = (
        compiled(small_model(attention=kind), "__call__", BATCH) for kind in ("fused", "plain")
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def kernels(model, *args):
    graph, state = nnx.split(model)
    found = equations(lambda state: nnx.merge(graph, state)(*args), state)
    return sum(equation.primitive.name == "pallas_call" for equation in found)


def test_the_encoder_and_the_way_across_are_fused_and_only_when_asked_for_on_a_cpu():
    assert kernels(small_model(attention="fused"), BATCH) == 2
    assert kernels(small_model(attention="auto"), BATCH) == 0
    assert kernels(small_model(attention="plain"), BATCH) == 0


def test_rows_and_heads_are_divided_and_the_numbers_are_the_same():
    placed = Partitioning(num_partitions=2).placement()
    sizes = {"vocab_size": 64, "mlp_dim": 32, "num_heads": 6, "head_dim": 4}
    batch = placed.batch(BATCH)

    def gradient(kind, hold):
        model = small_model(attention=kind, **sizes)
        if hold:
            model.hold(placed.layout)
        graph, prompt, frozen = nnx.split(model, PromptParam, ...)

        def loss(prompt, frozen, batch):
            return Loss()(nnx.merge(graph, prompt, frozen)(batch), batch)[0]

        arguments = (prompt, frozen, BATCH)
        if hold:
            arguments = (placed.replicated(prompt), placed.parameters(frozen), batch)
        program = jax.jit(jax.grad(loss), compiler_options=QUICKLY)
        [found] = named(program(*arguments)).values()
        return np.asarray(found)

    np.testing.assert_allclose(gradient("fused", True), gradient("plain", False), atol=1e-4)


# Where there is none.


@dataclasses.dataclass(frozen=True)
class Elsewhere(Layout):
    """A layout of devices that this machine has not."""

    platform: str = "gpu"
    device_kind: str = ""


def over(config, layout, *, rows=4, queries=12, keys=12):
    heads = config.num_heads
    relative = jnp.zeros((1, heads, queries, keys))
    real = jnp.ones((rows, keys), bool)
    return attention_over(config, layout, queries=queries, real=real, relative=relative)


FUSED = dataclasses.replace(T5_1_1, attention="fused", dtype="bfloat16", head_dim=64)
GPU, V4 = Elsewhere(), Elsewhere(platform="tpu", device_kind="TPU v4")


@pytest.mark.parametrize(
    ("config", "layout", "shapes", "message"),
    [
        (dataclasses.replace(FUSED, dtype="float32"), GPU, {}, "DTYPE is 'float32'"),
        (dataclasses.replace(FUSED, head_dim=6), GPU, {}, "no heads of 6 features"),
        (FUSED, GPU, {"keys": 13}, "an even number of keys, and here are 13"),
        (FUSED, V4, {"queries": 1100, "keys": 1100}, "of the vector memory of a TPU v4"),
        (FUSED, Partitioning().placement().layout, {"rows": 3}, "3 rows does not divide among 8"),
        (
            FUSED,
            Partitioning(num_partitions=4).placement().layout,
            {},
            "2 heads do not divide among 4 devices",
        ),
    ],
)
def test_where_there_is_none_it_says_why_and_auto_is_plain(config, layout, shapes, message):
    with pytest.raises(DeviceError, match=message):
        over(config, layout, **shapes)
    over(dataclasses.replace(config, attention="auto"), layout, **shapes)


def test_it_is_chosen_by_the_devices_that_are_compiled_for():
    """Not by those of the host: a TPU's program is compiled ahead of time on a laptop."""
    config = dataclasses.replace(T5_1_1, attention="auto")
    q = jnp.zeros((4, 12, config.num_heads, config.head_dim))

    def chosen(layout):
        attend = over(config, layout)
        return [one.primitive.name for one in equations(lambda q: attend(q, (q, q)), q)]

    assert "pallas_call" in chosen(Elsewhere(platform="tpu", device_kind="TPU v5 lite"))
    assert "pallas_call" not in chosen(GPU)
    assert "pallas_call" not in chosen(Layout())


def test_an_unknown_attention_is_refused():
    with pytest.raises(ConfigError, match=r"attention='fusd'.*auto, plain, fused.*'fused'"):
        dataclasses.replace(T5_1_1, attention="fusd")


def test_the_default_is_auto():
    fields = {field.name: field.default for field in dataclasses.fields(T5Config)}
    assert fields["attention"] == "auto"
