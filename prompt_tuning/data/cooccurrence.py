"""Vectors of tokens from which tokens they stand next to, to start a model from scratch with.

Counting sees all of a corpus in seconds, while a model that learns by steps meets a rare word only
a few times. One that starts from these vectors has less to find out; what it makes of them is
trained like everything else.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Integer
from scipy import sparse
from scipy.sparse.linalg import eigsh

from prompt_tuning.errors import ConfigError, DataError

# Padding, end and unknown come first in every vocabulary, and are no words.
_CONTROL = 3
# Tokens that are counted at once: some hundred MB.
_CHUNK = 1 << 23


@dataclasses.dataclass(frozen=True, kw_only=True)
class CooccurrenceVectors:
    """Spectral word vectors: tokens with the same neighbours get nearly the same vector.

    With n[i, j] how often tokens i and j stand at most `window` apart and n[i] the sum of a row,
    the vector of token i is row i of the leading eigenvectors of

        sqrt(n[i, j]) / (n[i] * n[j]) ** 0.25

    scaled to an RMS of 1, as T5's own initial embeddings have it. It is the canonical correlation
    analysis of a token and its context with square roots of the counts (Stratos, Collins & Hsu,
    2015, §4); the first eigenvector is left out, as it holds no more than frequencies.

    Attributes:
        tokens: running text, see `corpus.load_corpus`.
        window: the largest distance between tokens that count as neighbours.
    """

    tokens: Integer[np.ndarray, " N"]
    window: int = 5

    def __post_init__(self):
        if self.window < 1:
            raise ConfigError(
                f"CooccurrenceVectors.window is {self.window}, but tokens at least 1 apart are "
                "neighbours: choose 1 or more, like 5."
            )

    def __call__(self, rows: int, width: int) -> Float[np.ndarray, "rows width"]:
        """Returns a vector of RMS 1 for every token id; zeros for those that the text lacks.

        Raises:
            DataError: the text has too few different tokens for so wide vectors, or an id that is
                not below `rows`.
        """
        counts = self._counts(rows)
        sums = np.asarray(counts.sum(axis=1), np.float32)
        seen = sums > 0
        if seen.sum() < width + 2:
            raise DataError(
                f"The corpus has {seen.sum()} different tokens with neighbours, but "
                f"vectors of {width} numbers take at least {width + 2}. Use more text, or set "
                "TOKEN_VECTORS = None."
            )
        scale = sparse.diags_array(np.where(seen, sums, 1) ** -0.25)
        matrix = scale @ np.sqrt(counts) @ scale
        # A fixed vector to start from: the same text gives the same vectors.
        values, vectors = eigsh(matrix, k=width + 1, v0=np.ones(rows, np.float32))
        order = np.argsort(-np.abs(values))[1:]
        vectors = np.where(seen[:, None], vectors[:, order], 0)
        size = np.sqrt(np.mean(np.square(vectors), axis=1, keepdims=True))
        return (vectors / np.where(size > 0, size, 1)).astype(np.float32)

    def _counts(self, rows: int) -> sparse.csr_array:
        """Returns how often tokens are neighbours, in either order."""
        found = sparse.csr_array((rows, rows), dtype=np.float32)
        for start in range(0, len(self.tokens), _CHUNK):
            # Neighbours across the end of a chunk are counted with it.
            part = np.asarray(self.tokens[start : start + _CHUNK + self.window], np.int64)
            if part.max() >= rows:
                raise DataError(
                    f"The corpus has token {part.max()}, but the model has rows for ids below "
                    f"{rows}: the text was tokenised with another vocabulary."
                )
            for distance in range(1, self.window + 1):
                last = min(_CHUNK, len(part) - distance)
                pairs = part[:last] * rows + part[distance : last + distance]
                pairs, times = np.unique(pairs, return_counts=True)
                left, right = np.divmod(pairs, rows)
                words = (left >= _CONTROL) & (right >= _CONTROL)
                kept = (times[words].astype(np.float32), (left[words], right[words]))
                found += sparse.coo_array(kept, shape=(rows, rows)).tocsr()
        return (found + found.T).tocsr()
