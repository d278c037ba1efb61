import dataclasses
import re

import gin
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks import examples_of, import_task_modules
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.tasks import sst2
from prompt_tuning.tasks.text_files import TsvTask, register_tsv_task
from prompt_tuning.vocabulary import SentencePieceVocabulary

TRAIN = 'sentence\tlabel\nso good , it "hurts"\t1\ndull and careless \t0\nan honest film\t1\n'
VALIDATION = "label\tnote\tsentence\n0\tshort\tno\n-1\t\tnobody knows\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.tsv").write_text(TRAIN)
    (tmp_path / "validation.tsv").write_text(VALIDATION)
    return tmp_path


@pytest.fixture
def task(registry, files, vocabulary):
    """The description of a task; nothing is registered yet."""
    return TsvTask(
        name="films",
        splits={split: str(files / f"{split}.tsv") for split in ("train", "validation")},
        text_format="films sentence: {sentence}",
        label_names=["negative", "positive"],
        vocabulary=vocabulary,
    )


def load(task, split="train"):
    return examples_of(task.name, split, {"inputs": 64, "targets": 16}, vocabulary=task.vocabulary)


def raises(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def write(task, text):
    """Makes the text the task's training file and returns the file's name."""
    with open(task.splits["train"], "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    return task.splits["train"]


def test_a_line_becomes_inputs_and_a_label(task):
    assert register_tsv_task(task) == "films"
    loaded = load(task)
    assert loaded.columns["inputs_pretokenized"] == [
        b'films sentence: so good , it "hurts"',
        b"films sentence: dull and careless ",
        b"films sentence: an honest film",
    ]
    assert loaded.columns["targets_pretokenized"] == [b"positive", b"negative", b"positive"]
    encode = task.vocabulary.encode
    assert loaded.examples[2].inputs.tolist() == [*encode("films sentence: an honest film"), 1]
    assert loaded.examples[2].targets.tolist() == [*encode("positive"), 1]


def test_columns_are_found_by_name_and_all_are_kept(task):
    register_tsv_task(task)
    record = load(task, "validation").record(1)
    assert record["inputs_pretokenized"] == b"films sentence: nobody knows"
    assert (record["label"], record["note"], record["idx"]) == (-1, b"", 1)


def test_a_taskless_task_leaves_out_its_name(task):
    register_tsv_task(dataclasses.replace(task, taskless=True))
    assert load(task).columns["inputs_pretokenized"][2] == b"sentence: an honest film"


def test_answers_are_class_numbers_and_judged_by_accuracy(task):
    register_tsv_task(task)
    loaded = load(task)
    assert loaded.targets() == [1, 0, 1]
    assert loaded.predictions(["positive", "good", "negative"]) == [1, -1, 0]
    assert loaded.metrics(["positive", "negative", "neg"]) == {"accuracy": pytest.approx(200 / 3)}
    assert load(task, "validation").targets() == [0, -1]


def test_labels_may_be_written_as_names(task):
    register_tsv_task(task)
    write(task, "sentence\tlabel\na\tpositive\nb\tnegative\nc\t1\n")
    assert load(task).targets() == [1, 0, 1]


@pytest.mark.parametrize(
    "text", ["sentence\tlabel\r\na\t1\r\nb\t0\r\n", "sentence\tlabel\na\t1\nb\t0"]
)
def test_line_ends_of_any_system_are_read(task, text):
    register_tsv_task(task)
    write(task, text)
    assert load(task).columns["sentence"] == [b"a", b"b"]


def test_a_sentence_may_hold_what_other_readers_take_for_a_line_end(task):
    register_tsv_task(task)
    write(task, "sentence\tlabel\none\u2028two\x85three\x0cfour\t1\n")
    assert load(task).columns["sentence"] == ["one\u2028two\x85three\x0cfour".encode()]


def test_the_same_task_may_be_registered_again(task):
    register_tsv_task(task)
    registered = seqio.TaskRegistry.get("films")
    again = dataclasses.replace(task, label_names=("negative", "positive"))
    assert register_tsv_task(again) == "films"
    assert seqio.TaskRegistry.get("films") is registered


def test_another_task_of_the_same_name_is_refused(task):
    register_tsv_task(task)
    message = (
        "The task 'films' is already registered, but text_format was 'films sentence: {sentence}' "
        "and is '{sentence}'; taskless was False and is True. Choose another name."
    )
    with raises(ConfigError, message):
        register_tsv_task(dataclasses.replace(task, text_format="{sentence}", taskless=True))
    other = SentencePieceVocabulary(task.vocabulary.path, 0)
    with pytest.raises(ConfigError, match=re.escape("but vocabulary was SentencePieceVocabulary(")):
        register_tsv_task(dataclasses.replace(task, vocabulary=other))


def test_the_name_of_a_task_over_other_data_is_refused(task):
    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.range(1)

    source = seqio.FunctionDataSource(read, splits=["train"])
    seqio.TaskRegistry.add("films", source=source, output_features={})
    with pytest.raises(ConfigError, match=r"^The name 'films' belongs to a task over FunctionData"):
        register_tsv_task(task)


def test_a_missing_file_is_named_when_it_is_read(task):
    splits = {"train": "nowhere/train.tsv"}
    register_tsv_task(dataclasses.replace(task, splits=splits))
    with pytest.raises(DataError, match=r"^Cannot read the task file 'nowhere/train\.tsv': "):
        load(task)


def test_a_column_of_the_format_must_be_in_the_file(task):
    register_tsv_task(task)
    path = write(task, "sentense\tlabel\na\t1\n")
    message = (
        f"{path} has no column 'sentence', which TsvTask.text_format "
        "'films sentence: {sentence}' asks for. Did you mean 'sentense'? It has: sentense, label."
    )
    with raises(DataError, message):
        load(task)


def test_a_line_with_other_fields_is_named(task):
    register_tsv_task(task)
    path = write(task, "sentence\tlabel\na\t1\nb\t0\t0\n")
    message = f"{path}, line 3 has 3 fields, but the first line names 2 columns: sentence, label."
    with raises(DataError, message):
        load(task)


def test_an_unknown_label_is_named(task):
    register_tsv_task(task)
    path = write(task, "sentence\tlabel\na\t1\nb\tpositiv\n")
    message = (
        f"{path}, line 3 has the label 'positiv', but it should be one of: -1, 0, 1, negative, "
        "positive. Did you mean 'positive'?"
    )
    with raises(DataError, message):
        load(task)


def test_a_file_that_is_no_text_is_reported(task):
    register_tsv_task(task)
    path = write(task, "sentence\tlabel\ncafé\t1\n".encode("latin-1"))
    message = (
        f"{path}, line 2 is not UTF-8 text: byte 4 of the line is 0xe9. Save the file as UTF-8."
    )
    with raises(DataError, message):
        load(task)


def test_a_file_without_rows_is_reported(task):
    register_tsv_task(task)
    path = write(task, "sentence\tlabel\n")
    message = f"{path} is empty or has only the names of its columns: there are no examples in it."
    with raises(DataError, message):
        load(task)


def test_sst2_is_registered_with_and_without_its_name(registry, files, vocabulary):
    for _ in range(2):
        module = sst2.register_sst2_tsv(directory=files, vocabulary=vocabulary)
        assert module == "prompt_tuning.tasks.sst2"
    texts = {
        name: examples_of(name, "train", None, vocabulary=vocabulary).record(2)
        for name in ("sst2_tsv", "taskless_sst2_tsv")
    }
    assert texts["sst2_tsv"]["inputs_pretokenized"] == b"sst2 sentence: an honest film"
    assert texts["taskless_sst2_tsv"]["inputs_pretokenized"] == b"sentence: an honest film"
    assert texts["taskless_sst2_tsv"]["targets_pretokenized"] == b"positive"


def test_a_gin_file_registers_a_task_where_it_names_its_module(registry, files, vocabulary):
    """Twice, as gin calls the function for every reader of the macro."""
    gin.parse_config(f"""
        from __gin__ import dynamic_registration
        from prompt_tuning import vocabulary
        from prompt_tuning.data import seqio_tasks
        from prompt_tuning.tasks import sst2

        TSV_DIR = {str(files)!r}
        VOCABULARY = @vocabulary.SentencePieceVocabulary()
        vocabulary.SentencePieceVocabulary.path = {vocabulary.path!r}
        sst2.register_sst2_tsv.directory = %TSV_DIR
        sst2.register_sst2_tsv.vocabulary = %VOCABULARY
        MIXTURE_OR_TASK_MODULE = @sst2.register_sst2_tsv()
        seqio_tasks.import_task_modules.modules = %MIXTURE_OR_TASK_MODULE
    """)
    import_named_modules = gin.get_configurable(import_task_modules)
    for _ in range(2):
        assert import_named_modules() == ("prompt_tuning.tasks.sst2",)
    assert {"sst2_tsv", "taskless_sst2_tsv"} <= set(seqio.TaskRegistry.names())
    gin.clear_config()
