import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5, BaseParam, T5Config, parameters
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.metrics import finish
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.schedules import learning_rate
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_eval_step, make_train_step
from tests.jaxprs import equations_of
from tests.reference_models import read, reference_batches, reference_model
from tests.small_models import BATCH, MODELS, small_model

PROMPT = "encoder/prompt/prompt"


@functools.cache
def step_of(loss, microbatches):
    """Returns model A split for prompt tuning, and its step, compiled once for this module."""
    graph, prompt, frozen = split_model(reference_model("A"), PromptParam)
    step = make_train_step(graph, adafactor(), loss=loss, microbatches=microbatches)
    return prompt, frozen, step


def fresh(state):
    """Copies arrays that a step is going to consume."""
    return jax.tree.map(jnp.copy, state)


def one_step(step, prompt, frozen, batch):
    prompt = fresh(prompt)
    return step(prompt, adafactor().init(prompt, step=0), frozen, batch, None)


def fingerprint(state):
    return parameters.fingerprint(parameters.named(state))


def moments(opt_state):
    return opt_state[PROMPT][0].v


# The trajectories of the original.


class Run(NamedTuple):
    file: str
    loss: Loss = Loss()
    microbatches: int = 1


RUNS = {
    "from step 0": Run("trajectory"),
    "from step 1,100,000": Run("trajectory_start1100000"),
    "in 2 microbatches": Run("trajectory_mb2", microbatches=2),
    "normalized by a constant": Run("trajectory_lnf_constant", Loss(normalizing_factor=233472)),
    "normalized in each of 2 microbatches": Run(
        "trajectory_mb2_lnf_num_real", Loss(normalizing_factor="NUM_REAL_TARGET_TOKENS"), 2
    ),
}


class Trajectory(NamedTuple):
    recorded: dict
    prompts: dict
    moments: dict
    counters: dict
    metrics: list
    fingerprints: tuple


@pytest.fixture(scope="module", params=RUNS.values(), ids=RUNS.keys())
def trajectory(request):
    """Runs as many steps as the original recorded, over the batches it cycled in."""
    file, loss, microbatches = request.param
    recorded = read(f"A/{file}.npz")
    start, steps = int(recorded["step/0"]), len(recorded["metrics/loss"])
    batches = [reference_batches("A")[f"batch{i}"] for i in range(5)]
    prompt, frozen, step = step_of(loss, microbatches)
    prompt, before = fresh(prompt), fingerprint(frozen)
    opt_state = adafactor().init(prompt, step=start)
    prompts, slots, counters, metrics = {}, {}, {}, []
    for i in range(steps):
        prompt, opt_state, sums = step(prompt, opt_state, frozen, batches[i % 5], None)
        metrics.append(finish(jax.device_get(sums) | {"steps": 1}))
        if f"prompt/{i + 1}" in recorded:
            prompts[i + 1] = np.asarray(parameters.named(prompt)[PROMPT])
            slots[i + 1] = np.asarray(moments(opt_state))
            counters[i + 1] = int(opt_state[PROMPT][0].count)
    assert len(prompts) >= 3
    fingerprints = before, fingerprint(frozen)
    return Trajectory(recorded, prompts, slots, counters, metrics, fingerprints)


