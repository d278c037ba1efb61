"""First values of a prompt: closures `(key, shape [P, D]) -> float32 array`.

What an initializer needs, such as the embeddings of the base model, is handed to it as an argument.
`embeddings` is the table [V, D], or a function of no arguments that loads it: then nothing is read
before a prompt is made. The same key draws the same prompt as in the original.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_tuning.errors import CheckpointError, ConfigError

Shape = tuple[int, int]
Initializer = Callable[[PRNGKeyArray, Shape], Float[Array, "P D"]]
Table = Float[Array, "V D"] | Float[np.ndarray, "V D"]
Embeddings = Table | Callable[[], Table]


@runtime_checkable
class Vocabulary(Protocol):
    """Anything that turns text into token ids, without an end token."""

    def encode(self, text: str) -> list[int]: ...


def uniform(scale: float = 0.5) -> Initializer:
    """Draws from U[0, scale), which is what the original's runs do by default.

    The paper describes `symmetric_uniform`.
    """

    def init(key: PRNGKeyArray, shape: Shape) -> Float[Array, "P D"]:
        return jax.random.uniform(key, shape, jnp.float32) * scale

    return init


def symmetric_uniform(limit: float = 0.5) -> Initializer:
    """Draws from U[-limit, limit): "random uniform" of Lester et al. 2021, section 3.2."""

    def init(key: PRNGKeyArray, shape: Shape) -> Float[Array, "P D"]:
        return jax.random.uniform(key, shape, jnp.float32, minval=-limit, maxval=limit)

    return init


def from_array(array: Float[Array, "P D"] | Float[np.ndarray, "P D"]) -> Initializer:
    """Starts from a given prompt, such as one trained on another task.

    Raises:
        CheckpointError: when called for another length or width.
    """

    def init(key: PRNGKeyArray, shape: Shape) -> Float[Array, "P D"]:
        (length, width), (wanted_length, wanted_width) = array.shape, shape
        fault = (
            f"The given prompt has shape {tuple(array.shape)}, but Prompt(length={wanted_length}) "
            f"on this model needs {tuple(shape)}. "
        )
        if width != wanted_width:
            raise CheckpointError(
                f"{fault}It was trained for a model of width {width}: choose the prompt of this "
                f"model's size, width {wanted_width}."
            )
        if length != wanted_length:
            raise CheckpointError(f"{fault}Set `length` to {length}.")
        return jnp.asarray(array).astype(jnp.float32)

    return init


def from_sampled_vocabulary(
    embeddings: Embeddings, population_size: int | None = 5000
) -> Initializer:
    """Draws the embeddings of P different tokens (original `from_sample_of_embeddings`).

    They are drawn from the first `population_size` ids, which in a SentencePiece vocabulary are the
    most frequent pieces, or from all of them if the table is smaller or the size is `None`. A
    longer prompt than the population warns and repeats tokens.

    Raises:
        ConfigError: a population below 1.
        CheckpointError: when called for another width than the table's.
    """
    if population_size is not None and population_size < 1:
        raise ConfigError(
            f"from_sampled_vocabulary.population_size is {population_size}, expected 1 or more, or "
            "None for the whole vocabulary."
        )

    def init(key: PRNGKeyArray, shape: Shape) -> Float[Array, "P D"]:
        table = _load(embeddings, shape)
        population = min(population_size or len(table), len(table))
        with_replacement = shape[0] > population
        if with_replacement:
            warnings.warn(
                f"A prompt of {shape[0]} vectors is longer than the population of {population} "
                "tokens to draw them from: tokens are drawn with replacement and some vectors "
                "start equal. Raise population_size to avoid it.",
                stacklevel=2,
            )
        ids = jax.random.choice(key, population, shape[:1], replace=with_replacement)
        return jnp.asarray(table[:population])[ids].astype(jnp.float32)

    return init


def from_class_labels(
    embeddings: Embeddings,
    vocabulary: Vocabulary,
    labels: Sequence[str],
    fallback: Initializer | None = None,
) -> Initializer:
    """Starts row i at label i: the mean of the embeddings of its pieces.

    Lester et al. 2021, section 3.2; original `from_embedded_list`. The rows after the last label
    come from `fallback`, by default `from_sampled_vocabulary(embeddings)` as in the paper. It draws
    the whole prompt first, so these rows do not depend on the labels. Labels that do not fit are
    dropped with a warning.

    Raises:
        ConfigError: labels that are one string, a label without pieces, or a piece beyond the
            table.
        CheckpointError: when called for another width than the table's.
    """
    if isinstance(labels, str):
        raise ConfigError(
            f"from_class_labels.labels is the string {labels!r}, which would be read letter by "
            f"letter. Give a list, such as [{labels!r}]."
        )

    def init(key: PRNGKeyArray, shape: Shape) -> Float[Array, "P D"]:
        table = _load(embeddings, shape)
        kept, dropped = labels[: shape[0]], labels[shape[0] :]
        if dropped:
            warnings.warn(
                f"A prompt of {shape[0]} vectors has no place for the labels {list(dropped)}: they "
                f"are dropped. Set `length` to at least {len(labels)} to keep them.",
                stacklevel=2,
            )
        means = [jnp.mean(_embed(table, vocabulary.encode(label), label), axis=0) for label in kept]
        rest = (fallback or from_sampled_vocabulary(table))(key, shape)
        return jnp.concatenate([*(mean[None] for mean in means), rest[len(means) :]])

    return init


def from_embedded_string(
    embeddings: Embeddings,
    vocabulary: Vocabulary,
    text: str,
    fallback: Initializer | None = None,
) -> Initializer:
    """Starts row i at piece i of a text, such as a written instruction.

    Original `from_embedded_string`. The rows after the last piece come from `fallback`, by default
    `from_sampled_vocabulary(embeddings)`. It draws the whole prompt first, so these rows do not
    depend on the text. Pieces that do not fit are dropped with a warning.

    Raises:
        ConfigError: a text without pieces, or a piece beyond the table.
        CheckpointError: when called for another width than the table's.
    """

    def init(key: PRNGKeyArray, shape: Shape) -> Float[Array, "P D"]:
        table = _load(embeddings, shape)
        ids = vocabulary.encode(text)
        if len(ids) > shape[0]:
            warnings.warn(
                f"A prompt of {shape[0]} vectors has no place for the last {len(ids) - shape[0]} "
                f"of the {len(ids)} pieces of {text!r}: they are dropped. Set `length` to at least "
                f"{len(ids)} to keep them.",
                stacklevel=2,
            )
        pieces = _embed(table, ids, text)[: shape[0]]
        rest = (fallback or from_sampled_vocabulary(table))(key, shape)
        return jnp.concatenate([pieces, rest[len(pieces) :]])

    return init


def _load(embeddings: Embeddings, shape: Shape) -> Table:
    """Returns the table, after checking that it belongs to a model of this width."""
    table = embeddings() if callable(embeddings) else embeddings
    if table.shape[1] != shape[1]:
        raise CheckpointError(
            f"The embeddings have shape {tuple(table.shape)}, but the prompt of this model is "
            f"{tuple(shape)}. Use the embeddings of this model's own checkpoint, width {shape[1]}."
        )
    return table


def _embed(table: Table, ids: list[int], text: str) -> Float[Array, "N D"]:
    if not ids:
        raise ConfigError(
            f"The vocabulary turns {text!r} into no pieces, so it has no embedding. Remove it or "
            "choose another text."
        )
    if max(ids) >= len(table):
        raise ConfigError(
            f"Piece {max(ids)} of {text!r} is beyond the {len(table)} rows of the embeddings. The "
            "vocabulary and the embeddings must belong to the same model."
        )
    # An index array, not a list: JAX refuses lists, and NumPy reads only these rows of the table.
    return jnp.asarray(table[np.asarray(ids)]).astype(jnp.float32)
