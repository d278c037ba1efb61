import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from prompt_tuning.batch import Batch
from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import Loss
from prompt_tuning.training.metrics import (
    Console,
    JsonLines,
    TensorBoard,
    Writers,
    finish,
    read_lines,
)


@pytest.fixture
def sums_of(golden):
    def compute(model, name, loss=Loss()):  # noqa: B008 - frozen
        arrays = golden(f"{model}/batches.npz")
        batch = Batch(
            inputs=arrays[f"{name}/encoder_input_tokens"],
            targets=arrays[f"{name}/decoder_target_tokens"],
            weights=arrays[f"{name}/decoder_loss_weights"],
        )
        logits = jnp.asarray(golden(f"{model}/forward.npz")[f"{name}/logits"])
        return loss(logits, batch)[1] | {"steps": jnp.float32(1)}

    return compute


@pytest.mark.parametrize("model", ["A", "C"])
@pytest.mark.parametrize("name", ["batch0", "batch4", "long", "decode"])
def test_metrics_have_the_names_and_values_of_the_original(golden, sums_of, model, name):
    prefix = f"{name}/default/metrics/"
    recorded = {
        key.removeprefix(prefix): value
        for key, value in golden(f"{model}/loss.npz").items()
        if key.startswith(prefix)
    }
    metrics = finish(sums_of(model, name))
    assert metrics.keys() == recorded.keys()
    for metric, value in recorded.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-6, err_msg=metric)


def test_metrics_of_microbatches_are_those_of_the_original(golden, sums_of):
    # The same model and settings in one batch; recorded from two microbatches, each normalized.
    arrays = golden("A/batches.npz")
    logits = jnp.asarray(golden("A/forward.npz")["batch0/logits"])
    loss = Loss(normalizing_factor="NUM_REAL_TARGET_TOKENS")
    parts = []
    for start in (0, 2):
        batch = Batch(
            inputs=arrays["batch0/encoder_input_tokens"][start : start + 2],
            targets=arrays["batch0/decoder_target_tokens"][start : start + 2],
            weights=arrays["batch0/decoder_loss_weights"][start : start + 2],
        )
        parts.append(loss(logits[start : start + 2], batch)[1])
    metrics = finish(jax.tree.map(jnp.add, *parts) | {"steps": 1})

    recorded = golden("A/trajectory_mb2_lnf_num_real.npz")
    for metric, value in metrics.items():
        np.testing.assert_allclose(
            value, recorded[f"metrics/{metric}"][0], rtol=1e-6, err_msg=metric
        )


def test_losses_are_averaged_per_step_and_ratios_per_token(sums_of):
    first, second = sums_of("A", "batch0"), sums_of("A", "batch3")
    both = finish(jax.tree.map(jnp.add, first, second))
    assert both["loss"] == pytest.approx((float(first["loss"]) + float(second["loss"])) / 2)
    assert both["effective_batch_size/encoder_input_tokens"] == 4
    # 12 and 16 target tokens: not the average of two averages.
    assert both["loss_per_nonpadding_target_token"] == pytest.approx(
        float(first["loss"] + second["loss"]) / (12 + 16)
    )


def test_a_ratio_over_nothing_is_not_a_number(sums_of):
    nothing = dict.fromkeys(sums_of("A", "batch0"), 0.0)
    assert all(math.isnan(value) for value in finish(nothing).values())


def test_sums_without_steps_are_refused():
    with pytest.raises(ConfigError) as error:
        finish({"loss": 1.0, "correct": 2.0})
    assert str(error.value) == (
        "The sums ['correct', 'loss'] lack 'steps', the number of steps that they were added up "
        "over. Add it once per step, not once per microbatch."
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(file):
    """Yields the messages of a TFRecord file: length 8, checksum 4, message, checksum 4."""
    content = file.read_bytes()
    while content:
        size = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + size]
        content = content[12 + size + 4 :]


def events(folder):
    """Reads the event files of a folder in the order of their names: (step, {tag: value})."""
    files = sorted(folder.iterdir())
    found = [Event.FromString(record) for file in files for record in records(file)]
    assert found[0].file_version == "brain.Event:2"
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in found
        if not event.file_version
    ]


# A new writer gets the laws below with one line: how to make it and how to read it back.
FILES = {
    "JsonLines": (
        lambda folder: JsonLines(folder / "metrics.jsonl"),
        lambda folder: [(line.pop("step"), line) for line in lines(folder / "metrics.jsonl")],
    ),
    "TensorBoard": (TensorBoard, events),
}
every_file = pytest.mark.parametrize(("write_to", "read"), FILES.values(), ids=FILES.keys())


@every_file
def test_what_is_written_can_be_read(tmp_path, write_to, read):
    writer = write_to(tmp_path / "new" / "folder")
    writer.write(100, {"loss": 1.5, "timing/seconds": 2.0})
    writer.write(200, {"loss": 0.25})
    assert read(tmp_path / "new" / "folder") == [
        (100, {"loss": 1.5, "timing/seconds": 2.0}),
        (200, {"loss": 0.25}),
    ]


