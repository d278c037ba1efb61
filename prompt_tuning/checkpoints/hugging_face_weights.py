"""The tensors in a Hugging Face folder: in one file or in several with an index."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from prompt_tuning.checkpoints.containers import byte_range, safetensors_file
from prompt_tuning.checkpoints.containers.json_file import read_json, shown
from prompt_tuning.checkpoints.containers.safetensors_file import SafetensorsFile, open_safetensors
from prompt_tuning.checkpoints.containers.stored import Stored, total_bytes
from prompt_tuning.checkpoints.containers.torch_file import open_torch
from prompt_tuning.errors import CheckpointError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# In the order in which transformers looks for them.
FILES = (WHOLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
_LONGEST_INDEX = 16_000_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.(safetensors|bin)", re.ASCII)
_LFS_POINTER = b"version https://git-lfs"


def open_weights(folder: epath.Path) -> list[SafetensorsFile]:
    """Opens every file of the weights in a folder; no tensor is in two of them.

    Raises:
        CheckpointError: there are none, a shard is missing or damaged, or the index is wrong.
    """
    for name in FILES:
        if (folder / name).exists():
            if name.endswith(".json"):
                return _open_shards(folder, folder / name)
            return [_open(folder / name)]
    present = sorted(path.name for path in folder.iterdir())[:10]
    raise CheckpointError(
        f"{folder!s} holds no weights: expected one of {', '.join(FILES)}, found "
        f"{', '.join(present)}. Weights of TensorFlow and Flax are not read."
    )


def _open(path: epath.Path) -> SafetensorsFile:
    size = byte_range.file_size(path)
    if byte_range.read_range(path, 0, min(size, len(_LFS_POINTER))) == _LFS_POINTER:
        raise CheckpointError(
            f"{path!s} is a pointer of Git LFS, the weights were not downloaded. Run "
            "`git lfs pull` in its folder."
        )
    if path.suffix == ".bin":
        return SafetensorsFile(tensors=open_torch(path), metadata={})
    return open_safetensors(path)


def _open_shards(folder: epath.Path, index: epath.Path) -> list[SafetensorsFile]:
    named = _weight_map(read_json(index, limit=_LONGEST_INDEX), index)
    shards = []
    for shard in sorted(named):
        path = folder / shard
        if not path.exists():
            raise CheckpointError(
                f"{index!s} names the file {shard!r}, which is not in {folder!s}. The download is "
                "incomplete, or the file was renamed."
            )
        opened = _open(path)
        for missing in sorted(named[shard] - opened.tensors.keys())[:1]:
            raise CheckpointError(
                f"{index!s} says that {missing!r} is in {shard!r}, but it is not. They are of "
                "different checkpoints."
            )
        for surplus in sorted(opened.tensors.keys() - named[shard])[:1]:
            raise CheckpointError(
                f"{path!s} holds {surplus!r}, which {index.name} does not name there. They are of "
                "different checkpoints."
            )
        shards.append(opened)
    return shards


def _weight_map(content: Mapping[str, Any], index: epath.Path) -> dict[str, set[str]]:
    """Returns the names of the tensors in every shard."""
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index!s} has no weight_map, which says which file holds what.")
    named: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        # A path could lead out of the folder.
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index!s} says that {tensor[:80]!r} is in {shown(shard)}, expected the name "
                "of a .safetensors or .bin file in the same folder."
            )
        named.setdefault(shard, set()).add(tensor)
    return named


def write_weights(
    folder: epath.Path,
    tensors: Mapping[str, Stored],
    metadata: Mapping[str, str],
    *,
    shard_bytes: int,
) -> dict[str, Any] | None:
    """Writes tensors into a folder, under the file names of transformers, one tensor at a time.

    Returns:
        The index, for several files; the caller writes it as INDEX.
    """
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        safetensors_file.write_into(folder / WHOLE, tensors, metadata)
        return None
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        shard = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        chosen = {name: tensors[name] for name in names}
        safetensors_file.write_into(folder / shard, chosen, metadata)
        weight_map |= dict.fromkeys(names, shard)
    total = total_bytes(tensors.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _shards(tensors: Mapping[str, Stored], shard_bytes: int) -> list[list[str]]:
    """Divides tensors into files, in order; one that is larger than a file gets its own."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, one in tensors.items():
        if one.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= one.nbytes
    return shards


def steps(files: Iterable[SafetensorsFile]) -> set[str | None]:
    """Returns what our own exports say about the step; one value unless shards were mixed."""
    return {one.metadata.get("step") for one in files}
