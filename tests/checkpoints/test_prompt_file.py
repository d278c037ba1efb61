import json
import pathlib
import pickle
import re
import resource

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from prompt_tuning.checkpoints.prompt_file import PromptFile, load_numpy, load_vectors, save_numpy
from prompt_tuning.errors import CheckpointError
from tests.reference_models import GOLDEN

BASE, OTHER_BASE = "ab" * 32, "cd" * 32
VECTORS = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
PROMPT = PromptFile(vectors=VECTORS, base=BASE, step=1_100_050, details={"task": "sst2", "n": 3})
NUMPY_PATH = "numpy_checkpoints/checkpoint_50/encoder.prompt.prompt.prompt"


def raises(message):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


@pytest.fixture
def file(tmp_path):
    """A prompt file as `save` writes it."""
    path = tmp_path / "prompt.safetensors"
    PROMPT.save(path)
    return path


# The portable file.


def test_a_prompt_is_loaded_as_it_was_saved(file):
    loaded = PromptFile.load(file, base=BASE)
    np.testing.assert_array_equal(loaded.vectors, VECTORS)
    assert loaded.vectors.dtype == np.float32
    assert (loaded.base, loaded.step, loaded.details) == (BASE, 1_100_050, PROMPT.details)


def test_any_safetensors_reader_can_read_a_prompt(file):
    with safetensors.safe_open(file, framework="numpy") as reader:
        assert reader.keys() == ["prompt"]
        np.testing.assert_array_equal(reader.get_tensor("prompt"), VECTORS)
        assert reader.metadata() == {
            "format": "prompt-tuning 1",
            "base": BASE,
            "step": "1100050",
            "details": '{"n": 3, "task": "sst2"}',
        }


def test_a_prompt_file_is_as_large_as_its_vectors(file):
    assert VECTORS.nbytes < file.stat().st_size < VECTORS.nbytes + 400


def test_saving_replaces_the_file_and_leaves_nothing_else(file):
    PromptFile(vectors=2 * VECTORS, base=BASE, step=7).save(file)
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
        PromptFile(vectors=2 * VECTORS, base=BASE, step=7).save(file)
    assert PromptFile.load(file).step == PROMPT.step
    assert list(file.parent.iterdir()) == [file]


def test_a_prompt_of_another_base_is_refused(file):
    message = (
        f"The prompt {file} was trained over another base model: its base has hash abababababab, "
        "this one cdcdcdcdcdcd. Load the base it was trained over, or the prompt of this base."
    )
    with raises(message) as error:
        PromptFile.load(file, base=OTHER_BASE)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("load", [PromptFile.load, load_numpy, load_vectors])
def test_a_file_that_is_not_there_names_its_setting(tmp_path, load):
    with raises(f"No prompt file at {tmp_path}/prompt.safetensors (PROMPT_FILE)."):
        load(tmp_path / "prompt.safetensors")


def tensors(**arrays):
    metadata = {"base": BASE, "step": "3", "details": "{}"}
    return safetensors.numpy.save(arrays, metadata=metadata)


NOT_PROMPTS = {
    "nothing": b"",
    "text": b"not a prompt at all, only text",
    "a file cut off in its header": tensors(prompt=VECTORS)[:60],
    "a file cut off in its numbers": tensors(prompt=VECTORS)[:-4],
    "tensors of another name": tensors(weights=VECTORS),
    "tensors without metadata": safetensors.numpy.save({"prompt": VECTORS}),
    "a step that is not a number": safetensors.numpy.save(
        {"prompt": VECTORS}, metadata={"base": BASE, "step": "last", "details": "{}"}
    ),
    "details that are not JSON": safetensors.numpy.save(
        {"prompt": VECTORS}, metadata={"base": BASE, "step": "3", "details": "{"}
    ),
    "three dimensions": tensors(prompt=VECTORS[None]),
}


@pytest.mark.parametrize("content", NOT_PROMPTS.values(), ids=NOT_PROMPTS.keys())
def test_what_is_not_a_prompt_file_is_refused(tmp_path, content):
    path = tmp_path / "prompt.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        PromptFile.load(path)
    assert re.fullmatch(
        rf"{path} is not a prompt file \(.+\)\. Expected safetensors with one tensor 'prompt' of "
        r"two dimensions \[P, D\] and the metadata base, step and details\.",
        str(error.value),
    )


# The original's file.


def test_a_numpy_prompt_lies_where_the_original_puts_it(tmp_path):
    save_numpy(tmp_path, 50, VECTORS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / NUMPY_PATH]
    np.testing.assert_array_equal(np.load(files[0]), VECTORS)
    np.testing.assert_array_equal(load_numpy(files[0]), VECTORS)


def test_a_prompt_of_the_original_is_read(golden):
    vectors = load_vectors(GOLDEN / "A/encoder.prompt.prompt.prompt")
    np.testing.assert_array_equal(vectors, golden("A/trajectory.npz")["prompt/50"])


@pytest.mark.parametrize("name", ["prompt.npy", "encoder.prompt.prompt.prompt"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_numpy_prompt_may_have_a_suffix_and_another_float(tmp_path, name, dtype):
    with (tmp_path / name).open("wb") as file:
        np.save(file, VECTORS.astype(dtype))
    loaded = load_vectors(tmp_path / name)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, VECTORS.astype(dtype).astype(np.float32))


def test_vectors_are_read_from_files_of_either_kind(tmp_path, file):
    save_numpy(tmp_path, 50, VECTORS)
    np.testing.assert_array_equal(load_vectors(file), VECTORS)
    np.testing.assert_array_equal(load_vectors(str(tmp_path / NUMPY_PATH)), VECTORS)


def written(save):
    def write(path):
        with path.open("wb") as file:
            save(file)

    return write


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (pathlib.Path("/nowhere/at/all").unlink, ())


NOT_ARRAYS = {
    "nothing": lambda path: path.touch(),
    "text": lambda path: path.write_text("only text"),
    "a pickled object": lambda path: path.write_bytes(pickle.dumps(Trap())),
    "an array of objects": written(lambda file: np.save(file, np.array([Trap()]))),
    "an archive of arrays": written(lambda file: np.savez(file, VECTORS)),
    "JSON": lambda path: path.write_text(json.dumps(VECTORS.tolist())),
}


@pytest.mark.parametrize("write", NOT_ARRAYS.values(), ids=NOT_ARRAYS.keys())
def test_what_is_not_a_numpy_array_is_refused(tmp_path, write):
    path = tmp_path / "encoder.prompt.prompt.prompt"
    write(path)
    with pytest.raises(CheckpointError) as error:
        load_numpy(path)
    assert re.fullmatch(rf"(?s){path} is not a numpy array file \(.+\)\.", str(error.value))


def test_an_array_that_is_cut_off_is_refused(tmp_path):
    save_numpy(tmp_path, 50, VECTORS)
    path = tmp_path / NUMPY_PATH
    for length in (20, 100, 300, len(path.read_bytes()) - 1):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(CheckpointError, match=r" is not a numpy array file \("):
            load_numpy(path)
        save_numpy(tmp_path, 50, VECTORS)


@pytest.mark.parametrize("shape", [(), (160,), (1, 5, 32)])
def test_an_array_of_other_dimensions_is_refused(tmp_path, shape):
    path = tmp_path / "prompt.npy"
    np.save(path, np.zeros(shape, np.float32))
    message = f"{path} holds an array of shape {shape}, a prompt has two dimensions [P, D]."
    with raises(message):
        load_numpy(path)
