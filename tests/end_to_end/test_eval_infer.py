"""`eval` and `infer` in processes of their own: killed, stopped, connected, on other devices."""

import random
import signal

import numpy as np
import pytest

from prompt_tuning.checkpoints import PromptFile
from tests.asked_models import FILMS, LENGTHS, lines, make_world
from tests.run_processes import World, after, connected, when
from tests.tiny_runs import binding

PREEMPTED = 75
ROWS = 120
PREDICTED = "films-predict.jsonl-00000-of-00001"


class Asked:
    """A base, a prompt and many films, and the commands over them."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = World(folder)
        self.world = make_world(folder, rows=ROWS)
        vectors = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
        self.prompt = folder / "prompt.safetensors"
        PromptFile.of(vectors, step=30).save(self.prompt)

    def arguments(self, command, out, *flags):
        task = [*FILMS, LENGTHS, binding("MIXTURE_OR_TASK_NAME", self.folder / "train.tsv")]
        split = "INFER_SPLIT" if command == "infer" else "EVAL_SPLIT"
        chunks = ["--gin.infer.checkpoint_period=1"] if command == "infer" else []
        return [
            command,
            *self.world.ask(command, out, prompt=self.prompt),
            *task,
            f"--gin.{split}='train'",
            *chunks,
            *flags,
        ]

    def start(self, command, out, *flags, devices=1):
        return self.processes.command(*self.arguments(command, out, *flags), devices=devices)

    def finish(self, command, out, *flags, devices=1):
        process = self.start(command, out, *flags, devices=devices)
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        return said

    def finish_together(self, command, out, *, processes):
        """Runs one command in several connected processes."""
        started = [self.start(command, out, *flags) for flags in connected(processes)]
        said = [process.communicate(timeout=600)[1] for process in started]
        assert [process.returncode for process in started] == [0] * processes, said
        return said


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return Asked(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(asked):
    """What is written if nobody disturbs."""
    asked.finish("infer", asked.folder / "whole")
    return outcome(asked.folder / "whole")


@pytest.fixture(scope="module")
def evaluated(asked):
    out = asked.folder / "evaluated"
    asked.finish("eval", out)
    return numbers(out)


def outcome(out):
    """Returns the bytes of all files by name."""
    return {str(one.relative_to(out)): one.read_bytes() for one in out.rglob("*") if one.is_file()}


def numbers(out):
    found = {
        folder: lines(out / folder / "films-metrics.jsonl")
        for folder in ("training_eval", "inference_eval")
    }
    [path] = (out / "inference_eval").glob("films-0*[0-9].jsonl")
    return found, [row["prediction"] for row in lines(path)]


def check_same_numbers(found, expected):
    """Sums over devices round otherwise; answers, and what is counted, are the same."""
    assert found[1] == expected[1]
    assert found[0]["inference_eval"] == expected[0]["inference_eval"]
    [row], [other] = found[0]["training_eval"], expected[0]["training_eval"]
    assert row == pytest.approx(other, rel=1e-5)


def check_killed(asked, whole, out, moment):
    """Kills a command at a moment and starts it again."""
    process = asked.start("infer", out)
    moment(process)
    process.kill()
    process.communicate()
    left = outcome(out) if out.exists() else {}
    asked.finish("infer", out)
    assert outcome(out) == whole, f"after it had left {sorted(left)}"
    return left


def test_the_answers_are_all_there(whole):
    assert set(whole) == {PREDICTED, f"{PREDICTED}.COMPLETED"}
    assert whole[PREDICTED].count(b"\n") == ROWS
    assert len(set(whole[PREDICTED].splitlines())) == ROWS


@pytest.mark.slow
def test_a_killed_process_loses_and_doubles_no_line(asked, whole, tmp_path):
    out = tmp_path / "out"
    left = check_killed(asked, whole, out, when(out, f"tmp-*/{PREDICTED}-chunk?????"))
    assert f"tmp-films-00000-of-00001/{PREDICTED}-chunk00000" in left
    assert PREDICTED not in left


def moments(seed, out):
    """Returns where to kill: anywhere, or between two writes that belong together."""
    rng = random.Random(seed)
    chunk = rng.randrange(ROWS // 8)
    return [
        after(rng.uniform(0.5, 12.0)),
        when(out, "tmp-*/made_of.json"),
        when(out, f"tmp-*/{PREDICTED}-chunk{chunk:05}"),
        when(out, f"tmp-*/{PREDICTED}-chunk{chunk:05}.COMPLETED"),
        when(out, "tmp-*/*.tmp-*", times=rng.randint(1, 6)),
        when(out, f"tmp-*/{PREDICTED}-chunk{ROWS // 8 - 1:05}.COMPLETED"),
        when(out, f"{PREDICTED}.tmp-*"),
        when(out, PREDICTED),
        when(out, f"{PREDICTED}.COMPLETED"),
        when(out, f"tmp-*/{PREDICTED}-chunk*", times=rng.randint(1, 2 * ROWS // 8)),
    ][seed % 10]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_killed_processes_lose_and_double_no_line(asked, whole, tmp_path, seed):
    out = tmp_path / "out"
    check_killed(asked, whole, out, moments(seed, out))


@pytest.mark.slow
def test_answering_that_is_told_to_stop_goes_on(asked, whole, tmp_path):
    out = tmp_path / "out"
    process = asked.start("infer", out)
    when(out, "tmp-*/*.COMPLETED", times=3)(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, said
    assert "Stopped on request before chunk" in said
    left = outcome(out)
    assert PREDICTED not in left
    assert not [name for name in left if ".tmp-" in name]
    chunks = {name.removesuffix(".COMPLETED") for name in left if "-chunk" in name}
    assert {f"{name}.COMPLETED" for name in chunks} <= set(left), "what is there is whole"
    asked.finish("infer", out)
    assert outcome(out) == whole


@pytest.mark.slow
def test_an_evaluation_that_is_told_to_stop_goes_on(asked, evaluated, tmp_path):
    out = tmp_path / "out"
    process = asked.start("eval", out)
    when(out, "training_eval/films-metrics.jsonl")(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, said
    asked.finish("eval", out)
    assert numbers(out) == evaluated


@pytest.mark.slow
def test_two_processes_answer_as_one_does(asked, whole, tmp_path):
    said = asked.finish_together("infer", tmp_path / "out", processes=2)
    assert all("Results written" in one or "Answered" in one for one in said)
    assert outcome(tmp_path / "out") == whole


@pytest.mark.slow
def test_two_processes_measure_what_one_does(asked, evaluated, tmp_path):
    asked.finish_together("eval", tmp_path / "out", processes=2)
    check_same_numbers(numbers(tmp_path / "out"), evaluated)


@pytest.mark.slow
def test_eight_devices_measure_what_one_does(asked, evaluated, tmp_path):
    asked.finish("eval", tmp_path / "out", devices=8)
    check_same_numbers(numbers(tmp_path / "out"), evaluated)


@pytest.mark.slow
def test_eight_devices_answer_as_one_does(asked, whole, tmp_path):
    asked.finish("infer", tmp_path / "out", devices=8)
    assert outcome(tmp_path / "out") == whole


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_killed(asked, whole, tmp_path):
    out = tmp_path / "out"
    process = asked.start("infer", out)
    when(out, "tmp-*/*.COMPLETED", times=3)(process)
    process.kill()
    process.communicate()
    asked.finish_together("infer", out, processes=2)
    assert outcome(out) == whole
