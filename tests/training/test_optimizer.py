import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.model import BaseParam
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor, per_matrix
from prompt_tuning.training.schedules import learning_rate

# case of the original's recording -> the settings it was recorded with
RECORDED = {
    "small_5x32": adafactor(),
    "small_5x32_start1100000": adafactor(),
    "small_5x32_tiny_grads": adafactor(),
    "rect_100x160": adafactor(),
    "factored_130x136": adafactor(),
    "factored_150x128_start1100000": adafactor(),
    "param_scale_5x32": adafactor(multiply_by_parameter_scale=True),
    "no_weight_decay_5x32": adafactor(weight_decay_rate=None),
    "momentum_5x32": adafactor(momentum=0.9),
}


def prompt(array):
    return nnx.State({"prompt": PromptParam(jnp.asarray(array), axes=("prompt", "prompt_embed"))})


def run(optimizer, params, grads, *, step=0):
    """Yields the parameters and slots after each of several updates."""
    opt_state = optimizer.init(params, step=step)
    update = jax.jit(optimizer.transform.update)
    for grad in grads:
        updates, opt_state = update(grad, opt_state, params)
        params = optax.apply_updates(params, updates)
        yield params, opt_state


def prompts_after(optimizer, array, grads, *, step=0):
    steps = run(optimizer, prompt(array), map(prompt, grads), step=step)
    return [params["prompt"][...] for params, _ in steps]


