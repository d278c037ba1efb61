import pathlib
import subprocess
import sys

import pytest

import prompt_tuning
from prompt_tuning import __main__
from prompt_tuning.cli.find_module import folder_of

PACKAGE = pathlib.Path(prompt_tuning.__file__).parent
LOADED = "def test(): pass\nraise SystemExit('somebody has executed this')\n"


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """A package that must not be executed, with a module, a sub-package and a folder of gin."""
    package = tmp_path / "my_package"
    for file in ("__init__.py", "tasks.py", "inner/__init__.py"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(LOADED)
    (package / "gin").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_the_folder_of_a_package_is_found_without_executing_it(my_package):
    assert folder_of("my_package") == str(my_package)
    assert folder_of("my_package.inner") == str(my_package / "inner")
    assert "my_package" not in sys.modules


def test_of_a_module_it_is_the_folder_that_its_file_lies_in(my_package):
    assert folder_of("my_package.tasks") == str(my_package)


def test_a_folder_without_python_is_found(my_package):
    assert folder_of("my_package.gin") == str(my_package / "gin")


def test_ours_is_found_and_so_are_its_tasks():
    assert folder_of("prompt_tuning") == str(PACKAGE)
    assert pathlib.Path(folder_of("prompt_tuning.tasks"), "glue.py").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_pakage", "No package 'my_pakage' is installed"),
        ("my_package.taskz", "has no 'my_package.taskz'. Did you mean 'my_package.tasks'"),
        ("my_package.tasks.glue", "my_package.tasks is a module and no package"),
        ("sys", "part of Python itself"),
        ("../my_package", "No package '"),
        ("flx", "Did you mean 'flax'"),
        ("", "No package ''"),
    ],
)
def test_what_is_not_there_is_an_error_with_the_nearest_name(my_package, capsys, name, said):
    assert __main__.main(["find-module", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err


def test_a_name_is_required_and_only_one(capsys):
    assert __main__.main(["find-module"]) == 2
    assert "NAME" in capsys.readouterr().err
    assert __main__.main(["find-module", "flax", "jax"]) == 2
    assert "Unexpected argument 'jax'" in capsys.readouterr().err


# as scripts for the original call it


def script(*arguments, cwd):
    command = [sys.executable, "-m", "prompt_tuning.scripts.find_module", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_originals_module_prints_the_same(capsys):
    assert __main__.main(["find-module", "seqio"]) == 0
    done = script("seqio", cwd=PACKAGE.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == capsys.readouterr().out
    assert pathlib.Path(done.stdout.strip(), "__init__.py").is_file()


def test_the_originals_module_says_of_t5x_that_it_is_not_there():
    done = script("t5x_that_nobody_has", cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No package 't5x_that_nobody_has' is installed")
