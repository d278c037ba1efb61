"""What is counted in a compiled program, against programs whose counts are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from prompt_tuning.planning.counts import count

LAYERS, ROWS, WIDTH = 5, 8, 16


def counted(function, *arguments, **options):
    return count(jax.jit(function).lower(*arguments).compile().as_text(), **options)


def stacked(unroll):
    def loss(x, weights):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights, unroll=unroll)[0].sum()

    return jax.grad(loss)


X = jnp.ones((ROWS, WIDTH))
WEIGHTS = jnp.ones((LAYERS, WIDTH, WIDTH))


@pytest.mark.parametrize("unroll", [1, 2, LAYERS])
def test_a_loop_counts_as_often_as_it_runs(unroll):
    # Forwards, and backwards for the input alone.
    found = counted(stacked(unroll), X, WEIGHTS)
    assert found.flops == 2 * LAYERS * 2 * ROWS * WIDTH * WIDTH
    assert not found.unknown


def test_the_compilers_own_count_is_that_of_one_trip():
    compiled = jax.jit(stacked(1)).lower(X, WEIGHTS).compile()
    assert compiled.cost_analysis()["flops"] < count(compiled.as_text()).flops / 2


def test_a_loop_in_a_loop_multiplies():
    def twice(x, weights):
        def outer(x, _):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0]

    assert counted(twice, X, WEIGHTS).flops == 3 * LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_loop_that_its_data_end_counts_as_often_as_it_may_run():
    def search(x, w):
        def go_on(state):
            return jnp.any(state < 100.0)

        return jax.lax.while_loop(go_on, lambda x: x + jnp.abs(x @ w), x)

    once = 2 * ROWS * WIDTH * WIDTH
    assert counted(search, X, WEIGHTS[0], most_trips=7).flops == 7 * once
    unknown = counted(search, X, WEIGHTS[0])
    assert unknown.flops == once
    assert "loop" in min(unknown.unknown)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_counts_no_padding(stride):
    # Three taps over five positions with one of padding on either side: 3 + 3 + 3 and 2 + 2.
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride,), [(1, 1)])

    meetings = {1: 13, 2: 7}[stride]
    found = counted(convolve, jnp.ones((2, 4, 5)), jnp.ones((6, 4, 3)))
    assert found.flops == 2 * 2 * 4 * 6 * meetings


def test_collectives_count_with_their_loop_and_dtype():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))
    divided = NamedSharding(mesh, PartitionSpec(None, "x"))
    whole = NamedSharding(mesh, PartitionSpec())

    def layers(x, weights):
        def layer(x, w):
            x = jax.lax.with_sharding_constraint(jnp.tanh(x) @ w, whole)
            return jax.lax.with_sharding_constraint(x, divided), None

        return jax.lax.scan(layer, x, weights)[0]

    rows = NamedSharding(mesh, PartitionSpec(None, "x", None))
    arguments = jax.device_put(X, divided), jax.device_put(WEIGHTS, rows)
    found = counted(layers, *arguments)
    assert found.collectives == {
        ("all-reduce", "f32"): (LAYERS, LAYERS * ROWS * WIDTH * 4),
    }
    assert found.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH / 4


def test_a_slice_of_a_stack_moves_as_many_bytes_as_the_slice():
    # The whole stack in every trip would be 40 x 40 layers, forwards as backwards.
    layers = 40
    found = counted(stacked(1), X, jnp.ones((layers, WIDTH, WIDTH)))
    layer = WIDTH * WIDTH * 4
    assert 2 * layers * layer <= found.bytes < layers * layers * layer


# The lines of programs for TPUs and GPUs that a CPU never has.
LINES = """
HloModule jit_f

ENTRY %main.1 (a: bf16[8,128], b: s4[128,64]) -> bf16[8,64] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = s4[128,64]{1,0:T(64,128)(8,1)} parameter(1)
  %start = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%a), dimensions={0}
  %done = bf16[32,128]{1,0} all-gather-done(%start)
  %kernel = bf16[8,128]{1,0:S(1)} custom-call(%a), custom_call_target="tpu_custom_call", SETTINGS
  ROOT %gemm = bf16[8,64]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm"
}
"""


def test_an_asynchronous_collective_counts_once_and_by_its_result():
    found = count(LINES)
    assert found.collectives == {("all-gather", "bf16"): (1, 32 * 128 * 2)}


def test_a_kernel_counts_by_its_own_estimate_or_is_named():
    product = 2 * 8 * 128 * 64
    assert count(LINES).flops == product
    assert count(LINES).unknown == {"the FLOPs of the kernel tpu_custom_call"}
    estimate = 'backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000"}}}'
    found = count(LINES.replace("SETTINGS", estimate))
    assert (found.flops, found.unknown) == (product + 1000, frozenset())


def test_memory_next_to_the_cores_is_not_main_memory():
    # Read: 4 bits of each weight, twice the gathered rows; the input lies beside the cores.
    gathered, weights, made = 32 * 128 * 2, 128 * 64 // 2, 8 * 64 * 2
    assert count(LINES).bytes == pytest.approx(gathered + 8 * 128 * 2 + weights + made)
