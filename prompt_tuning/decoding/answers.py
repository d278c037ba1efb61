"""What decoding gives, what it must keep to, and what it knows of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

Past = Any


class Answers(NamedTuple):
    """K answers to every row, the best one last: `tokens[:, -1]`.

    Rows are in ascending order of score. `PAD` follows an answer's end token.
    """

    tokens: Int[Array, "B K U"]
    scores: Float[Array, "B K"]


class Terms(NamedTuple):
    """What answers must keep to.

    Attributes:
        forced: the tokens that are given, `PAD` where they are to be found. A given end token
            ends nothing.
        ends: the position before which each row's answer ends.
        eos_id: the end token.
    """

    forced: Int[Array, "B U"]
    ends: Int[Array, " B"]
    eos_id: int


class Decoder(NamedTuple):
    """What a decoding loop knows of a model, be there an encoder or not.

    It works on rows `[B·K]`, the K answers to one input side by side. The past is the model's own
    affair: a loop only hands it on.

    Attributes:
        start: `(K) -> past` before the first token of K answers to each input.
        extend: `(tokens, position, past) -> (logits, past)`; takes the tokens before `position`
            (counted from the first token of the answer; `PAD` before that) and returns float32
            logits of those at it.
        reorder: `(past, sources) -> past` whose answer k to an input continues what answer
            `sources[input, k]` to the same input said: rows that lie on other devices stay there.
    """

    start: Callable[[int], Past]
    extend: Callable[[Int[Array, " R"], Int[Array, ""], Past], tuple[Float[Array, "R V"], Past]]
    reorder: Callable[[Past, Int[Array, "B K"]], Past]


@runtime_checkable
class Strategy(Protocol):
    """A way to choose tokens: a frozen dataclass of settings, called inside a compiled function.

    `keys` are one random key for each input, or None where there are none.
    """

    def __call__(
        self, decoder: Decoder, terms: Terms, keys: Key[Array, " B"] | None
    ) -> Answers: ...
