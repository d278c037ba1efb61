import dataclasses
import json
import re
import resource

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath

from prompt_tuning.checkpoints.prompt_file import (
    PromptFile,
    looks_like_prompt_file,
    open_prompt_file,
    save_prompt_file,
)
from prompt_tuning.errors import CheckpointError, ConfigError

BASE, OTHER_BASE = "ab" * 32, "cd" * 32


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


VECTORS = drawn(5, 32)
PROMPT = PromptFile.of(VECTORS, base=BASE, step=1_100_050, details={"task": "sst2", "n": 3})
# One of each method, with all that can be known.
KNOWN = {
    "base": BASE,
    "base_name": "t5_1_1_lm100k_base",
    "step": 7,
    "task": "glue_sst2",
    "config": "prompts.Prompt.length = 5\n# \u00fcber alles\n",
    "metrics": {"accuracy": 95.07, "count": 872},
    "details": {"a": [1, None, {"b": "c"}]},
}
FILES = {
    "prompt": PromptFile.of(VECTORS, **KNOWN),
    "prefix": PromptFile(
        arrays={
            "decoder/prefix/keys": drawn(3, 5, 2, 6),
            "decoder/prefix/values": -drawn(3, 5, 2, 6),
        },
        **KNOWN,
    ),
    "ia3": PromptFile(
        arrays={
            "encoder/layers/attention/k_conv/ia3_scaling": drawn(2, 2, 6),
            "encoder/layers/mlp/intermediate_conv/ia3_scaling": drawn(2, 24),
        },
        **KNOWN,
    ),
}


def raises(message):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


@pytest.fixture
def file(tmp_path):
    """A prompt file as `save` writes it."""
    path = tmp_path / "prompt.safetensors"
    PROMPT.save(path)
    return path


@pytest.mark.parametrize("method", FILES)
def test_a_file_is_loaded_as_it_was_saved(tmp_path, method):
    saved, path = FILES[method], tmp_path / "prompt.safetensors"
    saved.save(path)
    loaded = PromptFile.load(path, base=BASE)
    assert loaded.method == method
    assert loaded.arrays.keys() == saved.arrays.keys()
    for name, array in saved.arrays.items():
        assert loaded.arrays[name].dtype == np.float32
        assert loaded.arrays[name].tobytes() == array.tobytes()
    for field in dataclasses.fields(PromptFile)[1:]:
        assert getattr(loaded, field.name) == getattr(saved, field.name), field.name


def test_what_is_not_known_is_none(tmp_path):
    PromptFile.of(VECTORS).save(tmp_path / "prompt.safetensors")
    loaded = PromptFile.load(tmp_path / "prompt.safetensors")
    assert (loaded.base, loaded.base_name, loaded.step, loaded.task) == (None,) * 4
    assert (loaded.config, loaded.metrics, loaded.details) == (None, {}, {})


def test_any_safetensors_reader_can_read_a_prompt(file):
    with safetensors.safe_open(file, framework="numpy") as reader:
        assert reader.keys() == ["prompt"]
        np.testing.assert_array_equal(reader.get_tensor("prompt"), VECTORS)
        assert reader.metadata() == {
            "format": "prompt-tuning 1",
            "method": "prompt",
            "base": BASE,
            "step": "1100050",
            "length": "5",
            "details": '{"n": 3, "task": "sst2"}',
        }


def test_other_methods_lie_under_the_names_of_our_parameters(tmp_path):
    FILES["prefix"].save(tmp_path / "prompt.safetensors")
    with safetensors.safe_open(tmp_path / "prompt.safetensors", framework="numpy") as reader:
        assert sorted(reader.keys()) == ["decoder/prefix/keys", "decoder/prefix/values"]
        assert reader.metadata()["method"] == "prefix"


