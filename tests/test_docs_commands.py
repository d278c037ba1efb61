"""The page of commands has every command with every flag that its help shows."""

import contextlib
import io
import pathlib
import re

import pytest

from prompt_tuning import __main__

PAGE = pathlib.Path(__file__).parent.parent / "docs/commands.md"


def headings() -> list[tuple[str, str]]:
    """The sections of the page: the commands of each, and its text."""
    parts = re.split(r"^## (.+)$", PAGE.read_text("utf-8"), flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def sections() -> dict[str, str]:
    return {name: text for heading, text in headings() for name in heading.split(", ")}


def text_of(command: str) -> str:
    """The section of a command; one that takes the flags of a run has those of `train` as well."""
    text = sections()[command]
    return text + sections()["train"] if "the flags of a run" in text else text


def help_of(*words: str) -> str:
    """The help of a command, and of its actions."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert __main__.main([*words, "--help"]) == 0
    text = said.getvalue()
    return text + "".join(help_of(*words, action) for action in actions(text))


def actions(said: str) -> list[str]:
    """The actions of a command such as `tasks`, from its help."""
    if "ACTION" not in said:
        return []
    return re.findall(r"^  ([a-z-]+)  ", said, re.M)


def test_the_page_has_a_section_for_every_command():
    assert set(sections()) >= set(__main__.COMMANDS)


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_every_flag_of_a_command_stands_in_its_section(command):
    said = help_of(command)
    shown = set(re.findall(r"--[a-z][a-z_]*", text_of(command)))
    flags = set(re.findall(r"^ +(--[a-z][a-z_]*)\b(?![.])", said, re.M)) - {"--help"}
    assert flags <= shown, f"{command}: {sorted(flags - shown)}"


def test_no_section_shows_a_flag_that_its_commands_lack():
    for heading, text in headings():
        said = "".join(map(help_of, heading.split(", ")))
        shown = set(re.findall(r"`(--[a-z][a-z_]*)", text))
        known = set(re.findall(r"--[a-z][a-z_]*", said))
        assert shown <= known, f"{heading}: {sorted(shown - known)}"
