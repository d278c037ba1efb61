"""The original's checkpoints of model A after 50 steps, and every other form of the same."""

import functools
import io
import shutil
import tarfile

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization, traverse_util

from prompt_tuning.checkpoints.containers import zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from tests.reference_models import GOLDEN, read

PROMPT = "encoder/prompt/prompt/prompt"
# Those that an Adafactor without factoring and momentum does not use are one zero.
UNUSED = ("m", "v_col", "v_row")
STEP = 50


@functools.cache
def _archive(name):
    return (GOLDEN / "A" / "checkpoints" / f"{name}.tar.xz").read_bytes()


def unpacked(name, folder):
    """Returns the `checkpoint_<step>` in an archive."""
    with tarfile.open(fileobj=io.BytesIO(_archive(name))) as archive:
        # Python before 3.11.4 does not know the argument, and later ones ask for it.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safely)
        return epath.Path(folder) / archive.getnames()[0]


@functools.cache
def variables():
    """Every array by its full path, as the original held them in memory."""
    trained = read("A/trajectory.npz")
    arrays = {f"target/{name}": array for name, array in read("A/params.npz").items()}
    arrays[f"target/{PROMPT}"] = trained["prompt/50"]
    arrays[f"state/param_states/{PROMPT}/v"] = trained[f"opt/50/{PROMPT}/v"]
    for slot in UNUSED:
        arrays[f"state/param_states/{PROMPT}/{slot}"] = np.zeros(1, np.float32)
    return arrays | {"state/step": np.asarray(STEP, np.int32)}


def below(prefix, arrays=None):
    """Those of the variables that begin with `prefix`, without it."""
    arrays = variables() if arrays is None else arrays
    return {
        path.removeprefix(prefix): one for path, one in arrays.items() if path.startswith(prefix)
    }


def nested(leaves):
    return traverse_util.unflatten_dict(leaves, sep="/")


def write_index(folder, leaves, version=3, file="checkpoint"):
    """Writes t5x's file; None as a version writes the tree alone, as orbax does."""
    tree = nested(leaves)
    content = tree if version is None else {"version": version, "optimizer": tree}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(serialization.msgpack_serialize(content))
    return folder


def read_leaves(folder):
    """Returns the leaves of t5x's file by path."""
    content = serialization.msgpack_restore((folder / "checkpoint").read_bytes())

    def is_leaf(_, node):
        return "driver" in node

    return traverse_util.flatten_dict(content["optimizer"], is_leaf=is_leaf, sep="/")


def respelled(folder, change):
    """Rewrites the place of every array in t5x's file."""
    leaves = read_leaves(folder)
    for leaf in leaves.values():
        if isinstance(leaf, dict):
            change(leaf)
    return write_index(folder, leaves)


def as_saved(folder):
    return unpacked("t5x_prompt", folder)


def by_its_file(folder):
    return as_saved(folder) / "checkpoint"


def in_a_bucket(folder):
    """As public checkpoints are: the bucket is a dummy."""

    def change(leaf):
        leaf["kvstore"] |= {"driver": "gcs", "bucket": "t5x-dummy-bucket"}

    return respelled(as_saved(folder), change)


def of_old_tensorstore(folder):
    """As until 2021: the path stands beside the store, and the driver is Google's own."""

    def change(leaf):
        leaf["path"] = leaf["kvstore"].pop("path").rstrip("/")
        leaf["kvstore"]["driver"] = "gfile"

    return respelled(as_saved(folder), change)


def copied_from_an_absolute_path(folder):
    def change(leaf):
        leaf["kvstore"]["path"] = "/runs/theirs/checkpoint_50/" + leaf["kvstore"]["path"]

    return respelled(as_saved(folder), change)


def copied_from_another_bucket(folder):
    def change(leaf):
        path = "models/run/checkpoint_50/" + leaf["kvstore"]["path"]
        leaf["kvstore"] = {"driver": "s3", "bucket": "theirs", "path": path}

    return respelled(as_saved(folder), change)


