"""What `prompt-tuning infer` writes, goes on with and refuses."""

import functools
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx

from prompt_tuning.__main__ import main
from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints import PromptFile
from prompt_tuning.cli import config
from prompt_tuning.cli.subjects import subjects
from prompt_tuning.decoding import BeamSearch, Greedy, make_generate
from prompt_tuning.decoding.scoring import make_score
from prompt_tuning.evaluation.examination import Examination
from prompt_tuning.evaluation.shard_file import ShardFile
from prompt_tuning.prompts import PromptParam
from prompt_tuning.tasks.features import t5_features
from prompt_tuning.vocabulary import SentencePieceVocabulary
from tests.asked_models import (
    CHOOSING,
    LABELS,
    LENGTHS,
    error_in,
    lines,
    make_base,
    make_world,
    settings_in,
)
from tests.full_disk import room
from tests.small_vocabulary import SENTENCES
from tests.tiny_runs import binding

ROWS = 13
# Of all questions, as the model itself is asked.
LONGEST = 24
# Chunks of one batch: of 4 examples, the last one of 1.
ONE_DEVICE = "--gin.infer.devices=1"
BATCH_SIZE = "--gin.BATCH_SIZE=4"
IN_CHUNKS = [BATCH_SIZE, "--gin.infer.checkpoint_period=1"]
WHOLE = "films-predict.jsonl-00000-of-00001"


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    """A base, two prompts over it, and the films."""
    world = make_world(tmp_path_factory.mktemp("world"))
    [bare] = subjects(str(world.folder / "base"))
    for name, seed in [("prompt", 1), ("other", 2)]:
        vectors = np.random.default_rng(seed).normal(size=(3, 32)).astype(np.float32)
        file = PromptFile.of(vectors, base=bare.made_of["base"], step=30)
        file.save(world.folder / f"{name}.safetensors")
    return world


@pytest.fixture
def infer(world, tmp_path, capsys):
    """Runs `prompt-tuning infer` over the validation split of the films; exit code and stderr."""

    def run(*more, prompt=world.folder / "prompt.safetensors", out=tmp_path / "out", films=True):
        flags = world.ask("infer", out, prompt=prompt)
        task = [*world.films, "--gin.INFER_SPLIT='validation'"] if films else []
        capsys.readouterr()
        code = main(["infer", *flags, LENGTHS, *task, BATCH_SIZE, ONE_DEVICE, *more])
        return code, capsys.readouterr().err

    yield run
    config.clear()


@pytest.fixture(scope="module")
def greedy(world):
    """The flag that always takes the likeliest token."""
    path = world.folder / "greedy.gin"
    path.write_text(
        "from __gin__ import dynamic_registration\n"
        "from prompt_tuning.decoding import sampling\n"
        "DECODING = @sampling.Greedy()\n"
    )
    return f"--gin_file={path}"


class Asked:
    """The model itself and the films as text: what the command says is compared with."""

    def __init__(self, folder):
        path = str(folder / "prompt.safetensors")
        [subject] = subjects(str(folder / "base"), prompt=path, settings={"dtype": "float32"})
        self._graph, self._learned, self._frozen = nnx.split(subject.model, PromptParam, ...)
        self._generate = functools.cache(functools.partial(make_generate, self._graph, length=8))
        self.films = films_of(folder / "validation.tsv")
        self.vocabulary = SentencePieceVocabulary(str(folder / "small.model"))

    def tokens(self, text):
        return [*self.vocabulary.encode(text), self.vocabulary.eos_id]

    def answers(self, text, strategy):
        """Returns tokens and scores of the answers to one question, asked alone."""
        inputs = padded(self.tokens(text), LONGEST)
        found = self._generate(strategy=strategy)(self._learned, self._frozen, inputs)
        return [trimmed(row) for row in found.tokens[0]], found.scores[0].tolist()

    def said(self, text, strategy):
        """Returns the texts of the answers to one question, the best last."""
        return [self.vocabulary.decode(row) for row in self.answers(text, strategy)[0]]

    @functools.cached_property
    def _score(self):
        return make_score(self._graph)

    def score(self, text, label):
        targets = padded(self.tokens(label), 8)
        weights = (targets > 0).astype(np.int32)
        batch = Batch(inputs=padded(self.tokens(text), LONGEST), targets=targets, weights=weights)
        return float(self._score(self._learned, self._frozen, batch)[0])