@every_file
def test_arrays_are_written_as_numbers(tmp_path, write_to, read):
    write_to(tmp_path).write(1, {"jax": jnp.float32(0.5), "numpy": np.float64(2)})
    assert read(tmp_path) == [(1, {"jax": 0.5, "numpy": 2.0})]


@every_file
def test_a_second_writer_continues_after_the_first(tmp_path, write_to, read):
    write_to(tmp_path).write(1, {"loss": 1.0})
    write_to(tmp_path).write(2, {"loss": 2.0})
    assert sorted(read(tmp_path)) == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]


@every_file
def test_what_is_written_survives_a_kill(tmp_path, write_to, read, request):
    name = request.node.callspec.id
    path = tmp_path / "metrics.jsonl" if name == "JsonLines" else tmp_path
    program = f"""
import os, signal
from prompt_tuning.training.metrics import {name}
writer = {name}({str(path)!r})
writer.write(1, {{"loss": 1.0}})
writer.write(2, {{"loss": 2.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = pathlib.Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
    assert killed.returncode == -9
    assert read(tmp_path) == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]


def test_a_resumed_run_writes_the_lines_after_its_checkpoint_again(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    for step in (10, 20, 30, 40):
        JsonLines(whole).write(step, {"loss": 1 / step})
        if step < 40:
            JsonLines(resumed).write(step, {"loss": 1 / step})
    (tmp_path / "resumed.jsonl.tmp").write_text("of a process that was killed just here")
    again = JsonLines(resumed, last_step=20)
    for step in (30, 40):
        again.write(step, {"loss": 1 / step})
    assert resumed.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.jsonl", "resumed.jsonl"}


def test_a_run_that_resumes_at_its_last_line_leaves_the_file_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).write(10, {"loss": 1.0})
    before = path.stat()
    JsonLines(path, last_step=10)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_line_may_hold_texts(tmp_path):
    JsonLines(tmp_path / "m.jsonl").write(1, {"accuracy": 0.5, "alarm": "all the same: 'yes'"})
    assert lines(tmp_path / "m.jsonl") == [
        {"step": 1, "accuracy": 0.5, "alarm": "all the same: 'yes'"}
    ]


def shown_texts(folder):
    """The texts of the newest event file: name, then text."""
    *_, file = sorted(folder.iterdir())
    *_, last = [Event.FromString(record) for record in records(file)]
    return {
        value.tag: [one.decode() for one in value.tensor.string_val]
        for value in last.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


def test_tensorboard_shows_texts_beside_numbers(tmp_path):
    TensorBoard(tmp_path).write(7, {"eval/accuracy": 0.5, "eval/said": "*yes*", "eval/em": 1.0})
    assert shown_texts(tmp_path) == {"eval/said/text_summary": ["    *yes*"]}
    *_, (step, values) = events(tmp_path)
    assert step == 7
    assert (values["eval/accuracy"], values["eval/em"]) == (0.5, 1.0)


def test_tensorboard_keeps_the_columns_of_a_table(tmp_path):
    table = "      no  yes\nno     3    1\n\nyes    0   12"
    TensorBoard(tmp_path).write(1, {"confusion": table})
    # In Markdown, lines that begin with four spaces stand as they are written.
    assert shown_texts(tmp_path) == {
        "confusion/text_summary": ["          no  yes\n    no     3    1\n\n    yes    0   12"]
    }


def test_all_numbers_are_read_back_if_no_step_is_the_last(tmp_path):
    for step in (1, 5):
        JsonLines(tmp_path / "m.jsonl").write(step, {"loss": 1 / step})
    assert read_lines(tmp_path / "m.jsonl") == {1: {"loss": 1.0}, 5: {"loss": 0.2}}
    assert read_lines(tmp_path / "absent.jsonl") == {}


def test_numbers_are_read_back_up_to_a_step_and_without_what_is_torn(tmp_path):
    path = tmp_path / "m.jsonl"
    assert read_lines(path, last_step=9) == {}
    writer = JsonLines(path)
    writer.write(1, {"loss": 0.1 + 0.2, "alarm": "text"})
    writer.write(2, {"loss": math.inf})
    writer.write(3, {"loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    found = read_lines(path, last_step=2)
    assert (found[1], found.keys()) == ({"loss": 0.1 + 0.2}, {1, 2})
    assert math.isnan(found[2]["loss"])
    assert read_lines(path, last_step=9).keys() == {1, 2, 3}


@pytest.mark.parametrize("name", ["JsonLines", "TensorBoard"])
def test_a_full_disk_leaves_no_half_record(tmp_path, name):
    path = tmp_path / "metrics.jsonl" if name == "JsonLines" else tmp_path / "board"
    program = f"""