def with_other_chunks_noted(folder):
    """Chunks and compressor in the index do not count."""

    def change(leaf):
        leaf["metadata"] |= {"chunks": [1], "compressor": {"id": "blosc"}}

    return respelled(as_saved(folder), change)


def with_a_float_step(folder):
    """As the original's `recreate_checkpoint` has written it."""
    path = as_saved(folder)
    return write_index(path, read_leaves(path) | {"state/step": np.float32(STEP)})


def in_one_file(folder):
    return write_index(epath.Path(folder), variables(), file="model") / "model"


def in_pieces(folder):
    """As flax stores arrays of more than 1 GiB: flat, in pieces."""
    leaves = dict(variables())
    for path, array in below("target/token_embedder/").items():
        flat = array.reshape(-1)
        leaves[f"target/token_embedder/{path}"] = {
            "__msgpack_chunked_array__": True,
            "shape": {str(i): size for i, size in enumerate(array.shape)},
            "chunks": {str(i): piece for i, piece in enumerate(np.split(flat, 4))},
        }
    return write_index(epath.Path(folder), leaves)


def of_early_orbax(folder):
    return _of_early_orbax(folder, "", "")


def of_early_orbax_with_the_class(folder):
    return _of_early_orbax(folder, "_optimizer/", "state")


def _of_early_orbax(folder, prefix, item):
    root, leaves = epath.Path(folder) / item, {"flax_mutables": None}
    for path, array in variables().items():
        name = (prefix + path).replace("/", ".")
        zarr.write_array(root, name, Stored.of(array, name), array.dtype)
        leaves[prefix + path] = f"PLACEHOLDER://{name}"
    write_index(root, leaves, version=None)
    return epath.Path(folder)


def of_todays_orbax(folder):
    return unpacked("orbax_prompt", folder)


def orbax_by_its_item(folder):
    return of_todays_orbax(folder) / "state"


def orbax_in_folders(folder):
    return _of_orbax(folder, use_ocdbt=False)


def orbax_in_the_newer_zarr(folder):
    return _of_orbax(folder, use_ocdbt=True, use_zarr3=True)


def _of_orbax(folder, **options):
    path = epath.Path(folder) / "checkpoint_50"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path / "state", ocp.args.PyTreeSave(nested(variables())))
    return path


def with_heads_apart(folder):
    """Kernels of three dimensions, and slots of the same shape."""
    leaves = dict(variables())
    for path, array in variables().items():
        if path.endswith(("query/kernel", "key/kernel", "value/kernel")):
            leaves[path] = array.reshape(-1, 4, 8)
        elif path.endswith("out/kernel"):
            leaves[path] = array.reshape(4, 8, -1)
    return write_index(epath.Path(folder), leaves)


def scanned(folder):
    """All layers in one array, in its second dimension."""
    leaves = {path: one for path, one in variables().items() if "layers_" not in path}
    for path in variables():
        if "layers_0" in path:
            stack = path.split("/")[1]
            both = [variables()[path.replace("layers_0", f"layers_{i}")] for i in (0, 1)]
            leaves[path.replace("layers_0", stack)] = np.stack(both, axis=1)
    return write_index(epath.Path(folder), leaves)


FORMS = (
    as_saved,
    by_its_file,
    in_a_bucket,
    of_old_tensorstore,
    copied_from_an_absolute_path,
    copied_from_another_bucket,
    with_other_chunks_noted,
    with_a_float_step,
    in_one_file,
    in_pieces,
    of_early_orbax,
    of_early_orbax_with_the_class,
    of_todays_orbax,
    orbax_by_its_item,
    orbax_in_folders,
    orbax_in_the_newer_zarr,
    with_heads_apart,
    scanned,
)


def copy(path, folder):
    """Returns a copy of a checkpoint that a test may damage."""
    shutil.copytree(path, folder)
    return epath.Path(folder)
