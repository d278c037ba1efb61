import re
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks import examples_of, import_task_modules
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import ByteVocabulary, SentencePieceVocabulary

RECORDS = {
    "train": [("the film is slow", "bad"), ("a moving film", "good"), ("what a story", "good")],
    "validation": [("the boats came home", "good"), ("dull", "bad")],
    "empty": [],
}
LENGTHS = {"inputs": 64, "targets": 8}


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """The cache is new for every test."""
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry():
    """Takes away what a test registers."""
    before = set(seqio.TaskRegistry.names()) | set(seqio.MixtureRegistry.names())
    yield
    for names in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in set(names.names()) - before:
            names.remove(name)


def read(split, shuffle_files, seed=None):
    inputs, targets = zip(*RECORDS[split], strict=True) if RECORDS[split] else ([], [])
    return tf.data.Dataset.from_tensor_slices(
        {
            "inputs": tf.constant(inputs, tf.string),
            "targets": tf.constant(targets, tf.string),
            "number": tf.range(len(inputs)),
        }
    )


def count_letters(text, example=None, is_target=False):
    assert example["number"] >= 0
    return (len(text), is_target)


def same_length(targets, predictions):
    assert all(target for _, target in targets) and not any(target for _, target in predictions)
    right = [a == b for (a, _), (b, _) in zip(targets, predictions, strict=True)]
    return {"same_length": seqio.metrics.Scalar(100 * sum(right) / len(right))}


def add_task(vocabulary, name="tiny", *, features=None, preprocessors=None, **values):
    feature = seqio.Feature(
        seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=vocabulary.extra_ids)
    )
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(read, splits=list(RECORDS)),
        output_features=features or {"inputs": feature, "targets": feature},
        preprocessors=preprocessors
        or [
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        postprocess_fn=count_letters,
        metric_fns=[same_length],
        **values,
    )


@pytest.fixture
def task(registry, vocabulary):
    return add_task(vocabulary)


def load(vocabulary, split="train", lengths=LENGTHS, name="tiny", **values):
    return examples_of(name, split, lengths, vocabulary=vocabulary, **values)


