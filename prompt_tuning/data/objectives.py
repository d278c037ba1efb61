"""What a model learns from running text: span corruption (T5) and prefix LM (LM adaptation).

An objective turns one window of tokens into inputs and targets. Lengths are part of the objective,
because a window has to be as long as fits: `window(length)` is the number of tokens that come out
as at most `length` inputs, `target_length(length)` is the longest target that then comes out.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Integer

from prompt_tuning.data.examples import Example
from prompt_tuning.errors import ConfigError
from prompt_tuning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Hides random spans; the model says them after their sentinels.

    tokens   Thank you for inviting me to your party last week
    inputs   Thank you <0> me to your party <1> </s>
    targets  <0> for inviting <1> last week </s>

    As in T5 (Raffel et al. 2020, §3.1.4; t5/data/preprocessors.py `span_corruption`): the share of
    hidden tokens and the number of spans are fixed by the length of the window, only their places
    are random, so every example of a window length has the same shape.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self):
        if not 0 < self.noise_density < 1:
            raise ConfigError(
                f"SpanCorruption.noise_density is {self.noise_density}, but it is the hidden share "
                "of the text: choose it between 0 and 1, like T5's 0.15."
            )
        if self.mean_span_length < 1:
            raise ConfigError(
                f"SpanCorruption.mean_span_length is {self.mean_span_length}, but a span has at "
                "least one token: choose it 1 or longer, like T5's 3.0."
            )

    def __call__(
        self, tokens: Integer[np.ndarray, " N"], rng: np.random.Generator, vocabulary: Vocabulary
    ) -> Example:
        """Returns the example of one window of at least 2 tokens."""
        hidden = noise_mask(len(tokens), rng, *self._counts(len(tokens)))
        return Example(
            inputs=_with_end(_replace_spans(tokens, hidden, vocabulary), vocabulary),
            targets=_with_end(_replace_spans(tokens, ~hidden, vocabulary), vocabulary),
        )

    def window(self, length: int) -> int:
        """Returns how many tokens come out as at most `length` inputs: 568 for 512."""
        if self._lengths(2)[0] > length:
            raise ConfigError(
                f"An input length of {length} is too short for span corruption with density "
                f"{self.noise_density}: at least {self._lengths(2)[0]} is needed."
            )
        window = 2
        while self._lengths(window + 1)[0] <= length:
            window += 1
        return window

    def target_length(self, length: int) -> int:
        """Returns the length of the targets that belong to `length` inputs: 114 for 512."""
        return self._lengths(self.window(length))[1]

    def _counts(self, window: int) -> tuple[int, int]:
        hidden = min(max(round(window * self.noise_density), 1), window - 1)
        spans = max(round(hidden / self.mean_span_length), 1)
        return hidden, min(spans, window - hidden)

    def _lengths(self, window: int) -> tuple[int, int]:
        hidden, spans = self._counts(window)
        return window - hidden + spans + 1, hidden + spans + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """Splits a window at a random place; the model continues the first part with the second.

    The objective of LM adaptation (Lester et al. 2021, §3.1; Raffel et al. 2020, §3.2.3). Every
    split that leaves between `shortest` and `longest` of the window as inputs is equally likely,
    and at least one token stays on either side. Narrow bounds waste less on padding: with the
    default ones half of every padded batch is empty.
    """

    shortest: float = 0.0
    longest: float = 1.0

    def __post_init__(self):
        if not 0 <= self.shortest <= self.longest <= 1 or not self.longest:
            raise ConfigError(
                f"PrefixLM(shortest={self.shortest}, longest={self.longest}): expected shares of "
                "the window with 0 <= shortest <= longest <= 1 and longest above 0."
            )

    def __call__(
        self, tokens: Integer[np.ndarray, " N"], rng: np.random.Generator, vocabulary: Vocabulary
    ) -> Example:
        """Returns the example of one window of at least 2 tokens."""
        first, last = self._splits(len(tokens))
        split = int(rng.integers(first, last + 1))
        return Example(
            inputs=_with_end(tokens[:split], vocabulary),
            targets=_with_end(tokens[split:], vocabulary),
        )

    def window(self, length: int) -> int:
        """Returns how many tokens come out as at most `length` inputs: 511 for 512 by default."""
        if length < 3:
            raise ConfigError(
                f"An input length of {length} is too short to split a text: at least 3 is needed."
            )
        window = length - 1
        while self.longest < 1 and self._splits(window + 1)[1] < length:
            window += 1
        return window

    def target_length(self, length: int) -> int:
        """Returns the length of the longest targets, of those that follow the shortest inputs."""
        window = self.window(length)
        return window - self._splits(window)[0] + 1

    def _splits(self, window: int) -> tuple[int, int]:
        """The fewest and the most tokens of a window that may become inputs."""
        first = min(max(round(self.shortest * window), 1), window - 1)
        return first, min(max(round(self.longest * window), first), window - 1)


@runtime_checkable
class Objective(Protocol):
    """Any way to make examples of windows; other ones need no more than this."""

    def __call__(
        self, tokens: Integer[np.ndarray, " N"], rng: np.random.Generator, vocabulary: Vocabulary
    ) -> Example:
        """Returns the example of one window, with every choice drawn from `rng`."""
        ...

    def window(self, length: int) -> int:
        """Returns how many tokens come out as at most `length` inputs."""
        ...

    def target_length(self, length: int) -> int:
        """Returns the length of the longest targets of such a window."""
        ...


def noise_mask(
    length: int, rng: np.random.Generator, hidden: int, spans: int
) -> Bool[np.ndarray, " length"]:
    """Returns which tokens to hide: exactly `hidden` of them in exactly `spans` spans.

    Shown and hidden stretches alternate and have random lengths of at least one; a window begins
    with a shown one and ends with a hidden one (t5 `random_spans_noise_mask`).
    """
    stretches = np.stack(
        [segment_lengths(length - hidden, spans, rng), segment_lengths(hidden, spans, rng)], axis=1
    )
    return np.repeat(np.tile([False, True], spans), stretches.reshape(-1))


def segment_lengths(
    items: int, segments: int, rng: np.random.Generator
) -> Int[np.ndarray, " segments"]:
    """Cuts `items` into non-empty segments; every way of doing so is equally likely."""
    cuts = np.sort(rng.choice(items - 1, segments - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def _replace_spans(
    tokens: Integer[np.ndarray, " N"], replaced: Bool[np.ndarray, " N"], vocabulary: Vocabulary
) -> Int[np.ndarray, " M"]:
    """Puts one sentinel, counted from the top of the vocabulary, for every run of `replaced`."""
    first = replaced & ~np.concatenate([[False], replaced[:-1]])
    spans = int(first.sum())
    if spans > vocabulary.sentinels:
        raise ConfigError(
            f"Span corruption of {len(tokens)} tokens needs {spans} sentinels, but the vocabulary "
            f"has {vocabulary.sentinels}. Use shorter inputs, longer spans or more `extra_ids`."
        )
    sentinels = vocabulary.sentinel_id(0) + 1 - np.cumsum(first)
    return np.where(first, sentinels, tokens)[first | ~replaced].astype(np.int32)


def _with_end(tokens: Integer[np.ndarray, " N"], vocabulary: Vocabulary) -> Int[np.ndarray, " N+1"]:
    return np.append(tokens, vocabulary.eos_id).astype(np.int32)
