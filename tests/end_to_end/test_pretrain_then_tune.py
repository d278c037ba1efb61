"""The whole way, by the command line: text, a base model, a prompt over it, and what is left."""

import functools
import hashlib
import itertools
import json
import math
import pathlib
import random
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tensorflow as tf
from flax import nnx
from tensorboardX.proto.event_pb2 import Event

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile, RunCheckpoints, load_vectors, open_model
from prompt_tuning.checkpoints.base import fingerprint, with_slots
from prompt_tuning.checkpoints.mapping import EMBEDDING
from prompt_tuning.cli import config
from prompt_tuning.data.cooccurrence import CooccurrenceVectors
from prompt_tuning.model import T5, BaseParam, parameters, t5_config
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from tests.small_vocabulary import SENTENCES
from tests.tiny_runs import binding, forget_tasks, write_task

BASE_STEPS, STEPS, STOPPED_AT, PROMPT_LENGTH = 20, 8, 5, 6
TASK = "taskless_sst2_tsv"
LAST = BASE_STEPS + STEPS

METRICS = {
    "accuracy",
    "cross_ent_loss",
    "cross_ent_loss_per_all_target_tokens",
    "effective_batch_size/decoder_target_tokens",
    "effective_batch_size/encoder_input_tokens",
    "loss",
    "loss_per_all_target_tokens",
    "loss_per_nonpadding_target_token",
    "non_padding_fraction/decoder_target_tokens",
    "non_padding_fraction/encoder_input_tokens",
    "non_padding_fraction/loss_weights",
    "non_padding_fraction/overall",
    "z_loss",
    "z_loss_per_all_target_tokens",
}
TIMINGS = {
    "compilation_seconds",
    "compilations",
    "seconds",
    "seconds_left",
    "seqs",
    "seqs_per_second",
    "seqs_per_second_per_core",
    "steps_per_second",
    "target_tokens_per_second",
    "uptime",
}


def remarks():
    """Yields remarks about films, with 1 for praise and 0 for blame."""
    rng = random.Random(0)
    words = [["dull", "noisy", "careless", "boring"], ["lovely", "honest", "clever", "moving"]]
    things = ["plot", "music", "story", "ending", "actor", "film"]
    for _ in range(400):
        label = rng.randrange(2)
        first, second = rng.sample(words[label], 2)
        yield f"the {rng.choice(things)} was {first} and the {rng.choice(things)} {second}", label


class World(NamedTuple):
    folder: pathlib.Path
    base_files: dict
    base_flags: list
    whole_flags: list


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder):
    """Returns the numbers that TensorBoard reads in a folder: tag -> step -> value."""
    found = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset([str(file)]).as_numpy_iterator():
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.HasField("tensor"):
                    continue  # a text
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    """Pretrains a base, tunes a prompt over it without and with a stop, and tunes the base."""
    folder = tmp_path_factory.mktemp("world")
    rows = list(remarks())
    (folder / "corpus.txt").write_text("\n\n".join([*SENTENCES, *(text for text, _ in rows)]))
    write_task(folder, rows[:40])
    common = [
        "--gin_file=models/ours_tiny.gin",
        binding("VOCABULARY_FILE", folder / "small.model"),
        "--gin.ACTIVATION_DTYPE='float32'",
        "--gin.BATCH_SIZE=8",
        "--gin.train.devices=1",
    ]
    base_flags = [
        *common,
        "--gin_file=runs/pretrain.gin",
        binding("MODEL_DIR", folder / "base"),
        binding("CORPUS", folder / "*.txt"),
        binding("CACHE_DIR", folder / "cache"),
        "--gin.VOCABULARY_SIZE=160",
        "--gin.INPUT_LENGTH=32",
        f"--gin.TRAIN_STEPS={BASE_STEPS}",
        "--gin.train.stats_period=5",
    ]

    def task_flags(run, name, steps):
        return [
            *common,
            f"--gin_file=runs/{run}.gin",
            "--gin_file=examples/sst2_files.gin",
            binding("MODEL_DIR", folder / name),
            binding("INITIAL_CHECKPOINT_PATH", folder / "base"),
            binding("TSV_DIR", folder),
            f"--gin.PROMPT_LENGTH={PROMPT_LENGTH}",
            f"--gin.TRAIN_STEPS={BASE_STEPS + steps}",
            "--gin.STATS_PERIOD=2",
            "--gin.SAVE_PERIOD=3",
            "--gin.EVAL_PERIOD=4",
            "--gin.INPUT_BUCKETS=@inputs/batches.fixed()",
            "--gin.inputs/batches.fixed.length=48",
        ]

    assert main(["pretrain", *base_flags]) == 0
    before = contents(folder / "base")
    for run, name, steps in [
        ("prompt_finetune", "whole", STEPS),
        ("prompt_finetune", "stopped", STOPPED_AT),
        ("prompt_finetune", "stopped", STEPS),
        ("finetune", "tuned", 3),
    ]:
        # Dropout is in the way of a stopped run, where its masks must come again.
        more = ["--gin.DROPOUT_RATE=0.0"] if name == "tuned" else []
        assert main(["train", *task_flags(run, name, steps), *more]) == 0
    yield World(folder, before, base_flags, task_flags("prompt_finetune", "whole", STEPS))
    forget_tasks()
    config.clear()