def test_a_file_of_the_first_release_is_read(tmp_path):
    metadata = {"format": "prompt-tuning 1", "base": BASE, "step": "3", "details": "{}"}
    content = safetensors.numpy.save({"prompt": VECTORS}, metadata=metadata)
    (tmp_path / "prompt.safetensors").write_bytes(content)
    loaded = PromptFile.load(tmp_path / "prompt.safetensors", base=BASE)
    np.testing.assert_array_equal(loaded.vectors, VECTORS)
    assert (loaded.base, loaded.step) == (BASE, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_vectors_of_another_float_become_float32(tmp_path, dtype):
    stored = VECTORS.astype(dtype)
    content = safetensors.numpy.save({"prompt": stored}, metadata={"format": "prompt-tuning 1"})
    (tmp_path / "prompt.safetensors").write_bytes(content)
    loaded = PromptFile.load(tmp_path / "prompt.safetensors").vectors
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, stored.astype(np.float32))


def test_a_prompt_file_is_as_large_as_its_vectors(file):
    assert VECTORS.nbytes < file.stat().st_size < VECTORS.nbytes + 400


def test_the_length_is_the_number_of_learned_positions():
    assert {name: file.length for name, file in FILES.items()} == {
        "prompt": 5,
        "prefix": 5,
        "ia3": None,
    }


def test_saving_replaces_the_file_and_leaves_nothing_else(file):
    PromptFile.of(2 * VECTORS, base=BASE, step=7).save(file)
    assert PromptFile.load(file).step == 7
    assert list(file.parent.iterdir()) == [file]


