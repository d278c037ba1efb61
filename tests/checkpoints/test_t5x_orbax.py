import json
import pathlib
import re
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from prompt_tuning.checkpoints import t5x
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.t5x_orbax import orbax_arrays
from prompt_tuning.errors import CheckpointError
from tests.reference_models import CONFIGS
from tests.t5x_checkpoints import below, nested, of_todays_orbax


@pytest.fixture
def state(tmp_path):
    return of_todays_orbax(tmp_path) / "state"


def test_what_is_saved_is_restored_by_orbax(tmp_path):
    arrays = below("target/")
    methods = {name: Stored.of(one, name) for name, one in arrays.items() if "prompt" in name}
    base = {name: Stored.of(one, name) for name, one in arrays.items() if "prompt" not in name}
    path = epath.Path(tmp_path / "checkpoint_9")
    t5x.save_orbax(base, CONFIGS["A"], 9, path, methods=methods)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(
            restore_args=ocp.checkpoint_utils.construct_restore_args(
                {"target": nested(arrays), "state": {"step": np.asarray(9)}}
            )
        )
        restored = checkpointer.restore(path / "state", args=args)
    assert restored["state"]["step"] == 9
    for name, array in arrays.items():
        found = restored["target"]
        for key in name.split("/"):
            found = found[key]
        np.testing.assert_array_equal(found, array, err_msg=name)


BAD_METADATA = {
    "nothing": b"",
    "text": b"not JSON",
    "a list": b"[]",
    "no tree": b"{}",
    "a tree of text": b'{"tree_metadata": "target"}',
    "leaves of text": b'{"tree_metadata": {"a": "b"}}',
    "no keys": b'{"tree_metadata": {"a": {"value_metadata": {"value_type": "jax.Array"}}}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_a_list_of_arrays_that_is_damaged_is_refused(state, content):
    (state / "_METADATA").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{state}/_METADATA is not what orbax")):
        t5x.open_t5x(state)


@pytest.mark.parametrize("name", ["..", "x", "/etc", "\ud800"], ids=repr)
def test_an_array_that_is_not_there_is_refused(state, name):
    content = json.loads((state / "_METADATA").read_text())
    leaf = {"key_metadata": [{"key": name}], "value_metadata": {"value_type": "jax.Array"}}
    content["tree_metadata"]["another"] = leaf
    (state / "_METADATA").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=re.escape(str(state))):
        t5x.open_t5x(state)


DATABASE = re.compile(r"manifest\.ocdbt|(.+/)?d/.+|ocdbt.+")


@pytest.mark.parametrize("part", [0, 0.9])
def test_a_database_that_is_cut_off_is_refused(state, tmp_path, part):
    for file in sorted(pathlib.Path(state).rglob("*")):
        name = str(file.relative_to(state))
        if file.is_dir() or not DATABASE.fullmatch(name):
            continue
        copied = epath.Path(tmp_path / "copies" / name)
        shutil.copytree(state, copied)
        (copied / name).write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
        try:
            contents = t5x.open_t5x(copied)
            whole = [one.load() for one in {**contents.tensors, **contents.methods}.values()]
        except CheckpointError:
            continue
        # Some files of one process are merged into those of all, and not read again.
        assert name.startswith("ocdbt.process_0/")
        assert len(whole) == 53


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no _METADATA; it was not written by orbax"):
        orbax_arrays(epath.Path(tmp_path))
