import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from orbax.checkpoint import v1 as ocp

from prompt_tuning.checkpoints import load_embeddings, open_model
from prompt_tuning.checkpoints.base import with_slots
from prompt_tuning.checkpoints.mapping import to_t5x
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import BaseParam, parameters
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import RunState, split_model, start
from tests.reference_models import CONFIGS, reference_model

PROMPT = "encoder/prompt/prompt"
EMBEDDING = "token_embedder/embedding"
BASE, OTHER_BASE = "ab" * 32, "cd" * 32

OPTIMIZERS = {
    "unfactored": adafactor(),
    "factored": adafactor(min_dim_size_to_factor=4),
    "with momentum": adafactor(momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
TRAINABLE = {"prompt": PromptParam, "model": BaseParam}
every_trainable = pytest.mark.parametrize("trainable", TRAINABLE.values(), ids=TRAINABLE.keys())


@functools.cache
def parts(trainable):
    return split_model(reference_model("A"), trainable)[1:]


def fresh(trainable=PromptParam, optimizer=OPTIMIZERS["unfactored"], *, step=0):
    return start(parts(trainable)[0], optimizer, step=step)


def drawn(state, step, seed=0):
    """Replaces every array by another one, as training would, and counters by their successors."""
    rng = np.random.default_rng(seed)

    def another(leaf):
        if leaf.ndim == 0:
            return leaf + 1
        return jnp.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype))

    return RunState(*jax.tree.map(another, (state.trainable, state.opt_state)), step)


def save(folder, *states, base=BASE, keep=1):
    with RunCheckpoints(folder, base=base, keep=keep) as checkpoints:
        for state in states:
            checkpoints.save(state)


def restore(folder, like, *, base=BASE):
    with RunCheckpoints(folder, base=base) as checkpoints:
        return checkpoints.restore(like)


def test_a_run_saves_into_a_folder_that_is_named_from_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = drawn(fresh(), step=3)
    save("run", state)
    assert_identical(restore("run", fresh()), state)


def assert_identical(ours, theirs):
    assert ours.step == theirs.step
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def raises(message):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


# A run's own state.


@every_optimizer
@every_trainable
def test_a_restored_state_is_the_saved_one_bit_for_bit(tmp_path, trainable, optimizer):
    like = fresh(trainable, optimizer, step=1_100_000)
    state = drawn(like, 1_100_001)
    save(tmp_path, state)
    assert_identical(restore(tmp_path, like), state)


def test_a_folder_without_a_checkpoint_restores_nothing(tmp_path):
    assert restore(tmp_path, fresh()) is None


def test_the_newest_checkpoint_is_restored(tmp_path):
    states = [drawn(fresh(), step, seed=step) for step in (9, 10, 200)]
    save(tmp_path, *states, keep=None)
    assert saved_steps(tmp_path) == [9, 10, 200]
    assert_identical(restore(tmp_path, fresh()), states[-1])


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (None, [1, 2, 3, 4])])
def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path, keep, kept):
    save(tmp_path, *(drawn(fresh(), step) for step in (1, 2, 3, 4)), keep=keep)
    assert saved_steps(tmp_path) == kept


def test_a_state_that_is_already_saved_is_not_saved_again(tmp_path):
    state = drawn(fresh(), 5)
    save(tmp_path, state)
    save(tmp_path, state, drawn(fresh(), 6, seed=1))
    assert_identical(restore(tmp_path, fresh()), drawn(fresh(), 6, seed=1))


def test_what_is_saved_is_the_state_at_the_time_of_the_call(tmp_path):
    state = jax.tree.map(jnp.array, drawn(fresh(), 5)._replace(step=0))._replace(step=5)
    expected = jax.tree.map(np.array, state._replace(step=0))._replace(step=5)
    with RunCheckpoints(tmp_path, base=BASE) as checkpoints:
        checkpoints.save(state)
        # The next step is given these buffers and writes over them.
        overwrite = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
        overwrite((state.trainable, state.opt_state))
    assert_identical(restore(tmp_path, fresh()), expected)