@pytest.fixture
def small_disk():
    """Lets this process write no more than 300 bytes to a file, half of a prompt."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_leaves_the_one_before(file, small_disk):
    with pytest.raises(OSError, match="File too large"):
        PromptFile.of(2 * VECTORS, base=BASE, step=7).save(file)
    assert PromptFile.load(file).step == PROMPT.step
    assert list(file.parent.iterdir()) == [file]


# The base that it belongs to.


def test_a_prompt_of_another_base_is_refused(file):
    message = (
        f"The prompt {file} was trained over another base model: its base has hash abababababab, "
        "this one cdcdcdcdcdcd. Load the base it was trained over, or the prompt of this base."
    )
    with raises(message) as error:
        PromptFile.load(file, base=OTHER_BASE)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("unknown", [None, ""])
def test_a_prompt_of_an_unknown_base_passes_and_says_so(tmp_path, unknown):
    path = tmp_path / "prompt.safetensors"
    PromptFile.of(VECTORS, base=unknown).save(path)
    assert PromptFile.load(path, base=BASE).base is None


def test_a_base_can_be_named_once_it_is_known():
    found = PromptFile.of(VECTORS, step=3).over(BASE, name="base")
    assert (found.base, found.base_name, found.step) == (BASE, "base", 3)
    assert found.over(BASE).base_name == "base"
    message = (
        "The prompt was trained over another base model: its base has hash abababababab, this one "
        "cdcdcdcdcdcd. Load the base it was trained over, or the prompt of this base."
    )
    with raises(message):
        found.over(OTHER_BASE)


# What a file may hold.


def test_only_a_prompt_has_vectors():
    message = (
        "This is not a prompt but prefix, which has no vectors [P, D]. Attach it to a model, or "
        "keep it in a format that holds it."
    )
    with raises(message):
        _ = FILES["prefix"].vectors


WRONG = {
    "nothing": {},
    "a stranger": {"encoder/promt/prompt": VECTORS},
    "two methods": {**FILES["prefix"].arrays, **FILES["ia3"].arrays},
    "three dimensions": {"encoder/prompt/prompt": VECTORS[None]},
    "no vectors": {"encoder/prompt/prompt": VECTORS[:0]},
    "keys alone": {"decoder/prefix/keys": drawn(3, 5, 2, 6)},
    "more keys than values": {
        "decoder/prefix/keys": drawn(3, 5, 2, 6),
        "decoder/prefix/values": drawn(3, 4, 2, 6),
    },
    "scales of one layer": {"encoder/layers/mlp/intermediate_conv/ia3_scaling": drawn(24)},
}


@pytest.mark.parametrize("arrays", WRONG.values(), ids=WRONG.keys())
def test_arrays_that_are_not_those_of_one_method_are_refused(tmp_path, arrays):
    with pytest.raises(CheckpointError):
        PromptFile(arrays=arrays)
    # In a file as well, and before they are read.
    names = {"encoder/prompt/prompt": "prompt"}
    path = tmp_path / "prompt.safetensors"
    tensors = {names.get(name, name): array for name, array in arrays.items()}
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "prompt-tuning 1"}))
    with pytest.raises(CheckpointError, match=rf"^{path} is not a prompt file\. "):
        PromptFile.load(path)


def test_a_stranger_is_named_with_what_it_may_be():
    message = (
        "It holds 'encoder/prompt/promptt', which no method of ours trains: expected the "
        "parameters of one of prompt, prefix, ia3. Did you mean 'encoder/prompt/prompt'?"
    )
    with raises(message):
        PromptFile(arrays={"encoder/prompt/promptt": VECTORS})


def tensors(vectors=VECTORS, **metadata):
    metadata = {"format": "prompt-tuning 1", **metadata}
    return safetensors.numpy.save({"prompt": vectors}, metadata=metadata)


DAMAGED = {
    "nothing": b"",
    "text": b"not a prompt at all, only text",
    "a file cut off in its header": tensors()[:60],
    "a file cut off in its numbers": tensors()[:-4],
    "a file with something behind it": tensors() + b"1234",
    "a header that is longer than the file": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    "tensors without metadata": safetensors.numpy.save({"prompt": VECTORS}),
    "another format": tensors(format="prompt-tuning 2"),
    "whole numbers": tensors(np.ones((2, 2), np.int32)),
    "too large numbers": tensors(np.full((2, 2), 1e300)),
    "a step that is not a number": tensors(step="last"),
    "a step of many digits": tensors(step="1" * 5000),
    "details that are not JSON": tensors(details="{"),
    "details that are a list": tensors(details="[1]"),
    "details of many brackets": tensors(details='{"a":' + "[" * 100_000),
    "details with a key twice": tensors(details='{"a": 1, "a": 2}'),
    "metrics that are text": tensors(metrics='{"accuracy": "high"}'),
    "metrics that are truths": tensors(metrics='{"accuracy": true}'),
    "metrics that are a number": tensors(metrics="3"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_not_a_prompt_file_is_refused(tmp_path, content):
    path = tmp_path / "prompt.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        PromptFile.load(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_model_is_not_read_to_find_out_that_it_is_none(tmp_path):
    path = tmp_path / "model.safetensors"
    header = {"w": {"dtype": "F32", "shape": [1 << 30, 64], "data_offsets": [0, 1 << 38]}}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + (1 << 38))  # A hole, as long as a large model.
    with pytest.raises(CheckpointError, match="is not a prompt file: its metadata says format ''"):
        PromptFile.load(path)


def test_a_file_that_is_not_there_names_its_setting(tmp_path):
    with raises(f"No prompt file at {tmp_path}/prompt.safetensors (PROMPT_FILE)."):
        PromptFile.load(tmp_path / "prompt.safetensors")


def test_a_prompt_file_is_known_by_its_name_or_its_format(tmp_path, file):
    PROMPT.save(tmp_path / "best.safetensors")
    other = safetensors.numpy.save({"prompt": VECTORS})
    (tmp_path / "model.safetensors").write_bytes(other)
    PROMPT.save(tmp_path / "prompt.npy")
    known = {path.name: looks_like_prompt_file(epath.Path(path)) for path in tmp_path.iterdir()}
    assert known == {
        "prompt.safetensors": True,
        "best.safetensors": True,
        "model.safetensors": False,
        "prompt.npy": False,
    }
    assert not looks_like_prompt_file(epath.Path(tmp_path))


def test_a_file_is_opened_and_saved_as_one_of_many_formats(file, tmp_path):
    opened = open_prompt_file(epath.Path(file))
    save_prompt_file(opened, epath.Path(tmp_path / "copy.safetensors"), config=None)
    assert (tmp_path / "copy.safetensors").read_bytes() == file.read_bytes()
    with raises(f"{file} already exists; choose another path or remove it."):
        save_prompt_file(opened, epath.Path(file))
    with pytest.raises(ConfigError) as error:
        open_prompt_file(epath.Path(file), task=2)
    assert str(error.value) == (
        f"Task 2 was asked for, but {file} holds a single prompt. Leave the task out."
    )