def distance(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


# Two runs of the original whose batches have their rows in another order are the same mathematics,
# and drift apart: by 6e-8 at most after 1 step, 4e-5 after 5 (8e-5 between whole batches and
# microbatches), 6e-4 after 50. The prompt's numbers are about 1, so these are relative as well;
# we stay within the drift of 5 steps.
DRIFT = 1e-4


def test_the_prompt_after_some_steps_is_the_originals(trajectory):
    for k, prompt in trajectory.prompts.items():
        tolerance = 5e-7 if k == 1 else DRIFT
        assert distance(prompt, trajectory.recorded[f"prompt/{k}"]) < tolerance, k


def test_the_second_moment_after_some_steps_is_the_originals(trajectory):
    for k, slot in trajectory.moments.items():
        expected = trajectory.recorded[f"opt/{k}/encoder/prompt/prompt/prompt/v"]
        assert distance(slot, expected) < DRIFT, k


def test_the_metrics_of_every_step_are_the_originals(trajectory):
    recorded = trajectory.recorded
    assert trajectory.metrics
    for i, metrics in enumerate(trajectory.metrics):
        for name, value in metrics.items():
            # The drift of the prompt moves a loss by less than 1e-6.
            expected = recorded[f"metrics/{name}"][i]
            np.testing.assert_allclose(value, expected, rtol=3e-6, err_msg=f"{name}, {i}")


def test_the_counter_is_the_originals_step(trajectory):
    for k, counter in trajectory.counters.items():
        assert counter == int(trajectory.recorded[f"step/{k}"])


def test_the_frozen_parameters_keep_their_bytes(trajectory):
    before, after = trajectory.fingerprints
    assert before == after


# What a step reads, computes and returns.


@pytest.fixture(scope="module")
def traced():
    """Traces steps of a model whose matrices have shapes of their own; nothing is computed.

    Returns the trainable state, the frozen one, the traced step and the traced forward pass, for
    prompt tuning and for model tuning.
    """
    config = T5Config(
        vocab_size=1000,
        embed_dim=96,
        mlp_dim=200,
        num_heads=4,
        head_dim=28,
        encoder_layers=2,
        decoder_layers=2,
        dtype="float32",
    )
    prompt = functools.partial(Prompt, length=5, init=uniform())
    model = nnx.eval_shape(lambda: T5(config, prompt=prompt, rngs=nnx.Rngs(0)))
    batch = Batch(
        inputs=np.ones((8, 16), np.int32),
        targets=np.ones((8, 8), np.int32),
        weights=np.ones((8, 8), np.float32),
    )
    optimizer = adafactor()

    def trace(kind):
        graph, chosen, frozen = split_model(model, kind)
        opt_state = jax.eval_shape(lambda chosen: optimizer.init(chosen, step=0), chosen)
        step = make_train_step(graph, optimizer).trace(chosen, opt_state, frozen, batch, None)
        forward = make_eval_step(graph).trace(chosen, frozen, batch)
        return chosen, frozen, step, forward

    return {kind: trace(kind) for kind in (PromptParam, BaseParam)}


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_step_returns_the_prompt_and_its_slots_and_nothing_of_the_base(traced):
    chosen, frozen, step, _ = traced[PromptParam]
    prompt, opt_state, sums = step.out_info
    assert jax.tree.structure(prompt) == jax.tree.structure(chosen)
    assert list(opt_state) == [PROMPT]
    assert all(leaf.shape == () for leaf in jax.tree.leaves(sums))
    assert size(step.out_info) < 3 * size(chosen) < size(frozen) / 100


def test_the_optimizer_state_is_no_larger_than_two_prompts(traced):
    chosen, _, _, _ = traced[PromptParam]
    for momentum, slots in [(None, 1), (0.9, 2)]:
        init = functools.partial(adafactor(momentum=momentum).init, step=0)
        assert size(jax.eval_shape(init, chosen)) < slots * size(chosen) + 32


def kernels(state):
    """Returns the shape of every matrix, without the layers of a stack, by name."""
    flat = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    return {name: shape[-2:] for name, shape in flat.items() if name.endswith("/kernel")}


def kernels_made(step, state):
    """Returns the names of the matrices of whose shape a product of the program is."""
    made = {
        tuple(sorted(variable.aval.shape))
        for equation in equations_of(step.jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
        for variable in equation.outvars
    }
    return {name for name, shape in kernels(state).items() if tuple(sorted(shape)) in made}


def test_no_gradient_of_a_frozen_matrix_is_computed(traced):
    _, frozen, prompt_step, _ = traced[PromptParam]
    whole_model, _, model_step, _ = traced[BaseParam]
    assert kernels_made(prompt_step, frozen) == set()
    assert kernels_made(model_step, whole_model) == kernels(whole_model).keys() != set()


def test_a_prompt_step_costs_two_forward_passes_and_a_model_step_three(traced):
    for kind, expected in [(PromptParam, 2.0), (BaseParam, 3.0)]:
        _, _, step, forward = traced[kind]
        flops = [traced.lower().cost_analysis()["flops"] for traced in (step, forward)]
        # Attention scores have two factors that depend on the prompt, and the optimizer works too.
        assert expected < flops[0] / flops[1] < expected + 0.15


def test_the_prompt_and_its_slots_are_donated_and_the_base_is_not(traced):
    _, frozen, step, _ = traced[PromptParam]
    (main,) = re.findall(r"@main\((.*?)\) -> ", step.lower().as_text(), re.DOTALL)
    # Each argument with the output that is written over it. XLA has no use for the two unused slots
    # of one number each.
    aliased = re.findall(r"tensor<([^>]+)> \{tf.aliasing_output = (\d+)", main)
    assert aliased == [("5x96xf32", "0"), ("i32", "1"), ("5x96xf32", "4"), ("i32", "5")]
    outputs = jax.tree.leaves(step.out_info)
    assert [outputs[int(index)].size for _, index in aliased] == [480, 1, 480, 1]
    assert len(re.findall(r"%arg\d+", main)) > len(jax.tree.leaves(frozen))


def test_a_step_consumes_the_prompt_and_its_slots_and_keeps_the_base():
    start, frozen, step = step_of(Loss(), 1)
    prompt = fresh(start)
    opt_state = adafactor().init(prompt, step=0)
    slots = moments(opt_state)
    step(prompt, opt_state, frozen, reference_batches("A")["batch0"], None)
    assert parameters.named(prompt)[PROMPT].is_deleted() and slots.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


# Microbatches.


def test_the_gradient_of_microbatches_is_the_one_of_the_whole_batch():
    batch = reference_batches("A")["batch0"]
    prompt, slots, sums = one_step(step_of(Loss(), 1)[2], *step_of(Loss(), 1)[:2], batch)
    half, half_slots, half_sums = one_step(step_of(Loss(), 2)[2], *step_of(Loss(), 2)[:2], batch)
    # The second moment of the first step is the squared gradient, so it knows a sum from a mean.
    assert distance(moments(half_slots), moments(slots)) < 1e-5
    assert distance(parameters.named(half)[PROMPT], parameters.named(prompt)[PROMPT]) < 1e-6
    assert half_sums.keys() == sums.keys()
    for name, value in sums.items():
        np.testing.assert_allclose(half_sums[name], value, rtol=1e-6, err_msg=name)


def test_a_batch_that_does_not_divide_into_microbatches_is_refused():
    graph, prompt, frozen = split_model(reference_model("A"), PromptParam)
    step = make_train_step(graph, adafactor(), microbatches=3)
    message = (
        "A batch of 4 examples does not divide into 3 microbatches. Choose a BATCH_SIZE that is a "
        "multiple of 3, or another number of microbatches."
    )
    with pytest.raises(ConfigError) as error:
        one_step(step, prompt, frozen, reference_batches("A")["batch0"])
    assert str(error.value) == message


@pytest.mark.parametrize("microbatches", [0, -2])
def test_less_than_one_microbatch_is_refused(microbatches):
    graph, _, _ = split_model(reference_model("A"), PromptParam)
    message = f"microbatches is {microbatches}, expected 1 or more."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_train_step(graph, adafactor(), microbatches=microbatches)


# Every method.


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name][1]])
def test_a_step_moves_every_number_that_a_method_learns_and_no_other(name):
    graph, learned, frozen = split_model(small_model(name), PromptParam)
    before, base = jax.device_get(parameters.named(learned)), fingerprint(frozen)
    optimizer = adafactor()
    slots = optimizer.init(learned, step=0)
    after, _, _ = make_train_step(graph, optimizer)(learned, slots, frozen, BATCH, None)
    assert before.keys() == parameters.named(after).keys()
    for key, array in parameters.named(after).items():
        assert np.all(np.asarray(array) != before[key]), key
    assert fingerprint(frozen) == base


