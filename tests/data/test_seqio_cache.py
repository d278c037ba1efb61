"""What of seqio's tasks comes from the cache, and from which one."""

import functools
import json
import logging
import re
from typing import ClassVar

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.data import seqio_tasks
from prompt_tuning.data.seqio_tasks import examples_of, is_stream, load, mixture_of
from prompt_tuning.data.streams import Stream
from prompt_tuning.errors import DataError
from prompt_tuning.vocabulary import SentencePieceVocabulary

LENGTHS = {"inputs": 64, "targets": 8}
TRIMMED = [
    seqio.preprocessors.tokenize,
    seqio.CacheDatasetPlaceholder(),
    seqio.preprocessors.append_eos_after_trim,
]


class SmallDataset(tfds.core.GeneratorBasedBuilder):
    """Four sentences, and four others, for tests."""

    VERSION = tfds.core.Version("1.0.0")
    WORDS = ("a film", "a slow film", "a story", "boats")
    url_infos: ClassVar = {}  # Nothing is downloaded, so there are no checksums to look for.

    def _info(self):
        features = {"inputs": tf.string, "targets": tf.string}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(self.WORDS),
            "validation": self._generate_examples(("a play", "a song", "two plays", "planes")),
        }

    def _generate_examples(self, words):
        for number, text in enumerate(words):
            yield number, {"inputs": text, "targets": "good"}


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """The cache is new for every test."""
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def registry():
    """Takes away what a test registers, and the folders that it adds."""
    folders = list(seqio.get_global_cache_dirs())
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [set(registry.names()) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        for name in set(registry.names()) - kept:
            registry.remove(name)
    seqio.set_global_cache_dirs(folders)


@pytest.fixture
def files(tmp_path):
    paths = {split: tmp_path / f"{split}.txt" for split in ("train", "validation")}
    for path in paths.values():
        path.write_text("a film\na very slow film\nwhat a moving story\n")
    return paths


@pytest.fixture
def vocabulary_feature(vocabulary):
    return seqio.Feature(seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=100))


def with_targets(dataset):
    return dataset.map(lambda text: {"inputs": text, "targets": "good"})


def file_source(files):
    return seqio.TextLineDataSource({split: str(path) for split, path in files.items()})


def generator_source(texts, **values):
    def read(split, shuffle_files, seed=None):
        def generate():
            yield from texts

        return tf.data.Dataset.from_generator(
            generate, output_signature=tf.TensorSpec((), tf.string)
        )

    return seqio.FunctionDataSource(read, splits=["train"], **values)


def endless_source():
    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensors("a film").repeat()

    return seqio.FunctionDataSource(read, splits=["train"])


def add(name, source, feature, preprocessors=(with_targets, *TRIMMED), **values):
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        output_features={"inputs": feature, "targets": feature},
        preprocessors=list(preprocessors),
        **{"metric_fns": [], **values},
    )


@pytest.fixture
def task(files, vocabulary_feature):
    return add("lines", file_source(files), vocabulary_feature)


@pytest.fixture
def read(vocabulary, monkeypatch):
    """Loads a split, and tells how often records went through TensorFlow."""
    passes = []
    iterate = tf.data.Dataset.as_numpy_iterator
    monkeypatch.setattr(
        tf.data.Dataset, "as_numpy_iterator", lambda self: passes.append(1) or iterate(self)
    )

    def read(name="lines", split="train", lengths=LENGTHS, **values):
        passes.clear()
        loaded = examples_of(name, split, lengths, vocabulary=vocabulary, **values)
        return loaded, len(passes)

    return read


