"""The vocabulary of a corpus: read if it is there, trained on the corpus if it is not."""

import itertools
import os
from collections.abc import Sequence

from etils import epath

from prompt_tuning.data.corpus import find_files, read_documents
from prompt_tuning.vocabulary import SentencePieceVocabulary, train_sentencepiece


def corpus_vocabulary(
    path: str | os.PathLike[str],
    *,
    files: str | Sequence[str],
    size: int = 8000,
    extra_ids: int | None = None,
    max_sentences: int = 500_000,
) -> SentencePieceVocabulary:
    """Returns the SentencePiece vocabulary at `path`, first training it on `files` if it is absent.

    Args:
        path: the `.model` file.
        files: paths or patterns of text files, see `load_corpus`.
        size: pieces to train, sentinels not counted.
        extra_ids: sentinels above the file's own pieces, see `SentencePieceVocabulary`.
        max_sentences: a larger text is sampled down to this many paragraphs.
    """
    if epath.Path(path).exists():
        return SentencePieceVocabulary(os.fspath(path), extra_ids)
    documents = itertools.chain.from_iterable(read_documents(file) for file in find_files(files))
    return train_sentencepiece(
        itertools.chain.from_iterable(documents),
        path,
        size=size,
        extra_ids=100 if extra_ids is None else extra_ids,
        max_sentences=max_sentences,
    )