@pytest.mark.parametrize("unfinished", ["12.orbax-checkpoint-tmp", "12.orbax-checkpoint-tmp-3"])
def test_a_save_that_was_killed_is_passed_over(tmp_path, unfinished):
    state = drawn(fresh(BaseParam), 7)
    save(tmp_path, state)
    whole, partial = tmp_path / "checkpoints/7", tmp_path / "checkpoints" / unfinished
    (partial / "params").mkdir(parents=True)
    for file in sorted(path for path in (whole / "params").iterdir() if path.is_file())[:2]:
        (partial / "params" / file.name).write_bytes(file.read_bytes())
    assert_identical(restore(tmp_path, fresh(BaseParam)), state)
    assert open_model(tmp_path).step == 7


def test_a_prompt_checkpoint_holds_nothing_of_the_base(tmp_path):
    save(tmp_path, drawn(fresh(), 5))
    prompt, base = parts(PromptParam)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    base_size = sum(array.nbytes for array in parameters.named(base).values())
    # Two arrays of 640 bytes and the metadata of the format, which does not grow with the model.
    assert parameters.count(prompt) * 4 * 2 < size < 20_000 < base_size / 10
    content = b"".join(path.read_bytes() for path in files)
    assert PROMPT.encode() in content
    for name in parameters.named(base):
        assert name.encode() not in content


@pytest.mark.parametrize("pending", [None, {"loss": 0.1 + 0.2, "steps": 3.0, "tiny": 5e-324}])
def test_sums_details_and_data_come_back_as_they_were_saved(tmp_path, pending):
    details = {"seed": 7, "position": {"epoch": 2, "names": ["é", None, 1.5]}}
    data = {"iterator/0": bytes(range(256)), "empty": b""}
    state = drawn(fresh(), 5)._replace(pending=pending)
    with RunCheckpoints(tmp_path, base=BASE) as checkpoints:
        assert (checkpoints.restored_details(), checkpoints.restored_data()) == ({}, {})
        checkpoints.save(state, details=details, data=data)
    with RunCheckpoints(tmp_path, base=BASE) as checkpoints:
        assert checkpoints.restore(fresh()).pending == pending
        assert checkpoints.restored_details() == details
        assert checkpoints.restored_data() == data


def test_a_save_that_is_waited_for_is_there(tmp_path):
    with RunCheckpoints(tmp_path, base=BASE) as checkpoints:
        checkpoints.save(drawn(fresh(), 5), wait=True)
        assert saved_steps(tmp_path) == [5]


def test_the_best_checkpoint_is_kept_until_there_is_a_better_one(tmp_path):
    with RunCheckpoints(tmp_path, base=BASE) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(drawn(fresh(), step), wait=True)
            if step in (2, 5):
                checkpoints.protect(step)
            expected = {1: [1], 2: [2], 3: [2, 3], 4: [2, 4], 5: [2, 5], 6: [5, 6]}
            assert saved_steps(tmp_path) == expected.get(step, [5, step])


@pytest.mark.parametrize("unfinished", ["12.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-3"])
def test_what_a_killed_run_left_is_removed_by_the_first_save(tmp_path, unfinished):
    save(tmp_path, drawn(fresh(), 7))
    (tmp_path / "checkpoints" / unfinished / "params").mkdir(parents=True)
    restore(tmp_path, fresh())  # by whoever looks at a run: it may be writing
    assert (tmp_path / "checkpoints" / unfinished).exists()
    save(tmp_path, drawn(fresh(), 8))
    assert saved_steps(tmp_path) == [8]


