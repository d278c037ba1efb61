"""A base model out of a checkpoint of any format, one array at a time.

Peak host memory is that of the model's own arrays plus about one stored array: each is read, cast,
placed on the devices that hold a part of it, and forgotten. Kernels that are to be quantized are
placed in float32, layer by layer, and turned into integers there: the largest weight of an output
may lie on another device, or in another process.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints import formats, mapping, run
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import SHAPE_FIELDS, Contents
from prompt_tuning.errors import CheckpointError, nearest
from prompt_tuning.model import T5, BaseParam, T5Config, parameters
from prompt_tuning.model.config import sizes_like
from prompt_tuning.model.parameters import SCALE
from prompt_tuning.model.quantization import Quantization, quantize
from prompt_tuning.training.state import RunState

# The arrays of optax's Adafactor, and t5x's names of the same.
SLOTS = {"v": "v", "v_row": "v_row", "v_col": "v_col", "ema": "m"}


def load_model(
    path: epath.PathLike,
    *,
    prompt: Callable[..., nnx.Module] | None = None,
    rngs: nnx.Rngs | None = None,
    **settings: Any,
) -> T5:
    """Returns the model in a checkpoint of any format, see `formats.MODEL_FORMATS`.

    >>> t5 = load_model("t5_1_1_lm100k_base/checkpoint_1100000", dtype="float32")

    Args:
        path: a checkpoint, or a folder of them, of which the newest is taken.
        prompt: makes a prompt, see `T5`; `rngs` is what it draws from.
        settings: fields of T5Config that no checkpoint decides, such as `dtype`, `param_dtype` and
            `remat`.

    Raises:
        CheckpointError: there is none, or it is not whole.
        ConfigError: a wrong setting.
    """
    contents = formats.open_model(path)
    model = fill(shapes(contents, **settings), contents)
    if prompt is not None:
        width = contents.config.embed_dim
        model.encoder.prompt = prompt(embed_dim=width, rngs=rngs or nnx.Rngs(0))
    return model


def fill(
    model: T5,
    contents: Contents,
    *,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    digest: parameters.Fingerprint | None = None,
) -> T5:
    """Returns a model with the base parameters of a checkpoint in the place of its own.

    Args:
        model: one made under `nnx.eval_shape`; whatever is not a base parameter stays.
        contents: see `formats.open_model`.
        shardings: where each parameter goes, by our name; the default device for the rest. With
            several devices or processes only the parts that lie here are read, unless all values
            are wanted for the digest.
        digest: gets every value as it is stored.

    Raises:
        CheckpointError: the checkpoint is of another architecture, or damaged.
    """
    check_architecture(model.config, contents)
    graph, base, rest = nnx.split(model, BaseParam, ...)
    # One of this process: the first of all devices is another process's for most.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaves = parameters.named(base)
    places = {name: (shardings or {}).get(name, here) for name in leaves}
    arrays: dict[str, jax.Array] = {}
    for name in leaves:
        if name.endswith(SCALE):
            continue
        both = {one: leaves[one] for one in (name, name + SCALE) if one in leaves}
        how = model.config.quantized if len(both) > 1 else None
        arrays |= _load(name, both, contents.tensors, places, how, digest)
    if digest is not None:
        contents.check_digest(digest.hexdigest())
    filled = [
        (path, leaf.replace(arrays["/".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(base)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled), rest)


def shapes(contents: Contents, **settings: Any) -> T5:
    """Returns the model of a checkpoint with shapes in the place of arrays."""
    config = dataclasses.replace(contents.config, **settings)
    return nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))


def fingerprint(contents: Contents) -> str:
    """Reads all base parameters of a checkpoint and returns their `parameters.Fingerprint`."""
    whole = parameters.Fingerprint()
    for name, stored in contents.tensors.items():
        whole.add(name, stored.load())
    contents.check_digest(whole.hexdigest())
    return whole.hexdigest()


def check_architecture(config: T5Config, contents: Contents) -> None:
    """Raises CheckpointError naming every field in which the two differ."""
    pairs = {
        field: (getattr(config, field), getattr(contents.config, field)) for field in SHAPE_FIELDS
    }
    branches = (len(config.mlp_activations), len(contents.config.mlp_activations))
    pairs["number of mlp_activations"] = branches
    # Shapes do not show these.
    for field in contents.stated & {"mlp_activations", "relative_max_distance"}:
        pairs[field] = (getattr(config, field), getattr(contents.config, field))
    differing = [
        f"{field} is {wanted} in the configuration and {found} in the checkpoint"
        for field, (wanted, found) in pairs.items()
        if wanted != found
    ]
    if differing:
        raise CheckpointError(
            f"{contents.where!s} is not a checkpoint of the configured model: "
            f"{'; '.join(differing)}. {_its_size(contents.config)}or choose the checkpoint of the "
            "configured size."
        )


def _its_size(config: T5Config) -> str:
    sizes = sizes_like(config)
    if not sizes:
        return "Set the architecture to that of the checkpoint, "
    named = f"{sizes[0]!r}"
    return f"The checkpoint has the size {' or '.join(sizes)}: set MODEL_NAME to {named}, "


def with_slots(contents: Contents, state: RunState) -> RunState:
    """Returns the state with the optimizer slots that belong to these parameters.

    A model that is trained further goes on with the second moments it had, as in t5x. A format
    without slots, such as Hugging Face's, starts with fresh ones.

    Raises:
        CheckpointError: they were made by another optimizer.
    """
    if contents.kind == "run":
        return run.with_slots(contents.where, state)
    if not contents.slots:
        return state
    paths, treedef = jax.tree_util.tree_flatten_with_path(state.opt_state)
    leaves = [_slot(path, leaf, contents) for path, leaf in paths]
    return state._replace(opt_state=treedef.unflatten(leaves))


def load_embeddings(path: epath.PathLike) -> np.ndarray:
    """Returns the token embeddings `[V, D]` of a base model, for prompt initializers."""
    return formats.open_model(path).tensors[mapping.EMBEDDING].load()


def _load(
    name: str,
    leaves: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    places: Mapping[str, jax.sharding.Sharding],
    how: Quantization | None,
    digest: parameters.Fingerprint | None,
) -> dict[str, jax.Array]:
    """Returns a parameter, and the scale of it if it is quantized, both by name."""
    stack, stacked, rest = name.partition("/layers/")
    dtype = leaves[name].dtype if how is None else np.dtype(np.float32)
    # Filled on the devices wherever it is to lie: programs write to no other memory.
    near = {one: _near(places[one]) for one in leaves}
    if not stacked:
        array = _place(name, tensors[name], dtype, near[name], digest)
        return {name: _moved(array, places[name])}
    # Filled layer by layer: every update gives its memory to the next.
    arrays = {one: _zeros(leaf.shape, leaf.dtype, near[one]) for one, leaf in leaves.items()}
    of_layer = {one: _of_layer(sharding) for one, sharding in near.items()}
    for i in range(leaves[name].shape[0]):
        one = f"{stack}/layers_{i}/{rest}"
        layer = _place(one, tensors[one], dtype, of_layer[name], digest)
        parts = (layer,) if how is None else _quantizer(how, tuple(of_layer.values()))(layer)
        # Waits, so that no more than one layer is in memory besides the stack.
        for part, (to, array) in zip(parts, arrays.items(), strict=True):
            arrays[to] = jax.block_until_ready(_set_layer(array, part, i))
    return {one: _moved(array, places[one]) for one, array in arrays.items()}


def _place(
    name: str,
    stored: Stored,
    dtype: Any,
    sharding: jax.sharding.Sharding,
    digest: parameters.Fingerprint | None,
) -> jax.Array:
    """Puts the parts of one array on the devices that are to hold them."""
    whole = None
    if digest is not None:
        # In a dtype that has the values that are stored, if it can be the one that is wanted.
        widened = np.dtype(dtype) == np.float32 and stored.dtype.itemsize <= 4
        whole = stored.load(dtype if widened else None)
        digest.add(name, whole)
        whole = whole.astype(dtype, copy=False)
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        # None is what JAX asks for the only part of an unsharded array on some versions.
        wanted = tuple(slice(0, size) for size in stored.shape) if index is None else index
        key = tuple((one.start, one.stop) for one in wanted)
        if key not in parts:
            parts[key] = stored.part(wanted, dtype) if whole is None else whole[wanted]
        return parts[key]

    array = jax.make_array_from_callback(stored.shape, sharding, part)
    return jax.block_until_ready(array)


@functools.cache
def _quantizer(how: Quantization, places: tuple[jax.sharding.Sharding, ...]) -> Callable:
    """Compiled once for all kernels that lie alike."""
    return jax.jit(functools.partial(quantize, how=how), out_shardings=places)


def _zeros(shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    return _make_zeros(shape, np.dtype(dtype), sharding)()


@functools.cache
def _make_zeros(
    shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding
) -> Callable[[], jax.Array]:
    """Compiled once for all arrays of a shape, of which a model has many."""
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _slot(path: tuple, leaf: jax.Array, contents: Contents) -> jax.Array:
    """Returns the saved array for one leaf of the optimizer's state."""
    name, kind = str(getattr(path[0], "key", path[0])), getattr(path[-1], "name", "")
    if kind == "count":  # stands at the base's step already
        return leaf
    if kind not in SLOTS:
        raise CheckpointError(
            f"This optimizer has slots {kind!r}, {contents.where!s} was saved by Adafactor "
            f"({', '.join(SLOTS.values())}). Train with `training.adafactor`."
        )
    stack, stacked, rest = name.partition("/layers/")
    names = (
        [f"{stack}/layers_{i}/{rest}/{SLOTS[kind]}" for i in range(leaf.shape[0])]
        if stacked
        else [f"{name}/{SLOTS[kind]}"]
    )
    wanted = leaf.shape[1:] if stacked else leaf.shape
    for one in names:
        if one not in contents.slots:
            raise CheckpointError(
                f"{contents.where!s} has no optimizer slot {one!r}.{nearest(one, contents.slots)} "
                "Train with the optimizer it was saved with, or from a checkpoint without slots."
            )
        if contents.slots[one].shape != wanted:
            raise CheckpointError(
                f"The optimizer slot {one!r} of {contents.where!s} has shape "
                f"{contents.slots[one].shape}, this optimizer needs {wanted}. Use the optimizer "
                "settings it was saved with."
            )
    loaded = [contents.slots[one].load() for one in names]
    return jnp.asarray(np.stack(loaded) if stacked else loaded[0], leaf.dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(array: jax.Array, layer: jax.Array, i: Any) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(array, layer, i, axis=0)


def _of_layer(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Returns the sharding of one layer of a stack that is sharded so."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
        return jax.sharding.NamedSharding(sharding.mesh, spec)
    return sharding


def _near(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Returns the same parts in the devices' own memory."""
    return sharding.with_memory_kind(jax.local_devices()[0].default_memory().kind)


def _moved(array: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns an array in the memory that its sharding names."""
    if array.sharding.memory_kind == sharding.memory_kind:
        return array
    return jax.block_until_ready(jax.device_put(array, sharding))
