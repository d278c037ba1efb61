"""What the README shows is run: its example as it stands, its commands up to their first file."""

import pathlib
import re
import shlex

import pytest

from prompt_tuning import __main__
from prompt_tuning.cli import arguments, config
from tests import assets

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.S)


def commands():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("prompt-tuning "):
                    yield pytest.param(line, id=f"{page.name}: {line[:40]}")


def test_the_example_runs_and_has_at_most_twelve_lines(tmp_path, monkeypatch):
    assets.write_model(tmp_path, "huggingface").rename(tmp_path / "t5-base")
    assets.write_prompt(tmp_path, "prompt")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    names: dict = {}
    exec(example, names)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    assert names["answers"].shape == (8, 8)
    assert names["logits"].shape == (8, 4, 272)
    assert float(names["sums"]["loss"]) > 0


@pytest.mark.parametrize("line", list(commands()))
def test_every_command_names_files_and_settings_that_exist(line):
    command, *argv = shlex.split(line, comments=True)[1:]
    parse = __main__.COMMANDS[command].parse
    parsed = parse(f"prompt-tuning {command}", "", argv)
    if command == "launch":
        parsed = parsed.arguments
    if isinstance(parsed, arguments.RunArguments):
        config.parse(parsed)
    elif getattr(parsed, "run", None) and parsed.run.gin_file:
        config.read(parsed.run)  # `config`, `doctor` and `plan`, which can do with less than a run


def test_every_link_to_a_file_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_target_that_is_shown_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in PAGES:
        for block in blocks(page, "sh"):
            shown = set(re.findall(r"^make ([a-z-]+)", block, re.M))
            assert shown <= targets, f"{page.name}: {shown - targets}"
