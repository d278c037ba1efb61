"""Where the prompt goes: functions that put prompt vectors into an embedded text.

Each takes the prompt of every example, the embedded text and its tokens, and returns the longer
sequence with the vector of positions that may be attended to. The prompt always may, padding never.
An encoder makes its mask of pairs from that vector: `mask[:, :, None] & mask[:, None, :]`.

The text `5 6 EOS`, padded to 4 tokens, with a prompt of 2 (E: embedding, p: prompt, `.`: padding):

    prefix                     p  p  E5 E6 E1 .
    after_bos                  E5 p  p  E6 E1 .
    Suffix()                   E5 E6 p  p  E1 .
    Suffix(before_eos=False)   E5 E6 E1 p  p  .
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.batch import PAD

Combined = tuple[Float[Array, "B P+T D"], Bool[Array, "B P+T"]]
Combine = Callable[[Float[Array, "B P D"], Float[Array, "B T D"], Int[Array, "B T"]], Combined]


def prefix(
    prompt: Float[Array, "B P D"],
    embedded: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
) -> Combined:
    """Puts the prompt before the text, as the paper does (original `prefix_prompt`)."""
    return (
        jnp.concatenate([prompt, embedded], axis=1),
        jnp.concatenate([_visible(prompt), tokens != PAD], axis=1),
    )


def after_bos(
    prompt: Float[Array, "B P D"],
    embedded: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
) -> Combined:
    """Puts the prompt after the first token (original `prefix_prompt_after_bos`).

    For texts that begin with a start token. Its id is 0, like padding, so the first position is
    visible whatever its id.
    """
    first = _visible(tokens[:, :1])
    return (
        jnp.concatenate([embedded[:, :1], prompt, embedded[:, 1:]], axis=1),
        jnp.concatenate([first, _visible(prompt), tokens[:, 1:] != PAD], axis=1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suffix:
    """Puts the prompt at the end of the text, before the padding (original `suffix_prompt`).

    With `before_eos` the text's final EOS stays last. A text without one, because it was truncated
    or because it is a decoder's input, gets the prompt after its last token; the original would
    take that token for an EOS. Start tokens need no setting of their own: the end of a text is its
    last token that is not padding.
    """

    before_eos: bool = True
    eos_id: int = 1

    def __call__(
        self,
        prompt: Float[Array, "B P D"],
        embedded: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
    ) -> Combined:
        """Returns the embedded text with the prompt in it and what may be attended to."""
        length, text = prompt.shape[1], embedded.shape[1]
        start = self._start(tokens)
        # One gather does both: which row of [text, prompt] comes to each position.
        #
        #   start 2, P 2, T 4, text 0 1 2 3, prompt 4 5  ->  0 1 4 5 2 3
        position = jnp.arange(length + text)[None, :]
        source = jnp.where(position < start, position, position - length)
        in_prompt = (position >= start) & (position < start + length)
        source = jnp.where(in_prompt, text + position - start, source)
        rows = jnp.concatenate([embedded, prompt], axis=1)
        visible = jnp.concatenate([tokens != PAD, _visible(prompt)], axis=1)
        return (
            jnp.take_along_axis(rows, source[:, :, None], axis=1),
            jnp.take_along_axis(visible, source, axis=1),
        )

    def _start(self, tokens: Int[Array, "B T"]) -> Int[Array, "B 1"]:
        """The position of the first prompt vector in each row."""
        count = jnp.arange(1, tokens.shape[1] + 1)[None, :]
        end = jnp.max(jnp.where(tokens != PAD, count, 0), axis=1, keepdims=True, initial=0)
        if not self.before_eos:
            return end
        ends_in_eos = jnp.any((count == end) & (tokens == self.eos_id), axis=1, keepdims=True)
        return jnp.where(ends_in_eos, end - 1, end)


def described(combine: Combine) -> dict[str, Any]:
    """Returns plain values that say where a prompt goes, for `from_description`.

    >>> described(Suffix(before_eos=False))
    {'name': 'Suffix', 'before_eos': False, 'eos_id': 1}
    """
    if dataclasses.is_dataclass(combine) and not isinstance(combine, type):
        return {"name": type(combine).__name__, **dataclasses.asdict(combine)}
    return {"name": getattr(combine, "__name__", repr(combine))}


def from_description(description: Mapping[str, Any]) -> Combine | None:
    """Undoes `described`; returns None for a place that is not one of ours."""
    places: dict[str, Callable[..., Combine]] = {
        "prefix": lambda: prefix,
        "after_bos": lambda: after_bos,
        "Suffix": Suffix,
    }
    settings = {key: value for key, value in description.items() if key != "name"}
    make = places.get(description.get("name", ""))
    try:
        return None if make is None else make(**settings)
    except TypeError:
        return None


def _visible(positions: Float[Array, "B S ..."] | Int[Array, "B S"]) -> Bool[Array, "B S"]:
    return jnp.ones(positions.shape[:2], bool)
