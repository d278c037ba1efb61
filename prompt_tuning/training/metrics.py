"""From the sums of a step to named metrics, and from those to files and the terminal.

A writer is any object with `write(step, values)`. The writers here hold nothing back: when `write`
returns, its values survive the process.
"""

import contextlib
import json
import math
import os
import socket
import struct
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, SupportsFloat, runtime_checkable

from etils import epath
from tensorboardX import summary

# Protobuf makes the class when the module is imported, where pyright cannot see it.
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.record_writer import masked_crc32c

from prompt_tuning.errors import ConfigError
from prompt_tuning.paths import is_local
from prompt_tuning.training.clock import duration

_FEATURES = ("encoder_input_tokens", "decoder_target_tokens")


def finish(sums: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Returns the metrics of t5x, under its names, from the sums of one or more steps.

    `sums` are those of `Loss`, added up, with one entry more: `steps`, the number of optimizer
    steps (or evaluated batches) in them, microbatches not counted. `loss`, `z_loss`,
    `cross_ent_loss` and `effective_batch_size/*` are averages per step; the others are ratios of
    sums, so every token counts the same whichever step it was in. A ratio over nothing is NaN.

    With a normalizing factor every loss is the normalized one, also those per token.

    Raises:
        ConfigError: sums without `steps`.
    """
    if "steps" not in sums:
        raise ConfigError(
            f"The sums {sorted(sums)} lack 'steps', the number of steps that they were added up "
            "over. Add it once per step, not once per microbatch."
        )
    total = {name: float(value) for name, value in sums.items()}
    steps = total["steps"]
    all_targets = total["decoder_target_tokens/all"]
    cross_entropy = total["loss"] - total["z_loss"]
    metrics = {
        "accuracy": _ratio(total["correct"], total["predicted"]),
        "loss": _ratio(total["loss"], steps),
        "loss_per_nonpadding_target_token": _ratio(total["loss"], total["weights"]),
        "loss_per_all_target_tokens": _ratio(total["loss"], all_targets),
        "z_loss": _ratio(total["z_loss"], steps),
        "z_loss_per_all_target_tokens": _ratio(total["z_loss"], all_targets),
        "cross_ent_loss": _ratio(cross_entropy, steps),
        "cross_ent_loss_per_all_target_tokens": _ratio(cross_entropy, all_targets),
        "non_padding_fraction/loss_weights": _ratio(total["weights"], all_targets),
        "non_padding_fraction/overall": _ratio(
            sum(total[f"{feature}/real"] for feature in _FEATURES),
            sum(total[f"{feature}/all"] for feature in _FEATURES),
        ),
    }
    for feature in _FEATURES:
        real, everything = total[f"{feature}/real"], total[f"{feature}/all"]
        metrics[f"non_padding_fraction/{feature}"] = _ratio(real, everything)
        metrics[f"effective_batch_size/{feature}"] = _ratio(total[f"{feature}/sequences"], steps)
    return metrics


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan


@runtime_checkable
class Writer(Protocol):
    """Where named values go, step by step."""

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None: ...


class Writers:
    """Writes to each of several writers, or to none."""

    def __init__(self, *writers: Writer) -> None:
        self._writers = writers

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        for writer in self._writers:
            writer.write(step, values)


class JsonLines:
    """Appends one JSON object per step to a file: `{"step": 100, "loss": 1.5, ...}`.

    A number that is not finite becomes `null`, as JSON has no other word for it; texts are for
    people (an "alarm").

    Args:
        path: of the file.
        last_step: the step at which the run goes on: lines of later ones are dropped, as they are
            written again. So the file of a resumed run equals that of one that was never stopped.
    """

    def __init__(self, path: epath.PathLike, *, last_step: int | None = None) -> None:
        self._file = _Appended(path)
        self._file.drop_after_last(b"\n")
        if last_step is not None:
            self._file.keep_records(
                b"\n", lambda line: json.loads(line).get("step", 0) <= last_step
            )

    def write(self, step: int, values: Mapping[str, SupportsFloat | str]) -> None:
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        numbers = {name: float(x) for name, x in values.items() if not isinstance(x, str)}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._file.append(json.dumps({"step": step, **finite, **texts}).encode() + b"\n")


def read_lines(
    path: epath.PathLike, *, last_step: int | None = None
) -> dict[int, dict[str, float]]:
    """Returns the numbers that `JsonLines` has written of the steps up to `last_step`, by step.

    What was not finite comes back as NaN; a line that a killed process left half is not there.
    """
    file = epath.Path(path)
    found: dict[int, dict[str, float]] = {}
    if not file.exists():
        return found
    whole, _, _ = file.read_text().rpartition("\n")
    for line in whole.splitlines():
        values = json.loads(line)
        step = values.pop("step")
        if last_step is None or step <= last_step:
            found[step] = {
                name: math.nan if x is None else x
                for name, x in values.items()
                if not isinstance(x, str)
            }
    return found


class TensorBoard:
    """Writes scalars and texts to a new TensorBoard event file in a folder.

    tensorboardX supplies the messages and the checksum. Its own writer keeps them in a queue, so
    the last ones are lost when the process is killed, and it cannot write where `epath` can.

    `last_step` is where a resumed run goes on: what was shown of later steps is written again.
    """

    def __init__(self, folder: epath.PathLike, *, last_step: int | None = None) -> None:
        # The time orders the files of a run that was restarted; the process and the nanoseconds
        # keep two writers that start in the same second apart.
        now, host = time.time_ns(), socket.gethostname()
        name = f"events.out.tfevents.{now // 10**9}.{host}.{os.getpid()}.{now % 10**9}"
        self._file = _Appended(epath.Path(folder) / name)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if last_step is not None:
            # TensorBoard then forgets what older files of the folder say of this step and later.
            start = SessionLog(status=SessionLog.START)
            self._append(Event(wall_time=time.time(), step=last_step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, SupportsFloat | str]) -> None:
        event = Event(wall_time=time.time(), step=step)
        for name, value in values.items():
            if isinstance(value, str):
                # TensorBoard shows Markdown, where four spaces keep lines and columns.
                shown = summary.text(name, textwrap.indent(value, "    "))
            else:
                shown = summary.scalar(name, float(value))
            event.summary.MergeFrom(shown)
        self._append(event)

    def _append(self, event: Event) -> None:
        # A TFRecord: length, checksum of the length, message, checksum of the message.
        message = event.SerializeToString()
        length = struct.pack("<Q", len(message))
        check = [struct.pack("<I", masked_crc32c(part)) for part in (length, message)]
        self._file.append(length + check[0] + message + check[1])


class Console:
    """Prints one line per step to standard error.

    `names` chooses the values and their order; those that a step does not have are left out.
    `None` prints everything. How much time is left comes last, in words.
    """

    def __init__(
        self,
        names: Sequence[str] | None = (
            "loss",
            "loss_per_nonpadding_target_token",
            "accuracy",
            "learning_rate",
            "timing/steps_per_second",
        ),
    ) -> None:
        self._names = names

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        names = values if self._names is None else [n for n in self._names if n in values]
        shown = [f"step {step}", *(f"{name} {float(values[name]):.4g}" for name in names)]
        if (left := float(values.get("timing/seconds_left", 0.0))) >= 1.0:
            shown.append(f"about {duration(left)} left")
        print(" | ".join(shown), file=sys.stderr, flush=True)


class _Appended:
    """A file that only grows, by whole records, locally or in an object store.

    A local file is opened, appended to and closed for every record: what is with the kernel
    survives `kill -9`. Objects cannot be appended to, so there each record writes the object again,
    which replaces it in one step.
    """

    def __init__(self, path: epath.PathLike) -> None:
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._local = is_local(path)
        self._object = b""
        if not self._local and self._path.exists():
            self._object = self._path.read_bytes()

    def append(self, record: bytes) -> None:
        if self._local:
            size = self._path.stat().length if self._path.exists() else 0
            try:
                with self._path.open("ab") as file:
                    file.write(record)
            except OSError:
                # Of a full disk: the record would stay half, and the next one be glued to it.
                with contextlib.suppress(OSError):
                    os.truncate(self._path, size)
                raise
        else:
            self._object += record
            self._path.write_bytes(self._object)

    def keep_records(self, end: bytes, wanted: Callable[[bytes], bool]) -> None:
        """Removes the records that are not wanted; the file is replaced as a whole."""
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        records = content.split(end)[:-1]
        kept = b"".join(record + end for record in records if wanted(record))
        if kept != content and self._local:
            # Always the same name, so that the one of a killed process is used up.
            partial = self._path.with_name(f"{self._path.name}.tmp")
            partial.write_bytes(kept)
            partial.replace(self._path)
        elif kept != content:
            self._path.write_bytes(kept)
            self._object = kept

    def drop_after_last(self, end: bytes) -> None:
        """Removes a record that a killed process, or a full disk, left without its end."""
        if self._local and self._path.exists():
            content = self._path.read_bytes()
            if not content.endswith(end):
                os.truncate(self._path, content.rfind(end) + len(end))