def test_a_run_is_restored_to_the_devices_of_the_fresh_state(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = drawn(fresh(), 5)
    save(tmp_path, state)
    like = fresh()
    placed = jax.device_put((like.trainable, like.opt_state), everywhere)
    restored = restore(tmp_path, RunState(*placed, 0))
    assert_identical(restored, state)
    for leaf in jax.tree.leaves((restored.trainable, restored.opt_state)):
        assert leaf.sharding == everywhere


SIZES = [(1, 64), (100, 512), (100, 768), (100, 1024), (100, 2048), (100, 4096)]


@pytest.mark.parametrize(("length", "width"), SIZES)
def test_a_saved_state_takes_three_and_a_half_prompts_and_64_kib_at_most(tmp_path, length, width):
    prompt = nnx.State(
        {"prompt": PromptParam(jnp.zeros((length, width)), axes=("prompt", "embed"))}
    )
    state = drawn(start(prompt, adafactor(), step=0), 1_100_100)
    identity = {f"some.module.function_{i}.argument": "'a value' " * 8 for i in range(100)}
    with RunCheckpoints(tmp_path, base=BASE, identity=identity) as checkpoints:
        checkpoints.save(state._replace(pending=dict.fromkeys("abcdefghijkl", 1 / 3)))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size <= 3.5 * 4 * length * width + 2**16


# Of which run a checkpoint is.

IDENTITY = {"TASK": "'sst2'", "train.seed": "3", "data": "f" * 8}


def restore_as(folder, identity, *, base=BASE, accept_changes=False):
    with RunCheckpoints(
        folder, base=base, identity=identity, accept_changes=accept_changes
    ) as checkpoints:
        return checkpoints.restore(fresh())


@pytest.fixture
def identified(tmp_path):
    with RunCheckpoints(tmp_path, base=BASE, identity=IDENTITY) as checkpoints:
        checkpoints.save(drawn(fresh(), 5))
    return tmp_path


def test_a_run_is_resumed_with_the_settings_it_began_with(identified):
    assert restore_as(identified, dict(reversed(IDENTITY.items()))).step == 5


def test_a_run_of_another_configuration_is_refused_with_every_difference(identified):
    changed = {"TASK": "'rte'", "train.seed": "3", "NEW": "1"}
    with pytest.raises(CheckpointError) as error:
        restore_as(identified, changed, base=OTHER_BASE)
    assert error.value.exit_code == 4
    assert str(error.value) == (
        f"The run in {identified}/checkpoints/5 is another one than is configured now:\n"
        "  NEW: was not set, is 1\n"
        "  TASK: was 'sst2', is 'rte'\n"
        "  base model: was abababababab, is cdcdcdcdcdcd\n"
        "  data: was ffffffff, is not set\n"
        "Choose another MODEL_DIR, or go back to what it began with; to go on with these changes "
        "set --gin.train.accept_changes=True."
    )


def test_changes_that_are_accepted_are_logged_and_noted(identified, caplog):
    changed = IDENTITY | {"TASK": "'rte'"}
    with (
        caplog.at_level("INFO", "prompt_tuning"),
        RunCheckpoints(
            identified, base=OTHER_BASE, identity=changed, accept_changes=True
        ) as checkpoints,
    ):
        state = checkpoints.restore(fresh())
        checkpoints.save(state._replace(step=6))
    assert [record.getMessage() for record in caplog.records] == [
        "Changed since step 5: TASK: was 'sst2', is 'rte'.",
        "Changed since step 5: base model: was abababababab, is cdcdcdcdcdcd.",
    ]
    assert restore_as(identified, changed, base=OTHER_BASE).step == 6


@pytest.mark.parametrize("identities", [(IDENTITY, None), (None, IDENTITY)])
def test_a_configuration_that_is_not_known_is_not_compared(tmp_path, identities):
    before, now = identities
    with RunCheckpoints(tmp_path, base=BASE, identity=before) as checkpoints:
        checkpoints.save(drawn(fresh(), 5))
    assert restore_as(tmp_path, now).step == 5
    with pytest.raises(CheckpointError, match="base model: was"):
        restore_as(tmp_path, now, base=OTHER_BASE)


def as_first_written(folder, state):
    """Saves as this program did before checkpoints had a record of their own."""
    params, slots = jax.device_get((parameters.named(state.trainable), state.opt_state))
    trees = {
        "params": params,
        "optimizer": {
            jax.tree_util.keystr(path, simple=True, separator="|"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(slots)
        },
        "meta": {"step": state.step, "base": BASE},
    }
    ocp.save_checkpointables(folder / "checkpoints" / str(state.step), trees)


@every_trainable
def test_a_run_of_an_older_version_is_still_read(tmp_path, trainable):
    (tmp_path / "checkpoints").mkdir()
    state = drawn(fresh(trainable), 5)
    as_first_written(tmp_path, state)
    with RunCheckpoints(tmp_path, base=BASE, identity=IDENTITY) as checkpoints:
        assert_identical(checkpoints.restore(fresh(trainable)), state)
    if trainable is BaseParam:
        assert open_model(tmp_path).step == 5
        again = with_slots(open_model(tmp_path), fresh(trainable))
        assert_identical(again._replace(trainable=state.trainable, step=5), state)


def test_a_run_of_another_trainable_is_not_resumed(tmp_path):
    save(tmp_path, drawn(fresh(), 5))
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, fresh(BaseParam))
    lines = str(error.value).split("\n")
    count = len(parameters.named(parts(BaseParam)[0]))
    assert lines[0] == (
        f"The names in the parameters do not match the model: {count} missing, 1 left over."
    )
    assert "  left over 'encoder/prompt/prompt'." in lines


def test_a_run_of_another_optimizer_is_not_resumed(tmp_path):
    save(tmp_path, drawn(fresh(), 5))
    momentum = fresh(optimizer=OPTIMIZERS["with momentum"])
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, momentum)
    assert str(error.value).startswith(
        f"The names in the optimizer state of {tmp_path}/checkpoints/5 do not match the model: "
        "2 missing, 0 left over.\n  missing 'encoder/prompt/prompt|3|count'."
    )
    factored = fresh(optimizer=OPTIMIZERS["factored"])
    message = (
        f"The optimizer slot 'encoder/prompt/prompt|0|v_row' of {tmp_path}/checkpoints/5 has "
        "shape (1,), this optimizer needs (5,). Use the optimizer settings it was saved with."
    )
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, factored)
    assert str(error.value) == message


