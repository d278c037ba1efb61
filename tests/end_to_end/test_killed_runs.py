"""Runs that are killed, stopped or moved end like runs that were not, and never half."""

import random
import resource
import signal
import time

import numpy as np
import pytest

from prompt_tuning.checkpoints import load_vectors, open_model
from tests.run_processes import LAST, after, concluded, logged, make_world, outcome, when
from tests.small_vocabulary import SENTENCES
from tests.tiny_runs import BASE_STEP, binding

PREEMPTED, OUT_OF_MEMORY = 75, 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world):
    """The run that nobody disturbs: how it ends, and how long it takes."""
    folder = world.folder / "whole"
    world.finish(folder / "first", folder / "cache")  # compiles for all others
    began = time.monotonic()
    code, said = world.finish(folder / "run", folder / "other_cache")
    assert code == 0, said
    return outcome(folder / "run"), time.monotonic() - began


def moments(seed, seconds, run, cache):
    """Yields where to kill: anywhere, while a checkpoint is written, while the cache is."""
    rng = random.Random(seed)
    return [
        after(rng.uniform(0.3, 1.0) * seconds),
        when(run / "checkpoints", "*tmp*", times=rng.randint(1, 15)),
        when(cache, "*/*.tmp*"),
        when(run / "numpy_checkpoints", "checkpoint_*", times=rng.randint(2, 18)),
    ][seed % 4]


def check_killed(world, whole, tmp_path, seed):
    expected, seconds = whole
    run, cache = tmp_path / "run", tmp_path / "cache"
    world.kill(run, cache, moments(seed, seconds, run, cache))
    code, said = world.finish(run, cache)
    assert code == 0, said
    assert outcome(run) == expected
    assert concluded(run) == concluded(world.folder / "whole/run")
    assert not list(tmp_path.rglob("*.tmp*")), "left-overs of the killed process"


