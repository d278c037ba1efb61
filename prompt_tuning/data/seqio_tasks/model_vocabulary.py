"""A task's vocabulary that is whichever the model has that learns it."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import seqio

from prompt_tuning.errors import ConfigError, nearest
from prompt_tuning.vocabulary import ByteVocabulary, Vocabulary

# What the released checkpoints of each family were trained with (t5, multilingual_t5, byt5).
_RELEASED = {
    "t5": lambda: seqio.SentencePieceVocabulary(
        "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model", extra_ids=100
    ),
    "mt5": lambda: seqio.SentencePieceVocabulary(
        "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model"
    ),
    "byt5": lambda: seqio.ByteVocabulary(),
}
_PREFIXES = {"t5": "", "mt5": "mt5_", "byt5": "byt5_"}

Provider = TypeVar("Provider", seqio.Task, seqio.Mixture)


class ModelVocabulary(seqio.Vocabulary):
    """Stands for the vocabulary of the model that learns a task.

    `with_vocabulary` puts a run's vocabulary in its place, so that a task can be registered before
    anybody knows which file that is. Where nobody does, it behaves as the vocabulary of the
    family's released checkpoints, which is read on first use.

    Raises:
        ConfigError: there is no such family.
    """

    def __init__(self, family: str):
        if family not in _RELEASED:
            raise ConfigError(
                f"There is no family of models {family!r}.{nearest(family, _RELEASED)} "
                f"Known are: {', '.join(_RELEASED)}."
            )
        super().__init__()
        self.family = family

    @functools.cached_property
    def released(self) -> seqio.Vocabulary:
        """The vocabulary of the released checkpoints."""
        return _RELEASED[self.family]()

    @property
    def eos_id(self) -> int | None:
        return self.released.eos_id

    @property
    def bos_id(self) -> int | None:
        return self.released.bos_id

    @property
    def unk_id(self) -> int | None:
        return self.released.unk_id

    @property
    def extra_ids(self) -> int:
        return self.released.extra_ids

    @property
    def vocab_size(self) -> int:
        return self.released.vocab_size

    @property
    def _base_vocab_size(self) -> int:
        return self.released._base_vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.released._encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.released._decode(ids)

    def _encode_tf(self, s: Any) -> Any:
        return self.released._encode_tf(s)

    def _decode_tf(self, ids: Any) -> Any:
        return self.released._decode_tf(ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelVocabulary) and other.family == self.family

    def __hash__(self) -> int:
        return hash((ModelVocabulary, self.family))

    def __str__(self) -> str:
        return f"ModelVocabulary({self.family})"


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """Returns seqio's form of a vocabulary, with the same ids.

    TensorFlow's tokeniser may resolve a tie the other way, "xx x" for "x xx", where both have the
    same probability: so it does in 4 of the 67,349 sentences of SST-2.
    """
    if isinstance(vocabulary, ByteVocabulary):
        return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)
    return seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=vocabulary.added_ids)


def with_vocabulary(provider: Provider, vocabulary: Vocabulary) -> Provider:
    """Returns a task or mixture whose `ModelVocabulary`s are a run's vocabulary instead.

    One without any is returned as it is.

    Raises:
        ConfigError: the task is for models that read bytes and the vocabulary has pieces, or the
            other way round.
    """
    if isinstance(provider, seqio.Mixture):
        return _mixture(provider, vocabulary)
    return _task(provider, vocabulary, asked=provider.name)


def _task(task: seqio.Task, vocabulary: Vocabulary, asked: str) -> seqio.Task:
    features = {
        name: _feature(feature, vocabulary, asked) for name, feature in task.output_features.items()
    }
    if features == dict(task.output_features):
        return task
    return task.replace(output_features=features)


def _mixture(mixture: seqio.Mixture, vocabulary: Vocabulary) -> seqio.Mixture:
    tasks = [(task, _task(task, vocabulary, asked=mixture.name)) for task in mixture.tasks]
    if all(old is new for old, new in tasks):
        return mixture
    return seqio.Mixture(
        mixture.name,
        # Asked for when needed, as a rate may follow from the number of examples.
        [(new, functools.partial(_rate, mixture, old)) for old, new in tasks],
        sample_fn=mixture._sample_fn,
    )


def _rate(mixture: seqio.Mixture, old: seqio.Task, new: seqio.Task) -> float:
    del new
    return mixture.get_rate(old)


def _feature(feature: seqio.Feature, vocabulary: Vocabulary, asked: str) -> seqio.Feature:
    held = getattr(feature, "vocabulary", None)
    if not isinstance(held, ModelVocabulary):
        return feature
    if (held.family == "byt5") != isinstance(vocabulary, ByteVocabulary):
        reads, has, families = ("bytes", "SentencePiece pieces", ("t5", "mt5"))
        if held.family != "byt5":
            reads, has, families = ("SentencePiece pieces", "bytes", ("byt5",))
        name = asked.removeprefix(_PREFIXES[held.family])
        fitting = " or ".join(repr(f"{_PREFIXES[family]}{name}") for family in families)
        raise ConfigError(
            f"The task {asked!r} is for models that read {reads}, but the model's VOCABULARY has "
            f"{has}. Set `MIXTURE_OR_TASK_NAME` to {fitting}."
        )
    return dataclasses.replace(feature, vocabulary=seqio_vocabulary(vocabulary))
