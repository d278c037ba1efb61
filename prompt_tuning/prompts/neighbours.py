"""What a prompt lies near: the tokens closest to each of its vectors, and where it started."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from prompt_tuning.errors import CheckpointError

# Rows of the vocabulary that are compared at once.
CHUNK = 16_384


class Neighbours(NamedTuple):
    """The nearest tokens of every prompt vector, the nearest first."""

    ids: Int[np.ndarray, "P K"]
    values: Float[np.ndarray, "P K"]


def nearest_by_cosine(
    vectors: Float[np.ndarray, "P D"], table: Float[np.ndarray, "V E"], count: int
) -> Neighbours:
    """Returns the tokens whose embeddings point most nearly the same way, with their cosines."""
    _check_width(vectors, table)
    directions = _unit(vectors)
    scores = [directions @ _unit(part).T for part in _parts(table)]
    return _largest(np.concatenate(scores, axis=1), count)


def nearest_by_distance(
    vectors: Float[np.ndarray, "P D"], table: Float[np.ndarray, "V E"], count: int
) -> Neighbours:
    """Returns the tokens whose embeddings are nearest, with their distances (L2).

    Trained vectors are often much longer than embeddings; then the distance mostly tells lengths
    apart, and the cosine, which Lester et al. 2021 use in section 7, says more.
    """
    _check_width(vectors, table)
    # |p - e|^2 = |p|^2 - 2 p.e + |e|^2, in float64 because the terms nearly cancel.
    wide = vectors.astype(np.float64)
    own = np.sum(wide**2, axis=1, keepdims=True)
    squares = []
    for part in _parts(table):
        part = part.astype(np.float64)
        squares.append(own - 2 * wide @ part.T + np.sum(part**2, axis=1)[None])
    near = _largest(-np.concatenate(squares, axis=1), count)
    return Neighbours(near.ids, np.sqrt(np.maximum(-near.values, 0.0)))


class Drift(NamedTuple):
    """How far each vector has come from its start."""

    distance: Float[np.ndarray, " P"]
    cosine: Float[np.ndarray, " P"]


def drift(vectors: Float[np.ndarray, "P D"], start: Float[np.ndarray, "Q E"]) -> Drift:
    """Compares a prompt with what it was initialised with.

    Raises:
        CheckpointError: the two have different shapes.
    """
    if vectors.shape != start.shape:
        raise CheckpointError(
            f"The prompt has shape {vectors.shape} and the one it is said to have started from "
            f"{start.shape}. Name the initial prompt of the same run."
        )
    distance = np.linalg.norm(vectors - start, axis=1)
    return Drift(distance, np.sum(_unit(vectors) * _unit(start), axis=1))


def _largest(scores: np.ndarray, count: int) -> Neighbours:
    count = min(count, scores.shape[1])
    chosen = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(scores, chosen, axis=1)
    # Equal scores in the order of ids, so that the answer does not depend on the partition.
    order = np.lexsort((chosen, -values), axis=1)
    return Neighbours(
        np.take_along_axis(chosen, order, axis=1), np.take_along_axis(values, order, axis=1)
    )


def _parts(table: np.ndarray) -> list[np.ndarray]:
    return [
        table[start : start + CHUNK].astype(np.float32) for start in range(0, len(table), CHUNK)
    ]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Divides by the norm; a row of zeros points nowhere and stays zero."""
    rows = rows.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0.0, 1.0, norms)


def _check_width(vectors: np.ndarray, table: np.ndarray) -> None:
    if vectors.shape[1] != table.shape[1]:
        raise CheckpointError(
            f"The prompt has vectors of width {vectors.shape[1]}, the base's embeddings have width "
            f"{table.shape[1]}. Name the base that the prompt was trained over."
        )
