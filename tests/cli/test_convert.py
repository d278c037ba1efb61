"""`prompt-tuning convert`: from every format to every other."""

import itertools
import json
import re

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning import __main__
from prompt_tuning.checkpoints import formats, verification
from tests import assets

MODELS = ("t5x", "orbax", "huggingface", "safetensors")
PROMPTS = ("npy", "prompt", "peft")
TARGETS = {
    "t5x": "checkpoint_7",
    "orbax": "orbax",
    "huggingface": "hf",
    "safetensors": "model.safetensors",
    "npy": "out.npy",
    "prompt": "out.safetensors",
    "peft": "peft",
}


def convert(source, target, *flags):
    return __main__.main(["convert", f"--from={source}", f"--to={target}", *flags])


def loaded(path):
    contents = formats.open_model(path)
    return contents, {name: one.load() for name, one in contents.tensors.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_tables_here_are_those_of_the_formats():
    assert set(MODELS) == set(formats.WRITABLE)
    assert set(PROMPTS) == set(formats.PROMPT_FORMATS)


FAMILIES = {
    "T5 1.1": lambda: assets.arrays("C"),
    "T5 1.0": lambda: assets.tied(assets.arrays("C")),
    "bfloat16": lambda: {k: a.astype(ml_dtypes.bfloat16) for k, a in assets.arrays("C").items()},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("there", "back"), list(itertools.permutations(MODELS, 2)))
def test_a_model_comes_back_bit_for_bit(tmp_path, family, there, back):
    arrays = FAMILIES[family]()
    source = assets.write_model(tmp_path / "source", back, arrays)
    between = tmp_path / "between" / TARGETS[there]
    again = tmp_path / "again" / TARGETS[back]
    assert convert(source, between, f"--to_format={there}") == 0
    assert convert(between, again, f"--to_format={back}") == 0
    contents, found = loaded(again)
    assert_same(found, arrays)
    assert contents.step == assets.STEP


@pytest.mark.parametrize(("there", "back"), list(itertools.permutations(PROMPTS, 2)))
def test_a_prompt_comes_back_bit_for_bit(tmp_path, there, back):
    source = assets.write_prompt(tmp_path / "source", back)
    between = tmp_path / "between" / TARGETS[there]
    again = tmp_path / "again" / TARGETS[back]
    assert convert(source, between, f"--to_format={there}") == 0
    assert convert(between, again, f"--to_format={back}") == 0
    np.testing.assert_array_equal(formats.open_prompt(again).vectors, assets.prompt())


def test_numpy_ours_peft_and_back_are_the_same_bytes(tmp_path):
    source = assets.write_prompt(tmp_path / "a", "npy")
    paths = [source, tmp_path / "b.safetensors", tmp_path / "peft", tmp_path / "c.npy"]
    for here, there, name in zip(paths, paths[1:], ("prompt", "peft", "npy"), strict=False):
        assert convert(here, there, f"--to_format={name}") == 0
    assert paths[-1].read_bytes() == source.read_bytes()


def test_the_format_is_told_from_the_name_of_the_target(tmp_path):
    source = assets.write_prompt(tmp_path / "a", "npy")
    for name in ("out.npy", "out.safetensors"):
        assert convert(source, tmp_path / name) == 0
    model = assets.write_model(tmp_path / "b", "huggingface")
    for name in ("checkpoint_5", "model.safetensors"):
        assert convert(model, tmp_path / name) == 0
    names = ["out.npy", "out.safetensors", "checkpoint_5", "model.safetensors"]
    assert [formats.format_of(assets.epath.Path(tmp_path / name)) for name in names] == [
        "npy",
        "prompt",
        "t5x",
        "safetensors",
    ]


def test_a_safetensors_file_holds_the_prompt_of_a_model_that_has_one(files, tmp_path):
    assert convert(files["full"], tmp_path / "1.safetensors") == 0
    np.testing.assert_array_equal(
        formats.open_prompt(tmp_path / "1.safetensors").vectors, assets.prompt()
    )
    assert convert(files["full"], tmp_path / "2.safetensors", "--without_prompt") == 0
    assert_same(loaded(tmp_path / "2.safetensors")[1], assets.arrays())


@pytest.mark.parametrize("name", MODELS)
def test_verify_finds_no_difference_between_two_formats(tmp_path, capsys, name):
    source = assets.write_model(tmp_path, "t5x" if name != "t5x" else "huggingface")
    target = tmp_path / "out" / TARGETS[name]
    assert convert(source, target, f"--to_format={name}", "--verify") == 0
    assert "Largest difference of logits (float32, random tokens): 0;" in capsys.readouterr().out


@pytest.mark.parametrize("name", PROMPTS)
def test_verify_compares_prompts_over_their_base(tmp_path, capsys, name):
    base = assets.write_model(tmp_path, "huggingface")
    source = assets.write_prompt(tmp_path, "npy" if name != "npy" else "prompt")
    target = tmp_path / "out" / TARGETS[name]
    flags = (f"--to_format={name}", f"--base={base}", "--verify")
    assert convert(source, target, *flags) == 0
    assert "Largest difference of logits (float32, random tokens): 0;" in capsys.readouterr().out


def test_verify_says_what_a_cast_costs(tmp_path, capsys):
    source = assets.write_model(tmp_path, "t5x")
    flags = ("--to_format=huggingface", "--dtype=bfloat16", "--verify")
    assert convert(source, tmp_path / "hf", *flags) == 0
    found = capsys.readouterr().out
    difference = float(found.split("random tokens): ")[1].split(";")[0])
    assert 1e-4 < difference < 0.5
    assert {array.dtype.name for array in loaded(tmp_path / "hf")[1].values()} == {"bfloat16"}


def test_a_model_in_int8_says_nearly_the_same_in_a_quarter_of_the_bytes(tmp_path, capsys):
    source = assets.write_model(tmp_path, "t5x")
    target, again = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    assert convert(source, target, "--dtype=int8", "--verify") == 0
    found = capsys.readouterr().out
    difference = float(found.split("random tokens): ")[1].split(";")[0])
    scale = float(found.split("standard deviation is ")[1].rstrip(".\n"))
    assert 0 < difference < 0.5 * scale
    bytes_of_float32 = sum(array.nbytes for array in assets.arrays().values())
    assert target.stat().st_size < 0.45 * bytes_of_float32  # with a header for a large model
    # What is read is float32, and in int8 the same bytes.
    assert {array.dtype.name for array in loaded(target)[1].values()} == {"float32"}
    assert convert(target, again, "--dtype=int8") == 0
    assert again.read_bytes() == target.read_bytes()


def test_a_prompt_over_its_base_becomes_a_full_t5x_checkpoint(tmp_path, capsys):
    base = assets.write_model(tmp_path / "base", "huggingface")
    source = assets.write_prompt(tmp_path, "prompt", step=1_100_050)
    target = tmp_path / "checkpoint_1100050"
    assert convert(source, target, f"--base={base}", "--verify") == 0
    assert "random tokens): 0;" in capsys.readouterr().out
    contents, found = loaded(target)
    assert contents.step == 1_100_050
    assert_same(found, assets.arrays())
    assert convert(target, tmp_path / "again.npy") == 0
    again = formats.open_prompt(tmp_path / "again.npy").vectors
    np.testing.assert_array_equal(again, assets.prompt())


def test_a_prompt_learns_the_hash_and_name_of_its_base(tmp_path):
    base = assets.write_model(tmp_path, "t5x")
    source = assets.write_prompt(tmp_path, "npy")
    flags = (f"--base={base}", "--base_name=google/t5-tiny")
    assert convert(source, tmp_path / "out.safetensors", *flags) == 0
    file = formats.open_prompt(tmp_path / "out.safetensors")
    assert file.base_name == "google/t5-tiny"
    # The same whatever format the base is in.
    other = assets.write_model(tmp_path / "other", "huggingface")
    assert convert(source, tmp_path / "2.safetensors", f"--base={other}") == 0
    assert formats.open_prompt(tmp_path / "2.safetensors").base == file.base is not None


def test_an_adapter_for_peft_has_the_sizes_of_its_base(tmp_path):
    base = assets.write_model(tmp_path, "t5x")
    source = assets.write_prompt(tmp_path, "npy")
    flags = (f"--base={base}", "--to_format=peft", "--base_name=google/t5-tiny")
    assert convert(source, tmp_path / "peft", *flags) == 0
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "google/t5-tiny"
    assert (config["token_dim"], config["num_virtual_tokens"]) == (40, 7)
    assert config["num_transformer_submodules"] == 1


USAGE = {
    "an unknown format": (
        ["--from={t5x}", "--to={new}", "--to_format=hugingface"],
        "There is no format 'hugingface', known are .* Did you mean 'huggingface'?",
    ),
    "a target whose name says nothing": (
        ["--from={t5x}", "--to={new}"],
        "The format of .*new cannot be told from its name: set --to_format to one of",
    ),
    "a format that is only read": (
        ["--from={t5x}", "--to={new}", "--to_format=mesh-tensorflow"],
        "Models are read from the format 'mesh-tensorflow' and not written to it",
    ),
    "a prompt as a model without its base": (
        ["--from={npy}", "--to={new}", "--to_format=t5x"],
        "is a prompt; to make a model checkpoint of it name .* with --base",
    ),
    "verify of a prompt without its base": (
        ["--from={npy}", "--to={new}", "--to_format=peft", "--verify"],
        "--verify of a prompt compares logits over its base model: name it with --base",
    ),
    "no source": (["--to={new}"], "the following arguments are required: --from"),
    "a misspelt flag": (
        ["--from={t5x}", "--to={new}", "--veriffy"],
        "There is no flag --veriffy .* Did you mean '--verify'",
    ),
    "a word too many": (
        ["--from={t5x}", "--to={new}", "please"],
        "Unexpected argument 'please'",
    ),
    "a prompt into a format for models alone": (
        ["--from={full}", "--to={new}", "--to_format=huggingface"],
        "holds a prompt .* Add --without_prompt",
    ),
    "int8 in another format": (
        ["--from={t5x}", "--to={new}", "--dtype=int8", "--to_format=huggingface"],
        "Cannot save as 'int8', .* Only a model in the format 'safetensors' can be int8",
    ),
    "an unknown dtype": (
        ["--from={t5x}", "--to={new}", "--dtype=float16", "--to_format=t5x"],
        "invalid choice: 'float16'",
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usage")
    held = assets.opened(methods={assets.T5X_PROMPT: assets.prompt()})
    full = assets.epath.Path(folder) / "full" / "checkpoint_3"
    formats.MODEL_FORMATS["t5x"].save(
        held.tensors, held.config, held.step, full, methods=held.methods
    )
    return {
        "t5x": assets.write_model(folder, "t5x"),
        "npy": assets.write_prompt(folder, "npy"),
        "full": full,
    }


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_is_answered_with_exit_code_2(files, tmp_path, capsys, case):
    flags, message = USAGE[case]
    new = tmp_path / "new"
    assert __main__.main(["convert", *(flag.format(new=new, **files) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not new.exists()


def test_a_prompt_is_left_out_on_request(files, tmp_path):
    flags = ("--to_format=huggingface", "--without_prompt", "--verify")
    assert convert(files["full"], tmp_path / "hf", *flags) == 0
    assert_same(loaded(tmp_path / "hf")[1], assets.arrays())


def test_what_exists_is_never_replaced(tmp_path, capsys):
    source = assets.write_model(tmp_path, "t5x")
    target = tmp_path / "checkpoint_9"
    target.mkdir()
    (target / "note.txt").write_text("mine")
    assert convert(source, target) == 4
    assert f"{target} already exists" in capsys.readouterr().err
    assert assets.tree(target) == {"note.txt": b"mine"}


def test_a_conversion_that_fails_its_verification_is_removed(tmp_path, capsys, monkeypatch):
    source = assets.write_model(tmp_path, "t5x")
    target = tmp_path / "hf"
    # A head turned the wrong way round would be such a fault; the table of names cannot hold one.
    different = verification.Verification(largest=0.5, scale=1.0)
    monkeypatch.setattr(verification, "verify", lambda wanted: different)
    assert convert(source, target, "--to_format=huggingface", "--verify") == 4
    assert "differ by 0.5, expected at most 1e-05" in capsys.readouterr().err
    assert not target.exists()


def test_what_the_system_says_about_a_file_is_a_fault_of_checkpoints(tmp_path, capsys):
    source = assets.write_prompt(tmp_path, "npy")
    (tmp_path / "file").write_text("not a folder")
    assert convert(source, tmp_path / "file" / "out.npy") == 4
    assert f"{tmp_path}/file" in capsys.readouterr().err
