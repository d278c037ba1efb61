"""`prompt-tuning tasks list` and `show`."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest
import seqio

from prompt_tuning import __main__
from prompt_tuning.data.seqio_tasks import listing
from tests import small_vocabulary
from tests.tasks import small_data_sets

TASKS = "--modules=prompt_tuning.tasks.qa,prompt_tuning.tasks.summarization"


def main(*arguments):
    return __main__.main(["tasks", *map(str, arguments)])


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    small_data_sets.build(folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return small_vocabulary.train(tmp_path_factory.mktemp("vocabulary") / "small.model")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("somebody asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    seqio.set_tfds_data_dir_override(None)
    for name in seqio.TaskRegistry.names():
        source = seqio.TaskRegistry.get(name).source
        if isinstance(source, seqio.TfdsDataSource):
            source.tfds_dataset._data_dir_override = None


# list


def test_all_tasks_are_listed_with_their_modules_and_splits(capsys):
    assert main("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert sorted(rows) == listing.names()
    assert rows["xsum_v110_examples"] == {
        "name": "xsum_v110_examples",
        "kind": "task",
        "splits": ["train", "validation", "test"],
        "module": "prompt_tuning.tasks.summarization",
    }
    assert rows["squad_to_drop_examples"]["kind"] == "mixture"
    assert rows["squad_to_drop_examples"]["splits"] == ["train", "validation"]
    ours = {row["module"] for row in rows.values() if row["module"]}
    families = ("glue", "super_glue", "glue_transfer", "qa", "summarization", "c4", "spot")
    assert ours >= {f"prompt_tuning.tasks.{name}" for name in (*families, "recycling")}
    # SPoT's GLUE is made of GLUE's rows, but it is SPoT's.
    assert rows["spot_glue_sst2_v200"]["module"] == "prompt_tuning.tasks.spot"


@pytest.mark.parametrize("pattern", ["xsum", "*xsum_v110_examples"])
def test_a_part_of_a_name_or_a_pattern_chooses(capsys, pattern):
    assert main("list", pattern, TASKS) == 0
    printed = capsys.readouterr()
    names = [f"{model}xsum_v110_examples" for model in ("byt5_", "mt5_", "")]
    assert [line.split() for line in printed.out.splitlines()] == [
        [name, "prompt_tuning.tasks.summarization", "train,", "validation,", "test"]
        for name in names
    ]
    assert printed.err.splitlines()[-1] == "3 tasks, 0 mixtures"


def test_mixtures_alone_are_listed(capsys):
    assert main("list", "squad_to_mrqa", "--mixtures", TASKS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1].split(maxsplit=2)[1:] == [
        "prompt_tuning.tasks.qa",
        "mixture of: train, validation",
    ]


@pytest.mark.parametrize("flags", [[], ["--mixtures"]])
def test_a_pattern_without_a_match_names_what_is_near(capsys, flags):
    assert main("list", "squad_to_mrqa_exampels", TASKS, *flags) == 3
    message = capsys.readouterr().err
    assert "is named like 'squad_to_mrqa_exampels'. Did you mean 'squad_to_mrqa_ex" in message


# show


def test_a_task_is_described_without_its_data(capsys):
    assert main("show", "squad_v010_allanswers_span", "--examples=0", TASKS) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert lines == {
        "task": "squad_v010_allanswers_span",
        "source": "TFDS squad/v1.1:3.0.0",
        "splits": "train, validation",
        "features": "inputs: vocabulary of the model (t5), with end token, "
        "targets: vocabulary of the model (t5), with end token",
        "steps": "squad_span, tokenize, (seqio's cache), append_eos_after_trim",
        "postprocessor": "answers_in_context",
        "metrics": "span_squad",
        "module": "prompt_tuning.tasks.qa",
    }


def test_examples_are_shown_as_text(tfds_folder, capsys):
    flags = [TASKS, f"--tfds_data_dir={tfds_folder}"]
    assert main("show", "squad_v010_allanswers_examples", *flags) == 0
    out = capsys.readouterr().out
    assert out.partition("\nexample 0 ")[2].splitlines() == [
        "of validation",
        '  inputs       "question: Who ? context: Ada wrote it . "',
        '  targets      "Ada"',
        '  id           "q0"',
        '  question     "Who ? "',
        '  context      "Ada wrote it . "',
        '  answers      ["Ada", "Ada L . "]',
        "",
        "example 1 of validation",
        '  inputs       "question: Who rang ? context: Bo rang , twice . "',
        '  targets      "Bo"',
        '  id           "q1"',
        '  question     "Who rang ? "',
        '  context      "Bo rang , twice . "',
        '  answers      ["Bo"]',
    ]


def test_a_vocabulary_shows_ids_and_counts_them(tfds_folder, vocabulary, capsys):
    flags = [f"--vocabulary={vocabulary.path}", f"--tfds_data_dir={tfds_folder}", TASKS]
    assert main("show", "xsum_v110_examples", "--examples=1", "--json", *flags) == 0
    about = json.loads(capsys.readouterr().out)
    (example,) = about["examples"]
    texts = ("summarize: Rain fell\non the roof.", "It rained.")
    ids = [[*vocabulary.encode(text), 1] for text in texts]
    assert [example[f"{name}_pretokenized"] for name in ("inputs", "targets")] == list(texts)
    assert [example[name] for name in ("inputs", "targets")] == ids
    # The summary is of all that was read, not only of what is shown.
    second = len(vocabulary.encode("summarize: Nothing fell.")) + 1
    counts = sorted([len(ids[0]), second])
    assert about["lengths"]["inputs"] == {
        "examples": 2,
        "shortest": counts[0],
        "median": sum(counts) / 2,
        "95%": counts[1],
        "longest": counts[1],
    }


def test_lengths_trim_what_is_shown(tfds_folder, vocabulary, capsys):
    flags = [f"--vocabulary={vocabulary.path}", f"--tfds_data_dir={tfds_folder}", TASKS]
    lengths = "--lengths=inputs=6,targets=2"
    assert main("show", "xsum_v110_examples", "--split=train", lengths, *flags) == 0
    out = capsys.readouterr().out
    ids = [*vocabulary.encode("summarize: The boats")[:5], 1]
    assert f"{' '.join(map(str, ids))}  6 tokens" in out
    assert "tokens of the targets of the first 1 examples: shortest 2, median 2" in out


def test_bytes_are_a_vocabulary(tfds_folder, capsys):
    flags = ["--vocabulary=bytes", f"--tfds_data_dir={tfds_folder}", TASKS]
    assert main("show", "byt5_xsum_v110_examples", "--split=test", *flags) == 0
    assert f"{' '.join(str(byte + 3) for byte in b'It snowed.')} 1  11 tokens" in (
        capsys.readouterr().out
    )
    assert main("show", "xsum_v110_examples", "--split=test", *flags) == 2
    assert "Set `MIXTURE_OR_TASK_NAME` to 'byt5_xsum_v110_examples'" in capsys.readouterr().err


def test_a_mixture_shows_its_tasks_and_their_rates(capsys):
    assert main("show", "squad_to_drop_examples", "--json", TASKS) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["tasks"] == {
        "mrqa_drop_v100_examples": 1.0,
        "squad_v010_allanswers_examples": 1.0,
    }
    assert (about["splits"], about["examples"]) == (["train", "validation"], [])


def test_an_objective_asks_for_what_it_needs(capsys):
    name, flags = "c4_v220_full_lm", ["--modules=prompt_tuning.tasks.c4", "--examples=0"]
    assert main("show", name, *flags) == 0
    assert "targets: vocabulary of the model (t5)" in capsys.readouterr().out


def test_rows_of_a_file_are_shown(tmp_path, vocabulary, capsys):
    (tmp_path / "films.train.tsv").write_text("sentence\tlabel\nA dull film.\tbad\nLovely!\tgood\n")
    name = tmp_path / "films.train.tsv"
    templates = ["--inputs=film: {sentence}", "--targets={label}"]
    assert main("show", name, *templates, f"--vocabulary={vocabulary.path}", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["file"] == str(name)
    assert [one["inputs"] for one in about["examples"]] == [
        [*vocabulary.encode(text), 1] for text in ("film: A dull film.", "film: Lovely!")
    ]
    assert [one["targets_pretokenized"] for one in about["examples"]] == ["bad", "good"]
    assert main("show", name, *templates) == 0
    assert '  inputs       "film: Lovely!"' in capsys.readouterr().out


# What cannot be


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "No action was given. Usage: prompt-tuning tasks ACTION [flags], where ACTION is"),
        (["lst"], 2, "has no action 'lst'. Did you mean 'list'?"),
        (["show"], 2, "the following arguments are required: NAME"),
        (["list", "--module=x"], 2, "There is no flag --module (see `prompt-tuning tasks list "),
        (["list", "a", "b"], 2, "Unexpected argument b"),
        (["show", "x", "--examples=-1"], 2, "expected 0 or more, got '-1'"),
        (["show", "x", "--lengths=8"], 2, "expected something like inputs=512,targets=8"),
        (["list", "--modules=no.such"], 2, "--modules names 'no.such', but there is no module 'no"),
        (
            ["show", "xsum_v101_examples", TASKS],
            3,
            "There is no task or mixture named 'xsum_v101_examples'. Did you mean "
            "'xsum_v110_examples' or ",
        ),
        (
            ["show", "xsum_v110_examples", "--split=valid", TASKS],
            3,
            "has no split 'valid'. Did you mean 'validation'? Choose one with --split: train,",
        ),
        (
            ["show", "xsum_v110_examples", "--inputs={document}", TASKS],
            2,
            "--inputs and --targets are the templates of a file, but 'xsum_v110_examples' is a "
            "registered task",
        ),
        (["show", "none.tsv", "--inputs={a}"], 3, "none.tsv"),
    ],
)
def test_a_fault_is_told_with_what_to_do(capsys, arguments, code, message):
    assert main(*arguments) == code
    assert message in capsys.readouterr().err


def test_an_unknown_name_says_which_modules_were_imported(capsys):
    assert main("show", "nothing_like_it", TASKS) == 3
    message = capsys.readouterr().err.rstrip()
    imported = "prompt_tuning.tasks.qa, prompt_tuning.tasks.summarization"
    assert message.endswith(f"Task modules imported: {imported}; name others with --modules.")


def test_data_that_is_not_there_is_a_fault_of_the_data(tmp_path, capsys):
    flags = [f"--tfds_data_dir={tmp_path}", "--modules=prompt_tuning.tasks.c4"]
    assert main("show", "c4_v220_prefix_lm", *flags) == 3
    printed = capsys.readouterr()
    assert "source         TFDS c4/en:2.2.0" in printed.out
    assert f"The data set 'c4/en:2.2.0' of TFDS is not in '{tmp_path}'" in printed.err


@pytest.mark.slow
def test_importing_every_task_asks_no_one_and_loads_no_metric():
    code = "\n".join(
        [
            "import socket, sys",
            "socket.socket.connect = socket.getaddrinfo = None",
            "from prompt_tuning.cli.tasks import import_modules",
            "found = import_modules(None)",
            "import seqio",
            "asked = seqio.utils.LazyTfdsLoader._MEMOIZED_BUILDERS",
            "heavy = {'nltk', 'rouge_score', 'sacrebleu'} & set(sys.modules)",
            "print(len(found))",
            "sys.exit(str((asked, heavy)) if asked or heavy or not found else 0)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_help_needs_nothing_heavy():
    code = "\n".join(
        [
            "import sys",
            "from prompt_tuning.__main__ import main",
            "codes = [main(['tasks', *words, '--help']) for words in ([], ['list'], ['show'])]",
            "heavy = {'jax', 'numpy', 'tensorflow', 'seqio'} & set(sys.modules)",
            "sys.exit(str((codes, heavy)) if any(codes) or heavy else 0)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "list  Lists the tasks" in done.stdout and "--vocabulary FILE" in done.stdout


def test_modules_in_the_current_folder_register_tasks(tmp_path):
    # As with `python -m`; a console script would not look there by itself.
    (tmp_path / "my_tasks.py").write_text("import prompt_tuning.tasks.sst2\nraise SystemExit(47)\n")
    program = pathlib.Path(sys.executable).parent / "prompt-tuning"
    done = subprocess.run(
        [program, "tasks", "list", "--modules=my_tasks"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 47
