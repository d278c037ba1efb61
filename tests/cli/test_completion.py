"""What a shell is told when somebody presses TAB: by argcomplete's protocol, and by a real bash."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from prompt_tuning import __main__
from prompt_tuning.cli.completion import SHELLS
from prompt_tuning.cli.configuration import gin_files

ROOT = pathlib.Path(__file__).parent.parent.parent
BASH = shutil.which("bash")
HEAVY = {"absl", "flax", "gin", "jax", "numpy", "seqio", "tensorflow", "etils"}


def ask(line, *, cwd, shell="bash"):
    """Returns what may follow on a line, as the shell's script asks for it."""
    code = (
        "import os, sys; os.dup2(1, 8); os.dup2(2, 9); sys.argv = ['prompt-tuning']\n"
        "from prompt_tuning.__main__ import main; main([])"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        # What bash does not break words at, so that whole words come back.
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><;|&(",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration of one's own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/run.gin").write_text(
        'include "runs/pretrain.gin"\nMY_OWN = 1  # and why\nmodule.f.argument = 2\n'
    )
    (tmp_path / "run.txt").touch()
    return tmp_path


def test_commands_are_offered(folder):
    assert ask("prompt-tuning ", cwd=folder) == list(__main__.COMMANDS)
    assert ask("prompt-tuning in", cwd=folder) == ["infer", "inspect"]
    assert ask("prompt-tuning --v", cwd=folder) == ["--version"]
    assert ask("prompt-tuning nix ", cwd=folder) == []


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_every_command_offers_its_flags(command, folder):
    actions = __main__.COMMANDS[command].actions or [""]
    for action in actions:
        assert "--help" in ask(f"prompt-tuning {command} {action} --", cwd=folder)


def test_actions_are_offered(folder):
    assert ask("prompt-tuning tasks ", cwd=folder) == ["list", "show"]
    assert ask("prompt-tuning tasks show --voc", cwd=folder) == ["--vocabulary="]
    assert ask("prompt-tuning tasks nix --voc", cwd=folder) == []


def test_a_flag_with_a_value_goes_on_with_an_equals_sign(folder):
    assert ask("prompt-tuning train --gin_b", cwd=folder) == ["--gin_bindings="]
    assert ask("prompt-tuning train --dry", cwd=folder) == ["--dry_run"]
    assert ask("prompt-tuning train --dry_run=f", cwd=folder) == ["--dry_run=false"]


def test_flags_that_are_only_accepted_are_not_offered(folder):
    assert not [flag for flag in ask("prompt-tuning train --", cwd=folder) if "--no" in flag]


@pytest.mark.parametrize("form", ["--gin_file=", "--gin_file "])
def test_gin_files_are_those_of_the_package_and_those_here(folder, form):
    def offered(start):
        found = ask(f"prompt-tuning train {form}{start}", cwd=folder)
        return [one.removeprefix("--gin_file=") for one in found]

    assert {"runs/", "models/", "mine/"} <= set(offered(""))
    assert "run.txt" not in offered("")
    assert "runs/prompt_finetune.gin" in offered("runs/pr")
    assert not [name for name in offered("runs/pr") if not name.startswith("runs/pr")]
    assert offered("mine/") == ["mine/run.gin"]
    assert offered(f"{folder}/mi") == [f"{folder}/mine/"]


def test_gin_files_are_found_in_search_paths(folder):
    line = f"prompt-tuning train --gin_search_paths={folder}/mine --gin_file=ru"
    assert ask(line, cwd=ROOT) == ["--gin_file=run.gin", "--gin_file=runs/"]


def test_macros_are_those_of_the_files_on_the_line(folder):
    def offered(files, start=""):
        flags = " ".join(f"--gin_file={file}" for file in files)
        return ask(f"prompt-tuning train {flags} --gin.{start}", cwd=folder)

    mine = offered(["mine/run.gin"])
    assert {"--gin.MY_OWN=", "--gin.CORPUS=", "--gin.MODEL_DIR="} <= set(mine)
    assert "--gin.EVAL_PERIOD=" not in mine
    assert offered(["mine/run.gin"], "MY") == ["--gin.MY_OWN="]
    assert "--gin.EVAL_PERIOD=" in offered(["mine/run.gin", "runs/finetune.gin"])


def test_without_files_all_macros_of_the_package_are_offered(folder):
    for line in ("prompt-tuning train --gin.", "prompt-tuning train --gin_file=nix.gin --gin."):
        offered = set(ask(line, cwd=folder))
        assert {"--gin.CORPUS=", "--gin.EVAL_PERIOD=", "--gin.PROMPT_FILE="} <= offered


def test_the_originals_files_have_the_macros_of_ours(folder):
    line = "prompt-tuning train --gin_file=prompt_tuning/configs/runs/prompt_finetune.gin --gin."
    ours = "prompt-tuning train --gin_file=runs/prompt_finetune.gin --gin."
    assert ask(line, cwd=folder) == ask(ours, cwd=folder)
    assert "--gin.CORPUS=" not in ask(line, cwd=folder)


def test_macros_bury_no_other_flag(folder):
    offered = ask("prompt-tuning train --g", cwd=folder)
    assert offered == ["--gin_file=", "--gin_bindings=", "--gin_search_paths=", "--gin."]


def test_a_line_that_is_half_done_is_understood(folder):
    line = (
        "prompt-tuning train --gin_file=mine/run.gin --gin.MODEL_DIR=\"'/tmp/run'\" "
        "--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 5, 'targets': 5}\" --gin.NOTHING --gin.MY"
    )
    assert ask(line, cwd=folder) == ["--gin.MY_OWN="]
    assert ask("prompt-tuning train --gin.MODEL_DIR=", cwd=folder) == []
    assert ask("prompt-tuning train --gin_bindings=", cwd=folder) == []


def test_paths_and_folders_are_offered_where_they_belong(folder):
    assert ask("prompt-tuning inspect run", cwd=folder) == ["run.txt"]
    assert ask("prompt-tuning convert --from=mi", cwd=folder) == ["--from=mine/"]
    line = "prompt-tuning train --gin_search_paths=a,"
    assert ask(line, cwd=folder) == ["--gin_search_paths=a,mine/"]
    assert ask("prompt-tuning train --process_count=", cwd=folder) == []


def test_choices_are_offered(folder):
    assert ask("prompt-tuning completion ", cwd=folder) == list(SHELLS)
    assert ask("prompt-tuning convert --dtype=b", cwd=folder) == ["--dtype=bfloat16"]


def test_zsh_and_fish_are_told_what_things_are(folder):
    (macro,) = ask("prompt-tuning train --gin_file=mine/run.gin --gin.MY", cwd=folder, shell="zsh")
    assert macro == "--gin.MY_OWN=:now 1  # and why"
    (infer, _) = ask("prompt-tuning in", cwd=folder, shell="zsh")
    assert infer == f"infer:{__main__.COMMANDS['infer'].about}"


def test_an_answer_loads_nothing_heavy(folder):
    # A module of ours in the way of `os._exit`, with which argcomplete ends the process.
    code = (
        "import os, sys; os.dup2(2, 9); os._exit = lambda code: sys.exit(code)\n"
        "from prompt_tuning.__main__ import main\n"
        "try: main([])\n"
        "finally: print(*{name.split('.')[0] for name in sys.modules})"
    )
    line = "prompt-tuning train --gin_file=runs/prompt_finetune.gin --gin."
    answers = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    answers["_ARGCOMPLETE_STDOUT_FILENAME"] = str(folder / "answer")
    environment = {**os.environ, **answers, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "argcomplete" in loaded
    assert loaded & HEAVY == set()
    assert "--gin.MODEL_DIR=" in (folder / "answer").read_text()


# the scripts


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_printed_for_each_shell(shell, capsys):
    assert __main__.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "prompt-tuning" in script
    assert "_ARGCOMPLETE" in script


def test_another_shell_is_an_error_that_names_those_there_are(capsys):
    assert __main__.main(["completion", "tcsh"]) == 2
    said = capsys.readouterr().err
    assert all(shell in said for shell in SHELLS), said


@pytest.fixture
def bash(tmp_path, folder):
    """Presses TAB in a real bash, which has sourced the script, and returns what it would show."""
    if BASH is None:
        pytest.skip("no bash here")
    program = tmp_path / "bin/prompt-tuning"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\nfrom prompt_tuning.__main__ import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}

    def press_tab(*words):
        # As readline does: words are broken at `=`, too.
        line = "".join(words)
        listed = " ".join(f"'{word}'" for word in words if word.strip())
        script = f"""
            eval "$(prompt-tuning completion bash)"
            COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9 COMP_KEY=9
            COMP_WORDS=({listed}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _python_argcomplete prompt-tuning '' ''
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            [BASH, "--norc", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return press_tab


def test_bash_completes_commands_files_and_macros(bash):
    assert bash("prompt-tuning", " ", "pret") == ["pretrain"]
    # Bash takes what stands after the `=` for a word of its own, and gets that word back.
    assert bash("prompt-tuning", " ", "train", " ", "--gin_file", "=", "mine/r") == ["mine/run.gin"]
    assert bash("prompt-tuning", " ", "train", " ", "--gin.MODEL_D") == ["--gin.MODEL_DIR="]


def test_bash_registers_the_completion_for_the_command(bash, tmp_path):
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    script = 'eval "$(prompt-tuning completion bash)"; complete -p prompt-tuning'
    done = subprocess.run(
        [BASH, "--norc", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "complete -o nospace -F _python_argcomplete prompt-tuning\n", done.stderr


# gin files, read as text


def test_the_macros_of_the_package_are_those_that_gin_reads():
    from prompt_tuning.cli import config
    from prompt_tuning.cli.arguments import RunArguments

    names = ("models/ours_tiny.gin", "runs/prompt_finetune.gin")
    bindings = config.read(RunArguments(gin_file=names)).bindings()
    read = {one.selector for one in bindings if not one.arg_name}
    assert set(gin_files.macros(names, [str(gin_files.package_root())])) == read


def test_files_that_include_each_other_end(tmp_path):
    (tmp_path / "a.gin").write_text("include 'b.gin'\nA = 1\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\nB = 2\n")
    assert gin_files.macros(["a.gin"], [str(tmp_path)]) == {"A": "1", "B": "2"}
