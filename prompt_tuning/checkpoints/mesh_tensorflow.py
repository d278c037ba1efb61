"""Checkpoints of the first T5, which was trained with Mesh TensorFlow; read without TensorFlow.

T5, T5 1.1, mT5 and ByT5 were released in this form: `model.ckpt-1000000.index`, its data files and
a text file `checkpoint` that names the newest. Which names these checkpoints hold is known from
t5x's `checkpoint_importer.py`. Arrays lie there as in t5x, none is transposed.
"""

import re
from collections.abc import Mapping

from etils import epath

from prompt_tuning.checkpoints import mapping
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.containers.tensor_bundle import index_file, open_tensor_bundle
from prompt_tuning.checkpoints.contents import Contents, contents
from prompt_tuning.errors import CheckpointError, nearest

KIND = "mesh-tensorflow"
STATE_FILE = "checkpoint"
GLOBAL_STEP = "global_step"

_STATE_MARK = "model_checkpoint_path"
_STATE = re.compile(rf'{_STATE_MARK}\s*:\s*"(?P<path>[^"\\\x00-\x1f]+)"')
_STATE_SIZE = 4096
_NUMBERED = re.compile(r"(?P<prefix>model\.ckpt-(?P<step>\d{1,18}))\.index")

_SLOT = re.compile(r"(?P<name>.+)_slot_(?P<slot>m|v|vr|vc)")
_SLOTS = {"m": "m", "v": "v", "vr": "v_row", "vc": "v_col"}

# T5 1.1 and its successors write `rms_norm` where T5 1.0 has `layer_norm` and `final_layer_norm`.
_SPELLINGS = (
    (
        re.compile(r"((?:encoder|decoder)/block_\d+/layer_\d+)/rms_norm/scale"),
        r"\1/layer_norm/scale",
    ),
    (re.compile(r"(encoder|decoder)/rms_norm/scale"), r"\1/final_layer_norm/scale"),
)
_OWN_TABLE = re.compile(r"(encoder|decoder)/block_(?!000/)\d+/.+/relative_attention_bias")


def looks_like_mesh_tensorflow(path: epath.Path) -> bool:
    """Says whether `path` is a prefix, an index file or a folder for `open_mesh_tensorflow`."""
    if path.is_dir():
        return _state(path) is not None or bool(_numbered(path))
    return (path.suffix == ".index" and path.exists()) or index_file(path).exists()


def open_mesh_tensorflow(where: epath.Path) -> Contents:
    """Opens a checkpoint of a T5 that Mesh TensorFlow trained.

    Its slots are Adafactor's, those that the checkpoint has.

    Args:
        where: the prefix, such as `model.ckpt-1000000`, its index file, or a folder. Of a folder it
            is the one that the file `checkpoint` names, else the one of most steps.

    Raises:
        CheckpointError: there is none, it is damaged, or it is not one of a T5 that we have.
    """
    prefix = _prefix(where)
    arrays = open_tensor_bundle(prefix)
    step = _step(arrays.pop(GLOBAL_STEP, None))
    arrays = _spelled_alike(arrays, prefix)
    slots = {slot: {} for slot in _SLOTS.values()}
    tensors = {}
    for name, array in arrays.items():
        if match := _SLOT.fullmatch(name):
            slots[_SLOTS[match["slot"]]][match["name"]] = array
        else:
            tensors[name] = array
    tensors = _to_t5x(tensors, prefix)
    slots = {slot: _to_t5x(one, prefix) for slot, one in slots.items()}
    return contents(
        kind=KIND,
        where=where,
        tensors=tensors,
        slots=_as_t5x_factors(slots, tensors),
        step=step,
        column="mesh_tensorflow",
    )


def _prefix(where: epath.Path) -> epath.Path:
    if not where.is_dir():
        return where.with_suffix("") if where.suffix == ".index" else where
    state = _state(where)
    numbered = _numbered(where)
    if state is None:
        if not numbered:
            raise CheckpointError(
                f"{where} has no file {STATE_FILE!r} that names a TensorFlow checkpoint, and no "
                "model.ckpt-<step>.index."
            )
        return where / numbered[max(numbered)]
    found = _STATE.match(state)
    # The training may have run elsewhere: only the last part of the path is of this folder.
    name = found["path"].rpartition("/")[2] if found else ""
    if name in ("", ".", ".."):
        raise CheckpointError(
            f"{where / STATE_FILE} begins with {state.splitlines()[0][:80]!r}, expected "
            f'{_STATE_MARK}: "model.ckpt-<step>".'
        )
    if not index_file(where / name).exists():
        raise CheckpointError(
            f"{where / STATE_FILE} names {name!r}, but {name}.index is not in this folder."
            f"{nearest(name, numbered.values())} Name the prefix itself, such as "
            f"{where / 'model.ckpt-1000000'}."
        )
    return where / name


def _state(folder: epath.Path) -> str | None:
    """Returns the beginning of the file `checkpoint` if it is TensorFlow's text and not t5x's."""
    try:
        with (folder / STATE_FILE).open("rb") as file:
            content = file.read(_STATE_SIZE)
    except OSError:
        return None
    return content.decode(errors="replace") if content.startswith(_STATE_MARK.encode()) else None


def _numbered(folder: epath.Path) -> dict[int, str]:
    """Returns the prefixes in a folder by their steps."""
    names = (_NUMBERED.fullmatch(one.name) for one in folder.iterdir())
    return {int(match["step"]): match["prefix"] for match in names if match}


def _step(array: Stored | None) -> int | None:
    if array is None:
        return None
    if array.shape != () or array.dtype.kind != "i" or array.load() < 0:
        raise CheckpointError(
            f"{array.where} is {array.dtype} of shape {array.shape}, expected one number of steps."
        )
    return int(array.load())


def _spelled_alike(arrays: Mapping[str, Stored], prefix: epath.Path) -> dict[str, Stored]:
    """Renames the variants to what the table of names has."""
    renamed: dict[str, Stored] = {}
    for name, array in arrays.items():
        common = name
        for pattern, replacement in _SPELLINGS:
            common = pattern.sub(replacement, common)
        if common in renamed:
            raise CheckpointError(f"{prefix} holds {common!r} under two names, one is {name!r}.")
        if _OWN_TABLE.match(common):
            raise CheckpointError(
                f"{prefix} holds {name!r}: every block has relative positions of its own "
                "(relative_attention_type 'bias'). A T5 has one table for the encoder and one for "
                "the decoder, in block 0 ('bias_shared')."
            )
        renamed[common] = array
    return renamed


def _to_t5x(arrays: Mapping[str, Stored], prefix: epath.Path) -> dict[str, Stored]:
    return mapping.to_t5x_names(arrays, source="mesh_tensorflow", where=str(prefix))


def _as_t5x_factors(
    slots: Mapping[str, Mapping[str, Stored]], tensors: Mapping[str, Stored]
) -> dict[str, Stored]:
    """Returns the slots as `<parameter>/<slot>`.

    Both programs average v_row over the larger dimension. Of two equal ones Mesh TensorFlow takes
    the first and t5x the last, so that there the two factors change places.
    """
    swapped = {"v_row": "v_col", "v_col": "v_row"}
    named = {}
    for slot, by_name in slots.items():
        for name, array in by_name.items():
            square = name in tensors and len(set(tensors[name].shape)) == 1
            named[f"{name}/{swapped.get(slot, slot) if square else slot}"] = array
    return named