def restored(folder, base):
    """Returns the state in the newest checkpoint of a run that tuned a prompt."""
    prompt = functools.partial(Prompt, length=PROMPT_LENGTH, init=uniform())
    model = T5(t5_config("ours_tiny"), prompt=prompt, rngs=nnx.Rngs(0))
    like = start(split_model(model, PromptParam)[1], adafactor(), step=0)
    with RunCheckpoints(folder, base=base) as checkpoints:
        return checkpoints.restore(like)


def base_hash(world):
    return fingerprint(open_model(world.folder / "base"))


def numpy_prompt(run, step):
    return load_vectors(run / f"numpy_checkpoints/checkpoint_{step}/encoder.prompt.prompt.prompt")


def test_pretraining_lowers_the_loss_and_leaves_a_base(world):
    losses = [line["loss"] for line in lines(world.folder / "base/train/metrics.jsonl")]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert len(losses) == 4
    assert open_model(world.folder / "base").step == BASE_STEPS


def test_a_base_from_scratch_starts_from_token_vectors(world, tmp_path, capsys):
    flags = [
        "--gin.TOKEN_VECTORS=@cooccurrence.CooccurrenceVectors()",
        binding("MODEL_DIR", tmp_path / "base"),
        # So slow that it ends where it started.
        "--gin.BASE_LEARNING_RATE=1e-6",
        "--gin.TRAIN_STEPS=1",
    ]
    assert main(["pretrain", *world.base_flags, *flags]) == 0
    opening = " ".join(capsys.readouterr().err.split())
    assert "random values, its embeddings from CooccurrenceVectors" in opening
    tensors = open_model(tmp_path / "base").tensors
    embeddings = tensors[EMBEDDING].load()
    row = np.load(*(world.folder / "cache").glob("*.npy"))
    vectors = CooccurrenceVectors(tokens=row)(*embeddings.shape)
    known = vectors.any(axis=1)
    assert 100 < known.sum() < 160
    np.testing.assert_allclose(embeddings[known], vectors[known], atol=1e-4)
    logits = tensors["decoder/logits_dense/kernel"].load()
    np.testing.assert_allclose(logits[:, known] * 32**0.5, vectors[known].T, atol=1e-4)
    # The rest is drawn, as without vectors.
    assert embeddings[~known].any(axis=1).all() and logits[:, ~known].any(axis=0).all()


def test_token_vectors_do_not_replace_those_of_a_base(world, tmp_path, capsys):
    flags = [
        "--gin.TOKEN_VECTORS=@cooccurrence.CooccurrenceVectors()",
        binding("MODEL_DIR", tmp_path / "base"),
        binding("INITIAL_CHECKPOINT_PATH", world.folder / "base"),
    ]
    assert main(["pretrain", *world.base_flags, *flags]) == 2
    message = capsys.readouterr().err
    assert f"The base '{world.folder / 'base'}' brings its embeddings along" in message
    assert "INITIAL_CHECKPOINT_PATH = None" in message
    assert not (tmp_path / "base").exists()


def test_a_stopped_and_resumed_run_ends_where_an_uninterrupted_one_does(world):
    base = base_hash(world)
    whole, stopped = (restored(world.folder / name, base) for name in ("whole", "stopped"))
    assert whole.step == stopped.step == LAST
    assert jax.tree.structure(whole) == jax.tree.structure(stopped)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(stopped), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ends = [lines(world.folder / name / "train/metrics.jsonl")[-1] for name in ("whole", "stopped")]
    numbers = [{k: v for k, v in end.items() if not k.startswith("timing/")} for end in ends]
    assert numbers[0] == numbers[1]


