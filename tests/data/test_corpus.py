import gzip
import lzma
import re

import numpy as np
import pytest

from prompt_tuning.data.corpus import find_files, load_corpus, read_documents
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import ByteVocabulary, SentencePieceVocabulary
from tests.small_vocabulary import SENTENCES

BOOKS = [SENTENCES[:3], SENTENCES[3:4], SENTENCES[4:9]]
TEXT = "\n\n".join("\n".join(book) for book in BOOKS) + "\n"


def expected(vocabulary, books=BOOKS):
    return [
        token
        for book in books
        for token in [*(i for text in book for i in vocabulary.encode(text)), vocabulary.eos_id]
    ]


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "book.txt")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_paragraphs_follow_each_other_and_documents_end(book, cache, vocabulary):
    row = load_corpus(book, vocabulary, cache_dir=cache)
    assert row.tolist() == expected(vocabulary)
    assert isinstance(row, np.memmap) and row.dtype == np.uint16


def test_a_large_vocabulary_has_wider_tokens(book, cache):
    vocabulary = ByteVocabulary(extra_ids=1 << 16)
    row = load_corpus(book, vocabulary, cache_dir=cache)
    assert row.tolist() == expected(vocabulary)
    assert row.dtype == np.int32


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_compressed_files_read_the_same(tmp_path, cache, vocabulary, suffix, compress):
    path = tmp_path / f"book.txt{suffix}"
    path.write_bytes(compress(TEXT.encode("utf-8")))
    assert load_corpus(str(path), vocabulary, cache_dir=cache).tolist() == expected(vocabulary)


def test_many_small_batches_make_the_same_row(book, cache, vocabulary, monkeypatch):
    monkeypatch.setattr("prompt_tuning.data.corpus._BATCH_CHARACTERS", 1)
    assert load_corpus(book, vocabulary, cache_dir=cache).tolist() == expected(vocabulary)


@pytest.mark.parametrize("blank", ["\n\n", "\n\n\n\n", "\n \t\n", "\r\n\r\n"])
def test_any_blank_line_ends_a_document_and_no_more_of_them_do(tmp_path, blank):
    path = tmp_path / "book.txt"
    path.write_bytes(f"\n\none\ntwo{blank}three\n\n\n".encode())
    documents = [list(document) for document in read_documents(find_files(str(path))[0])]
    assert documents == [["one", "two"], ["three"]]


def test_files_are_read_in_the_order_given_and_patterns_by_name(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt", "sub/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_files(
        [str(tmp_path / "c.txt"), str(tmp_path / "[ab].txt"), str(tmp_path / "s*/*")]
    )
    assert [path.read_text() for path in found] == ["c.txt", "a.txt", "b.txt", "sub/a.txt"]


@pytest.mark.parametrize("max_tokens", [1, 20, 10**6])
def test_a_part_is_the_beginning(book, cache, vocabulary, max_tokens):
    row = load_corpus(book, vocabulary, cache_dir=cache, max_tokens=max_tokens)
    assert row.tolist() == expected(vocabulary)[:max_tokens]


def test_the_row_is_made_once(book, cache, vocabulary):
    load_corpus(book, vocabulary, cache_dir=cache)
    (row,) = cache.iterdir()
    before = row.stat()
    load_corpus(book, vocabulary, cache_dir=cache)
    assert [path.stat() for path in cache.iterdir()] == [before]


def test_anything_that_changes_the_tokens_makes_another_row(book, tmp_path, cache, vocabulary):
    load_corpus(book, vocabulary, cache_dir=cache)
    load_corpus(book, SentencePieceVocabulary(vocabulary.path, 0), cache_dir=cache)
    load_corpus(book, vocabulary, cache_dir=cache, max_tokens=5)
    load_corpus([book, book], vocabulary, cache_dir=cache)
    (tmp_path / "book.txt").write_text("another text of the same name")
    assert load_corpus(book, vocabulary, cache_dir=cache).tolist() == expected(
        vocabulary, [["another text of the same name"]]
    )
    assert len(list(cache.iterdir())) == 5


def test_the_same_files_elsewhere_need_no_other_row(book, tmp_path, cache, vocabulary):
    load_corpus(book, vocabulary, cache_dir=cache)
    (tmp_path / "moved.txt").write_text(TEXT, encoding="utf-8")
    load_corpus(str(tmp_path / "moved.txt"), vocabulary, cache_dir=cache)
    assert len(list(cache.iterdir())) == 1


def test_a_broken_file_leaves_no_row(tmp_path, cache, vocabulary):
    path = tmp_path / "book.txt.xz"
    path.write_bytes(lzma.compress(TEXT.encode() * 99)[:-40])
    with pytest.raises(DataError, match=re.escape("book.txt.xz: Compressed file ended before")):
        load_corpus(str(path), vocabulary, cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_bytes_that_are_no_text_are_reported(tmp_path, cache, vocabulary):
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=re.escape("latin.txt: 'utf-8' codec can't decode byte")):
        load_corpus(str(path), vocabulary, cache_dir=cache)


def test_a_corpus_without_text_is_reported(tmp_path, cache, vocabulary):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"^The corpus files hold no text\.$"):
        load_corpus(str(tmp_path / "empty.txt"), vocabulary, cache_dir=cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("missing", ["nowhere/book.txt", "nowhere/*.txt", "nowhere*/book-*.txt"])
def test_a_missing_file_is_named(tmp_path, cache, vocabulary, missing):
    pattern = str(tmp_path / missing)
    message = (
        f"No corpus file matches {pattern!r}. Give paths or patterns of `.txt`, `.txt.xz` or "
        "`.txt.gz` files."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load_corpus(pattern, vocabulary, cache_dir=cache)


def test_no_files_at_all_are_reported(cache, vocabulary):
    with pytest.raises(DataError, match=r"^The corpus has no files"):
        load_corpus([], vocabulary, cache_dir=cache)


def test_a_remote_cache_is_refused(book, vocabulary):
    with pytest.raises(
        ConfigError, match=r"^The corpus cache 'gs://bucket/x' is not a local folder"
    ):
        load_corpus(book, vocabulary, cache_dir="gs://bucket/x")