import resource
from prompt_tuning.training.metrics import {name}
writer = {name}({str(path)!r})
writer.write(1, {{"loss": 1.0}})
resource.setrlimit(resource.RLIMIT_FSIZE, (120, -1))
try:
    writer.write(2, {{f"metric_{{i}}": 1.0 for i in range(50)}})
    raise AssertionError("there is no room")
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
writer.write(2, {{"loss": 2.0}})
"""
    root = pathlib.Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "File too large\n"), ran.stderr
    expected = [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert FILES[name][1](tmp_path if name == "JsonLines" else path) == expected


def test_tensorboard_forgets_what_a_resumed_run_writes_again(tmp_path):
    first = TensorBoard(tmp_path)
    for step in (10, 20, 30):
        first.write(step, {"loss": 1.0})
    TensorBoard(tmp_path, last_step=20).write(30, {"loss": 2.0})
    _, file = sorted(tmp_path.iterdir())
    version, start, scalars = [Event.FromString(record) for record in records(file)]
    # TensorBoard purges the events from this step on when the file states its version first.
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (21, SessionLog.START)
    assert scalars.step == 30


def test_a_torn_last_line_is_dropped_and_the_whole_ones_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    JsonLines(path).write(2, {"loss": 2.0})
    assert lines(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_a_file_that_is_one_torn_line_starts_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"st')
    JsonLines(path).write(1, {"loss": 1.0})
    assert lines(path) == [{"step": 1, "loss": 1.0}]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    JsonLines(tmp_path / "metrics.jsonl").write(
        1, {"loss": math.nan, "z_loss": math.inf, "lr": 0.3}
    )
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "z_loss": None, "lr": 0.3}
    ]


OBJECTS: dict[str, bytes] = {}


@epath.register_path_cls("objects://")
class ObjectPath:
    """An object store as `epath` sees it: whole objects, no folders, no appending."""

    def __init__(self, name):
        self.name = str(name)

    def joinpath(self, *parts):
        return ObjectPath("/".join([self.name, *parts]))

    __truediv__ = joinpath

    @property
    def parent(self):
        return ObjectPath(self.name.rpartition("/")[0])

    def mkdir(self, *, parents, exist_ok):
        pass

    def exists(self):
        return self.name in OBJECTS

    def read_bytes(self):
        return OBJECTS[self.name]

    def write_bytes(self, content):
        OBJECTS[self.name] = content

    def __fspath__(self):
        return self.name


def test_object_stores_get_the_lines_of_every_run():
    JsonLines("objects://bucket/metrics.jsonl").write(1, {"loss": 1.0})
    second = JsonLines("objects://bucket/metrics.jsonl")
    second.write(2, {"loss": 2.0})
    second.write(3, {"loss": 3.0})
    written = OBJECTS["objects://bucket/metrics.jsonl"].decode().splitlines()
    assert [json.loads(line)["step"] for line in written] == [1, 2, 3]
    JsonLines("objects://bucket/metrics.jsonl", last_step=2).write(5, {"loss": 3.0})
    written = OBJECTS["objects://bucket/metrics.jsonl"].decode().splitlines()
    assert [json.loads(line)["step"] for line in written] == [1, 2, 5]


def test_object_stores_get_the_same_events_as_a_folder(tmp_path):
    TensorBoard("objects://bucket/train").write(1, {"loss": 1.0})
    [content] = [c for name, c in OBJECTS.items() if name.startswith("objects://bucket/train/")]
    (tmp_path / "events").write_bytes(content)
    assert events(tmp_path) == [(1, {"loss": 1.0})]


def test_writers_that_start_in_the_same_second_have_files_of_their_own(tmp_path):
    for _ in range(3):
        TensorBoard(tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_records_have_the_checksums_of_tensorboardx(tmp_path):
    TensorBoard(tmp_path / "ours").write(3, {"loss": 1.5})
    [file] = (tmp_path / "ours").iterdir()
    reference = RecordWriter(str(tmp_path / "theirs"))
    for record in records(file):
        reference.write(record)
    reference.close()
    assert (tmp_path / "theirs").read_bytes() == file.read_bytes()


def test_console_prints_one_line_with_the_chosen_values_in_their_order(capsys):
    console = Console(("loss", "learning_rate", "accuracy"))
    console.write(1200, {"accuracy": 0.75, "loss": 12.3456, "z_loss": 1.0})
    console.write(1300, {"loss": 1.0, "learning_rate": 1e-8})
    assert capsys.readouterr().err == (
        "step 1200 | loss 12.35 | accuracy 0.75\nstep 1300 | loss 1 | learning_rate 1e-08\n"
    )


def test_console_says_how_long_the_rest_takes(capsys):
    console = Console(("loss",))
    console.write(100, {"loss": 1.0, "timing/seconds_left": 12_000.0})
    console.write(200, {"loss": 1.0, "timing/seconds_left": 0.0})
    assert capsys.readouterr().err == (
        "step 100 | loss 1 | about 3 h 20 min left\nstep 200 | loss 1\n"
    )


def test_console_prints_to_standard_error(capsys):
    Console(None).write(7, {"anything": 2.0})
    assert capsys.readouterr() == ("", "step 7 | anything 2\n")


def test_writers_write_to_each_and_none_to_nothing(tmp_path, capsys):
    Writers().write(1, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")
    Writers(Console(), JsonLines(tmp_path / "m.jsonl")).write(1, {"loss": 1.0})
    assert capsys.readouterr().err == "step 1 | loss 1\n"
    assert lines(tmp_path / "m.jsonl") == [{"step": 1, "loss": 1.0}]