def slots(opt_state):
    """Returns the second and first moments, without those that are not in use."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {path[-1].name: leaf for path, leaf in leaves if leaf.size > 1}


def rms(array):
    return float(np.sqrt(np.mean(np.square(array))))


@pytest.fixture
def small(golden):
    arrays = golden("misc/adafactor.npz")
    return arrays["small_5x32/param/0"], arrays["small_5x32/grads"]


@pytest.mark.parametrize("case", RECORDED)
def test_updates_equal_the_original(golden, case):
    arrays = golden("misc/adafactor.npz")
    start, grads = int(arrays[f"{case}/start_step"]), arrays[f"{case}/grads"]
    recorded = {int(key.split("/")[2]) for key in arrays if key.startswith(f"{case}/param/")}
    assert len(grads) in recorded

    steps = run(RECORDED[case], prompt(arrays[f"{case}/param/0"]), map(prompt, grads), step=start)
    for number, (params, opt_state) in enumerate(steps, start=1):
        if number in recorded:
            # The values are about 1: the difference is the last bits of at most 6 updates.
            expected = arrays[f"{case}/param/{number}"]
            np.testing.assert_allclose(params["prompt"][...], expected, rtol=0, atol=3e-6)
            theirs = {
                key.rpartition("/")[2]: value
                for key, value in arrays.items()
                if key.startswith(f"{case}/state/{number}/")
            }
            ours = slots(opt_state)
            if "ema" in ours:
                ours["m"] = ours.pop("ema")
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                np.testing.assert_allclose(ours[name], value, rtol=5e-6, atol=1e-6, err_msg=name)


def test_every_counter_stands_at_the_global_step(small):
    array, grads = small
    optimizer = adafactor(momentum=0.9)

    def counters(opt_state):
        leaves = jax.tree_util.tree_leaves_with_path(opt_state)
        return [int(leaf) for path, leaf in leaves if path[-1].name == "count"]

    params = prompt(array)
    assert set(counters(optimizer.init(params, step=1_100_000))) == {1_100_000}
    *_, (_, opt_state) = run(optimizer, params, map(prompt, grads), step=1_100_000)
    assert set(counters(opt_state)) == {1_100_000 + len(grads)}


def test_the_schedule_is_read_at_the_global_step(small):
    array, grads = small
    warmup = learning_rate("linear_warmup", warmup_steps=100)
    (first, *_) = prompts_after(adafactor(warmup, weight_decay_rate=None), array, grads, step=70)
    assert rms(first - array) == pytest.approx(0.7, rel=1e-5)


def test_over_a_late_base_every_update_is_as_large_as_the_learning_rate(small):
    array, grads = small
    optimizer = adafactor(weight_decay_rate=None)
    late = [array, *prompts_after(optimizer, array, grads, step=1_100_000)]
    early = [array, *prompts_after(optimizer, array, grads, step=0)]
    sizes = [rms(after - before) for before, after in itertools.pairwise(late)]
    np.testing.assert_allclose(sizes, 0.3, rtol=1e-5)
    assert rms(early[-1] - early[-2]) < 0.29


def test_a_step_offset_makes_the_decay_start_afresh(small):
    array, grads = small
    late = prompts_after(adafactor(step_offset=1_100_000), array, grads, step=1_100_000)
    np.testing.assert_array_equal(late, prompts_after(adafactor(), array, grads, step=0))


def test_a_step_offset_after_the_first_step_is_refused(small):
    array, _ = small
    optimizer = adafactor(step_offset=21)
    with pytest.raises(ConfigError, match=r"step_offset is 21, but training starts at step 20"):
        optimizer.init(prompt(array), step=20)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1000.0])
def test_weight_decay_is_not_a_fraction_of_the_learning_rate(small, rate):
    array, _ = small
    optimizer = adafactor(learning_rate(base_learning_rate=rate), weight_decay_rate=0.01)
    (after,) = prompts_after(optimizer, array, [np.zeros_like(array)])
    np.testing.assert_allclose(after, 0.99 * array, rtol=1e-6)


STRATEGIES = {
    "unfactored": adafactor(),
    "factored": adafactor(min_dim_size_to_factor=4),
    "parameter scale": adafactor(multiply_by_parameter_scale=True, weight_decay_rate=None),
    "unclipped, with momentum": adafactor(clipping_threshold=None, momentum=0.9),
}


def stack(arrays):
    return nnx.State({"w": BaseParam(jnp.asarray(arrays), axes=("layers", "embed", "mlp"))})


def layer(array):
    return nnx.State({"w": BaseParam(jnp.asarray(array), axes=("embed", "mlp"))})


@pytest.fixture
def layers():
    """Three layers [6, 8] and their gradients in two steps, of very different sizes."""
    rng = np.random.default_rng(0)
    sizes = np.array([1e-3, 1.0, 1e3], np.float32)[:, None, None]
    arrays = rng.normal(size=(3, 6, 8)).astype(np.float32) * sizes
    return arrays, rng.normal(size=(2, 3, 6, 8)).astype(np.float32) * sizes[::-1]


@pytest.mark.parametrize("optimizer", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_a_stack_is_updated_as_its_layers_alone(layers, optimizer):
    arrays, grads = layers
    *_, (together, _) = run(optimizer, stack(arrays), map(stack, grads), step=3)
    for i, array in enumerate(arrays):
        *_, (alone, _) = run(optimizer, layer(array), (layer(grad[i]) for grad in grads), step=3)
        np.testing.assert_allclose(together["w"][...][i], alone["w"][...], rtol=1e-6)


def test_without_per_matrix_the_layers_of_a_stack_would_touch_each_other(layers):
    arrays, grads = layers
    transform = optax.adafactor(0.3, weight_decay_rate=1e-5)
    plain, _ = transform.update(stack(grads[0]), transform.init(stack(arrays)), stack(arrays))
    each = per_matrix(transform)
    ours, _ = each.update(stack(grads[0]), each.init(stack(arrays)), stack(arrays))
    assert not np.allclose(plain["w"][...], ours["w"][...], rtol=0.1)


def test_an_update_without_the_parameters_is_refused(small):
    array, grads = small
    transform = adafactor().transform
    message = "per_matrix needs the parameters: call update(grads, state, params)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        transform.update(prompt(grads[0]), transform.init(prompt(array)))
