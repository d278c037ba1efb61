"""What a configuration says, and the folders and files that it names."""

import numpy as np
import pytest

from prompt_tuning.cli.arguments import parse_run
from prompt_tuning.cli.checkups import configuration, folders
from prompt_tuning.cli.checkups.configuration import Settings

RUN = """
MODEL_DIR = %gin.REQUIRED  # e.g. '/tmp/run'
OTHER = %MODEL_DIR
PROMPT_FILE = ['a.npy', %OTHER]
ROUND = %ROUND
"""


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def read(*flags):
    return configuration.read(parse_run("doctor", "", flags))


def look(values, *flags):
    findings = folders.check(Settings(values), parse_run("doctor", "", flags))
    return {one.name: one for one in findings}


# configuration


def test_without_flags_there_is_nothing_to_say():
    settings, found = read()
    assert (settings.values, found) == ({}, [])


def test_macros_are_followed_and_the_last_value_counts(tmp_path):
    (tmp_path / "my.gin").write_text(RUN)
    settings, _ = read("--gin_file=my.gin", "--gin.MODEL_DIR='/a'", "--gin.MODEL_DIR='/b'")
    assert settings["OTHER"] == "/b"
    assert settings.texts("PROMPT_FILE") == ["a.npy", "/b"]
    assert settings["ROUND"] is None
    assert settings["NEVER"] is None


def test_what_gin_computes_is_unknown(tmp_path):
    (tmp_path / "my.gin").write_text("A = @f()\nB = %gin.REQUIRED\n")
    settings, _ = read("--gin_file=my.gin")
    assert settings["A"] is settings["B"] is None


def test_missing_settings_are_one_fault_that_lists_them():
    _, (fault,) = read("--gin_file=models/ours_tiny.gin", "--gin_file=runs/prompt_finetune.gin")
    assert fault.exit_code == 2
    assert "MODEL_DIR" in fault.found
    assert "INITIAL_CHECKPOINT_PATH" in fault.found


def test_a_broken_configuration_still_tells_the_paths_of_the_command_line(tmp_path):
    settings, (fault,) = read("--gin_file=nix.gin", f"--gin.MODEL_DIR='{tmp_path}'")
    assert fault.exit_code == 2
    assert "there is no gin file 'nix.gin'" in fault.found
    assert settings["MODEL_DIR"] == str(tmp_path)


def test_a_whole_configuration_is_in_order(tmp_path):
    _, (finding,) = read(
        "--gin_file=models/ours_tiny.gin",
        "--gin_file=runs/pretrain.gin",
        *(
            f"--gin.{name}='{tmp_path}'"
            for name in ("MODEL_DIR", "CORPUS", "CACHE_DIR", "VOCABULARY_FILE")
        ),
        "--gin.TRAIN_STEPS=1",
    )
    assert finding.state == "ok", finding
    assert "2 gin files" in finding.found


# folders


def test_without_a_configuration_only_our_own_folders_are_looked_at(tmp_path):
    found = look({})
    assert set(found) == {"temporary files", "cache"}
    assert f"{tmp_path}/cache, will be made, " in found["cache"].found
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_the_configuration_takes_the_place_of_the_users(tmp_path):
    assert "cache" in look({"CACHE_DIR": None})
    found = look({"CACHE_DIR": str(tmp_path)})
    assert "cache" not in found
    assert found["CACHE_DIR"].state == "ok"


@pytest.mark.parametrize("name", folders.WRITTEN)
def test_a_folder_that_cannot_be_made_is_a_fault_of_its_class(name, tmp_path):
    (tmp_path / "file").touch()
    fault = look({name: str(tmp_path / "file/run")})[name]
    assert fault.exit_code == folders.WRITTEN[name].exit_code
    assert f"{tmp_path}/file cannot be written" in fault.found
    assert f"Set {name}" in fault.advice


@pytest.mark.parametrize("name", folders.WRITTEN)
def test_looking_at_a_folder_leaves_nothing_there(name, tmp_path):
    (tmp_path / "run").mkdir()
    assert look({name: str(tmp_path / "run")})[name].state == "ok"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_disk_that_is_nearly_full_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "LITTLE", 2**80)
    warning = look({"MODEL_DIR": str(tmp_path)})["MODEL_DIR"]
    assert warning.state == "warning"
    assert "Make room" in warning.advice


@pytest.mark.parametrize("name", folders.CHECKPOINTS)
def test_the_format_of_a_checkpoint_is_told(name, tmp_path):
    np.save(tmp_path / "prompt.npy", np.zeros((3, 4), np.float32))
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).touch()
    assert look({name: str(tmp_path)})[name].found == f"{tmp_path}: huggingface"
    assert look({name: str(tmp_path / "prompt.npy")})[name].found.endswith(": npy")


@pytest.mark.parametrize("name", folders.CHECKPOINTS)
def test_a_checkpoint_that_is_missing_or_of_no_format_is_a_fault(name, tmp_path):
    missing = look({name: str(tmp_path / "nix")})[name]
    assert missing.exit_code == 4
    assert missing.found == f"{tmp_path}/nix is not there"
    empty = look({name: str(tmp_path)})[name]
    assert empty.exit_code == 4
    assert "Expected one of" in empty.found


def test_several_prompts_are_all_looked_at(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((3, 4), np.float32))
    paths = [str(tmp_path / "one.npy"), str(tmp_path / "two.npy")]
    found = folders.check(Settings({"PROMPT_FILE": paths}), parse_run("doctor", "", []))
    assert [one.state for one in found if one.name == "PROMPT_FILE"] == ["ok", "fault"]


def test_a_vocabulary_that_pretraining_will_make_may_be_missing(tmp_path):
    path = str(tmp_path / "small.model")
    assert look({"VOCABULARY_FILE": path})["VOCABULARY_FILE"].exit_code == 2
    (tmp_path / "text.txt").touch()
    found = look({"VOCABULARY_FILE": path, "CORPUS": str(tmp_path / "*.txt")})
    assert found["VOCABULARY_FILE"].state == "ok"
    assert found["CORPUS"].found.endswith("*.txt: 1 file")


def test_a_corpus_without_files_is_a_fault_of_the_data(tmp_path):
    assert look({"CORPUS": str(tmp_path / "*.xz")})["CORPUS"].exit_code == 3


def test_an_embedding_file_must_be_numpys(tmp_path):
    (tmp_path / "e.npy").write_bytes(b"no")
    assert look({"EMBEDDING_FILE": str(tmp_path / "e.npy")})["EMBEDDING_FILE"].exit_code == 4
    np.save(tmp_path / "e.npy", np.zeros((7, 4), np.float32))
    assert look({"EMBEDDING_FILE": str(tmp_path / "e.npy")})["EMBEDDING_FILE"].found.endswith(
        ": 7 x 4"
    )


def test_folders_of_data_must_be_readable(tmp_path):
    flags = [f"--tfds_data_dir={tmp_path}", f"--seqio_additional_cache_dirs={tmp_path}/nix"]
    found = look({"TSV_DIR": str(tmp_path / "nix")}, *flags)
    assert found["--tfds_data_dir"].state == "ok"
    assert found["--seqio_additional_cache_dirs"].exit_code == 3
    assert found["TSV_DIR"].exit_code == 3


def test_paths_in_object_stores_are_not_looked_for_here():
    remote = dict.fromkeys((*folders.WRITTEN, *folders.CHECKPOINTS), "gs://bucket/x")
    assert set(look(remote)) == {"temporary files"}
