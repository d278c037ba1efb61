"""What is tried with files in an object store, all in one process.

Which object store there is, is read from the environment when libraries are imported; the test
starts this as a program of its own: `python object_store_cases.py gs://bucket`. It prints JSON, for
each case what went wrong.
"""

import contextlib
import json
import pathlib
import sys
import traceback

import jax
import numpy as np
from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.containers.zarr import open_store
from prompt_tuning.checkpoints.formats import format_of, open_model
from prompt_tuning.checkpoints.hugging_face import save_hugging_face
from prompt_tuning.checkpoints.model_file import save_model_file
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.checkpoints.t5x import save_orbax, save_t5x
from prompt_tuning.errors import CheckpointError, ConfigError
from prompt_tuning.evaluation.shard_file import ShardFile
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from tests.reference_models import CONFIGS, read, reference_model

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def base_of_c():
    arrays = {name: one for name, one in read("C/params.npz").items() if "prompt" not in name}
    return {name: Stored.of(array, name) for name, array in arrays.items()}


def check_is_c(path, kind, step):
    """Checks that the checkpoint at the path is the model C."""
    assert format_of(path) == kind
    opened = open_model(path)
    assert (opened.kind, opened.step) == (kind, step)
    for name, array in base_of_c().items():
        np.testing.assert_array_equal(opened.tensors[name].load(), array.load(), err_msg=name)
    embedding = opened.tensors["token_embedder/embedding"]
    np.testing.assert_array_equal(
        embedding[100:103, 5:], read("C/params.npz")["token_embedder/embedding"][100:103, 5:]
    )


@case
def files_are_written_read_listed_and_removed(root):
    folder = root / "files"
    assert not folder.exists()
    for i in range(12):
        (folder / "deep" / f"{i}.txt").write_bytes(b"%d" % i)
    assert {one.name for one in (folder / "deep").iterdir()} == {f"{i}.txt" for i in range(12)}
    assert [one.name for one in folder.iterdir()] == ["deep"]
    with (folder / "deep" / "11.txt").open("rb") as file:
        file.seek(1)
        assert file.read() == b"1"
    assert (folder / "deep" / "11.txt").stat().length == 2
    (folder / "deep").rename(folder / "moved")
    assert (folder / "moved" / "7.txt").read_bytes() == b"7"
    assert not (folder / "deep").exists()
    folder.rmtree()
    assert not (folder / "moved" / "7.txt").exists()


@case
def a_folder_appears_whole_or_not_at_all(root):
    folder = root / "new" / "folder"
    with storage.new_folder(folder) as partial:
        (partial / "a").write_bytes(b"1")
        assert not folder.exists()
    assert (folder / "a").read_bytes() == b"1"
    with (
        contextlib.suppress(KeyboardInterrupt),
        storage.new_folder(root / "new" / "other") as partial,
    ):
        (partial / "a").write_bytes(b"1")
        raise KeyboardInterrupt
    assert [one.name for one in (root / "new").iterdir()] == ["folder"]
    with contextlib.suppress(CheckpointError), storage.new_folder(folder):
        raise AssertionError("it exists")


@case
def tensorstore_reads_what_epath_writes(root):
    (root / "store" / "a" / "b").write_bytes(b"content")
    assert open_store(root / "store").read("a/b").result().value == b"content"
    assert open_store(root / "store").read("a/absent").result().state == "missing"


@case
def t5x_checkpoints_are_saved_and_opened(root):
    path = root / "t5x" / "checkpoint_1000"
    save_t5x(base_of_c(), CONFIGS["C"], 1000, path)
    check_is_c(path, "t5x", 1000)
    check_is_c(root / "t5x", "t5x", 1000)
    opened = open_model(path)
    (path / "target.decoder.logits_dense.kernel" / "0.0").unlink()
    with contextlib.suppress(CheckpointError):
        opened.tensors["decoder/logits_dense/kernel"].load()
        raise AssertionError("a chunk is missing")


@case
def orbax_checkpoints_are_opened(root):
    check_is_c(root / "orbax" / "checkpoint_1000", "orbax", 1000)