# The base model of later runs.


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a run that trained model A up to step 30, and its state."""
    folder = tmp_path_factory.mktemp("pretrained")
    state = drawn(fresh(BaseParam), 30)
    save(folder, drawn(fresh(BaseParam), 9), state, keep=None)
    return folder, state


@pytest.mark.parametrize(("path", "step"), [("", 30), ("checkpoints/30", 30), ("checkpoints/9", 9)])
def test_a_base_is_read_from_a_run_or_from_one_of_its_checkpoints(pretrained, path, step):
    folder, state = pretrained
    base = open_model(folder / path)
    assert (base.step, base.where) == (step, epath.Path(folder) / f"checkpoints/{step}")
    trained = {name: np.asarray(one) for name, one in parameters.named(state.trainable).items()}
    expected = to_t5x(trained)
    assert base.tensors.keys() == expected.keys()
    for name, one in base.tensors.items():
        np.testing.assert_array_equal(one.load(), expected[name], err_msg=name)


def test_a_model_that_is_trained_further_goes_on_with_its_slots(pretrained):
    folder, state = pretrained
    again = with_slots(open_model(folder), fresh(BaseParam, step=30))
    assert_identical(again._replace(trainable=state.trainable), state)


def test_slots_of_another_optimizer_are_refused(pretrained):
    folder, _ = pretrained
    factored = fresh(BaseParam, OPTIMIZERS["factored"], step=30)
    with pytest.raises(CheckpointError) as error:
        with_slots(open_model(folder), factored)
    assert re.fullmatch(
        rf"The optimizer slot '.+' of {folder}/checkpoints/30 has shape \(.+\), this optimizer "
        r"needs \(.+\)\. Use the optimizer settings it was saved with\.",
        str(error.value),
    )


def test_the_embeddings_of_a_base_are_its_token_table(pretrained):
    folder, state = pretrained
    table = load_embeddings(folder)
    assert table.shape == (CONFIGS["A"].vocab_size, CONFIGS["A"].embed_dim)
    np.testing.assert_array_equal(table, parameters.named(state.trainable)[EMBEDDING])


@pytest.mark.parametrize("make", [[], ["checkpoints"], ["checkpoints/readme"]])
def test_a_folder_without_a_model_is_refused(tmp_path, make):
    for folder in make:
        (tmp_path / "base" / folder).mkdir(parents=True)
    known = "There is no checkpoint in" if make else "There is nothing at"
    with pytest.raises(CheckpointError, match=f"^{known} {tmp_path}/base") as error:
        open_model(tmp_path / "base")
    assert error.value.exit_code == 4


def test_a_prompt_is_not_a_base(tmp_path):
    save(tmp_path, drawn(fresh(), 5))
    message = (
        f"The checkpoint at {tmp_path}/checkpoints/5 holds ['encoder/prompt/prompt'], a prompt and "
        "not a model. Name the base model it was trained over instead."
    )
    with raises(message):
        open_model(tmp_path)