def test_the_second_time_no_record_goes_through_tensorflow(task, read):
    first, passes = read()
    again, no_passes = read()
    assert (passes, no_passes) == (1, 0)
    assert first.fingerprint == again.fingerprint
    for number in range(3):
        one, other = first.record(number), again.record(number)
        assert list(one) == list(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert again.record(1)["inputs_pretokenized"] == b"a very slow film"


def test_the_cache_may_lie_anywhere(task, read, tmp_path, cache_dir):
    read(cache_dir=tmp_path / "elsewhere")
    assert read(cache_dir=tmp_path / "elsewhere")[1] == 0
    assert (tmp_path / "elsewhere" / "lines").exists() and not cache_dir.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"split": "validation"},
        {"lengths": None},
        {"lengths": {"inputs": 63, "targets": 8}},
        {"lengths": {"inputs": 64}},
        {"seed": 1},
        {"max_examples": 2},
    ],
)
def test_another_request_is_another_split(task, read, change):
    read()
    assert read(**change)[1] > 0
    assert read(**change)[1] == read()[1] == 0


def upper(dataset, *, times=1):
    return dataset.map(lambda record: record | {"inputs": tf.strings.upper(record["inputs"])})


def lower(dataset):
    return dataset.map(lambda record: record | {"inputs": tf.strings.lower(record["inputs"])})


def another_file(files, feature, vocabulary):
    files["train"].write_text("a film\na very slow film\nwhat a moving storm\n")
    return add("lines", file_source(files), feature)


def skipped_line(files, feature, vocabulary):
    source = seqio.TextLineDataSource({"train": str(files["train"])}, skip_header_lines=1)
    return add("lines", source, feature)


def another_function(files, feature, vocabulary):
    return add("lines", file_source(files), feature, [with_targets, upper, *TRIMMED])


def another_argument(files, feature, vocabulary):
    steps = [with_targets, functools.partial(upper, times=2), *TRIMMED]
    return add("lines", file_source(files), feature, steps)


def no_end(files, feature, vocabulary):
    feature = seqio.Feature(feature.vocabulary, add_eos=False)
    return add("lines", file_source(files), feature)


def another_name(files, feature, vocabulary):
    add("other", file_source(files), feature)
    return "other"


@pytest.mark.parametrize(
    "change",
    [another_file, skipped_line, another_function, another_argument, no_end, another_name],
)
def test_another_task_is_another_split(task, files, vocabulary_feature, vocabulary, read, change):
    before, _ = read()
    name = change(files, vocabulary_feature, vocabulary)
    after, passes = read(name if isinstance(name, str) else "lines")
    assert passes == 1
    assert (after.fingerprint == before.fingerprint) == (change is another_name)


def test_another_vocabulary_is_another_split(task, files, vocabulary, read, tmp_path):
    read()
    # The same pieces, so the model takes it; other scores, so the same text has other ids.
    scores = bytearray(vocabulary._model)
    place = scores.index("▁the".encode())
    scores[place + len("▁the".encode()) + 3] ^= 0x40
    (tmp_path / "other.model").write_bytes(scores)
    path = str(tmp_path / "other.model")
    add("lines", file_source(files), seqio.Feature(seqio.SentencePieceVocabulary(path, 0)))
    assert read()[1] == 1
    assert SentencePieceVocabulary(path, 0).piece(9) == vocabulary.piece(9)


def test_metrics_and_postprocessors_do_not_matter(task, files, vocabulary_feature, read):
    read()
    add(
        "lines", file_source(files), vocabulary_feature,
        postprocess_fn=lambda text, **_: text, metric_fns=[lambda targets, predictions: {}],
    )  # fmt: skip
    assert read()[1] == 0


def test_records_of_a_function_are_hashed_every_time(vocabulary_feature, read):
    add("lines", generator_source(["a film", "a story"]), vocabulary_feature)
    assert read()[1] == 2
    assert read()[1] == 1
    add("lines", generator_source(["a film", "a storm"]), vocabulary_feature)
    assert read()[1] == 2


def test_a_source_may_know_itself(vocabulary_feature, read):
    class Known(seqio.FunctionDataSource):
        def fingerprint(self, split):
            return f"version 1 of {split}"

    source = generator_source(["a film"])
    add("lines", Known(source._dataset_fn, splits=["train"]), vocabulary_feature)
    assert [read()[1], read()[1]] == [1, 0]


