"""`prompt-tuning inspect`, `diff`, `extract`, `sample-vocabulary` and `splice`."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from prompt_tuning import __main__
from prompt_tuning.checkpoints import formats
from prompt_tuning.checkpoints.base import fingerprint
from tests import assets, small_vocabulary

MODELS = ("t5x", "orbax", "huggingface", "safetensors")
PROMPTS = ("npy", "prompt", "peft")


def main(*arguments):
    return __main__.main([str(argument) for argument in arguments])


def printed(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The model and the prompt in every format, and a t5x checkpoint that holds both."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: assets.write_model(folder / name, name) for name in MODELS}
    paths |= {name: assets.write_prompt(folder, name) for name in PROMPTS}
    held = assets.opened(methods={assets.T5X_PROMPT: assets.prompt()})
    paths["full"] = assets.epath.Path(folder) / "full" / "checkpoint_1100050"
    save = formats.MODEL_FORMATS["t5x"].save
    save(held.tensors, held.config, 1_100_050, paths["full"], methods=held.methods)
    return paths


# inspect


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_described(files, capsys, name):
    assert main("inspect", files[name], "--json") == 0
    about = printed(capsys)
    assert (about["kind"], about["step"]) == (name, assets.STEP)
    assert about["parameters"] == sum(array.size for array in assets.arrays().values())
    assert about["bytes"] == 4 * about["parameters"]
    assert about["dtypes"] == {"float32": len(assets.arrays())}
    architecture = about["architecture"]
    assert (architecture["num_heads"], architecture["decoder_layers"]) == (3, 1)
    shapes = {key: list(array.shape) for key, array in assets.arrays().items()}
    assert {key: one["shape"] for key, one in about["arrays"].items()} == shapes
    assert ("hash" in about) == (name == "safetensors")  # of which it says so itself


def test_all_values_of_a_model_are_read_on_request(files, capsys):
    assert main("inspect", files["huggingface"], "--values", "--json") == 0
    about = printed(capsys)
    assert about["hash"] == fingerprint(formats.open_model(files["t5x"]))
    for name, array in assets.arrays().items():
        one = about["arrays"][name]
        np.testing.assert_allclose(one["norm"], np.linalg.norm(array), rtol=1e-5)
        np.testing.assert_allclose(one["largest"], np.abs(array).max(), rtol=1e-6)


def test_a_prompt_inside_a_model_is_listed(files, capsys):
    assert main("inspect", files["full"], "--json") == 0
    prompts = printed(capsys)["prompts"]
    assert prompts == {assets.T5X_PROMPT: {"shape": [7, 40], "dtype": "float32"}}


def test_a_model_in_int8_is_described_as_it_lies_there(tmp_path, capsys):
    path = assets.write_model(tmp_path, "safetensors", dtype="int8")
    assert main("inspect", path) == 0
    assert re.search(r"stored_as +int8 with scales, [\d,]+ bytes\n", capsys.readouterr().out)
    assert main("inspect", path, "--values", "--json") == 0
    assert printed(capsys)["hash"] == fingerprint(formats.open_model(path))


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_described(files, capsys, name):
    assert main("inspect", files[name], "--json") == 0
    about = printed(capsys)
    assert (about["kind"], about["method"]) == (name, "prompt")
    assert (about["parameters"], about["bytes"]) == (280, 1120)
    norms = [vector["norm"] for vector in about["vectors"]]
    np.testing.assert_allclose(norms, np.linalg.norm(assets.prompt(), axis=1), rtol=1e-6)


def test_the_nearest_tokens_of_every_vector_are_named(files, tmp_path, capsys):
    table = assets.arrays()["token_embedder/embedding"]
    near = assets.write_prompt(tmp_path, "npy", 3 * table[[7, 20, 99]])
    path = str(tmp_path / "small.model")
    vocabulary = small_vocabulary.train(path)
    flags = [f"--base={files['t5x']}", f"--vocabulary={path}", "--neighbours=4"]
    assert main("inspect", near, *flags, "--json") == 0
    about = printed(capsys)
    for token, vector in zip((7, 20, 99), about["vectors"], strict=True):
        for name in ("cosine", "distance"):
            assert len(vector[f"nearest_by_{name}"]) == 4
        first = vector["nearest_by_cosine"][0]
        assert (first["id"], first["piece"]) == (token, vocabulary.piece(token))
        assert first["value"] == pytest.approx(1.0, abs=1e-5)
    norms = np.linalg.norm(table[: vocabulary.size], axis=1)
    assert about["embedding_norms"]["mean"] == pytest.approx(norms.mean(), rel=1e-5)


def test_drift_is_measured_from_the_oldest_prompt_of_the_run(tmp_path, capsys):
    start, now = assets.prompt(), assets.prompt() + 1.0
    for step, vectors in ((100, start), (110, start * 2), (120, now)):
        folder = tmp_path / f"numpy_checkpoints/checkpoint_{step}"
        folder.mkdir(parents=True)
        (folder / "x").mkdir()
        path = assets.write_prompt(folder / "x", "npy", vectors)
        path.rename(folder / "encoder.prompt.prompt.prompt")
    assets.write_prompt(tmp_path, "prompt", now)
    for path in (tmp_path, tmp_path / "prompt.safetensors", tmp_path / "numpy_checkpoints"):
        assert main("inspect", path, "--json") == 0
        for vector in printed(capsys)["vectors"]:
            assert vector["drift"]["distance"] == pytest.approx(40**0.5, rel=1e-5)


def test_drift_is_measured_from_the_prompt_that_is_named(files, tmp_path, capsys):
    moved = assets.write_prompt(tmp_path, "prompt", 2 * assets.prompt())
    assert main("inspect", moved, f"--init={files['npy']}", "--json") == 0
    for vector in printed(capsys)["vectors"]:
        assert vector["drift"]["distance"] == pytest.approx(vector["norm"] / 2, rel=1e-5)
        assert vector["drift"]["cosine"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", [*MODELS, *PROMPTS, "full"])
def test_everything_is_readable_as_text(files, capsys, name):
    flags = [f"--base={files['t5x']}"] if name in PROMPTS else ["--values"]
    assert main("inspect", files[name], *flags) == 0
    text = capsys.readouterr().out
    assert text.startswith("kind ") and "None" not in text and "{" not in text
    assert ("vector 6: norm " in text) == (name in PROMPTS)
    assert ("by cosine: " in text) == (name in PROMPTS)


def test_a_reader_that_has_read_enough_is_no_fault(files):
    command = f"set -o pipefail; {sys.executable} -m prompt_tuning inspect {files['t5x']} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


# diff


def test_equal_checkpoints_of_two_formats_do_not_differ(files, capsys):
    assert main("diff", files["t5x"], files["huggingface"]) == 0
    assert capsys.readouterr().out == f"0 of {len(assets.arrays())} arrays differ.\n"
    assert main("diff", files["npy"], files["peft"]) == 0


def test_differences_are_named_counted_and_written(files, tmp_path, capsys):
    name = "encoder/encoder_norm/scale"
    other = dict(assets.arrays()) | {name: assets.arrays()[name] + np.eye(1, 40, 3)[0]}
    other = {key: array.astype(np.float32) for key, array in other.items()}
    path = assets.write_model(tmp_path, "huggingface", other)
    assert main("diff", files["t5x"], path, f"--output={tmp_path}/found.json") == 1
    assert f"target/{name}: 1 of 40 values (2.5%), by 1 at most" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["differences"]
    assert found.keys() == {f"target/{name}"}
    assert main("diff", files["t5x"], path, "--atol=1.1") == 0


def test_a_prompt_in_one_of_two_checkpoints_is_a_difference(files, capsys):
    assert main("diff", files["t5x"], files["full"], "--limit_to_params") == 1
    assert f"target/{assets.T5X_PROMPT}: only in B, float32 [7, 40]" in capsys.readouterr().out


def test_steps_are_compared_on_request(files, tmp_path, capsys):
    held = assets.opened()
    later = assets.epath.Path(tmp_path) / "checkpoint_9"
    formats.MODEL_FORMATS["t5x"].save(held.tensors, held.config, 9, later)
    assert main("diff", files["t5x"], later) == 0
    assert main("diff", files["t5x"], later, "--compare_step") == 1
    assert "state/step: 1 of 1 values" in capsys.readouterr().out


# extract and sample-vocabulary


@pytest.mark.parametrize("name", [*MODELS, "full"])
@pytest.mark.parametrize("prefix", ["target/", "", "/target/"])
def test_a_variable_is_extracted(files, tmp_path, name, prefix):
    variable = "decoder/layers_0/mlp/wo/kernel"
    output = tmp_path / "deep" / "out.npy"
    flags = [f"--variable_path={prefix}{variable}", f"--output_path={output}"]
    assert main("extract", f"--checkpoint_dir={files[name]}", *flags) == 0
    np.testing.assert_array_equal(np.load(output), assets.arrays()[variable])


def test_an_unknown_variable_is_answered_with_the_nearest(files, tmp_path, capsys):
    flags = ["--variable_path=target/encoder/prompt/prompt", f"--output_path={tmp_path}/x.npy"]
    assert main("extract", f"--checkpoint_dir={files['full']}", *flags) == 4
    error = capsys.readouterr().err
    assert "has no variable 'target/encoder/prompt/prompt'" in error
    assert "Did you mean 'target/encoder/prompt/prompt/prompt'" in error
    assert not (tmp_path / "x.npy").exists()


def test_sampled_rows_are_those_of_the_original_s_script(files, tmp_path):
    table = assets.arrays()["token_embedder/embedding"]
    output = tmp_path / "init.npy"
    flags = [f"--output_path={output}", "--prompt_length=12", "--population_size=100"]
    assert main("sample-vocabulary", f"--checkpoint_dir={files['t5x']}", *flags) == 0
    # The script's own lines: `rng = np.random.default_rng(42)`, `rng.choice(population, length)`.
    chosen = np.random.default_rng(42).choice(100, 12)
    np.testing.assert_array_equal(np.load(output), table[chosen])


def test_rows_are_sampled_from_all_if_there_are_fewer_than_the_population(files, tmp_path):
    output = tmp_path / "init.npy"
    flags = [f"--checkpoint_dir={files['huggingface']}", f"--output_path={output}"]
    assert main("sample-vocabulary", *flags) == 0
    assert np.load(output).shape == (100, 40)


# splice


@pytest.mark.parametrize("source", ["t5x", "full"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_spliced_into_a_full_checkpoint(files, tmp_path, source, prompt):
    vectors = assets.prompt() * 2
    new = assets.write_prompt(tmp_path, prompt, vectors)
    target = tmp_path / "checkpoint_1100060"
    flags = [f"--prompt={new}", f"--output_path={target}", "--step=1100060"]
    assert main("splice", f"--checkpoint_dir={files[source]}", *flags) == 0
    contents = formats.open_model(target)
    assert contents.step == 1_100_060
    np.testing.assert_array_equal(contents.methods[assets.T5X_PROMPT].load(), vectors)
    for name, array in assets.arrays().items():
        np.testing.assert_array_equal(contents.tensors[name].load(), array, err_msg=name)


def test_a_prompt_of_another_width_is_not_spliced(files, tmp_path, capsys):
    wide = assets.write_prompt(tmp_path, "npy", np.ones((7, 41), np.float32))
    target = tmp_path / "checkpoint_1"
    flags = [f"--prompt={wide}", f"--output_path={target}"]
    assert main("splice", f"--checkpoint_dir={files['t5x']}", *flags) == 4
    assert "(7, 41)" in capsys.readouterr().err
    assert not target.exists()
