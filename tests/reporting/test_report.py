"""What a report shows of runs, that it stands for itself, and what it refuses."""

import functools
import json
import shutil

import numpy as np
import pytest

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile
from prompt_tuning.errors import CheckpointError
from prompt_tuning.reporting import report
from prompt_tuning.reporting.answers import answered, confusions_of, examples_of
from prompt_tuning.reporting.costs import status_of
from prompt_tuning.reporting.measured import table_of
from prompt_tuning.reporting.run_files import read_run
from prompt_tuning.reporting.vectors import Embeddings, tokens_of
from tests.reporting.pages import Page
from tests.reporting.written_runs import HOSTILE, LABELS, STEPS, vectors, write_run

SECTIONS = [
    "curves",
    "metrics",
    "confusion",
    "examples",
    "prompt",
    "tokens",
    "cost",
    "environment",
    "configuration",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("written") / "run")


@pytest.fixture
def run(written, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(written, tmp_path / "run")


def made(folder):
    return report(read_run(folder))


def rows_of(section, heading):
    """The table that has a heading, as a dict of rows by their first cells."""
    found = next(one for one in section.blocks if heading in getattr(one, "header", ()))
    return {
        row[0].text: {
            name: f"{cell.text}{' (best)' * cell.best}"
            for name, cell in zip(found.header[1:], row[1:], strict=True)
        }
        for row in found.rows
    }


def measured_in(folder):
    return rows_of(table_of(read_run(folder)), "token accuracy")


def counted_in(folder):
    return rows_of(confusions_of(answered(read_run(folder))), "F1")


def vectors_in(folder, table, piece=None):
    found = Embeddings(table=table, piece=piece, about="a base")
    section = tokens_of(read_run(folder), found, None)
    return section.blocks[-1].vectors


def without(folder, *names):
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def trained_model(folder):
    return write_run(folder, prompts=False)


def pretrained(folder):
    write_run(folder, prompts=False)
    config = folder / "config.gin"
    config.write_text(f"CORPUS = 'books.txt'\n{config.read_text()}")
    return without(folder, "inference_eval", "training_eval")


def evaluation(folder):
    write_run(folder)
    (folder / "evaluated.json").write_text("{}")
    return without(
        folder,
        "train",
        "prompt.safetensors",
        "numpy_checkpoints",
        "summary.json",
        "environment.json",
        "config.gin",
        "model-info.txt",
    )


def only_a_log(folder):
    write_run(folder)
    (folder / "train").rename(folder.with_name("kept"))
    shutil.rmtree(folder)
    folder.mkdir()
    folder.with_name("kept").rename(folder / "train")
    return folder


def hostile(folder):
    return write_run(folder, task="a<b> & $c$ 日", text=HOSTILE)


RUNS = {
    "a prompt's": write_run,
    "a model's": trained_model,
    "a pretraining's": pretrained,
    "an evaluation's": evaluation,
    "one that has only begun": only_a_log,
    "one of hostile texts": hostile,
}


@pytest.fixture(scope="module")
def report_of(tmp_path_factory):
    """Returns the report of a kind of run, which is made once."""

    @functools.cache
    def report_of(kind):
        return made(RUNS[kind](tmp_path_factory.mktemp("any") / "run"))

    return report_of


@pytest.fixture(params=RUNS)
def any_report(request, report_of):
    """The report of every kind of run."""
    return report_of(request.param)


def test_a_page_asks_for_nothing_and_all_that_it_refers_to_is_in_it(any_report):
    page = Page(any_report.page)
    assert [one for one in page.asked if not one.startswith("data:,")] == []
    assert set(page.references) - set(page.ids) == set()
    assert len(set(page.ids)) == len(page.ids)
    assert "script" not in page.tags
    assert "@import" not in any_report.page


def test_every_section_is_there_or_its_reason(any_report):
    page = Page(any_report.page)
    assert [name for name in page.ids if name in SECTIONS] != []
    assert set(SECTIONS) - set(page.ids) == set()
    for title, reason in any_report.left_out.items():
        assert reason in page.text[title_to_name(title)]


def title_to_name(title):
    return {
        "Learning curves": "curves",
        "The prompt on its way": "prompt",
        "Nearest tokens": "tokens",
    }.get(title, title.lower())


def test_every_plot_says_what_it_shows_and_lies_beside_the_page_as_a_picture(any_report):
    page = Page(any_report.page)
    assert page.unlabelled == []
    assert page.tags.count("svg") == len(any_report.pictures)
    assert all(png.startswith(b"\x89PNG") for png in any_report.pictures.values())


def test_plots_take_the_colours_of_the_page(any_report):
    assert "#0102" not in any_report.page  # those that stand in for the page's variables
    assert "var(--ink)" in any_report.page


def test_the_same_run_gives_the_same_bytes(report_of, written):
    assert made(written) == report_of("a prompt's")


def test_texts_of_a_run_are_shown_and_not_obeyed(report_of):
    page = Page(report_of("one of hostile texts").page)
    assert "<script>alert('x')</script>" in page.text["examples"]
    assert "{{ 7 * 7 }}" in page.text["examples"]
    assert "a<b> & $c$ 日" in page.text["metrics"]


def test_the_table_has_every_evaluated_step_and_marks_the_best(written):
    rows = measured_in(written)
    assert list(rows) == [f"{step:,}" for step in STEPS]
    assert [row["accuracy"] for row in rows.values()] == ["50", "60", "70 (best)"]
    assert rows["1,100,020"]["loss per target token"].endswith("(best)")  # the lowest


def test_the_direction_of_a_metric_is_the_one_that_the_run_watched(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["metrics"]["inference_eval/films/accuracy"]["best_is"] = "lowest"
    (run / "summary.json").write_text(json.dumps(summary))
    rows = measured_in(run)
    assert [row["accuracy"] for row in rows.values()] == ["50 (best)", "60", "70"]


def test_the_answers_are_those_of_the_best_step_of_what_was_watched(run):
    lines = (run / "inference_eval/films-metrics.jsonl").read_text()
    (run / "inference_eval/films-metrics.jsonl").write_text(lines.replace("60.0", "90.0"))
    assert [one.step for one in answered(read_run(run))] == [STEPS[1]]
    (run / "summary.json").unlink()
    assert [one.step for one in answered(read_run(run))] == [STEPS[2]]


def test_answers_of_classes_are_counted_by_class(written):
    rows = counted_in(written)
    assert list(rows) == list(LABELS)
    # 6 of 10 bad ones are called so, beside 2 good ones.
    assert rows["bad"] == {
        "examples": "10",
        "answered": "8",
        "precision": "0.75",
        "recall": "0.6",
        "F1": "0.6667",
    }


def test_answers_of_a_task_without_names_are_counted_if_they_are_few_texts(run):
    for step in STEPS:
        (run / f"inference_eval/films-{step:06}-confusion.json").unlink()
        path = run / f"inference_eval/films-{step:06}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["target"] = row["input"]["targets_pretokenized"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = counted_in(run)
    assert {name: row["examples"] for name, row in rows.items()} == {"bad": "10", "good": "10"}


def test_examples_are_right_and_wrong_and_the_surest_come_first(written):
    _, wrong, right = examples_of(answered(read_run(written))).blocks
    assert "7 of 20 answers are other than the right one; the surest 6" in wrong.title
    assert "13 of 20 answers are the same as the right one; the surest 6" in right.title
    # Every third one is wrong, and the first are the surest.
    assert [one.name for one in wrong.examples] == [f"validation/{3 * i}" for i in range(6)]
    assert [one.name for one in right.examples] == [f"validation/{i}" for i in (1, 2, 4, 5, 7, 8)]
    assert [one.right for one in right.examples] == [True] * 6
    assert right.examples[0].score == "score -0.100"


def test_vectors_are_shown_with_how_far_they_came(written):
    rows = vectors_in(written, np.eye(8, dtype=np.float32))
    moved = np.linalg.norm(vectors(2) - vectors(0), axis=1)
    assert [row.moved for row in rows] == [f"{one:.4g}" for one in moved]
    assert [row.norm for row in rows] == [
        f"{one:.4g}" for one in np.linalg.norm(vectors(2), axis=1)
    ]


def test_the_nearest_token_is_the_one_that_points_the_same_way(written):
    table = np.concatenate([2 * vectors(2)[::-1], np.ones((5, 8), np.float32)])
    rows = vectors_in(written, table, lambda i: f"<piece {i}>")
    assert [row.near[0] for row in rows] == [(f"<piece {i}>", "1.00") for i in (3, 2, 1, 0)]


def test_a_run_that_went_on_after_its_summary_is_not_called_finished(run):
    assert status_of(read_run(run)) == "finished"
    summary = json.loads((run / "summary.json").read_text())
    summary["step"] -= 5
    (run / "summary.json").write_text(json.dumps(summary))
    assert status_of(read_run(run)).startswith("not finished")


def test_a_line_that_a_killed_run_left_half_is_not_read(run):
    log = run / "train/metrics.jsonl"
    before = read_run(run).train
    log.write_text(log.read_text() + '{"step": 1100021, "loss"')
    assert read_run(run).train == before


def test_values_that_are_no_numbers_leave_a_gap(run):
    log = run / "inference_eval/films-metrics.jsonl"
    log.write_text(log.read_text().replace("60.0", "null"))
    rows = measured_in(run)
    assert [row["accuracy"] for row in rows.values()] == ["50", "–", "70 (best)"]


SPOILED = {
    "a line of the log": ("train/metrics.jsonl", b"{no json}\n", "Line 1 of"),
    "a line without its step": ("train/metrics.jsonl", b'{"loss": 1.0}\n', "a line has no step"),
    "a log of bytes": ("inference_eval/films-metrics.jsonl", b"\xff\xfe\n", "it is no text"),
    "the summary": ("summary.json", b"[]", "summary.json holds a JSON list"),
    "the counts": (
        f"inference_eval/films-{STEPS[-1]:06}-confusion.json",
        b'{"targets": ["bad", "good"], "counts": [[1, 2], [3, 4]]}',
        "have shape (2, 2) for 2 classes",
    ),
    "the names of classes": (
        f"inference_eval/films-{STEPS[-1]:06}-confusion.json",
        b'{"predictions": []}',
        "KeyError('targets')",
    ),
}


@pytest.mark.parametrize(("name", "content", "said"), SPOILED.values(), ids=SPOILED)
def test_a_damaged_file_is_named_and_nothing_is_written(run, capsys, name, content, said):
    (run / name).write_bytes(content)
    assert main(["report", str(run)]) == 4
    error = capsys.readouterr().err
    assert said in error
    assert name.rpartition("/")[2].partition("-")[0].removesuffix(".json") in error
    assert not (run / "report").exists()


def test_prompts_of_several_runs_in_one_folder_are_refused(run):
    other = PromptFile.of(np.ones((7, 8), np.float32), step=5)
    path = run / "numpy_checkpoints/checkpoint_5/encoder.prompt.prompt.prompt"
    path.parent.mkdir()
    with path.open("wb") as file:
        np.save(file, other.vectors)
    with pytest.raises(CheckpointError, match=r"several shapes: \(7, 8\) at step 5"):
        made(run)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("rum", "There is no folder"),
        ("file", "is a file, and a report is made of the folder of a run"),
        ("empty", "is not the folder of a run"),
        (".", "is not the folder of a run"),
    ],
)
def test_what_is_no_run_is_refused(run, tmp_path, capsys, path, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / path), f"--output={tmp_path / 'out'}"]) == 4
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
