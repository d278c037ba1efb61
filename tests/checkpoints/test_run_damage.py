"""What becomes of a run's checkpoints when the disk fails, fills up, or the process is killed."""

import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.errors import CheckpointError
from tests.checkpoints.test_run import assert_identical, drawn, fresh, restore, save, saved_steps

ROOT = pathlib.Path(__file__).parents[2]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run's folder with the checkpoints 3 and 7."""
    folder = tmp_path_factory.mktemp("whole")
    with RunCheckpoints(folder, base="ab" * 32, keep=2) as checkpoints:
        checkpoints.save(drawn(fresh(), 3))
        state = drawn(fresh(), 7)._replace(pending={"loss": 0.5})
        checkpoints.save(state, data={"iterator": b"somewhere"})
    return folder


DAMAGE = {
    "flipped at the start": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "flipped in the middle": lambda content: flipped(content, len(content) // 2),
    "flipped at the end": lambda content: flipped(content, -1),
    "another byte": lambda content: flipped(content, len(content) * 2 // 3),
    "cut short": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "missing": lambda content: None,
}


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_refused_or_does_not_matter(two, tmp_path, damage):
    expected = restore(two, fresh())
    newest = two / "checkpoints/7"
    files = [file for file in sorted(newest.rglob("*")) if file.is_file() and file.stat().st_size]
    refused = 0
    for i, file in enumerate(files):
        folder = tmp_path / str(i)
        shutil.copytree(two, folder)
        damaged = folder / file.relative_to(two)
        content = damage(file.read_bytes())
        damaged.unlink()
        if content is not None:
            damaged.write_bytes(content)
        before = contents(folder)
        try:
            assert_identical(restore(folder, fresh()), expected)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"The checkpoint {folder}/checkpoints/7 is damaged. ")
            assert str(error).endswith(
                "Older checkpoints are here, of step 3: to go on from the newest of them, remove "
                f"{folder}/checkpoints/7."
            )
        assert contents(folder) == before
        shutil.rmtree(folder)
    assert refused >= 4


def test_the_only_checkpoint_that_is_damaged_leads_to_a_new_start(two, tmp_path):
    shutil.copytree(two / "checkpoints/7", tmp_path / "checkpoints/7")
    (tmp_path / "checkpoints/7/params/manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match=r"There is no older one: remove it, or choose ano"):
        restore(tmp_path, fresh())


def test_a_run_goes_on_from_the_older_one_when_the_damaged_one_is_removed(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/7")
    assert restore(tmp_path / "run", fresh()).step == 3


def program(folder, body):
    """Runs code over a state of 80 kB that draws its values from the step."""
    text = f"""
        import sys, resource
        import jax.numpy as jnp, numpy as np
        from flax import nnx
        from prompt_tuning.checkpoints.run import RunCheckpoints
        from prompt_tuning.errors import CheckpointError
        from prompt_tuning.prompts import PromptParam
        from prompt_tuning.training.optimizer import adafactor
        from prompt_tuning.training.state import start

        def state(step):
            values = np.random.default_rng(step).normal(size=(20, 1000)).astype(np.float32)
            prompt = PromptParam(jnp.asarray(values), axes=("prompt", "embed"))
            return start(nnx.State({{"prompt": prompt}}), adafactor(), step=step)

        checkpoints = RunCheckpoints({str(folder)!r}, base="ab")
    """
    return [sys.executable, "-c", textwrap.dedent(text) + textwrap.dedent(body)]


def outcome(folder, body):
    ran = subprocess.run(
        program(folder, body), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("when", ["checkpoints.save(state(3))", "checkpoints.__exit__(None)"])
def test_a_disk_without_room_is_told_by_the_next_save_or_the_end(tmp_path, when):
    said = outcome(
        tmp_path,
        f"""
        checkpoints.save(state(1), wait=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))
        checkpoints.save(state(2))
        try:
            {when}
        except CheckpointError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        restored = checkpoints.restore(state(0))
        assert restored.step == 1
        np.testing.assert_array_equal(
            restored.trainable["prompt"][...], state(1).trainable["prompt"][...]
        )
        """,
    )
    folder = tmp_path / "checkpoints"
    assert re.fullmatch(
        rf"The state of step 2 could not be written to {folder}/2 \(.*File too large.*\)\. What "
        r"was saved before is whole\. Make room or choose another MODEL_DIR, and start the same "
        r"command again\.\n",
        said,
    ), said
    assert saved_steps(tmp_path) == [1]


def test_a_run_goes_on_saving_when_there_is_room_again(tmp_path):
    outcome(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))
        try:
            checkpoints.save(state(1), wait=True)
            raise AssertionError("there is no room")
        except CheckpointError:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        checkpoints.save(state(2), wait=True)
        """,
    )
    assert saved_steps(tmp_path) == [2]


def test_a_full_file_system_leaves_what_was_saved_before(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(tmp_path)]
    # Only root may mount. A limit on the size of files stands in for a full disk everywhere, above.
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        said = outcome(
            tmp_path,
            """
            checkpoints.save(state(1), wait=True)
            try:
                checkpoints.save(state(2), wait=True)
            except CheckpointError as error:
                print(error)
            assert checkpoints.restore(state(0)).step == 1
            """,
        )
        assert "No space left on device" in said
        assert saved_steps(tmp_path) == [1]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_error_that_ends_the_run_is_not_hidden_by_one_of_the_last_save(tmp_path, caplog):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with (
        pytest.raises(KeyboardInterrupt),
        RunCheckpoints(tmp_path, base="ab") as checkpoints,
    ):
        checkpoints._last_saved = -1
        checkpoints.save(drawn(fresh(), 5))
        raise KeyboardInterrupt
    assert "The state of step 5 could not be written" in caplog.text


@pytest.mark.slow
def test_a_process_that_is_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    for seed in range(4):
        forever = """
        print("ready", flush=True)
        restored = checkpoints.restore(state(0))
        step = restored.step if restored else 0
        while True:
            step += 1
            checkpoints.save(state(step))
        """
        with subprocess.Popen(
            program(tmp_path, forever), cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            try:
                process.wait(timeout=1.0 + 0.37 * seed)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    outcome(
        tmp_path,
        """
        restored = checkpoints.restore(state(0))
        np.testing.assert_array_equal(
            restored.trainable["prompt"][...], state(restored.step).trainable["prompt"][...]
        )
        assert restored.step > 4, restored.step
        checkpoints.save(state(restored.step + 1), wait=True)
        """,
    )
    assert len(saved_steps(tmp_path)) == 1  # and nothing else is there


def test_a_checkpoint_that_is_half_removed_does_not_count(tmp_path, monkeypatch):
    save(tmp_path, drawn(fresh(), 3))
    newest = drawn(fresh(), 4)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        save(tmp_path, newest)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"4", "3.orbax-checkpoint-tmp-removed"}
    assert_identical(restore(tmp_path, fresh()), newest)
    save(tmp_path, drawn(fresh(), 5))
    assert saved_steps(tmp_path) == [5]


TWO_PROCESSES = """
import sys
import jax
port, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.errors import CheckpointError
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import start

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
values = np.arange(6.0, dtype=np.float32).reshape(2, 3)
array = jax.make_array_from_callback((2, 3), everywhere, lambda i: values[i])
prompt = nnx.State({"prompt": PromptParam(array, axes=("prompt", "embed"))})
state = start(prompt, adafactor(), step=0)
slots = jax.tree.map(
    lambda one: jax.make_array_from_callback(one.shape, everywhere, lambda i: np.asarray(one)[i]),
    state.opt_state,
)
state = state._replace(opt_state=slots)
with RunCheckpoints(folder, base="ab") as checkpoints:
    assert checkpoints.restore(state) is None
    for step in (1, 2, 3):
        checkpoints.save(state._replace(step=step, pending={"loss": 1.5}))
multihost_utils.sync_global_devices("saved")
with RunCheckpoints(folder, base="ab") as checkpoints:
    restored = checkpoints.restore(state)
    assert (restored.step, restored.pending) == (3, {"loss": 1.5})
    assert restored.trainable["prompt"][...].sharding == everywhere
    np.testing.assert_array_equal(restored.trainable["prompt"][...], values)
try:
    RunCheckpoints(folder if index else folder + "/other", base="ab").restore(state)
except CheckpointError as error:
    print(error)
multihost_utils.sync_global_devices("end")
"""


def test_two_processes_save_one_checkpoint_and_both_restore_it(tmp_path, unused_port):
    commands = [
        [sys.executable, "-c", TWO_PROCESSES, str(unused_port), str(i), str(tmp_path)]
        for i in range(2)
    ]
    processes = [
        subprocess.Popen(one, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for one in commands
    ]
    try:
        said = [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error
        assert "is of step -1 for process 0 and of step 3 for another (-1: none)" in out
    assert saved_steps(tmp_path) == [3]


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    partial = [f"a.tmp-{'0f' * 16}", f"deep/b.safetensors.tmp-{'12' * 16}"]
    others = ["a", "deep/b.safetensors", "notes.tmp-old", f"c.tmp-{'0f' * 16}.md"]
    (tmp_path / "deep").mkdir()
    for name in [*partial, *others]:
        (tmp_path / name).write_text("")
    storage.remove_partial(epath.Path(tmp_path))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(others)
