"""Text to token ids and back, without TensorFlow.

The ids are those of seqio's vocabularies of the same names, so a prompt trained on a seqio task can
be served by a process that has never heard of seqio.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import os
import random
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsIndex

import numpy as np
import sentencepiece
from etils import epath
from jaxtyping import Int

from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.paths import is_local, unreachable

# Building a processor from bytes is not thread-safe in sentencepiece (concurrent loads can crash).
_LOADING = threading.Lock()

_BYTES = 256
_BYTE_OFFSET = 3  # Ids 0, 1 and 2 are padding, end and unknown.
_BYTE_SENTINELS = 100
_EXTRA_IDS = 100  # Of every released T5 and mT5.


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary:
    """A SentencePiece model with `extra_ids` sentinels `<extra_id_i>` numbered from the top.

    The file is read on first use, so a vocabulary is cheap to name in a configuration, to copy and
    to pickle.

    Attributes:
        path: the `.model` file, local or remote.
        extra_ids: how many sentinels to add above the file's own pieces. None adds the 100 that
            every T5 has, unless the file ends with sentinels already: T5's file comes with them
            (`cc_all.32000.100extra`) and without (Hugging Face's `spiece.model`), and both give
            the same ids.
    """

    path: str
    extra_ids: int | None = None

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without an end token."""
        return self._processor.EncodeAsIds(text)

    def encode_batch(
        self, texts: Sequence[str], *, threads: int = -1
    ) -> list[Int[np.ndarray, " T"]]:
        """Returns the ids of many texts, as `encode` does, on `threads` threads (-1: all cores)."""
        rows = self._processor.EncodeAsIds(list(texts), num_threads=threads)
        return [np.array(row, np.int32) for row in rows]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text up to the first end token; ids above the vocabulary read as unknown.

        A model has more rows than its vocabulary has ids (32,128 to 32,100), so it can emit those.
        """
        known = [i if i < self.size else self.unk_id for i in _until_end(ids, self.eos_id)]
        return self._processor.DecodeIds(known)

    def piece(self, index: int) -> str:
        """Returns the written form of one id, with `▁` for a space."""
        return self._processor.IdToPiece(index)

    @property
    def size(self) -> int:
        """The number of ids: pieces of the file and extra ids."""
        return self._processor.GetPieceSize()

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def unk_id(self) -> int:
        return self._processor.unk_id()

    def sentinel_id(self, index: int) -> int:
        """Returns the id of `<extra_id_index>`."""
        return self.size - 1 - index

    @functools.cached_property
    def added_ids(self) -> int:
        """How many sentinels are added to the file's own pieces, see `extra_ids`."""
        if self.extra_ids is not None:
            return self.extra_ids
        last = _sentinel(0)
        # Somewhere in the file it has to be: most files need not be loaded to know.
        if last.encode() not in self._file:
            return _EXTRA_IDS
        own = self._load(self._file)
        return 0 if own.IdToPiece(own.GetPieceSize() - 1) == last else _EXTRA_IDS

    @functools.cached_property
    def sentinels(self) -> int:
        """How many sentinels there are, whether added here or already in the file."""
        written = (self.piece(self.sentinel_id(i)) == _sentinel(i) for i in range(self.size))
        return sum(1 for _ in itertools.takewhile(bool, written))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of what the vocabulary does, wherever its file lies."""
        return hashlib.sha256(self._model).hexdigest()

    @functools.cached_property
    def _file(self) -> bytes:
        if is_local(self.path):
            try:
                return epath.Path(self.path).read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"There is no SentencePiece model at {self.path!r}: {error}. "
                    "Set `VOCABULARY_FILE` to the path of the model's vocabulary file."
                ) from error
        try:
            if reason := unreachable(self.path):
                raise OSError(reason)
            return epath.Path(self.path).read_bytes()
        except Exception as error:  # Each of the libraries that epath may use has its own.
            raise ConfigError(
                f"Cannot read the SentencePiece model {self.path!r}: "
                f"{str(error).strip().rstrip('.')}. Set `VOCABULARY_FILE` to a copy on this "
                "machine, such as the spiece.model that Hugging Face's google/t5-v1_1-base (of "
                "every T5) and google/mt5-base (of every mT5) come with: "
                "--gin.VOCABULARY_FILE=\"'spiece.model'\"."
            ) from error

    @functools.cached_property
    def _model(self) -> bytes:
        extra = (_user_defined_piece(_sentinel(i)) for i in reversed(range(self.added_ids)))
        return self._file + b"".join(extra)

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        processor = self._load(self._model)
        if processor.pad_id() != 0 or processor.eos_id() < 0:
            raise ConfigError(
                f"The SentencePiece model {self.path!r} has its padding at id {processor.pad_id()} "
                f"and its end token at id {processor.eos_id()} (-1 is none), but a T5 needs "
                "padding at 0 and an end token. Train it with pad_id=0, eos_id=1, unk_id=2, "
                "bos_id=-1."
            )
        return processor

    def _load(self, model: bytes) -> sentencepiece.SentencePieceProcessor:
        processor = sentencepiece.SentencePieceProcessor()
        try:
            with _LOADING:
                processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ConfigError(
                f"{self.path!r} is not a SentencePiece model: {error}. "
                "Set `VOCABULARY_FILE` to the path of the model's vocabulary file."
            ) from error
        return processor

    def __reduce__(self):
        # The loaded processor stays behind: copies are made of configurations, not of tables.
        return type(self), (self.path, self.extra_ids)


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes as ids, as in ByT5 (https://arxiv.org/abs/2105.13626).

    Without extra ids the sentinels are the highest byte values, as ByT5 was trained: they never
    occur in valid UTF-8 or are rare in it.
    """

    extra_ids: int = 0

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without an end token."""
        return [byte + _BYTE_OFFSET for byte in text.encode("utf-8")]

    def encode_batch(
        self, texts: Sequence[str], *, threads: int = -1
    ) -> list[Int[np.ndarray, " T"]]:
        """Returns the ids of many texts, as `encode` does; `threads` is not needed here."""
        del threads
        raw = (np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts)
        return [row.astype(np.int32) + _BYTE_OFFSET for row in raw]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text up to the first end token, without ids and bytes that mean nothing."""
        values = (i - _BYTE_OFFSET for i in _until_end(ids, self.eos_id))
        return bytes(v for v in values if 0 <= v < _BYTES).decode("utf-8", errors="ignore")

    def piece(self, index: int) -> str:
        """Returns the written form of one id."""
        if index < _BYTE_OFFSET:
            return ("<pad>", "</s>", "<unk>")[index]
        if index < _BYTE_OFFSET + _BYTES:
            return f"<0x{index - _BYTE_OFFSET:02X}>"
        return f"<extra_id_{self.size - 1 - index}>"

    @property
    def size(self) -> int:
        """The number of ids: bytes, special ids and extra ids."""
        return _BYTE_OFFSET + _BYTES + self.extra_ids

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def eos_id(self) -> int:
        return 1

    @property
    def unk_id(self) -> int:
        return 2

    def sentinel_id(self, index: int) -> int:
        """Returns the id of the sentinel `index`, counted from the top."""
        return self.size - 1 - index

    @property
    def sentinels(self) -> int:
        """How many sentinels there are."""
        return self.extra_ids or _BYTE_SENTINELS

    @property
    def fingerprint(self) -> str:
        """A hash of what the vocabulary does."""
        return hashlib.sha256(f"bytes+{self.extra_ids}".encode()).hexdigest()


Vocabulary = SentencePieceVocabulary | ByteVocabulary


def train_sentencepiece(
    sentences: Iterable[str],
    path: str | os.PathLike[str],
    *,
    size: int,
    extra_ids: int = _EXTRA_IDS,
    character_coverage: float = 0.9995,
    max_sentences: int = 200_000,
) -> SentencePieceVocabulary:
    """Trains a T5-like vocabulary on sentences and writes it to `path`, replacing what is there.

    Unigram pieces, NMT-NFKC normalisation, padding 0, end 1, unknown 2, no start token and no byte
    fallback, as T5's own. The same sentences give the same file.

    Args:
        sentences: the text; blank ones are passed over.
        path: where the `.model` file goes; written as a whole or not at all.
        size: the number of pieces in the file, without `extra_ids`.
        extra_ids: the sentinels of the vocabulary that is returned; they are not in the file.
        character_coverage: the share of the text's characters that get a piece of their own.
        max_sentences: a larger text is sampled down to this many sentences, to bound the memory
            (2 GB for paragraphs of books).

    Raises:
        DataError: the text is too small for `size` pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample(sentences, max_sentences)),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=character_coverage,
            normalization_rule_name="nmt_nfkc",
            # The trainer would leave out longer sentences without a word.
            max_sentence_length=1 << 20,
            # Sums over threads are part of the result: it must not depend on the machine's cores.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"Cannot train a SentencePiece vocabulary of {size} pieces: {str(error).rstrip('.')}. "
            "Give more text or a smaller `size`."
        ) from error
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
    partial.write_bytes(model.getvalue())
    partial.replace(target)
    return SentencePieceVocabulary(os.fspath(path), extra_ids)


def _sample(sentences: Iterable[str], count: int) -> list[str]:
    """Draws up to `count` sentences, each with the same chance, in one pass over the text.

    The trainer's own sampling draws differently in every process.
    """
    rng = random.Random(0)
    drawn = []
    for seen, sentence in enumerate(filter(str.strip, sentences)):
        if seen < count:
            drawn.append(sentence)
        elif (place := rng.randrange(seen + 1)) < count:
            drawn[place] = sentence
    return drawn


def _until_end(ids: Iterable[SupportsIndex], eos_id: int) -> Iterator[int]:
    return itertools.takewhile(lambda i: i != eos_id, map(int, ids))


def _sentinel(index: int) -> str:
    # T5's sentinels stand at word starts only: the space is part of the piece.
    return f"▁<extra_id_{index}>"


def _user_defined_piece(piece: str) -> bytes:
    """Returns a piece in the form in which it can be appended to a serialised model.

    Two protocol buffers written one after the other read as one, with their repeated fields
    joined; so appending this to a model's bytes adds an entry to its list of pieces, and nobody
    needs the protobuf package:

        0a <length> ( 0a <length> <piece>   15 <float 0.0>   18 04 )
        pieces        piece                 score            type: user defined
    """
    text = piece.encode("utf-8")
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x00\x00" + b"\x18\x04"
    return b"\x0a" + bytes([len(body)]) + body