def padded(tokens, length):
    return np.pad(np.asarray([tokens], np.int32), ((0, 0), (0, length - len(tokens))))


def trimmed(row):
    return [token for token in row.tolist() if token]


def films_of(path):
    _, *rows = path.read_text().splitlines()
    return [(text, LABELS[int(label)]) for text, label in (row.split("\t") for row in rows)]


@pytest.fixture(scope="module")
def asked(world):
    return Asked(world.folder)


@pytest.fixture(scope="module")
def whole(world):
    """The answers in one go."""
    out = world.folder / "whole"
    flags = world.ask("infer", out, prompt=world.folder / "prompt.safetensors")
    split = "--gin.INFER_SPLIT='validation'"
    assert main(["infer", *flags, LENGTHS, *world.films, split, ONE_DEVICE, *IN_CHUNKS]) == 0
    config.clear()
    return (out / WHOLE).read_bytes()


def some_slow(cases, *quick):
    return [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in cases]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def as_written(number, film, **said):
    text, label = film
    inputs = {"inputs_pretokenized": text, "targets_pretokenized": label}
    return json.dumps({"id": f"validation/{number}", "inputs": inputs, **said}) + "\n"


def test_a_line_is_what_the_model_says_to_its_example(infer, asked, tmp_path):
    code, said = infer()
    assert code == 0, said
    texts = [asked.said(text, BeamSearch())[-1] for text, _ in asked.films]
    assert len(set(texts)) > ROWS // 2, "almost every answer is another one"
    expected = [as_written(i, asked.films[i], prediction=texts[i]) for i in range(ROWS)]
    assert (tmp_path / "out" / WHOLE).read_text() == "".join(expected)
    assert names(tmp_path / "out") == [WHOLE, f"{WHOLE}.COMPLETED"]


def test_aux_adds_the_score_of_the_answer(infer, asked, greedy, tmp_path):
    code, said = infer(greedy, "--gin.MODE='predict_with_aux'", "--gin.infer.output_ids=True")
    assert code == 0, said
    written = lines(tmp_path / "out/films-predict_with_aux.jsonl-00000-of-00001")
    for (text, _), row in zip(asked.films, written, strict=True):
        [tokens], [score] = asked.answers(text, Greedy())
        assert list(row) == ["id", "inputs", "prediction", "prediction_tokens", "aux"]
        assert row["prediction_tokens"] == tokens
        assert row["prediction"] == asked.vocabulary.decode(tokens)
        assert row["aux"] == {"scores": pytest.approx(score, rel=1e-4)}
    assert min(len(row["prediction_tokens"]) for row in written) < 8, "some answers end early"


@pytest.mark.parametrize("decodes", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_all_decodes_are_written_the_best_last(infer, asked, tmp_path, decodes):
    code, said = infer(
        "--gin.MODE='predict_with_aux'",
        "--gin.BeamSearch.beams=4",
        f"--gin.BeamSearch.decodes={decodes}",
        "--gin.infer.all_decodes=True",
        "--gin.infer.output_ids=True",
    )
    assert code == 0, said
    written = lines(tmp_path / "out/films-predict_with_aux.jsonl-00000-of-00001")
    for (text, _), row in zip(asked.films, written, strict=True):
        tokens, scores = asked.answers(text, BeamSearch(beams=4, decodes=decodes))
        assert row["prediction_tokens"] == tokens
        assert row["prediction"] == list(map(asked.vocabulary.decode, tokens))
        assert row["aux"]["scores"] == pytest.approx(scores, rel=1e-4)
        assert len(row["prediction"]) == decodes
        assert row["aux"]["scores"] == sorted(row["aux"]["scores"])


def test_score_writes_the_log_probability_of_the_right_answer(infer, asked, tmp_path):
    code, said = infer("--gin.MODE='score'")
    assert code == 0, said
    written = lines(tmp_path / "out/films-score.jsonl-00000-of-00001")
    for number, (film, row) in enumerate(zip(asked.films, written, strict=True)):
        assert json.dumps(row) + "\n" == as_written(number, film, score=row["score"])
        assert row["score"] == pytest.approx(asked.score(*film), rel=1e-4)


def test_labels_are_chosen_as_eval_chooses_them(infer, tmp_path):
    code, said = infer(*CHOOSING, "--gin.infer.all_decodes=True", "--gin.MODE='predict_with_aux'")
    assert code == 0, said
    for row in lines(tmp_path / "out/films-predict_with_aux.jsonl-00000-of-00001"):
        assert sorted(row["prediction"]) == LABELS
        assert row["aux"]["scores"] == sorted(row["aux"]["scores"])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [3, 8])
