import copy
import io
import pathlib
import pickle
import re

import numpy as np
import pytest
import sentencepiece
import seqio
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning import paths
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import (
    ByteVocabulary,
    SentencePieceVocabulary,
    _user_defined_piece,
    train_sentencepiece,
)
from tests.small_vocabulary import SENTENCES, SIZE, train

TEXTS = [
    *SENTENCES,
    "",
    "   two  spaces\tand a tab ",
    "letters it has never seen: ŵ ☃ 漢字",
    "a <extra_id_0> b <extra_id_1>c <extra_id_99>",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return train(tmp_path_factory.mktemp("vocabulary") / "small.model").path


@pytest.fixture(scope="module", params=[100, 0, 7])
def pair(request, path):
    """Our vocabulary and seqio's."""
    ours = SentencePieceVocabulary(path, request.param)
    return ours, seqio.SentencePieceVocabulary(path, extra_ids=request.param)


@pytest.fixture(scope="module", params=[0, 125])
def byte_pair(request):
    return ByteVocabulary(request.param), seqio.ByteVocabulary(extra_ids=request.param)


def save_model(path, **ids):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=SIZE,
        minloglevel=2,
        **ids,
    )
    path.write_bytes(model.getvalue())
    return str(path)


def test_sentencepiece_ids_are_those_of_seqio(pair):
    ours, theirs = pair
    for text in TEXTS:
        assert ours.encode(text) == list(theirs.encode(text)), text
        assert ours.encode(text) == theirs.encode_tf(text).numpy().tolist(), text


def test_sentencepiece_special_ids_are_those_of_seqio(pair):
    ours, theirs = pair
    special = (ours.size, ours.pad_id, ours.eos_id, ours.unk_id)
    assert special == (theirs.vocab_size, theirs.pad_id, theirs.eos_id, theirs.unk_id)
    assert special == (SIZE + theirs.extra_ids, 0, 1, 2)


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [50, 60, 70],
        [50, 1, 70],  # stops at the end token
        [50, 60, 1, 0, 0],
        [0, 50, 2, 60],  # padding is silent, unknown is not
        [50, SIZE + 99, 60],
        [50, SIZE + 128, 60],  # a row of the model above the vocabulary
    ],
)
def test_sentencepiece_decodes_as_seqio_does(pair, ids):
    ours, theirs = pair
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(np.array(ids, np.int32)) == theirs.decode(ids)


def test_sentinels_are_numbered_from_the_top(path):
    vocabulary = SentencePieceVocabulary(path)
    assert vocabulary.sentinels == 100
    assert [vocabulary.sentinel_id(i) for i in (0, 1, 99)] == [SIZE + 99, SIZE + 98, SIZE]
    assert vocabulary.encode("<extra_id_3>") == [vocabulary.sentinel_id(3)]
    assert vocabulary.piece(vocabulary.sentinel_id(3)) == "▁<extra_id_3>"


def test_a_file_with_its_own_sentinels_is_the_same_vocabulary(path, tmp_path):
    added = SentencePieceVocabulary(path)
    context = seqio.SentencePieceVocabulary(path, extra_ids=100)
    (tmp_path / "100extra.model").write_bytes(context.sp_model)
    for extra_ids in (0, None):
        inside = SentencePieceVocabulary(str(tmp_path / "100extra.model"), extra_ids)
        assert (inside.size, inside.sentinels, inside.added_ids) == (added.size, 100, 0)
        assert inside.fingerprint == SentencePieceVocabulary(inside.path, 0).fingerprint
        for text in TEXTS:
            assert inside.encode(text) == added.encode(text)


def test_a_file_without_sentinels_at_its_end_gets_those_of_t5(path, tmp_path):
    written = [path, str(tmp_path / "text.model")]
    # As a piece it may be anywhere; and what the file says of its training is not a piece.
    train_sentencepiece([*SENTENCES * 9, *["a<extra_id_0>b"] * 99], written[1], size=SIZE)
    (tmp_path / "moved.model").write_bytes(
        pathlib.Path(path).read_bytes()
        + _user_defined_piece("▁<extra_id_0>")
        + _user_defined_piece("x")
    )
    for one in [*written, str(tmp_path / "moved.model")]:
        found = SentencePieceVocabulary(one)
        assert (found.added_ids, found.fingerprint) == (
            100,
            SentencePieceVocabulary(one, 100).fingerprint,
        )


def test_a_file_without_sentinels_has_none(path):
    assert SentencePieceVocabulary(path, 0).sentinels == 0


def test_byte_ids_are_those_of_seqio(byte_pair):
    ours, theirs = byte_pair
    for text in TEXTS:
        assert ours.encode(text) == list(theirs.encode(text)), text
    special = (ours.size, ours.pad_id, ours.eos_id, ours.unk_id)
    assert special == (theirs.vocab_size, theirs.pad_id, theirs.eos_id, theirs.unk_id)


@given(ids=st.lists(st.integers(0, 400)))
def test_bytes_decode_as_seqio_does(byte_pair, ids):
    ours, theirs = byte_pair
    assert ours.decode(ids) == theirs.decode(ids)


