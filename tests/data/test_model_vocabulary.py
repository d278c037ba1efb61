"""A task's vocabulary that is whichever the model has that learns it."""

import copy
import pickle

import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks import ModelVocabulary, with_vocabulary
from prompt_tuning.data.seqio_tasks import model_vocabulary as module
from prompt_tuning.errors import ConfigError
from prompt_tuning.vocabulary import ByteVocabulary

TEXT = "the boats came home, é"


def task(name="tiny", *, inputs, targets=None):
    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(read, splits=["train"]),
        output_features={
            "inputs": seqio.Feature(inputs, required=False),
            "targets": seqio.Feature(targets or inputs, add_eos=False),
        },
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        shuffle_buffer_size=7,
    )


def read(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensors({"inputs": TEXT, "targets": "film"})


@pytest.fixture
def released(vocabulary, monkeypatch):
    """The small vocabulary in the place of T5's, which lies in the network."""
    theirs = seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=100)
    monkeypatch.setitem(module._RELEASED, "t5", lambda: theirs)
    return theirs


def test_it_takes_no_file_to_name_it():
    for family in ("t5", "mt5", "byt5"):
        made = ModelVocabulary(family)
        assert vars(made).keys() == {"_extra_ids", "family"}
        assert str(made) == f"ModelVocabulary({family})"
        assert made == ModelVocabulary(family) == copy.deepcopy(made)
        assert pickle.loads(pickle.dumps(made)) == made
        assert hash(made) == hash(ModelVocabulary(family))
    assert len({ModelVocabulary(family) for family in ("t5", "mt5", "byt5")}) == 3
    assert ModelVocabulary("byt5") != seqio.ByteVocabulary()


@pytest.mark.parametrize(
    ("family", "path", "extra_ids"),
    [
        ("t5", "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model", 100),
        ("mt5", "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model", 0),
    ],
)
def test_the_released_vocabularies_are_those_of_the_checkpoints(family, path, extra_ids):
    made = ModelVocabulary(family).released
    assert isinstance(made, seqio.SentencePieceVocabulary)
    assert (made.sentencepiece_model_file, made.extra_ids) == (path, extra_ids)


def test_without_a_run_it_is_the_released_vocabulary(released):
    for made, theirs in (
        (ModelVocabulary("t5"), released),
        (ModelVocabulary("byt5"), seqio.ByteVocabulary()),
    ):
        for name in ("vocab_size", "eos_id", "bos_id", "unk_id", "pad_id", "extra_ids"):
            assert getattr(made, name) == getattr(theirs, name), name
        ids = theirs.encode(TEXT)
        assert made.encode(TEXT) == ids
        assert made.encode_tf(TEXT).numpy().tolist() == ids
        assert made.decode([*ids, 1, 5]) == theirs.decode([*ids, 1, 5])
        assert made.decode_tf(tf.constant(ids)) == theirs.decode_tf(tf.constant(ids))


def test_an_unknown_family_gets_its_nearest():
    with pytest.raises(
        ConfigError,
        match=r"^There is no family of models 't5x'\. Did you mean 't5'.* Known are: t5, mt5, byt5",
    ):
        ModelVocabulary("t5x")


def test_a_run_s_vocabulary_takes_its_place(vocabulary):
    held = task(inputs=ModelVocabulary("t5"))
    made = with_vocabulary(held, vocabulary)
    (example,) = made.get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    assert example["inputs"].tolist() == [*vocabulary.encode(TEXT), 1]
    assert example["targets"].tolist() == vocabulary.encode("film")
    assert (made.name, made.shuffle_buffer_size) == ("tiny", 7)
    assert made.source is held.source
    for name, feature in made.output_features.items():
        before = held.output_features[name]
        assert (feature.add_eos, feature.required) == (before.add_eos, before.required)
        assert isinstance(before.vocabulary, ModelVocabulary)


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_pieces_suit_both_families_that_have_them(family, vocabulary):
    made = with_vocabulary(task(inputs=ModelVocabulary(family)), vocabulary)
    assert made.output_features["inputs"].vocabulary.vocab_size == vocabulary.size


@pytest.mark.parametrize(
    ("name", "family", "fitting"),
    [
        ("glue_x", "t5", "'byt5_glue_x'"),
        ("mt5_glue_x", "mt5", "'byt5_glue_x'"),
        ("byt5_glue_x", "byt5", "'glue_x' or 'mt5_glue_x'"),
    ],
)
def test_another_kind_is_refused_with_the_name_of_the_task_to_take(
    name, family, fitting, vocabulary
):
    held = task(name, inputs=ModelVocabulary(family))
    with pytest.raises(ConfigError, match=rf"^The task {name!r} is for models .* to {fitting}\.$"):
        with_vocabulary(held, vocabulary if family == "byt5" else ByteVocabulary())
    with_vocabulary(held, ByteVocabulary() if family == "byt5" else vocabulary)


def test_a_vocabulary_that_a_task_names_stays(vocabulary):
    own = seqio.PassThroughVocabulary(size=2)
    held = task(inputs=own)
    assert with_vocabulary(held, vocabulary) is held
    made = with_vocabulary(task(inputs=own, targets=ModelVocabulary("t5")), vocabulary)
    assert made.output_features["inputs"].vocabulary is own
    assert made.output_features["targets"].vocabulary.vocab_size == vocabulary.size


def test_a_mixture_keeps_its_rates(vocabulary):
    one = task("one", inputs=ModelVocabulary("t5"))
    two = task("two", inputs=ModelVocabulary("t5"))
    inner = seqio.Mixture("inner", [(two, lambda _: 3.0)])
    outer = seqio.Mixture("outer", [(one, 1.0), (inner, 8.0)], sample_fn=sampled)
    made = with_vocabulary(outer, vocabulary)
    assert made.name == "outer" and made._sample_fn is sampled
    assert {part.name: made.get_rate(part) for part in made.tasks} == {"one": 1.0, "two": 8.0}
    for part in made.tasks:
        assert part.output_features["inputs"].vocabulary.vocab_size == vocabulary.size
    plain = seqio.Mixture("plain", [(task(inputs=seqio.ByteVocabulary()), 1.0)])
    assert with_vocabulary(plain, vocabulary) is plain


def sampled(datasets, weights, seed):
    return datasets[0]