def test_the_base_is_left_as_it_was(world):
    assert contents(world.folder / "base") == world.base_files


def test_every_form_of_the_prompt_holds_the_same_vectors(world):
    run, base = world.folder / "whole", base_hash(world)
    saved = PromptFile.load(run / "prompt.safetensors", base=base)
    assert (saved.base, saved.step) == (base, LAST)
    assert saved.base_name == str(world.folder / "base")
    assert saved.task == TASK
    assert str(world.folder) in saved.config
    assert saved.details == {"combine": {"name": "prefix"}}
    written = lines(run / f"inference_eval/{saved.task}-metrics.jsonl")[-1]
    assert saved.metrics[f"inference_eval/{saved.task}/accuracy"] == written["accuracy"]
    assert saved.vectors.shape == (PROMPT_LENGTH, 32)
    (array,) = parameters.named(restored(run, base).trainable).values()
    np.testing.assert_array_equal(saved.vectors, array)
    np.testing.assert_array_equal(saved.vectors, numpy_prompt(run, LAST))


def test_all_numpy_prompts_are_kept_and_the_newest_checkpoint(world):
    run = world.folder / "whole"
    steps = {int(path.name.removeprefix("checkpoint_")) for path in run.glob("numpy_checkpoints/*")}
    # What it started from, multiples of SAVE_PERIOD, and the last.
    assert steps == {BASE_STEPS, 21, 24, 27, LAST}
    assert len({numpy_prompt(run, step).tobytes() for step in steps}) == 5
    assert [path.name for path in (run / "checkpoints").iterdir()] == [str(LAST)]


def test_the_metrics_of_training_have_the_originals_names_and_say_what_is_left(world):
    run = world.folder / "whole"
    written = lines(run / "train/metrics.jsonl")
    assert [line["step"] for line in written] == [22, 24, 26, LAST]
    names = METRICS | {"learning_rate"} | {f"timing/{name}" for name in TIMINGS}
    for line in written:
        assert line.keys() == names | {"step"}
        assert line["learning_rate"] == pytest.approx(0.3)
        assert all(math.isfinite(value) for value in line.values())
    board = scalars(run / "train")
    assert board.keys() == names
    for name in names:
        expected = {line["step"]: pytest.approx(line[name], rel=1e-6) for line in written}
        assert board[name] == expected


def test_the_teacher_forced_evaluation_is_written_for_people_and_for_tensorboard(world):
    folder = world.folder / "whole/training_eval"
    written = lines(folder / f"{TASK}-metrics.jsonl")
    assert [line["step"] for line in written] == [24, LAST]
    assert all(line.keys() == METRICS | {"step"} for line in written)
    board = scalars(folder / TASK)
    assert board.keys() == METRICS
    assert board["loss"] == {line["step"]: pytest.approx(line["loss"]) for line in written}


def test_the_answers_are_written_with_what_was_asked(world):
    folder = world.folder / "whole/inference_eval"
    written = lines(folder / f"{TASK}-metrics.jsonl")
    # So short a run answers nothing, or always the same.
    assert [line.keys() for line in written] == [{"step", "accuracy", "alarm"}] * 2
    assert scalars(folder / TASK) == {"eval/accuracy": {24: 0.0, LAST: 0.0}}

    header, *rows = (world.folder / "validation.tsv").read_text().splitlines()
    answers = lines(folder / f"{TASK}-{LAST:06}.jsonl")
    assert header == "sentence\tlabel"
    assert len(answers) == len(rows) == 8
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        sentence, label = row.split("\t")
        assert answer.keys() == {"id", "input", "target", "prediction"}
        assert answer["id"] == f"validation/{index}"
        asked = answer["input"]
        assert (asked["sentence"], asked["label"], asked["idx"]) == (sentence, int(label), index)
        assert asked["inputs_pretokenized"] == f"sentence: {sentence}"
        assert answer["target"] == int(label)
    right = [a["prediction"] == ("negative", "positive")[a["target"]] for a in answers]
    assert written[-1]["accuracy"] == 100 * sum(right) / len(right)


