import re
import subprocess
import sys

import pytest

import prompt_tuning
from prompt_tuning.__main__ import COMMANDS, main
from prompt_tuning.cli.arguments import RunArguments, gin_flag, parse_run
from prompt_tuning.errors import ConfigError

HEAVY = ("jax", "jaxlib", "flax", "tensorflow", "seqio", "numpy", "gin", "absl")

WRONG = {
    "a misspelt command": (["trian"], r"no command 'trian'\. Did you mean 'train'"),
    "no command": (
        [],
        r"No command was given\. Usage: .* one of train, pretrain, .*, find-module\.",
    ),
    "flags without a command": (["--gin_file=a.gin"], r"no command '--gin_file=a\.gin'"),
    "a misspelt flag": (
        ["train", "--gin_fil=a.gin"],
        r"no flag --gin_fil \(see `prompt-tuning train --help`\)\. Did you mean '--gin_file'",
    ),
    "an abbreviated flag": (["train", "--dry"], r"no flag --dry .*"),
    "two misspelt flags": (
        ["train", "--gin_flie", "a.gin", "--process_indx=0"],
        r"(?s)--gin_flie .*'--gin_file'.*\n.*--process_indx .*'--process_index'",
    ),
    "a flag without its value": (["train", "--gin_file"], r"--gin_file: expected one argument"),
    "text for a number": (["train", "--process_count=two"], r"--process_count: .* 'two'"),
    "text for a boolean": (["train", "--dry_run=maybe"], r"--dry_run: expected true or false, got"),
    "a gin value after a space": (
        ["train", "--gin.TRAIN_STEPS", "100"],
        r"--gin\.TRAIN_STEPS has no value: write --gin\.TRAIN_STEPS=100, with '='",
    ),
    "a gin name alone": (
        ["train", "--gin.TRAIN_STEPS", "--dry_run"],
        r"--gin\.TRAIN_STEPS has no value: write --gin\.TRAIN_STEPS=VALUE, with '='",
    ),
    "a value that the shell has cut": (
        ["train", "--gin.LENGTHS={inputs:", "512}"],
        r"Unexpected argument '512}'\. If it is part of the value of --gin\.LENGTHS, .*double quot",
    ),
    "a stray word": (["train", "now"], r"Unexpected argument 'now'\."),
    "a process index without a distributed run": (
        ["train", "--process_index=1"],
        r"--process_index has no effect without --multiprocess_gpu",
    ),
    "a process index past the last": (
        ["train", "--multiprocess_gpu", "--process_count=2", "--process_index=2"],
        r"--process_index=2: expected 0 to 2 - 1",
    ),
    "a coordinator without a port": (
        ["train", "--multiprocess_gpu", "--coordinator_address=host7"],
        r"--coordinator_address=host7: expected HOST:PORT, for example host7:1234",
    ),
}


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_line_exits_with_2_and_says_what_to_write(argv, message, capsys):
    assert main(argv) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err), output.err
    assert output.err.startswith("error: ")
    assert output.out == ""


def parsed(*argv: str) -> RunArguments:
    return parse_run("prompt-tuning train", "", argv)


def test_flags_have_the_names_and_meaning_of_t5x():
    assert parsed(
        "--gin_search_paths=a,gs://b/c",
        "--gin_file=one.gin",
        "--gin_file",
        "two.gin",
        "--tfds_data_dir=/data",
        "--seqio_additional_cache_dirs=/cache,/more",
        "--multiprocess_gpu",
        "--coordinator_address=localhost:1234",
        "--process_count=2",
        "--process_index=1",
        "--initialization_timeout=60",
        "--dry_run",
    ) == RunArguments(
        gin_file=("one.gin", "two.gin"),
        gin_search_paths=("a", "gs://b/c"),
        tfds_data_dir="/data",
        seqio_additional_cache_dirs=("/cache", "/more"),
        multiprocess_gpu=True,
        coordinator_address="localhost:1234",
        process_count=2,
        process_index=1,
        initialization_timeout=60,
        dry_run=True,
    )


def test_gin_values_and_gin_bindings_keep_the_order_they_were_given_in():
    given = ("--gin.A='x=y'", "--gin_bindings=A = 2", "--gin.a/b.C.d=-3", "--gin_bindings", "A = 4")
    assert parsed(*given).gin_bindings == ("A = 'x=y'", "A = 2", "a/b.C.d = -3", "A = 4")


def test_absl_flags_of_existing_scripts_are_accepted():
    assert parsed("--logtostderr", "--alsologtostderr=true", "--nologtostderr") == RunArguments()


@pytest.mark.parametrize("flag", ["--dry_run", "--dry_run=true", "--dry_run=True", "--dry_run=1"])
def test_a_boolean_flag_may_carry_its_value(flag):
    assert parsed(flag).dry_run
    assert not parsed(flag, "--nodry_run").dry_run
    assert not parsed(flag, "--dry_run=false").dry_run


def test_two_command_lines_in_one_process_do_not_mix():
    assert parsed("--gin_file=a.gin").gin_file == ("a.gin",)
    assert parsed("--gin_file=b.gin").gin_file == ("b.gin",)


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        ("'/tmp/run'", """--gin.X="'/tmp/run'" """),
        ("{'inputs': 512}", """--gin.X="{'inputs': 512}" """),
        ("100", "--gin.X=100"),
        ("(1, 2)", "--gin.X='(1, 2)'"),
        ("'$HOME'", """--gin.X=''"'"'$HOME'"'"''"""),
    ],
)
def test_a_proposed_flag_can_be_pasted_into_a_shell(value, flag):
    assert gin_flag("X", value) == flag.strip()
    shell = subprocess.run(
        ["sh", "-c", f"printf %s {flag}"], capture_output=True, text=True, check=True
    )
    assert shell.stdout == f"--gin.X={value}"


def test_help_lists_every_command_and_flag(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in overview
        assert command.about in overview
        assert main([name, "--help"]) == 0
        help_text = capsys.readouterr().out
        assert command.about in " ".join(help_text.split())
        if command.parse is parse_run:
            for flag in RunArguments.__dataclass_fields__:
                assert f"--{flag}" in help_text


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prompt-tuning {prompt_tuning.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["pretrain", "--hlep"]])
def test_help_and_flag_errors_import_nothing_heavy(argv):
    program = (
        "import sys; from prompt_tuning.__main__ import main; main(sys.argv[1:]); "
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_package_runs_as_a_module_and_returns_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "prompt_tuning", "tune"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no command 'tune'" in done.stderr


def test_a_wrong_flag_is_a_config_error_for_python_callers():
    with pytest.raises(ConfigError, match="no flag --gin_fil"):
        parsed("--gin_fil=a.gin")