@given(text=st.text())
def test_bytes_lose_nothing(text):
    vocabulary = ByteVocabulary()
    if text.encode("utf-8", errors="ignore").decode() == text:
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_byte_sentinels_are_the_highest_bytes_as_in_byt5():
    assert ByteVocabulary().sentinel_id(0) == 258
    assert ByteVocabulary().sentinels == 100
    assert ByteVocabulary(125).sentinels == 125


def test_byte_pieces_have_names():
    vocabulary = ByteVocabulary(1)
    names = [vocabulary.piece(i) for i in (0, 1, 2, 3, 258, 259)]
    assert names == ["<pad>", "</s>", "<unk>", "<0x00>", "<0xFF>", "<extra_id_0>"]


@pytest.mark.parametrize("threads", [1, 2, -1])
def test_a_batch_encodes_as_its_texts_do(path, threads):
    for vocabulary in (SentencePieceVocabulary(path), ByteVocabulary()):
        rows = vocabulary.encode_batch(TEXTS, threads=threads)
        assert [row.tolist() for row in rows] == [vocabulary.encode(text) for text in TEXTS]
        assert {row.dtype for row in rows} == {np.dtype(np.int32)}


def test_copies_are_equal_and_leave_the_loaded_tables_behind(path):
    loaded = SentencePieceVocabulary(path, 7)
    loaded.encode("anything")
    for again in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert again == loaded and hash(again) == hash(loaded)
        assert vars(again) == {"path": path, "extra_ids": 7}


def test_naming_a_vocabulary_does_not_read_it():
    assert SentencePieceVocabulary("not/there.model").extra_ids is None


def test_the_fingerprint_follows_the_contents_and_not_the_path(path, tmp_path):
    here = SentencePieceVocabulary(path)
    (tmp_path / "copy.model").write_bytes(pathlib.Path(path).read_bytes())
    there = SentencePieceVocabulary(str(tmp_path / "copy.model"))
    assert here != there and here.fingerprint == there.fingerprint
    prints = {here.fingerprint, SentencePieceVocabulary(path, 0).fingerprint}
    prints |= {ByteVocabulary().fingerprint, ByteVocabulary(1).fingerprint}
    assert len(prints) == 4


def test_a_missing_file_names_the_setting():
    with pytest.raises(ConfigError) as caught:
        SentencePieceVocabulary("not/there.model").encode("text")
    message = str(caught.value)
    assert message.startswith("There is no SentencePiece model at 'not/there.model': ")
    assert message.endswith("Set `VOCABULARY_FILE` to the path of the model's vocabulary file.")


def test_a_bucket_that_cannot_be_reached_is_answered_with_a_file_to_give(monkeypatch):
    monkeypatch.setattr(paths, "_GOOGLE", ("127.0.0.1", 1))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
    with pytest.raises(ConfigError) as caught:
        SentencePieceVocabulary(path).encode("text")
    message = str(caught.value)
    start = f"Cannot read the SentencePiece model {path!r}: 127.0.0.1 cannot be reached: "
    assert message.startswith(start)
    assert "Set `VOCABULARY_FILE` to a copy on this machine, such as the spiece.model" in message
    assert message.endswith("--gin.VOCABULARY_FILE=\"'spiece.model'\".")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a model")
    vocabulary = SentencePieceVocabulary(str(tmp_path / "notes.txt"))
    with pytest.raises(ConfigError, match=re.escape("notes.txt' is not a SentencePiece model: ")):
        vocabulary.encode("text")


def test_a_vocabulary_without_padding_is_refused(tmp_path):
    vocabulary = SentencePieceVocabulary(save_model(tmp_path / "no_padding.model"))
    expected = "has its padding at id -1 and its end token at id 2 (-1 is none), but a T5 needs"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        vocabulary.encode("text")


def test_training_gives_the_same_file_for_the_same_sentences(tmp_path):
    first = train_sentencepiece(SENTENCES * 9, tmp_path / "a", size=90, max_sentences=15)
    again = train_sentencepiece(iter(SENTENCES * 9), tmp_path / "b", size=90, max_sentences=15)
    assert first.fingerprint == again.fingerprint
    whole = train_sentencepiece(SENTENCES * 9, tmp_path / "c", size=90)
    assert first.fingerprint != whole.fingerprint


def test_training_follows_the_conventions_of_t5(tmp_path):
    vocabulary = train_sentencepiece(["", *SENTENCES, " "], tmp_path / "new" / "v.model", size=SIZE)
    assert vocabulary == SentencePieceVocabulary(str(tmp_path / "new" / "v.model"), 100)
    assert [vocabulary.piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert vocabulary.size == SIZE + 100
    assert vocabulary.decode(vocabulary.encode(SENTENCES[0])) == SENTENCES[0]


def test_training_reads_paragraphs_of_any_length(tmp_path):
    long = " ".join(SENTENCES * 20)
    assert train_sentencepiece([long], tmp_path / "v.model", size=SIZE).size == SIZE + 100


def test_training_replaces_the_file_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "v.model"
    path.write_bytes(b"old")
    expected = "Cannot train a SentencePiece vocabulary of 9000 pieces: "
    with pytest.raises(DataError, match=expected) as caught:
        train_sentencepiece(SENTENCES, path, size=9000)
    assert str(caught.value).endswith("Give more text or a smaller `size`.")
    assert path.read_bytes() == b"old"
    train(path)
    assert path.read_bytes() != b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["v.model"]