def raises(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("lengths", [LENGTHS, None])
def test_examples_are_the_ids_of_the_text_with_an_end(task, vocabulary, split, lengths):
    loaded = load(vocabulary, split, lengths)
    for example, texts in zip(loaded.examples, RECORDS[split], strict=True):
        for ids, text in zip(example, texts, strict=True):
            assert ids.tolist() == [*vocabulary.encode(text), 1]
            assert ids.dtype == np.int32


def test_long_examples_are_trimmed_and_still_end(task, vocabulary):
    loaded = load(vocabulary, lengths={"inputs": 4, "targets": 2})
    assert loaded.longest == (4, 2)
    for example, (inputs, _) in zip(loaded.examples, RECORDS["train"], strict=True):
        assert example.inputs.tolist() == [*vocabulary.encode(inputs)[:3], 1]
        assert example.targets[-1] == 1


def test_a_length_that_is_not_given_does_not_trim(task, vocabulary):
    assert load(vocabulary, lengths={"targets": 2}).longest[0] == load(vocabulary).longest[0]


def test_the_longest_example_is_known(task, vocabulary):
    sides = zip(*RECORDS["train"], strict=True)
    longest = tuple(1 + max(len(vocabulary.encode(text)) for text in side) for side in sides)
    assert load(vocabulary, lengths=None).longest == longest


def test_a_record_has_everything_the_task_knows_of_it(task, vocabulary):
    record = load(vocabulary).record(1)
    assert record["inputs_pretokenized"] == b"a moving film"
    assert record["targets_pretokenized"] == b"good"
    assert record["number"] == 1
    assert record["targets"].tolist() == [*vocabulary.encode("good"), 1]


def test_answers_are_judged_by_the_task(task, vocabulary):
    loaded = load(vocabulary)
    assert loaded.targets() == [(3, True), (4, True), (4, True)]
    assert loaded.predictions(["bad", "okay", "?"]) == [(3, False), (4, False), (1, False)]
    assert loaded.metrics(["bad", "okay", "?"]) == {"same_length": pytest.approx(200 / 3)}


def test_targets_without_text_are_decoded(registry, vocabulary):
    def without_text(dataset):
        return dataset.map(
            lambda record: {key: record[key] for key in ("inputs", "targets", "number")}
        )

    add_task(vocabulary, preprocessors=[seqio.preprocessors.tokenize_and_append_eos, without_text])
    assert load(vocabulary).targets() == [(3, True), (4, True), (4, True)]


def test_lists_of_any_length_may_stand_beside_the_text(registry, vocabulary):
    def with_words(dataset):
        return dataset.map(lambda record: {"words": tf.strings.split(record["inputs"]), **record})

    add_task(vocabulary, preprocessors=[with_words, seqio.preprocessors.tokenize])
    assert load(vocabulary).record(1)["words"].tolist() == [b"a", b"moving", b"film"]


def test_a_random_preprocessor_draws_the_same_for_the_same_seed(registry, vocabulary):
    @seqio.map_over_dataset(num_seeds=1)
    def shuffled(record, seed):
        return {
            **record,
            "inputs": tf.random.experimental.stateless_shuffle(record["inputs"], seed),
        }

    add_task(vocabulary, preprocessors=[seqio.preprocessors.tokenize, shuffled])
    one, again, other = (
        [example.inputs.tolist() for example in load(vocabulary, seed=seed).examples]
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_only_the_first_examples_may_be_read(task, vocabulary):
    loaded = load(vocabulary, max_examples=2)
    assert [column[-1] for column in loaded.columns.values()].count(b"a moving film") == 1
    assert len(loaded.examples) == 2


def test_one_answer_for_each_example_is_needed(task, vocabulary):
    message = (
        "There are 1 answers to the 3 examples of 'tiny', split 'train'. Give one for each, in "
        "order."
    )
    with raises(DataError, message):
        load(vocabulary).metrics(["bad"])


def test_an_unknown_task_is_named_with_its_neighbours(task, vocabulary):
    message = (
        "There is no task named 'tinny'. Did you mean 'tiny'? Task modules imported: my.tasks; set "
        "`MIXTURE_OR_TASK_MODULE` to the module that registers it."
    )
    with raises(DataError, message):
        load(vocabulary, name="tinny", modules=["my.tasks"])


def test_a_mixture_is_refused_with_its_tasks(task, vocabulary):
    add_task(vocabulary, "other")
    seqio.MixtureRegistry.add("both", ["tiny", "other"], default_rate=1)
    with raises(DataError, "'both' is a mixture. Name one of its tasks: other, tiny."):
        load(vocabulary, name="both")


def test_a_missing_split_is_named_with_those_there_are(task, vocabulary):
    message = (
        "The task 'tiny' has no split 'validate'. Did you mean 'validation'? It has: train, "
        "validation, empty. EVAL_SPLIT names the one to evaluate on; None evaluates nothing."
    )
    with raises(DataError, message):
        load(vocabulary, "validate")


def test_an_empty_split_is_refused(task, vocabulary):
    with raises(DataError, "The split 'empty' of the task 'tiny' has no examples."):
        load(vocabulary, "empty")


def test_a_length_of_an_unknown_feature_is_refused(task, vocabulary):
    message = (
        "TASK_FEATURE_LENGTHS has a length for 'input', but the features of the task 'tiny' are: "
        "inputs, targets. Did you mean 'inputs'?"
    )
    with raises(ConfigError, message):
        load(vocabulary, lengths={"input": 64})


def test_the_same_vocabulary_in_another_file_is_accepted(task, vocabulary, tmp_path):
    inside = seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=100)
    (tmp_path / "100extra.model").write_bytes(inside.sp_model)
    for extra_ids in (0, None):
        again = SentencePieceVocabulary(str(tmp_path / "100extra.model"), extra_ids)
        assert len(load(again).examples) == 3


def test_a_byte_task_needs_a_byte_model(registry, vocabulary):
    feature = seqio.Feature(seqio.ByteVocabulary(extra_ids=125))
    add_task(vocabulary, features={"inputs": feature, "targets": feature})
    loaded = load(ByteVocabulary(125))
    assert loaded.examples[1].targets.tolist() == [*ByteVocabulary().encode("good"), 1]
    with pytest.raises(ConfigError, match="vocabulary of 384 ids, but the model's has 260"):
        load(vocabulary)


def test_a_vocabulary_of_another_size_is_refused(task, vocabulary):
    message = (
        "The 'inputs' of the task 'tiny' use a vocabulary of 260 ids, but the model's has 167. Set "
        "`VOCABULARY` to the vocabulary that the checkpoint was trained with and register the task "
        "with the same one."
    )
    with raises(ConfigError, message):
        load(SentencePieceVocabulary(vocabulary.path, 7))


def test_a_vocabulary_of_the_same_size_and_other_pieces_is_refused(task, vocabulary, tmp_path):
    model = bytearray(vocabulary._model).replace(b"\xe2\x96\x81the", b"\xe2\x96\x81xyz", 1)
    (tmp_path / "other.model").write_bytes(model)
    message = "is '▁the' in the task's and '▁xyz' in the model's. Set `VOCABULARY` to"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(SentencePieceVocabulary(str(tmp_path / "other.model"), 0))


def test_a_vocabulary_that_is_none_is_refused(registry, vocabulary):
    feature = seqio.Feature(seqio.PassThroughVocabulary(10))
    add_task(vocabulary, features={"inputs": feature, "targets": feature})
    message = (
        "The 'inputs' of the task 'tiny' use a PassThroughVocabulary, but a T5 reads "
        "seqio.SentencePieceVocabulary or seqio.ByteVocabulary."
    )
    with raises(ConfigError, message):
        load(vocabulary)


def test_a_task_without_inputs_is_refused(registry, vocabulary):
    feature = seqio.Feature(seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=100))
    add_task(vocabulary, features={"targets": feature})
    message = "The task 'tiny' has no output feature 'inputs'. It has: targets."
    with raises(DataError, message):
        load(vocabulary)