@case
def orbax_checkpoints_are_saved(root):
    path = root / "orbax_saved" / "checkpoint_1000"
    save_orbax(base_of_c(), CONFIGS["C"], 1000, path)
    check_is_c(path, "orbax", 1000)


@case
def hugging_face_checkpoints_are_saved_and_opened(root):
    path = root / "hugging_face"
    save_hugging_face(base_of_c(), CONFIGS["C"], 1000, path, shard_bytes=50_000)
    check_is_c(path, "huggingface", 1000)


@case
def model_files_are_saved_and_opened(root):
    path = root / "model_file" / "base.safetensors"
    save_model_file(base_of_c(), CONFIGS["C"], 1000, path)
    check_is_c(path, "safetensors", 1000)


@case
def mesh_tensorflow_checkpoints_are_opened(root):
    theirs = read("mtf/t5_1_0.npz")
    for path in (root / "t5_1_0", root / "t5_1_0" / "model.ckpt-1000"):
        opened = open_model(path)
        assert (opened.kind, opened.step) == ("mesh-tensorflow", 1000)
        embedding = opened.tensors["token_embedder/embedding"]
        np.testing.assert_array_equal(embedding.load(), theirs["shared/embedding"])
        np.testing.assert_array_equal(embedding[3:9, :], theirs["shared/embedding"][3:9])


@case
def prompts_are_saved_and_loaded(root):
    vectors = read("C/params.npz")["encoder/prompt/prompt/prompt"]
    path = root / "prompts" / "prompt.safetensors"
    for step in (1, 2):
        PromptFile.of(vectors, base="0" * 64, step=step).save(path)
        loaded = PromptFile.load(path)
        np.testing.assert_array_equal(loaded.vectors, vectors)
        assert loaded.step == step
    assert [one.name for one in path.parent.iterdir()] == ["prompt.safetensors"]


@case
def a_run_is_resumed_from_its_newest_checkpoint(root):
    prompt = split_model(reference_model("C"), PromptParam)[1]
    state = start(prompt, adafactor(), step=0)
    with RunCheckpoints(root / "run", base="0" * 64) as checkpoints:
        for step in (3, 7):
            checkpoints.save(state._replace(step=step))
    with RunCheckpoints(root / "run", base="0" * 64) as checkpoints:
        restored = checkpoints.restore(state)
    assert restored.step == 7
    same = jax.tree.leaves(state._replace(step=7))
    for ours, theirs in zip(jax.tree.leaves(restored), same, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [one.name for one in (root / "run" / "checkpoints").iterdir()] == ["7"]


@case
def predictions_go_on_after_the_chunks_that_are_there(root):
    folder = root / "predictions"
    file = ShardFile(folder=folder, task="sst2", mode="predict", made_of={"seed": "1"})
    assert not file.is_complete() and not file.has_chunk(0)
    file.write_chunk(0, b"one\n")
    (folder / f"{file.path.name}.tmp-{'0' * 32}").write_bytes(b"of a process that was killed")
    again = ShardFile(folder=folder, task="sst2", mode="predict", made_of={"seed": "1"})
    assert not again.is_complete() and again.has_chunk(0) and not again.has_chunk(1)
    again.write_chunk(1, b"two\n")
    again.finish(2)
    assert file.is_complete() and file.path.read_bytes() == b"one\ntwo\n"
    name = "sst2-predict.jsonl-00000-of-00001"
    assert {one.name for one in folder.iterdir()} == {name, f"{name}.COMPLETED"}
    with contextlib.suppress(ConfigError):
        ShardFile(folder=folder, task="sst2", mode="predict", made_of={}).is_complete()
        raise AssertionError("it is of another seed")


@case
def what_is_not_there_is_an_error_of_ours(root):
    for path in (root / "absent", root.parent / "nothing" / "absent"):
        with contextlib.suppress(CheckpointError):
            open_model(path)
            raise AssertionError(path)


def run(root):
    outcome = {}
    for name, function in CASES.items():
        try:
            function(root)
            outcome[name] = ""
        except Exception:  # noqa: BLE001 - reported to the test
            outcome[name] = traceback.format_exc()
    return outcome


if __name__ == "__main__":
    print(json.dumps(run(epath.Path(sys.argv[1]))))
