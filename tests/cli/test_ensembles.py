"""Several prompts that answer as one, by the command line: `eval` and `infer`."""

import collections

import numpy as np
import pytest

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile
from prompt_tuning.cli import config
from prompt_tuning.cli.subjects import subjects
from tests.asked_models import CHOOSING, LABELS, LENGTHS, lines, make_world
from tests.tiny_runs import binding

# Prompts of different lengths, as they may be.
PROMPTS = {"a": 3, "b": 5, "c": 4}
MEAN = ["--gin.ENSEMBLE=@ensemble.MeanLogProbability()"]


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("world"))
    [bare] = subjects(str(world.folder / "base"))
    for seed, (name, length) in enumerate(PROMPTS.items()):
        vectors = np.random.default_rng(seed).normal(size=(length, 32)).astype(np.float32)
        file = PromptFile.of(vectors, base=bare.made_of["base"], step=30 + seed)
        file.save(world.folder / f"{name}.safetensors")
    return world


@pytest.fixture
def run(world, tmp_path, capsys):
    """Runs a command over the films with some of the prompts; exit code, messages, folder."""

    def run(command, names, *more):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        paths = [str(world.folder / f"{name}.safetensors") for name in names]
        flags = [
            *world.ask(command, out, prompt="none"),
            f"--gin.PROMPT_FILE={paths if len(paths) > 1 else paths[0]!r}",
            *world.films,
            LENGTHS,
            *(["--gin.INFER_SPLIT='validation'"] if command == "infer" else []),
        ]
        code = main([command, *flags, *more])
        return code, capsys.readouterr().err, out

    yield run
    config.clear()


@pytest.fixture
def infer(run):
    """Returns the rows that some prompts answer with, alone or together."""

    def infer(names, *more, mode="predict_with_aux"):
        code, said, out = run("infer", names, f"--gin.MODE='{mode}'", *more)
        assert code == 0, said
        return lines(out / f"films-{mode}.jsonl-00000-of-00001")

    return infer


def test_the_answer_of_most_prompts_is_given(infer):
    alone = [infer([name], *CHOOSING) for name in PROMPTS]
    together = infer(PROMPTS, *CHOOSING)
    votes = [
        collections.Counter(row["prediction"] for row in rows).most_common(1)[0][0]
        for rows in zip(*alone, strict=True)
    ]
    assert [row["prediction"] for row in together] == votes
    # They do not all agree, or this would show nothing.
    assert any(len({row["prediction"] for row in rows}) > 1 for rows in zip(*alone, strict=True))


@pytest.mark.slow
def test_the_likeliest_label_on_average_is_given(infer):
    every = ["--gin.infer.all_decodes=True", *CHOOSING]
    means = collections.defaultdict(list)
    for name in PROMPTS:
        for row in infer([name], *every):
            scores = dict(zip(row["prediction"], row["aux"]["scores"], strict=True))
            means[row["id"]].append([scores[label] for label in LABELS])
    rows = infer(PROMPTS, *every, *MEAN)
    for row in rows:
        mean = np.mean(means[row["id"]], axis=0)
        assert row["prediction"][-1] == LABELS[int(np.argmax(mean))]
        np.testing.assert_allclose(row["aux"]["scores"], np.sort(mean), rtol=1e-5)
    assert {row["prediction"][-1] for row in rows} == {*LABELS}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], MEAN], ids=["vote", "mean"])
def test_a_decoded_answer_is_one_of_those_of_the_prompts(infer, more):
    alone = [infer([name]) for name in PROMPTS]
    together = infer(PROMPTS, *more)
    for row, rows in zip(together, zip(*alone, strict=True), strict=True):
        assert row["prediction"] in [one["prediction"] for one in rows]


@pytest.mark.slow
def test_targets_are_scored_by_the_mean_of_all_prompts(infer):
    alone = [[row["score"] for row in infer([name], mode="score")] for name in PROMPTS]
    together = [row["score"] for row in infer(PROMPTS, mode="score")]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-5)


def test_an_ensemble_is_evaluated_by_the_metrics_of_the_task(run, infer):
    code, said, out = run("eval", PROMPTS, *CHOOSING)
    assert code == 0, said
    # A loss of several answers is none.
    assert not (out / "training_eval").exists()
    rows = lines(out / "inference_eval/films-000032.jsonl")
    assert [row["prediction"] for row in rows] == [
        row["prediction"] for row in infer(PROMPTS, *CHOOSING)
    ]
    right = [row["prediction"] == row["input"]["targets_pretokenized"] for row in rows]
    [metrics] = lines(out / "inference_eval/films-metrics.jsonl")
    assert metrics["accuracy"] == 100 * sum(right) / len(right)


def test_prompts_of_several_widths_do_not_answer_together(run, world):
    PromptFile.of(np.zeros((3, 16), np.float32)).save(world.folder / "narrow.safetensors")
    code, said, _ = run("eval", ["a", "narrow"])
    assert code == 4
    assert "narrow.safetensors" in said


def test_several_prompts_and_several_states_exclude_each_other(run):
    code, said, _ = run("eval", ["a", "b"], binding("CHECKPOINTS", "all"))
    assert code == 2
    assert "CHECKPOINTS is 'all', but PROMPT_FILE names several prompts" in said
