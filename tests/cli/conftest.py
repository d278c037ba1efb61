import pathlib
from collections.abc import Iterator

import pytest

from prompt_tuning import __main__
from prompt_tuning.cli import config

TOY = pathlib.Path(__file__).parent / "toy"

RUN = """
from __gin__ import dynamic_registration
import toy_methods as toy

MODEL_DIR = %gin.REQUIRED  # e.g. '/tmp/run'
PROMPT_LENGTH = 100
STEPS = 10
PROMPT = @toy.Prompt

toy.Prompt.length = %PROMPT_LENGTH
toy.train:
  model_dir = %MODEL_DIR
  prompt = %PROMPT
  steps = %STEPS
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """The current folder, with `run.gin`; the toy modules are importable, `toy` is a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TOY)
    monkeypatch.setitem(
        __main__.COMMANDS, "toy", __main__.Command(module="toy_command", about="Trains a toy.")
    )
    (tmp_path / "run.gin").write_text(RUN)
    yield tmp_path
    config.clear()
