import itertools
import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.buckets import Buckets, fixed
from prompt_tuning.data.prefetch import prefetch
from prompt_tuning.data.streams import Stream, StreamBatches
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.tasks.features import t5_features
from tests.small_vocabulary import SENTENCES

LENGTHS = {"inputs": 40, "targets": 8}


def numbers(split, shuffle_files, seed=None, first=0):
    """An endless source: sentences with a number."""
    texts = tf.constant(SENTENCES)
    return tf.data.Dataset.range(first, 10**9).map(
        lambda i: {
            "inputs": tf.strings.join([tf.strings.as_string(i), texts[i % len(SENTENCES)]]),
            "targets": tf.strings.as_string(i),
        }
    )


def generated(split, shuffle_files, seed=None):
    """A source in Python, whose place tf.data cannot save."""

    def generate():
        for i in itertools.count():
            yield {"inputs": SENTENCES[i % len(SENTENCES)], "targets": str(i)}

    spec = tf.TensorSpec([], tf.string)
    return tf.data.Dataset.from_generator(
        generate, output_signature={"inputs": spec, "targets": spec}
    )


def nothing(split, shuffle_files, seed=None):
    return numbers(split, shuffle_files).take(3)


@seqio.map_over_dataset(num_seeds=1)
def add_noise(record, seed):
    noise = tf.random.stateless_uniform([], seed, 0, 100, tf.int32)
    targets = tf.strings.join([record["targets"], tf.strings.as_string(noise)], " ")
    return {**record, "targets": targets}


@pytest.fixture(scope="module")
def providers(vocabulary):
    """Tasks over the sources, and a mixture, all with a preprocessor that draws at random."""
    sources = {"stream_numbers": numbers, "stream_generated": generated, "stream_nothing": nothing}
    tasks = {
        name: seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(source, splits=["train"]),
            output_features=t5_features(vocabulary),
            preprocessors=[
                add_noise,
                seqio.preprocessors.tokenize,
                seqio.CacheDatasetPlaceholder(),
                seqio.preprocessors.append_eos_after_trim,
            ],
        )
        for name, source in sources.items()
    }
    mixed = [("stream_numbers", 3.0), ("stream_generated", 1.0)]
    tasks["stream_mixture"] = seqio.MixtureRegistry.add("stream_mixture", mixed)
    savable = seqio.TaskRegistry.add(
        "stream_more_numbers",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: numbers(split, shuffle_files, first=10**6),
            splits=["train"],
        ),
        output_features=t5_features(vocabulary),
        preprocessors=tasks["stream_numbers"].preprocessors,
    )
    mixed = [("stream_numbers", 3.0), (savable.name, 1.0)]
    tasks["stream_savable_mixture"] = seqio.MixtureRegistry.add("stream_savable_mixture", mixed)
    yield tasks
    for name in ("stream_mixture", "stream_savable_mixture"):
        seqio.MixtureRegistry.remove(name)
    for name in (*sources, savable.name):
        seqio.TaskRegistry.remove(name)


@pytest.fixture
def source(providers):
    """Makes the batches of a provider; a new object each time, as a new process would."""

    def make(name, *, lengths=LENGTHS, **settings):
        stream = Stream(provider=providers[name], split="train", lengths=lengths, fingerprint="x")
        settings = {"batch_size": 4, "seed": 0, "state_every": 5} | settings
        return StreamBatches(stream=stream, **settings)

    return make


def take(batches, count):
    taken = [
        (batch.inputs.tolist(), batch.targets.tolist(), batch.weights.tolist())
        for batch in itertools.islice(batches, count)
    ]
    batches.close()
    return taken


SAVABLE = ["stream_numbers", "stream_savable_mixture"]
every_savable = pytest.mark.parametrize("name", SAVABLE)


@every_savable
@pytest.mark.parametrize("stop", [3, 10, 12])
def test_a_run_that_goes_on_sees_the_batches_it_would_have_seen(source, name, stop):
    whole = take(source(name).batches(0), 20)
    first = source(name)
    assert take(first.batches(0), stop) == whole[:stop]
    place = first.snapshot(stop)
    assert place is None if stop < 5 else place[0] == stop - stop % 5
    again = source(name)
    assert take(again.batches(stop, place), 20 - stop) == whole[stop:]
    # And so does a run that is stopped a second time.
    assert again.snapshot(18)[0] == 15
    third = source(name)
    assert take(third.batches(18, again.snapshot(18)), 2) == whole[18:]