@pytest.mark.parametrize("seed", [1])
def test_a_killed_run_ends_like_one_that_was_not(world, whole, tmp_path, seed):
    check_killed(world, whole, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_killed_runs_end_like_one_that_was_not(world, whole, tmp_path, seed):
    check_killed(world, whole, tmp_path, seed)


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGTERM], pytest.param([signal.SIGINT, signal.SIGINT], marks=pytest.mark.slow)],
)
def test_a_run_that_is_told_to_stop_saves_and_goes_on(world, whole, tmp_path, signals):
    run, cache = tmp_path / "run", tmp_path / "cache"
    process = world.start(run, cache)
    when(run / "numpy_checkpoints", "checkpoint_*", times=4)(process)
    for one in signals:
        process.send_signal(one)
        time.sleep(0.2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, said
    assert "start the same command again" in said
    code, said = world.finish(run, cache)
    assert code == 0, said
    assert outcome(run) == whole[0]
    code, said = world.finish(run, cache)
    assert code == 0
    assert "finished" in said
    assert outcome(run) == whole[0]


@pytest.mark.slow
def test_pretraining_that_is_told_to_stop_goes_on(world, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(SENTENCES * 20))
    arguments = [
        "pretrain",
        "--gin_file=models/ours_tiny.gin",
        "--gin_file=runs/pretrain.gin",
        binding("VOCABULARY_FILE", world.folder / "small.model"),
        binding("CORPUS", tmp_path / "*.txt"),
        binding("CACHE_DIR", tmp_path / "cache"),
        "--gin.INPUT_LENGTH=32",
        "--gin.BATCH_SIZE=8",
        "--gin.SAVE_PERIOD=5",
        "--gin.TRAIN_STEPS=60",
        "--gin.train.stats_period=7",
    ]
    outcomes = []
    for name in ("whole", "stopped"):
        run = tmp_path / name
        folder = binding("MODEL_DIR", run)
        if name == "stopped":
            process = world.command(*arguments, folder)
            when(run / "checkpoints", "[0-9]*", times=3)(process)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert process.returncode == PREEMPTED, said
        process = world.command(*arguments, folder)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        model = open_model(run)
        assert model.step == 60
        arrays = {name: one.load().tobytes() for name, one in model.tensors.items()}
        outcomes.append((arrays, logged(run)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_a_run_goes_on_with_other_devices(world, whole, tmp_path, devices):
    run, cache = tmp_path / "run", tmp_path / "cache"
    world.kill(run, cache, when(run / "numpy_checkpoints", "checkpoint_*", times=8))
    code, said = world.finish(run, cache, devices=devices)
    assert code == 0, said
    check_same_examples(world, whole, run)


def check_same_examples(world, whole, run):
    """Checks that a run has seen what the whole one has; sums over devices round otherwise."""
    (_, expected), (_, found) = whole[0], outcome(run)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        for row, other in zip(rows, found[name], strict=True):
            assert row.keys() == other.keys()
            # Of any other examples these would be other numbers.
            exact = [key for key in row if "non_padding" in key or "effective" in key]
            for key in ["step", *exact]:
                assert row[key] == other[key], (name, row["step"], key)
            if "loss" in row:
                assert other["loss"] == pytest.approx(row["loss"], rel=1e-4)
    np.testing.assert_allclose(
        load_vectors(run), load_vectors(world.folder / "whole/run"), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(world, whole, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    world.kill(run, cache, when(run / "numpy_checkpoints", "checkpoint_*", times=8))
    codes, said = world.finish_together(run, cache, processes=2)
    assert codes == [0, 0], said
    check_same_examples(world, whole, run)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(world, whole, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    moment = when(run / "numpy_checkpoints", "checkpoint_*", times=8)
    codes, said = world.finish_together(run, cache, processes=2, moment=moment)
    assert codes == [-signal.SIGKILL] * 2, said
    code, said = world.finish(run, cache)
    assert code == 0, said
    check_same_examples(world, whole, run)


@pytest.mark.slow
def test_two_trainers_do_not_share_a_folder(world, whole, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    first = world.start(run, cache, f"--gin.TRAIN_STEPS={LAST + 2000}")
    when(run / "numpy_checkpoints", "checkpoint_*", times=2)(first)
    code, said = world.finish(run, cache, f"--gin.TRAIN_STEPS={LAST + 2000}")
    assert code == 4
    assert str(first.pid) in said
    first.kill()
    first.communicate()
    code, said = world.finish(run, cache)
    assert code == 0 and "finished" in said


@pytest.mark.slow
def test_a_run_that_meets_the_end_of_memory_leaves_what_it_saved_whole(tmp_path):
    world = make_world(tmp_path, rows=4096)
    with open(tmp_path / "train.tsv", "a") as file:  # the one batch that is too large
        file.write(" ".join(SENTENCES * 10).replace("\t", " ") + "\t1\n")
    last = BASE_STEP + 9
    flags = [
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 1024, 'targets': 8}",
        "--gin.BATCH_SIZE=512",
        "--gin.DROPOUT_RATE=0.0",
        "--gin.SAVE_PERIOD=1",
        f"--gin.TRAIN_STEPS={last}",
    ]
    run, cache = tmp_path / "run", tmp_path / "cache"
    process = world.start(run, cache, *flags)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    _, said = process.communicate(timeout=300)
    assert process.returncode == OUT_OF_MEMORY, said
    assert "What it takes of each device" in said
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    assert BASE_STEP < steps[-1] < last

    assert "--gin.train.accept_changes=True" in said
    flags += ["--gin.MICROBATCHES=64", "--gin.train.accept_changes=True"]
    code, said = world.finish(run, cache, *flags)
    assert code == 0, said
    assert f"Changed since step {steps[-1]}: train_script.train.microbatches" in said
    code, said = world.finish(tmp_path / "other", cache, *flags)
    assert code == 0, said
    ours, whole = (load_vectors(path / "prompt.safetensors") for path in (run, tmp_path / "other"))
    np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-6)
