"""Arrays that still lie in a checkpoint: what a reader hands out and a writer takes.

All readers name their arrays as t5x does and all writers take t5x's names, so that every format can
be turned into every other, one array at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from prompt_tuning.errors import CheckpointError

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """An array whose shape and dtype are known and whose numbers are read when asked for.

    Attributes:
        shape: of the array as it is handed out.
        dtype: of the array as it is handed out; bfloat16 is that of `ml_dtypes`.
        read: returns the part that an index selects, one slice with step 1 for each dimension. It
            raises CheckpointError if the file is cut short or damaged.
        where: file and name inside it, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    where: str

    @classmethod
    def of(cls, array: np.ndarray, where: str) -> "Stored":
        """Wraps an array that is already in memory."""

        def read(index: Index) -> np.ndarray:
            return np.asarray(array[index])  # a scalar, where there is no dimension

        return cls(shape=array.shape, dtype=array.dtype, read=read, where=where)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def load(self) -> np.ndarray:
        """Reads all of it."""
        return self[tuple(slice(0, size) for size in self.shape)]

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads the part that is needed; slices may be open (`slice(None)`)."""
        closed = tuple(
            slice(*one.indices(size)) for one, size in zip(index, self.shape, strict=True)
        )
        part = self.read(closed)
        wanted = tuple(one.stop - one.start for one in closed)
        if part.shape != wanted or part.dtype != self.dtype:
            raise CheckpointError(
                f"{self.where} is said to be {self.dtype} of shape {self.shape}, but its part "
                f"{wanted} was read as {part.dtype} of shape {part.shape}. The file is damaged."
            )
        return part

    def transposed(self) -> "Stored":
        """Returns the array with its dimensions in reverse order."""
        return dataclasses.replace(
            self, shape=self.shape[::-1], read=lambda index: self.read(index[::-1]).T
        )

    def layer(self, i: int, *, axis: int = 0) -> "Stored":
        """Returns slice `i` along `axis`, without that dimension: one layer of a stacked array."""

        def read(index: Index) -> np.ndarray:
            whole = (*index[:axis], slice(i, i + 1), *index[axis:])
            return np.squeeze(self.read(whole), axis=axis)

        shape = (*self.shape[:axis], *self.shape[axis + 1 :])
        return dataclasses.replace(self, shape=shape, read=read, where=f"{self.where}[{i}]")


def total_bytes(tensors: Iterable[Stored]) -> int:
    """Returns the bytes that all of them hold."""
    return sum(one.nbytes for one in tensors)