@pytest.mark.parametrize("name", ["stream_generated", "stream_mixture"])
def test_what_cannot_be_saved_is_read_again_from_its_start(source, name, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("prompt_tuning"), "propagate", True)
    whole = take(source(name).batches(0), 12)
    first = source(name)
    caplog.clear()
    take(first.batches(0), 7)
    assert first.snapshot(7) is None
    (message,) = [one.getMessage() for one in caplog.records if one.name == "prompt_tuning"]
    assert message == (
        f"The place in the stream {name!r} cannot be saved (PyFunc is stateful.): a run that goes "
        "on reads it again from its start."
    )
    assert take(source(name).batches(7), 5) == whole[7:]


@every_savable
def test_the_order_is_shuffled_and_follows_the_seed(source, name):
    one = take(source(name).batches(0), 5)
    assert one == take(source(name).batches(0), 5)
    assert one != take(source(name, seed=1).batches(0), 5)


def test_going_on_reads_no_more_than_since_the_last_place(source, monkeypatch):
    first = source("stream_numbers", state_every=50)
    take(first.batches(0), 101)
    at, files = first.snapshot(101)
    assert at == 100
    started = time.perf_counter()
    take(source("stream_numbers").batches(101, (at, files)), 1)
    restored = time.perf_counter() - started
    assert restored < 5


def test_the_trainer_finds_a_place_behind_batches_made_ahead(source):
    made = source("stream_numbers", state_every=1)
    batches = prefetch(made.batches(0), depth=3)
    for step in range(60):
        next(batches)
        assert made.snapshot(step + 1)[0] == step + 1
    assert len(made._places._kept) < 45
    batches.close()


def test_batches_are_cut_to_buckets_and_padding_has_no_weight(source):
    buckets = Buckets((16, 24, 32, 40))
    cut = source("stream_numbers", inputs=buckets).batches(0)
    full = source("stream_numbers", inputs=fixed(40), targets=fixed(8)).batches(0)
    for _, short, long in zip(range(10), cut, full, strict=False):
        length = short.inputs.shape[1]
        assert length in buckets.lengths and long.inputs.shape == (4, 40)
        assert long.inputs[:, :length].tolist() == short.inputs.tolist()
        assert not long.inputs[:, length:].any()
        assert long.targets.shape == (4, 8)
        assert ((long.targets != 0) == (long.weights == 1)).all()
        assert (short.inputs.dtype, short.weights.dtype) == (np.int32, np.float32)
    cut.close()
    full.close()


def test_a_stream_needs_lengths(source):
    for lengths in ({"inputs": 40}, {"inputs": 40, "targets": None}):
        with pytest.raises(ConfigError, match=r"Set TASK_FEATURE_LENGTHS\['targets'\]"):
            source("stream_numbers", lengths=lengths)


def test_a_few_examples_fill_batches_by_being_repeated(source):
    assert len(take(source("stream_nothing").batches(0), 3)) == 3


def test_a_task_without_inputs_is_refused(providers, source, monkeypatch):
    def targets_only(**_):
        return tf.data.Dataset.from_tensors({"targets": [1]})

    monkeypatch.setattr(providers["stream_numbers"], "get_dataset", targets_only)
    with pytest.raises(DataError, match=r"^The examples of 'stream_numbers' have no 'inputs', but"):
        take(source("stream_numbers").batches(0), 1)


def test_a_task_that_must_not_be_shuffled_is_refused(vocabulary):
    task = seqio.Task(
        "in_order",
        source=seqio.FunctionDataSource(numbers, splits=["train"]),
        output_features=t5_features(vocabulary),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        shuffle_buffer_size=None,
    )
    stream = Stream(provider=task, split="train", lengths=LENGTHS, fingerprint="x")
    with pytest.raises(ConfigError, match=r"^'in_order' cannot be read as a stream: Shuffling is"):
        take(StreamBatches(stream=stream, batch_size=4, seed=0).batches(0), 1)