def test_the_number_of_devices_changes_no_answer(infer, whole, tmp_path, devices):
    assert infer(f"--gin.infer.devices={devices}")[0] == 0
    assert (tmp_path / "out" / WHOLE).read_bytes() == whole


@pytest.mark.parametrize("shards", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_shards_divide_the_examples_in_turn(infer, whole, tmp_path, shards):
    flags = f"--gin.infer.num_shards={shards}"
    chosen = range(shards) if shards < ROWS else (0, ROWS - 1, ROWS)
    parts = {}
    for shard in chosen:
        code, said = infer(flags, f"--gin.infer.shard_id={shard}")
        assert code == 0, said
        path = tmp_path / f"out/films-predict.jsonl-{shard:05}-of-{shards:05}"
        assert path.with_name(f"{path.name}.COMPLETED").exists()
        parts[shard] = path.read_bytes().splitlines(keepends=True)
    expected = whole.splitlines(keepends=True)
    assert parts == {shard: expected[shard::shards] for shard in chosen}
    # More shards than examples: those without any are complete too.
    assert len(names(tmp_path / "out")) == 2 * len(chosen)


QUESTIONS = ["the old boats", 'a "moving" film\\', "ünïcödé {braces}", "", "rain on\u2028the roof"]


def as_text(rows):
    return "".join(f"{text}\n" for text, _ in rows)


def as_json_lines(rows):
    return "".join(json.dumps({"inputs": text, "more": 1}) + "\n" for text, _ in rows)


def as_table(rows):
    return "".join(["inputs\ttargets\n", *(f"{text}\t{label}\n" for text, label in rows)])


PLAIN = {"txt": as_text, "jsonl": as_json_lines, "tsv": as_table}


@pytest.mark.parametrize("ending", PLAIN)
def test_plain_files_need_no_task(infer, asked, tmp_path, ending):
    rows = [(text, LABELS[i % 2]) for i, text in enumerate(QUESTIONS)]
    path = tmp_path / f"questions.{ending}"
    path.write_text(PLAIN[ending](rows), encoding="utf-8")
    code, said = infer(binding("MIXTURE_OR_TASK_NAME", path), films=False)
    assert code == 0, said
    written = (tmp_path / "out/questions-predict.jsonl-00000-of-00001").read_bytes()
    found = [json.loads(line) for line in written.decode().split("\n")[:-1]]
    assert [row["id"] for row in found] == [f"test/{i}" for i in range(len(QUESTIONS))]
    for (text, label), row in zip(rows, found, strict=True):
        targets = {"targets_pretokenized": label} if ending == "tsv" else {}
        assert row["inputs"] == {"inputs_pretokenized": text, **targets}
        assert row["prediction"] == asked.said(text, BeamSearch())[-1]


FIELDS = {
    "all": (
        ["--gin.InputFields.include_all_inputs=True"],
        {"sentence", "label", "idx", "inputs", "targets"}
        | {"inputs_pretokenized", "targets_pretokenized"},
    ),
    "some": (
        ["--gin.InputFields.input_fields_to_include=['sentence', 'targets']"],
        {"sentence", "targets", "targets_pretokenized"},
    ),
    "none": (["--gin.InputFields.input_fields_to_include=[]"], set()),
}


@pytest.mark.parametrize("case", some_slow(FIELDS, "all", "some"))
def test_the_features_that_are_asked_for_are_written(infer, asked, tmp_path, case):
    flags, expected = FIELDS[case]
    code, said = infer(*flags)
    assert code == 0, said
    for (text, label), row in zip(asked.films, lines(tmp_path / "out" / WHOLE), strict=True):
        inputs = row["inputs"]
        assert set(inputs) == expected
        known = {
            "sentence": text,
            "label": LABELS.index(label),
            "targets": asked.tokens(label),
            "inputs": asked.tokens(text),
        }
        assert {**known, **inputs} == {**inputs, **known}


# Going on.


@pytest.fixture
def answered(monkeypatch):
    """Lists the chunks that are written."""
    made = []

    def noted(self, chunk, found):
        made.append(chunk)
        return write(self, chunk, found)

    write = ShardFile.write_chunk
    monkeypatch.setattr(ShardFile, "write_chunk", noted)
    return made


def test_what_is_answered_is_not_asked_again(infer, whole, answered, tmp_path):
    assert infer(*IN_CHUNKS)[0] == 0
    assert answered == [0, 1, 2, 3]
    before = (tmp_path / "out" / WHOLE).stat().st_mtime_ns
    code, said = infer(*IN_CHUNKS)
    assert code == 0
    assert said.endswith(f"{tmp_path}/out/{WHOLE} is complete.\n")
    assert answered == [0, 1, 2, 3]
    assert (tmp_path / "out" / WHOLE).stat().st_mtime_ns == before
    assert (tmp_path / "out" / WHOLE).read_bytes() == whole


def test_progress_counts_the_examples_of_the_shard(infer):
    code, said = infer(*IN_CHUNKS, "--gin.infer.num_shards=2", "--gin.infer.shard_id=1")
    assert code == 0
    assert re.findall(r"Answered (.*) examples", said) == ["4 of 6", "6 of 6"]


@pytest.mark.parametrize("chunks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3))])
def test_a_request_to_stop_ends_with_75_and_the_same_command_goes_on(
    infer, whole, answered, tmp_path, monkeypatch, chunks
):
    def stopping(self, *arguments):
        if len(answered) == chunks:
            os.kill(os.getpid(), signal.SIGTERM)
        return examine(self, *arguments)

    examine = Examination.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Examination, "__call__", stopping)
        code, said = infer(*IN_CHUNKS)
    out = tmp_path / "out"
    assert code == 75
    assert f"Stopped on request before chunk {chunks} of 4 of {out}/{WHOLE}. Start the" in said
    parts = f"tmp-films-00000-of-00001/{WHOLE}-chunk"
    kept = [f"{parts}{i:05}{end}" for i in range(chunks) for end in ("", ".COMPLETED")]
    assert names(out) == [*kept, "tmp-films-00000-of-00001/made_of.json"]
    answered.clear()
    assert infer(*IN_CHUNKS)[0] == 0
    assert answered == list(range(chunks, 4))
    assert (out / WHOLE).read_bytes() == whole
    assert names(out) == [WHOLE, f"{WHOLE}.COMPLETED"]


class Killed(BaseException):
    """What no code of ours handles, as nothing handles SIGKILL."""


# where a process dies -> the method of ShardFile, in which call, and whether at its end.
DEATHS = {
    "before the first chunk": ("write_chunk", 0, False),
    "after a chunk": ("write_chunk", 1, True),
    "before chunks are joined": ("finish", 0, False),
    "before chunks are removed": ("clean", 0, False),
    "after all": ("clean", 0, True),
}


@pytest.mark.parametrize("case", some_slow(DEATHS, "after a chunk", "before chunks are removed"))
def test_who_dies_anywhere_goes_on_there(infer, whole, answered, tmp_path, monkeypatch, case):
    method, number, after = DEATHS[case]
    calls = []

    def dying(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) - 1 == number and not after:
            raise Killed
        real(self, *arguments, **options)
        if len(calls) - 1 == number:
            raise Killed

    real = getattr(ShardFile, method)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ShardFile, method, dying)
        infer(*IN_CHUNKS)
    made = list(answered)
    answered.clear()
    assert infer(*IN_CHUNKS)[0] == 0
    assert [*made, *answered] == [0, 1, 2, 3]
    assert (tmp_path / "out" / WHOLE).read_bytes() == whole
    assert names(tmp_path / "out") == [WHOLE, f"{WHOLE}.COMPLETED"]


