"""A file of predictions that is made in chunks, each whole or absent, and survives being killed.

The names are t5x's. A shard of four chunks, while it is being made and when it is complete:

    tmp-sst2-00000-of-00001/sst2-predict.jsonl-00000-of-00001-chunk00000 (+ .COMPLETED)
    sst2-predict.jsonl-00000-of-00001 (+ .COMPLETED)
"""

import dataclasses
import json
from collections.abc import Mapping

from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.run_record import differences
from prompt_tuning.errors import ConfigError

COMPLETED = ".COMPLETED"
RECORD = "made_of.json"
_WAY_OUT = "Choose another INFER_OUTPUT_DIR, or remove what is in this one."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One shard of the predictions for one task.

    Attributes:
        folder: where predictions go.
        task: its name.
        mode: `predict`, `predict_with_aux` or `score`.
        shard: which of `shards` this is, from 0.
        shards: of the whole split.
        made_of: what decides the lines, by name: chunks of something else are never mixed in.
    """

    folder: epath.Path
    task: str
    mode: str
    shard: int = 0
    shards: int = 1
    made_of: Mapping[str, str]

    @property
    def path(self) -> epath.Path:
        """Where the whole shard goes."""
        return self.folder / f"{self.task}-{self.mode}.jsonl-{self._part}"

    def is_complete(self) -> bool:
        """Tells whether there is nothing left to do.

        Raises:
            ConfigError: what is there was made of something else.
        """
        marker = _marker(self.path)
        # A marker alone was left behind when the results were removed.
        if marker.exists() and (self.path.exists() or self._chunks.exists()):
            # t5x's own markers are empty.
            self._check(marker.read_text() or json.dumps(dict(self.made_of)), self.path)
            return True
        if (record := self._chunks / RECORD).exists():
            self._check(record.read_text(), self._chunks)
        elif self._chunks.exists() and any(
            path.name.endswith(COMPLETED) for path in self._chunks.iterdir()
        ):
            raise ConfigError(
                f"{self._chunks!s} holds chunks of predictions, but no {RECORD} says what they are "
                f"of. {_WAY_OUT}"
            )
        return False

    def has_chunk(self, chunk: int) -> bool:
        """Tells whether a chunk is written."""
        return _marker(self._chunk(chunk)).exists()

    def begin(self) -> None:
        """Notes what chunks are made of; a folder that cannot be written is known here already."""
        record = self._chunks / RECORD
        if not record.exists():
            storage.write_whole(record, json.dumps(dict(self.made_of)).encode())

    def write_chunk(self, chunk: int, lines: bytes) -> None:
        """Writes a chunk, and after it the marker that says so."""
        self.begin()
        storage.write_whole(self._chunk(chunk), lines)
        storage.write_whole(_marker(self._chunk(chunk)), b"")

    def finish(self, chunks: int, *, merge: bool = True) -> None:
        """Puts the chunks together in their order, or leaves them where they are, and says so."""
        if merge:
            with storage.replaced_file(self.path) as partial, partial.open("wb") as whole:
                for chunk in range(chunks):
                    whole.write(self._chunk(chunk).read_bytes())
        storage.write_whole(_marker(self.path), json.dumps(dict(self.made_of)).encode())
        self.clean()

    def clean(self) -> None:
        """Removes what a killed process may have left: chunks that are merged, and half files."""
        if self._chunks.exists() and self.path.exists():
            self._chunks.rmtree()
        storage.remove_partial(self._chunks)
        for path in self.folder.iterdir():
            if path.name.startswith((f"{self.path.name}.tmp-", f"{_marker(self.path).name}.tmp-")):
                path.unlink()

    @property
    def _part(self) -> str:
        return f"{self.shard:05}-of-{self.shards:05}"

    @property
    def _chunks(self) -> epath.Path:
        return self.folder / f"tmp-{self.task}-{self._part}"

    def _chunk(self, chunk: int) -> epath.Path:
        return self._chunks / f"{self.path.name}-chunk{chunk:05}"

    def _check(self, record: str, where: epath.Path) -> None:
        changes = differences(json.loads(record), self.made_of)
        if changes:
            lines = "\n  ".join(changes)
            raise ConfigError(
                f"{where!s} holds predictions of something else:\n  {lines}\n{_WAY_OUT}"
            )


def _marker(path: epath.Path) -> epath.Path:
    return path.with_name(f"{path.name}{COMPLETED}")