def test_an_error_of_the_pipeline_names_the_stream(providers, source, monkeypatch):
    def broken(**_):
        return numbers("train", False).map(
            lambda record: {
                "inputs": tf.strings.to_number(tf.strings.split(record["inputs"]), tf.int32),
                "targets": tf.constant([1]),
            }
        )

    monkeypatch.setattr(providers["stream_numbers"], "get_dataset", broken)
    with pytest.raises(DataError, match=r"^The stream 'stream_numbers', split 'train', failed at"):
        take(source("stream_numbers").batches(0), 1)


def test_an_empty_stream_is_reported(providers, source, monkeypatch):
    def empty(**_):
        return tf.data.Dataset.from_tensor_slices(
            {name: tf.zeros([0, 3], tf.int32) for name in LENGTHS}
        )

    monkeypatch.setattr(providers["stream_numbers"], "get_dataset", empty)
    with pytest.raises(DataError, match=r"ended after 0 batches of 4: it has not even one"):
        take(source("stream_numbers").batches(0), 1)


def test_a_place_after_the_step_is_refused(source):
    first = source("stream_numbers")
    take(first.batches(0), 6)
    with pytest.raises(DataError, match="was saved at step 5, after step 4 at which it should go"):
        take(source("stream_numbers").batches(4, first.snapshot(6)), 1)


def test_a_place_of_another_pipeline_is_refused(source):
    first = source("stream_numbers")
    take(first.batches(0), 6)
    at, files = first.snapshot(6)
    broken = {name: content[: len(content) // 2] for name, content in files.items()}
    with pytest.raises(DataError, match=r"^The saved place in the stream cannot be restored: "):
        take(source("stream_numbers").batches(6, (at, broken)), 1)


def test_rows_are_named_by_their_place(source):
    assert source("stream_numbers", batch_size=2).example_ids(7) == [
        "stream_numbers/train batch 7 row 0",
        "stream_numbers/train batch 7 row 1",
    ]


def test_the_fingerprint_is_of_all_that_decides_the_batches(source):
    base = source("stream_numbers")
    assert source("stream_numbers", inputs=fixed(40)).fingerprint == base.fingerprint
    for change in ({"seed": 1}, {"batch_size": 5}):
        assert source("stream_numbers", **change).fingerprint != base.fingerprint


def test_the_fingerprint_of_a_mixture_is_of_its_rates_too(providers, source, monkeypatch):
    before = source("stream_mixture").fingerprint
    rates = providers["stream_mixture"]._task_to_rate
    monkeypatch.setitem(rates, "stream_numbers", 2.0)
    assert source("stream_mixture").fingerprint != before


def test_the_summary_names_the_buckets(source):
    assert source("stream_numbers", inputs=Buckets((16, 40))).summary() == (
        "Batches of 4 examples from the stream stream_numbers/train, whose lengths show only as "
        "it is read; padded to\n"
        "  inputs   16 40\n"
        "  targets  8"
    )


@pytest.mark.slow
def test_a_program_that_reads_a_stream_ends(vocabulary):
    """An iterator that is still alive when Python ends would hold it for ever."""
    code = (
        "import json, sys\n"
        "from tests.data.test_streams import endless\n"
        "print(json.dumps(endless(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", code, vocabulary.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert json.loads(done.stdout) == [4, 4, 4, 4], done.stderr


def endless(path):
    """Reads three batches, goes on after them, and stops without closing anything."""
    from prompt_tuning.vocabulary import SentencePieceVocabulary

    task = seqio.Task(
        "endless",
        source=seqio.FunctionDataSource(numbers, splits=["train"]),
        output_features=t5_features(SentencePieceVocabulary(path)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
    )
    stream = Stream(provider=task, split="train", lengths=LENGTHS, fingerprint="x")
    first, again = (
        StreamBatches(stream=stream, batch_size=4, seed=0, state_every=1) for _ in range(2)
    )
    batches = prefetch(first.batches(0))
    sizes = [next(batches).size for _ in range(3)]
    more = prefetch(again.batches(3, first.snapshot(3)))
    return [*sizes, next(more).size]