def test_chunks_may_stay_apart_and_be_joined_later(infer, whole, answered, tmp_path):
    out = tmp_path / "out"
    assert infer(*IN_CHUNKS, "--gin.infer.merge_chunked_results=False")[0] == 0
    parts = f"tmp-films-00000-of-00001/{WHOLE}-chunk"
    assert b"".join((out / f"{parts}{i:05}").read_bytes() for i in range(4)) == whole
    assert (out / f"{WHOLE}.COMPLETED").exists()
    assert not (out / WHOLE).exists()
    answered.clear()
    code, said = infer(*IN_CHUNKS)
    assert code == 0, said
    assert answered == []
    assert (out / WHOLE).read_bytes() == whole
    assert names(out) == [WHOLE, f"{WHOLE}.COMPLETED"]


# what is different -> flags, what the message says.
SOMETHING_ELSE = {
    "prompt": ([], r"prompts: was \['[0-9a-f]{64}'\], is \['[0-9a-f]{64}'\]"),
    "decoding": (["--gin.BeamSearch.alpha=0.0"], r"\S*BeamSearch\.alpha: was .*, is 0\.0"),
    "strategy": (
        ["GREEDY"],
        r"\S*Decode\.strategy: was @beam_search\.BeamSearch\(\), is @sampling\.Greedy\(\)",
    ),
    "data": (
        ["--gin.TASK_FEATURE_LENGTHS={'inputs': 4, 'targets': 8}"],
        r"data: was [0-9a-f]+, is [0-9a-f]+",
    ),
    "chunks": (["--gin.BATCH_SIZE=2"], r"examples of a chunk: was 4, is 2"),
    "fields": (
        ["--gin.InputFields.include_all_inputs=True"],
        r"\S*InputFields\.include_all_inputs: was .*, is True",
    ),
}