# The same step with the other split: model tuning.


class Tuned(NamedTuple):
    before: dict
    after_one: dict
    slots: dict
    after: dict
    losses: list
    prompts: tuple


@pytest.fixture(scope="module")
def tuned():
    """Tunes model A itself for 10 steps on one batch, with its prompt among what is frozen."""
    graph, base, frozen = split_model(reference_model("A"), BaseParam)
    assert list(parameters.named(frozen)) == [PROMPT]
    schedule = learning_rate("constant", base_learning_rate=0.01)
    optimizer = adafactor(schedule, multiply_by_parameter_scale=True, weight_decay_rate=None)
    step = make_train_step(graph, optimizer)
    before, prompt = jax.device_get(parameters.named(base)), fingerprint(frozen)
    opt_state = optimizer.init(base, step=0)
    states, losses, slots = [], [], {}
    for _ in range(10):
        base, opt_state, sums = step(
            base, opt_state, frozen, reference_batches("A")["batch0"], None
        )
        losses.append(float(sums["loss"]))
        states.append(jax.device_get(parameters.named(base)))
        slots = slots or {name: jax.device_get(slot[0].v) for name, slot in opt_state.items()}
    prompts = prompt, fingerprint(frozen)
    return Tuned(before, states[0], slots, states[-1], losses, prompts)


def test_the_gradient_of_every_base_parameter_is_the_originals(tuned):
    gradients = from_t5x(read("A/grads_full_batch0.npz"))
    del gradients[PROMPT]
    assert gradients.keys() == tuned.before.keys() == tuned.slots.keys()
    for name, gradient in gradients.items():
        # The second moment of the first step is the squared gradient ...
        size = np.sqrt(tuned.slots[name])
        np.testing.assert_allclose(size, abs(gradient), rtol=1e-4, atol=1e-5, err_msg=name)
        # ... and the parameter moved against it.
        moved = tuned.after_one[name] - tuned.before[name]
        clear = abs(gradient) > 1e-4
        np.testing.assert_array_equal(np.sign(moved)[clear], -np.sign(gradient)[clear])


def test_model_tuning_lowers_the_loss(tuned):
    assert all(later < earlier for earlier, later in itertools.pairwise(tuned.losses))
    assert tuned.losses[-1] < 0.5 * tuned.losses[0]


def test_model_tuning_moves_every_base_parameter_and_no_prompt(tuned):
    for name, array in tuned.after.items():
        assert not np.array_equal(array, tuned.before[name]), name
    assert tuned.prompts[0] == tuned.prompts[1]