def test_what_cannot_be_described_is_not_kept(files, vocabulary_feature, read, caplog):
    lock = __import__("threading").Lock()

    def guarded(dataset):
        with lock:
            return dataset

    add("lines", file_source(files), vocabulary_feature, [with_targets, guarded, *TRIMMED])
    assert [read()[1], read()[1]] == [1, 1]
    assert read()[0].fingerprint == read()[0].fingerprint
    assert (
        "The split 'train' of 'lines' is tokenised for this run only, as it depends on a lock"
        in caplog.text
    )


def test_what_no_file_can_hold_is_not_kept(files, vocabulary_feature, read, caplog):
    def ragged(dataset):
        return dataset.map(lambda record: record | {"odd": tf.ragged.constant([[1], [2, 3]])})

    add("lines", file_source(files), vocabulary_feature, [with_targets, *TRIMMED, ragged])
    loaded, _ = read()
    assert len(loaded.examples) == 3 and read()[1] > 0
    assert "is tokenised for this run only, as it depends on the feature 'odd'" in caplog.text


def test_truncated_examples_are_counted(task, read, vocabulary, files):
    texts = ["a film", "the slow film", "what a very moving story of the sea"]
    files["train"].write_text("\n".join(texts))
    lengths = sorted(len(vocabulary.encode(text)) + 1 for text in texts)
    assert lengths[0] < lengths[1] < lengths[2]
    for limit in range(lengths[0] - 1, lengths[2] + 2):
        loaded, passes = read(lengths={"inputs": limit, "targets": 30})
        inputs, targets = loaded.lengths["inputs"], loaded.lengths["targets"]
        assert inputs.truncated == sum(length > limit for length in lengths)
        assert (inputs.limit, targets.limit, targets.truncated) == (limit, 30, 0)
        assert sum(inputs.counts.values()) == 3 and inputs.longest == min(limit, lengths[2])
        # Only examples that fill their place may have lost something.
        assert passes == (2 if limit <= lengths[2] else 1)


def test_truncation_that_nobody_can_count_is_unknown(files, vocabulary_feature, read):
    def windows(dataset, sequence_length):
        return dataset.map(
            lambda record: record | {"inputs": record["inputs"][: sequence_length["inputs"] - 1]}
        )

    steps = [with_targets, seqio.preprocessors.tokenize, windows, seqio.preprocessors.append_eos]
    add("lines", file_source(files), vocabulary_feature, steps)
    loaded, _ = read(lengths={"inputs": 4, "targets": 8})
    assert (loaded.longest[0], loaded.lengths["inputs"].truncated) == (4, None)
    assert loaded.lengths["targets"].truncated == 0


def test_truncation_of_other_examples_is_unknown(files, vocabulary_feature, read):
    def windows(dataset, sequence_length):
        if sequence_length is None:
            return dataset
        size = sequence_length["inputs"] - 1
        return dataset.map(lambda record: record | {"inputs": record["inputs"][:size]}).repeat(2)

    steps = [with_targets, seqio.preprocessors.tokenize, windows, seqio.preprocessors.append_eos]
    add("lines", file_source(files), vocabulary_feature, steps)
    loaded, _ = read(lengths={"inputs": 4, "targets": 8})
    assert len(loaded.examples) == 6 and loaded.lengths["inputs"].truncated is None


