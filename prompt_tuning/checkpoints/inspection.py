"""What a checkpoint or prompt is, as plain values that print as text or JSON."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import numpy_file
from prompt_tuning.checkpoints.containers.stored import Stored, total_bytes
from prompt_tuning.checkpoints.contents import SHAPE_FIELDS, Contents
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import parameters
from prompt_tuning.prompts import neighbours

Piece = Callable[[int], str]


def about_model(contents: Contents, *, values: bool = False) -> dict[str, Any]:
    """Describes a model checkpoint.

    Args:
        contents: see `formats.open_model`.
        values: read everything: the hash that prompts carry, and the norm of every array.
    """
    tensors = contents.tensors
    found: dict[str, Any] = {
        "kind": contents.kind,
        "where": str(contents.where),
        "step": contents.step,
        "parameters": sum(one.size for one in tensors.values()),
        "bytes": total_bytes(tensors.values()),
        "stored_as": contents.stored_as,
        "dtypes": _dtypes(tensors),
        "architecture": {
            field: getattr(contents.config, field) for field in (*SHAPE_FIELDS, "mlp_activations")
        },
        "prompts": {name: _about(one) for name, one in contents.methods.items()},
        "optimizer_slots": len(contents.slots),
        "arrays": {name: _about(one) for name, one in sorted(tensors.items())},
    }
    if contents.digest is not None:
        found["hash"] = contents.digest
    if values:
        digest = parameters.Fingerprint()
        for name, one in tensors.items():
            array = one.load()
            digest.add(name, array)
            found["arrays"][name] |= _norms(array)
        found["hash"] = digest.hexdigest()
        contents.check_digest(found["hash"])
    return found


def about_prompt(
    file: PromptFile,
    *,
    where: epath.Path,
    kind: str,
    table: np.ndarray | None = None,
    piece: Piece | None = None,
    start: np.ndarray | None = None,
    count: int = 5,
) -> dict[str, Any]:
    """Describes a prompt.

    Args:
        file: the prompt.
        where: where it lies.
        kind: name of its format.
        table: the base's token embeddings, to find the nearest tokens.
        piece: the text of a token.
        start: the prompt's initial vectors, to measure its drift.
        count: how many tokens to name for each vector.
    """
    found: dict[str, Any] = {
        "kind": kind,
        "where": str(where),
        "method": file.method,
        "step": file.step,
        "base": file.base,
        "base_name": file.base_name,
        "task": file.task,
        "metrics": dict(file.metrics),
        "details": dict(file.details),
        "parameters": sum(array.size for array in file.arrays.values()),
        "bytes": sum(array.nbytes for array in file.arrays.values()),
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), **_norms(array)}
            for name, array in file.arrays.items()
        },
    }
    if file.method != "prompt":
        if table is not None or start is not None:
            raise CheckpointError(
                f"{where!s} is {file.method}, which has no vectors among the token embeddings: "
                "--base and --init are for prompts."
            )
        return found
    if table is not None:
        norms = np.linalg.norm(table.astype(np.float32), axis=1)
        found["embedding_norms"] = {"mean": float(norms.mean()), "std": float(norms.std())}
    found["vectors"] = _vectors(file.vectors, table, piece, start, count)
    return found


def initial_prompt(where: epath.Path) -> np.ndarray | None:
    """Returns the oldest numpy prompt of the run that a path belongs to: what it started from."""
    inside = [folder for folder in where.parents if folder.name == numpy_file.FOLDER]
    beside = [folder / numpy_file.FOLDER for folder in (where, where.parent)]
    for folder in (where, *inside, *beside):
        if folder.name == numpy_file.FOLDER and folder.exists():
            return numpy_file.oldest(folder)
    return None


def _vectors(
    vectors: np.ndarray,
    table: np.ndarray | None,
    piece: Piece | None,
    start: np.ndarray | None,
    count: int,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"norm": float(norm)} for norm in np.linalg.norm(vectors, axis=1)]
    if start is not None:
        drift = neighbours.drift(vectors, start)
        for row, distance, cosine in zip(rows, *drift, strict=True):
            row["drift"] = {"distance": float(distance), "cosine": float(cosine)}
    if table is not None:
        near = {
            "cosine": neighbours.nearest_by_cosine(vectors, table, count),
            "distance": neighbours.nearest_by_distance(vectors, table, count),
        }
        for name, found in near.items():
            for row, ids, values in zip(rows, *found, strict=True):
                row[f"nearest_by_{name}"] = [
                    _token(int(i), float(value), piece)
                    for i, value in zip(ids, values, strict=True)
                ]
    return rows


def _token(i: int, value: float, piece: Piece | None) -> dict[str, Any]:
    token = {"id": i, "value": value}
    return token if piece is None else token | {"piece": piece(i)}


def _about(one: Stored) -> dict[str, Any]:
    return {"shape": list(one.shape), "dtype": str(one.dtype)}


def _norms(array: np.ndarray) -> dict[str, float]:
    wide = array.astype(np.float32)
    return {
        "norm": float(np.linalg.norm(wide)),
        "mean": float(wide.mean()),
        "std": float(wide.std()),
        "largest": float(np.abs(wide).max(initial=0.0)),
    }


def _dtypes(tensors: Mapping[str, Stored]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in tensors.values():
        counts[str(one.dtype)] = counts.get(str(one.dtype), 0) + 1
    return counts