@pytest.fixture(scope="module")
def half_done(world):
    """Where two of four chunks are written."""
    out = world.folder / "half_done"
    flags = world.ask("infer", out, prompt=world.folder / "prompt.safetensors")
    split = "--gin.INFER_SPLIT='validation'"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        real = ShardFile.write_chunk

        def dying(self, chunk, found):
            if chunk == 2:
                raise Killed
            real(self, chunk, found)

        patch.setattr(ShardFile, "write_chunk", dying)
        main(["infer", *flags, LENGTHS, *world.films, split, ONE_DEVICE, *IN_CHUNKS])
    config.clear()
    return out


@pytest.mark.parametrize("case", SOMETHING_ELSE)
@pytest.mark.parametrize("state", some_slow(["half done", "done"], "half done"))
def test_answers_of_something_else_are_not_mixed_in(
    world, infer, whole, half_done, greedy, answered, tmp_path, state, case
):
    flags, message = SOMETHING_ELSE[case]
    source = half_done if state == "half done" else world.folder / "whole"
    out = shutil.copytree(source, tmp_path / "out")
    before = {name: (out / name).read_bytes() for name in names(out)}
    prompt = world.folder / ("prompt.safetensors" if flags else "other.safetensors")
    given = [greedy if flag == "GREEDY" else flag for flag in flags]
    code, said = infer(*IN_CHUNKS, *given, prompt=prompt)
    assert code == 2
    where = out / ("tmp-films-00000-of-00001" if state == "half done" else WHOLE)
    assert f"error: {where} holds predictions of something else:\n" in said
    assert re.search(f"^  {message}$", said, re.MULTILINE), said
    assert said.endswith("Choose another INFER_OUTPUT_DIR, or remove what is in this one.\n")
    assert answered == []
    assert {name: (out / name).read_bytes() for name in names(out)} == before


def test_another_shard_and_another_mode_go_beside(infer, world, tmp_path):
    out = shutil.copytree(world.folder / "whole", tmp_path / "out")
    code, said = infer(*IN_CHUNKS, "--gin.MODE='score'")
    assert code == 0, said
    assert len(names(out)) == 4


def test_without_room_it_exits_with_4_and_goes_on_when_there_is_some(infer, whole, tmp_path):
    for size in (0, 600):
        with room(size):
            code, said = infer(*IN_CHUNKS)
        assert code == 4, said
        assert "What was saved before is whole. Make room and start the same command" in said
    assert infer(*IN_CHUNKS)[0] == 0
    assert (tmp_path / "out" / WHOLE).read_bytes() == whole
    assert names(tmp_path / "out") == [WHOLE, f"{WHOLE}.COMPLETED"]