def test_a_slice_of_a_tfds_split_is_described_by_its_files(
    tmp_path, vocabulary_feature, read, monkeypatch
):
    builder = SmallDataset(data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    monkeypatch.setattr(seqio.utils.LazyTfdsLoader, "_MEMOIZED_BUILDERS", {})

    def tfds_task():
        source = seqio.TfdsDataSource("small_dataset:1.0.0", tfds_data_dir=str(tmp_path / "tfds"))
        return add("small", source, vocabulary_feature, TRIMMED)

    tfds_task()
    sizes = {"train": 4, "train[:50%]": 2, "train+validation": 8}
    for split, size in sizes.items():
        loaded, passes = read("small", split)
        assert (len(loaded.examples), passes) == (size, 1)
    assert [read("small", split)[1] for split in sizes] == [0, 0, 0]
    for path in (tmp_path / "tfds").rglob("*train.tfrecord*"):
        path.write_bytes(next(path.parent.glob("*validation.tfrecord*")).read_bytes())
    tfds_task()
    assert [read("small", split)[1] for split in sizes] == [1, 1, 1]
    assert not is_stream("small", "train") and is_stream("small", "train", above=3)


def write_seqio_cache(folder, task, texts, split="train"):
    """Writes what `seqio_cache_tasks` would, with other texts, to know them again."""
    vocabulary = task.output_features["inputs"].vocabulary
    path = folder / task.name
    path.mkdir(parents=True, exist_ok=True)
    shard = path / f"{split}.tfrecord-00000-of-00001"
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for text in texts:
            record = {"inputs": vocabulary.encode(text), "targets": vocabulary.encode("bad")}
            arrays = {name: np.array(ids, np.int32) for name, ids in record.items()}
            writer.write(seqio.dict_to_tfexample(arrays).SerializeToString())
    feature = {"shape": [None], "dtype": "int32"}
    info = {"num_shards": 1, "seqio_version": seqio.__version__}
    info["features"] = {"inputs": feature, "targets": feature}
    (path / f"info.{split}.json").write_text(json.dumps(info))
    (path / f"stats.{split}.json").write_text(json.dumps({"examples": len(texts)}))
    (path / "COMPLETED").touch()
    seqio_tasks.use_folders(cache_dirs=[str(folder)])


def test_seqio_own_cache_is_read_if_there_is_one(task, read, vocabulary, tmp_path):
    write_seqio_cache(tmp_path / "seqio", task, ["boats", "home"])
    loaded, passes = read(use_cached=True)
    assert (len(loaded.examples), passes) == (2, 1)
    assert loaded.examples[0].inputs.tolist() == [*vocabulary.encode("boats"), 1]
    assert read(use_cached=True)[1] == 0
    assert len(read()[0].examples) == 3
    write_seqio_cache(tmp_path / "seqio", task, ["boats", "homes"])
    assert read(use_cached=True)[1] == 1


def test_without_seqio_cache_ours_is_used_instead(task, read, tmp_path, caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    assert len(read(use_cached=True)[0].examples) == 3
    assert read()[1] == 0
    message = "'lines' is not in seqio's cache (split 'train'); it is tokenised into ours"
    assert message in caplog.text
    write_seqio_cache(tmp_path / "seqio", task, ["boats"])
    caplog.clear()
    assert len(read(split="validation", use_cached=True)[0].examples) == 3
    assert message.replace("train", "validation") in caplog.text


def test_a_task_that_needs_seqio_cache_says_so(files, vocabulary_feature, read):
    steps = [with_targets, TRIMMED[0], seqio.CacheDatasetPlaceholder(required=True)]
    add("lines", file_source(files), vocabulary_feature, steps)
    with pytest.raises(DataError, match=r"'lines' can be read from seqio's cache only[.] Set `USE"):
        read()
    with pytest.raises(
        DataError, match=r"'train' of the task 'lines' is not in seqio's cache, and"
    ):
        read(use_cached=True)


def test_a_mixture_is_its_tasks_with_the_rates_of_seqio(files, vocabulary_feature, vocabulary):
    for name in ("one", "two", "three"):
        source = seqio.TextLineDataSource(
            {"train": str(files["train"])}, num_input_examples={"train": len(name)}
        )
        add(name, source, vocabulary_feature)
    seqio.MixtureRegistry.add("inner", [("two", 1), ("three", 3)])
    rate = functools.partial(seqio.mixing_rate_num_examples, maximum=2)
    mixture = seqio.MixtureRegistry.add("outer", [("one", rate), ("inner", 4), ("two", 0.5)])
    found = mixture_of("outer", "train", LENGTHS, vocabulary=vocabulary)
    assert {split.task: rate for split, rate in found} == {"one": 2, "two": 1.5, "three": 3}
    assert [(split.task, rate) for split, rate in found] == [
        (task.name, mixture.get_rate(task)) for task in mixture.tasks
    ]


def test_tasks_without_the_split_are_left_out_of_a_mixture(
    files, vocabulary_feature, vocabulary, caplog
):
    add("one", file_source(files), vocabulary_feature)
    add("two", generator_source(["a film"]), vocabulary_feature)
    seqio.MixtureRegistry.add("both", ["one", "two"], default_rate=1)
    found = mixture_of("both", "validation", LENGTHS, vocabulary=vocabulary)
    assert [split.task for split, _ in found] == ["one"]
    assert "The task 'two' of 'both' has no split 'validation' and is left out" in caplog.text
    message = (
        "No task of the mixture 'both' has a split 'test'. They have: train, validation. "
        "EVAL_SPLIT names the one to evaluate on; None evaluates nothing."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        mixture_of("both", "test", LENGTHS, vocabulary=vocabulary)


def test_a_rate_that_nobody_knows_is_named(vocabulary_feature, vocabulary):
    add("one", generator_source(["a film"]), vocabulary_feature)
    seqio.MixtureRegistry.add("alone", [("one", seqio.mixing_rate_num_examples)])
    with pytest.raises(DataError, match=r"rate of the task 'one' in the mixture 'alone' is not"):
        mixture_of("alone", "train", LENGTHS, vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("source", "above", "expected"),
    [
        (endless_source(), 10_000_000, True),
        (generator_source(["a"] * 3), 3, False),
        (generator_source(["a"] * 4), 3, True),
        (generator_source(["a"], num_input_examples={"train": 4}), 3, True),
        (generator_source(["a"] * 4, num_input_examples={"train": 3}), 3, False),
    ],
)
def test_a_source_without_end_or_with_many_records_is_a_stream(
    vocabulary_feature, source, above, expected
):
    add("one", source, vocabulary_feature)
    add("small", generator_source(["a"]), vocabulary_feature)
    seqio.MixtureRegistry.add("both", ["one", "small"], default_rate=1)
    assert is_stream("one", "train", above=above) is expected
    assert is_stream("both", "train", above=above) is expected
    assert not is_stream("small", "train", above=above)


def test_small_files_are_not_counted(task, files, monkeypatch):
    monkeypatch.setattr(seqio.TextLineDataSource, "get_dataset", None)
    assert not is_stream("lines", "train", above=files["train"].stat().st_size)


def test_a_name_is_loaded_as_what_it_stands_for(files, vocabulary_feature, vocabulary):
    add("lines", file_source(files), vocabulary_feature)
    add("endless", endless_source(), vocabulary_feature)
    seqio.MixtureRegistry.add("finite", ["lines"], default_rate=2)
    seqio.MixtureRegistry.add("both", ["lines", "endless"], default_rate=1)

    def loaded(name, **values):
        return load(name, "train", LENGTHS, vocabulary=vocabulary, **values)

    assert loaded("lines").task == "lines"
    [(split, rate)] = loaded("finite")
    assert (split.task, rate) == ("lines", 2)
    streams = [loaded(name) for name in ("endless", "both")]
    assert all(isinstance(stream, Stream) for stream in streams)
    assert len({stream.fingerprint for stream in streams}) == 2
    assert loaded("endless").fingerprint == streams[0].fingerprint
    assert isinstance(loaded("lines", stream_above=2), Stream)
    assert len(loaded("endless", max_examples=5).examples) == 5
    with pytest.raises(DataError, match=r"There is no task named 'bot'[.] Did you mean 'both'"):
        loaded("bot")