def test_the_list_of_parameters_is_complete(world):
    text = (world.folder / "whole/model-info.txt").read_text().splitlines()
    shapes = nnx.eval_shape(lambda: T5(t5_config("ours_tiny"), rngs=nnx.Rngs(0)))
    arrays = parameters.named(nnx.state(shapes))
    found = {line.split()[1]: line for line in text if line.startswith("Variable ")}
    assert found.keys() == {*arrays, "encoder/prompt/prompt"}
    assert found["encoder/prompt/prompt"].endswith("shape (prompt=6, prompt_embed=32)")
    assert text[-1] == "Total number of parameters: 574272"


def test_the_written_configuration_makes_the_same_run(world, capsys):
    forget_tasks()
    code = main(["train", f"--gin_file={world.folder}/whole/config.gin", "--dry_run"])
    assert code == 0
    assert "Training 1 tensors, 192 of 574,272 parameters." in capsys.readouterr().err
    assert main(["train", f"--gin_file={world.folder}/whole/config.gin"]) == 0
    assert "The run is finished: there is nothing to do." in capsys.readouterr().err


def test_a_finished_run_changes_nothing(world, capsys):
    before = contents(world.folder / "whole")
    assert main(["train", *world.whole_flags]) == 0
    assert "The run is finished: there is nothing to do." in capsys.readouterr().err
    assert contents(world.folder / "whole") == before


def test_a_trained_prompt_is_where_another_run_can_start(world, capsys):
    flags = [
        "--gin_file=prompts/from_file.gin",
        binding("PROMPT_FILE", world.folder / "whole/prompt.safetensors"),
        binding("MODEL_DIR", world.folder / "further"),
        "--dry_run",
    ]
    assert main(["train", *world.whole_flags, *flags]) == 0


def test_tuning_the_whole_model_leaves_a_base_and_no_prompt(world):
    run = world.folder / "tuned"
    before, after = open_model(world.folder / "base"), open_model(run)
    assert after.step == BASE_STEPS + 3
    assert after.tensors.keys() == before.tensors.keys()
    assert not (run / "prompt.safetensors").exists()
    assert not (run / "numpy_checkpoints").exists()
    for name, one in after.tensors.items():
        assert not np.array_equal(one.load(), before.tensors[name].load()), name


def test_tuning_the_whole_model_goes_on_with_the_second_moments_of_the_base(world):
    _, weights, _ = split_model(T5(t5_config("ours_tiny"), rngs=nnx.Rngs(0)), BaseParam)
    like = start(weights, adafactor(), step=0)
    base, tuned = (
        with_slots(open_model(world.folder / name), like).opt_state[EMBEDDING][0].v
        for name in ("base", "tuned")
    )
    # A step keeps nine tenths of what was there, also of tokens that the task does not have.
    seen = base > 1e-12
    assert seen.any(axis=1).sum() > 100
    assert np.all(tuned[seen] > 0.7 * base[seen])


@pytest.mark.parametrize("name", ["huggingface", "t5x"])
def test_a_base_in_another_format_gives_the_same_prompt(world, name):
    base = world.folder / f"converted_{name}"
    there = [f"--from={world.folder / 'base'}", f"--to={base}", f"--to_format={name}"]
    assert main(["convert", *there]) == 0
    forget_tasks()
    run = world.folder / f"over_{name}"
    flags = [binding("INITIAL_CHECKPOINT_PATH", base), binding("MODEL_DIR", run)]
    assert main(["train", *world.whole_flags, *flags]) == 0
    assert numpy_prompt(run, LAST).tobytes() == numpy_prompt(world.folder / "whole", LAST).tobytes()
    files = [
        PromptFile.load(folder / "prompt.safetensors") for folder in (run, world.folder / "whole")
    ]
    assert files[0].base == files[1].base == base_hash(world)


def test_a_run_is_inspected_with_the_drift_of_its_prompt(world, capsys):
    vocabulary = world.folder / "small.model"
    flags = [f"--base={world.folder / 'base'}", f"--vocabulary={vocabulary}", "--json"]
    assert main(["inspect", str(world.folder / "whole"), *flags]) == 0
    about = json.loads(capsys.readouterr().out)
    start = numpy_prompt(world.folder / "whole", BASE_STEPS)
    moved = np.linalg.norm(numpy_prompt(world.folder / "whole", LAST) - start, axis=1)
    found = [vector["drift"]["distance"] for vector in about["vectors"]]
    np.testing.assert_allclose(found, moved, rtol=1e-5)
    assert moved.min() > 0.1
    assert all(token["piece"] for token in about["vectors"][0]["nearest_by_cosine"])