def test_examples_without_inputs_are_refused(registry, vocabulary):
    def no_inputs(dataset):
        return dataset.map(lambda record: {"targets": record["targets"]})

    feature = seqio.Feature(
        seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=100), required=False
    )
    add_task(
        vocabulary,
        features={"inputs": feature, "targets": feature},
        preprocessors=[no_inputs, seqio.preprocessors.tokenize],
    )
    message = (
        "The examples of the task 'tiny' have no 'inputs', but a T5 reads inputs and writes "
        "targets. They have: targets_pretokenized, targets."
    )
    with raises(DataError, message):
        load(vocabulary)


def test_task_modules_are_imported_by_name(tmp_path, monkeypatch):
    (tmp_path / "tasks_of_a_user.py").write_text("imported = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_task_modules("tasks_of_a_user") == ("tasks_of_a_user",)
    assert sys.modules.pop("tasks_of_a_user").imported
    assert import_task_modules(None) == ()
    assert import_task_modules(["json", "csv"]) == ("json", "csv")


@pytest.mark.parametrize(("name", "missing"), [("no_tasks", "no_tasks"), ("json.no", "json.no")])
def test_a_missing_task_module_is_named(name, missing):
    message = (
        f"MIXTURE_OR_TASK_MODULE names {name!r}, but there is no module {missing!r}. Install its "
        "package or put its folder on PYTHONPATH."
    )
    with raises(ConfigError, message):
        import_task_modules(name)


def test_a_task_module_that_lacks_something_speaks_for_itself(tmp_path, monkeypatch):
    (tmp_path / "tasks_of_a_user.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_library'$"):
        import_task_modules("tasks_of_a_user")


def test_tensorflow_is_kept_off_the_accelerator():
    assert tf.config.get_visible_devices("GPU") == []