def test_a_dry_run_writes_nothing(infer, answered, tmp_path):
    code, said = infer("--dry_run")
    assert code == 0, said
    assert answered == []
    assert not (tmp_path / "out").exists()


def few(texts):
    def dataset(split, shuffle_files, seed=None):
        records = {"inputs": texts, "targets": [LABELS[i % 2] for i in range(len(texts))]}
        return tf.data.Dataset.from_tensor_slices(records)

    return dataset


@pytest.fixture
def mixture(world):
    """Two registered tasks without any metrics, and the mixture of both."""
    features = t5_features(SentencePieceVocabulary(str(world.folder / "small.model")))
    tasks = {"few_one": SENTENCES[:2], "few_two": SENTENCES[:3]}
    for name, texts in tasks.items():
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                few(texts), splits=["test"], num_input_examples={"test": len(texts)}
            ),
            preprocessors=[
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features=features,
        )
    seqio.MixtureRegistry.add("few_both", list(tasks), default_rate=1)
    yield tasks
    seqio.MixtureRegistry.remove("few_both")
    for name in tasks:
        seqio.TaskRegistry.remove(name)


@pytest.mark.slow
def test_every_task_of_a_mixture_gets_its_file(infer, mixture, tmp_path):
    code, said = infer("--gin.MIXTURE_OR_TASK_NAME='few_both'", films=False)
    assert code == 0, said
    for task, texts in mixture.items():
        rows = lines(tmp_path / f"out/{task}-predict.jsonl-00000-of-00001")
        assert [row["inputs"]["inputs_pretokenized"] for row in rows] == texts


