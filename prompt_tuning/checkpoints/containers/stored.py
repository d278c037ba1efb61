"""Arrays that still lie in a checkpoint: what a reader hands out and a writer takes.

All readers name their arrays as t5x does and all writers take t5x's names, so that every format can
be turned into every other, one array at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from prompt_tuning.errors import CheckpointError

Index = tuple[slice, ...]
# Bytes that are read at once where a file allows it.
BLOCK = 1 << 23


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """An array whose shape and dtype are known and whose numbers are read when asked for.

    Attributes:
        shape: of the array as it is handed out.
        dtype: of the array as it is handed out; bfloat16 is that of `ml_dtypes`.
        read: returns the part that an index selects, one slice with step 1 for each dimension. It
            raises CheckpointError if the file is cut short or damaged.
        where: file and name inside it, for messages.
        axis: the dimension along which parts are cheap to read, for it lies outermost in the file.
        rows: along this, how many lie together in the file and are read together, as in a chunk.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    where: str
    axis: int = 0
    rows: int = 1

    @classmethod
    def of(cls, array: np.ndarray, where: str) -> "Stored":
        """Wraps an array that is already in memory."""

        def read(index: Index) -> np.ndarray:
            return np.asarray(array[index])  # a scalar, where there is no dimension

        return cls(shape=array.shape, dtype=array.dtype, read=read, where=where)

    @classmethod
    def stack(cls, layers: Sequence["Stored"]) -> "Stored":
        """Returns arrays of one shape and dtype along a new first dimension; undoes `layer`."""
        first = layers[0]

        def read(index: Index) -> np.ndarray:
            chosen = layers[index[0]]
            sizes = [one.stop - one.start for one in index[1:]]
            found = np.empty((len(chosen), *sizes), first.dtype)
            for into, one in zip(found, chosen, strict=True):
                into[...] = one.part(index[1:])
            return found

        shape = (len(layers), *first.shape)
        return cls(shape=shape, dtype=first.dtype, read=read, where=first.where)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def load(self, dtype: DTypeLike | None = None) -> np.ndarray:
        """Reads all of it; see `part`."""
        return self.part(tuple(slice(None) for _ in self.shape), dtype)

    def part(self, index: Index, dtype: DTypeLike | None = None) -> np.ndarray:
        """Reads a part, cast to `dtype`, a few megabytes at a time.

        What is in memory is the result and little more, whatever the file's own dtype.

        Args:
            index: one slice with step 1 for each dimension; they may be open (`slice(None)`).
            dtype: of the result; its own if None.
        """
        closed = self._closed(index)
        shape = [max(one.stop - one.start, 0) for one in closed]
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        blocks = list(self._blocks(closed))
        if len(blocks) == 1:
            return self[closed].astype(dtype, copy=False)
        result = np.empty(shape, dtype)
        for into, block in blocks:
            result[into] = self[block]
        return result

    def _blocks(self, index: Index) -> Iterator[tuple[Index, Index]]:
        """Splits a part along `axis`: yields where each block goes in the part, and what it is."""
        if not self.shape:
            yield (), ()
            return
        along = index[self.axis]
        count = max(1, along.stop - along.start)
        total = self.dtype.itemsize * math.prod(max(one.stop - one.start, 0) for one in index)
        step = max(1, BLOCK * count // max(1, total))
        # Whole chunks, which start at multiples of their size.
        step = max(1, step // self.rows) * self.rows
        start = along.start
        while True:
            stop = min(along.stop, (start // step + 1) * step)
            into = slice(start - along.start, stop - along.start)
            yield (
                tuple(into if i == self.axis else slice(None) for i in range(len(index))),
                tuple(slice(start, stop) if i == self.axis else s for i, s in enumerate(index)),
            )
            start = stop
            if start >= along.stop:
                return

    def _closed(self, index: Index) -> Index:
        return tuple(slice(*one.indices(size)) for one, size in zip(index, self.shape, strict=True))

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads the part that is needed at once; slices may be open (`slice(None)`)."""
        closed = self._closed(index)
        part = self.read(closed)
        wanted = tuple(one.stop - one.start for one in closed)
        if part.shape != wanted or part.dtype != self.dtype:
            raise CheckpointError(
                f"{self.where} is said to be {self.dtype} of shape {self.shape}, but its part "
                f"{wanted} was read as {part.dtype} of shape {part.shape}. The file is damaged."
            )
        return part

    def cast(self, dtype: np.dtype) -> "Stored":
        """Returns the array in another dtype."""
        return dataclasses.replace(
            self, dtype=dtype, read=lambda index: self.read(index).astype(dtype, copy=False)
        )

    def transposed(self) -> "Stored":
        """Returns the array with its dimensions in reverse order."""
        return dataclasses.replace(
            self,
            shape=self.shape[::-1],
            read=lambda index: self.read(index[::-1]).T,
            axis=max(0, len(self.shape) - 1 - self.axis),
        )

    def layer(self, i: int, *, axis: int = 0) -> "Stored":
        """Returns slice `i` along `axis`, without that dimension: one layer of a stacked array."""

        def read(index: Index) -> np.ndarray:
            whole = (*index[:axis], slice(i, i + 1), *index[axis:])
            return np.squeeze(self.read(whole), axis=axis)

        shape = (*self.shape[:axis], *self.shape[axis + 1 :])
        outermost = {"axis": 0, "rows": 1} if self.axis == axis else {}
        if self.axis > axis:
            outermost = {"axis": self.axis - 1}
        where = f"{self.where}[{i}]"
        return dataclasses.replace(self, shape=shape, read=read, where=where, **outermost)


def total_bytes(tensors: Iterable[Stored]) -> int:
    """Returns the bytes that all of them hold."""
    return sum(one.nbytes for one in tensors)