# what is wrong -> flags, exit code, message; {} is a folder.
BAD = {
    "an unknown mode": (
        ["--gin.MODE='predct'"],
        2,
        r"infer\.mode is 'predct', expected one of predict, predict_with_aux, score\. Did you mean "
        r"'predict'( or 'predict_with_aux')?\?",
    ),
    "no such split": (
        ["--gin.INFER_SPLIT='test'"],
        3,
        r"The file task '\S+/train\.tsv' has no split 'test': .* There are: train, validation\. .*",
    ),
    "no such task": (
        ["--gin.MIXTURE_OR_TASK_NAME='few_tow'", "--gin.FILE_TASK=None"],
        3,
        r"There is no task named 'few_tow'\..*",
    ),
    "no split at all": (
        ["--gin.INFER_SPLIT=None"],
        2,
        r"There is nothing to answer: set INFER_SPLIT to a split of the task\.",
    ),
    "a file without rows": (
        ["--gin.MIXTURE_OR_TASK_NAME='{}/empty.txt'", "--gin.FILE_TASK=None"],
        3,
        r"\S+/empty\.txt is empty or has only the names of its columns: there are no examples in "
        r"it\.",
    ),
    "a file without inputs": (
        ["--gin.MIXTURE_OR_TASK_NAME='{}/input.jsonl'", "--gin.FILE_TASK=None"],
        3,
        r"\S+/input\.jsonl has no column 'inputs', which a file without a FILE_TASK asks for\. Did "
        r"you mean 'input'\? It has: input\.",
    ),
    "no such file": (
        ["--gin.MIXTURE_OR_TASK_NAME='{}/nowhere.txt'", "--gin.FILE_TASK=None"],
        3,
        r"MIXTURE_OR_TASK_NAME is the file '\S+/nowhere\.txt', but there is no such file\.",
    ),
    "nothing to score": (
        ["--gin.MIXTURE_OR_TASK_NAME='{}/ask.txt'", "--gin.FILE_TASK=None", "--gin.MODE='score'"],
        3,
        r"There are no targets to score in 'ask', split 'validation'\. Give the file a column "
        r"`targets`, or a FILE_TASK that says what they are; or set MODE to 'predict'\.",
    ),
    "a label that nobody may choose": (
        [*CHOOSING, "--gin.ChooseLabel.labels=['every', 'twise']"],
        2,
        r"ChooseLabel\.labels is \['every', 'twise'\], but the task has the label 'twice', which "
        r"could never be chosen\. Did you mean 'twise'\?",
    ),
    "a label that is too long": (
        [*CHOOSING, "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 1}"],
        2,
        r"The label 'every' has 2 tokens with its end token, but answers may have 1\. Set .*",
    ),
    "no labels": (
        [
            *CHOOSING,
            "--gin.MIXTURE_OR_TASK_NAME='{}/ask.txt'",
            "--gin.FILE_TASK=None",
        ],
        2,
        r"ChooseLabel has no labels to choose from, and the task does not say its own\. Set .*",
    ),
    "several states of a run": (
        ["--gin.CHECKPOINTS='all'"],
        2,
        r"CHECKPOINTS is 'all', but there is one file for the answers of one model: expected "
        r"'latest' or 'best'\.",
    ),
    "a shard that is none": (
        ["--gin.infer.num_shards=2", "--gin.infer.shard_id=2"],
        2,
        r"infer\.shard_id is 2, expected 0 to 1 \(infer\.num_shards is 2\)\.",
    ),
    "a period of nothing": (
        ["--gin.infer.checkpoint_period=0"],
        2,
        r"infer\.checkpoint_period is 0, expected 1 or more batches\.",
    ),
    "an empty batch": (["--gin.BATCH_SIZE=0"], 2, r"BATCH_SIZE is 0, expected 1 or more\."),
    "more answers than beams": (
        ["--gin.BeamSearch.decodes=2"],
        2,
        r"BeamSearch\.decodes is 2, but 1 beams give from 1 to 1 answers\. .*",
    ),
    "a feature that is none": (
        ["--gin.InputFields.input_fields_to_include=['sentense']"],
        2,
        r"InputFields\.input_fields_to_include has 'sentense', but the examples have: .*\. Did you "
        r"mean 'sentence'\?",
    ),
    "all features and some": (
        [
            "--gin.InputFields.input_fields_to_include=['sentence']",
            "--gin.InputFields.include_all_inputs=True",
        ],
        2,
        r"InputFields\.include_all_inputs and input_fields_to_include exclude each other: leave "
        r"one out\.",
    ),
    "no such prompt": (
        ["--gin.PROMPT_FILE='{}/nowhere'"],
        4,
        r"PROMPT_FILE: There is nothing at \S+/nowhere\. (.|\n)*",
    ),
    "a prompt of another base": (
        ["--gin.CHECKPOINT_PATH='{}/base'"],
        4,
        r"PROMPT_FILE '\S+': The prompt was trained over another base model: .*",
    ),
    "a folder in a file": (
        ["--gin.INFER_OUTPUT_DIR='{}/ask.txt/out'"],
        4,
        r"\S+ could not be written \(Not a directory\)\. Set INFER_OUTPUT_DIR to a folder that can "
        r"be written\.",
    ),
}


@pytest.fixture(scope="module")
def faults(world):
    folder = world.folder / "faults"
    make_base(folder / "base", seed=1)
    (folder / "empty.txt").write_text("")
    (folder / "ask.txt").write_text("a film\n")
    (folder / "input.jsonl").write_text('{"input": "a film"}\n')
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_its_code_and_says_what_is_wrong(
    infer, answered, faults, tmp_path, monkeypatch, case
):
    flags, code, message = BAD[case]

    def unexpected(*arguments):
        raise AssertionError("The model was asked, though the answer could not be kept.")

    monkeypatch.setattr(Examination, "__call__", unexpected)
    returned, said = infer(*(flag.replace("{}", str(faults)) for flag in flags))
    assert re.fullmatch(message, error_in(said)), said
    assert returned == code
    assert answered == []
    assert not (tmp_path / "out").exists()


def test_all_settings_without_a_value_are_listed_at_once(capsys):
    files = ["--gin_file=models/from_checkpoint.gin", "--gin_file=runs/prompt_infer.gin"]
    assert main(["infer", *files]) == 2
    assert settings_in(capsys.readouterr().err) == [
        "CHECKPOINT_PATH",
        "INFER_OUTPUT_DIR",
        "MIXTURE_OR_TASK_NAME",
        "PROMPT_FILE",
        "TASK_FEATURE_LENGTHS",
        "VOCABULARY_FILE",
    ]
