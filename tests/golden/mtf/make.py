"""Makes the TensorFlow checkpoints of this folder, with TensorFlow's own saver.

`t5_1_0.npz` is what TensorFlow's own reader gives back. `t5x_tiny.*` are not made here: they are
t5x's `testdata/mtf_tiny_t5/model.ckpt-0` (cc342d41) verbatim, as Mesh TensorFlow wrote it. Its
other data file, random weights, is left out for size.
"""

import pathlib
import tempfile

import numpy as np
import tensorflow as tf

HERE = pathlib.Path(__file__).parent
T5X_STEP = 1_100_000


def save(prefix, *shards, slices=None):
    """Writes a checkpoint with one data file for each dict of arrays."""
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for i, arrays in enumerate(shards):
            parts.append(f"{folder}/part-{i}")
            tf.raw_ops.SaveV2(
                prefix=parts[-1],
                tensor_names=list(arrays),
                shape_and_slices=[slices[i] if slices else ""] * len(arrays),
                tensors=[tf.convert_to_tensor(array) for array in arrays.values()],
            )
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=parts, destination_prefix=str(prefix), delete_old_dirs=False
        )


def t5_1_0():
    """One layer each of a T5 1.0: one MLP kernel, tied logits, `layer_norm`, slots."""
    rng = np.random.default_rng(0)
    vocabulary, width, inner, heads, mlp = 40, 12, 8, 2, 12
    shapes = {"shared/embedding": (vocabulary, width)}
    for stack, sublayers in {
        "encoder": ("SelfAttention", "DenseReluDense"),
        "decoder": ("SelfAttention", "EncDecAttention", "DenseReluDense"),
    }.items():
        shapes[f"{stack}/final_layer_norm/scale"] = (width,)
        for i, sublayer in enumerate(sublayers):
            layer = f"{stack}/block_000/layer_{i:03d}"
            shapes[f"{layer}/layer_norm/scale"] = (width,)
            if sublayer == "DenseReluDense":
                shapes[f"{layer}/{sublayer}/wi/kernel"] = (width, mlp)
                shapes[f"{layer}/{sublayer}/wo/kernel"] = (mlp, width)
            else:
                shapes |= {f"{layer}/{sublayer}/{name}": (width, inner) for name in "qkv"}
                shapes[f"{layer}/{sublayer}/o"] = (inner, width)
        shapes[f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"] = (heads, 32)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if len(shape) == 2 and min(shape) >= 12:
            # Mesh TensorFlow drops the larger dimension for vr, the first of two equal ones.
            larger = int(np.argmax(shape))
            arrays[f"{name}_slot_vr"] = rng.random(shape[1 - larger], np.float32)
            arrays[f"{name}_slot_vc"] = rng.random(shape[larger], np.float32)
        else:
            arrays[f"{name}_slot_v"] = rng.random(shape, np.float32)
    arrays["encoder/final_layer_norm/scale_slot_m"] = rng.random(width, np.float32)
    names = sorted(arrays)
    prefix = HERE / "t5_1_0" / "model.ckpt-1000"
    prefix.parent.mkdir(exist_ok=True)
    save(
        prefix,
        {name: arrays[name] for name in names[:20]} | {"global_step": np.int64(1000)},
        {name: arrays[name] for name in names[20:]},
    )
    tf.compat.v1.train.update_checkpoint_state(str(prefix.parent), "/elsewhere/model.ckpt-1000")
    reader = tf.train.load_checkpoint(str(prefix))
    read = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    np.savez_compressed(HERE / "t5_1_0.npz", **read)


def t5_1_1(model):
    """The weights of `{A,C}/params.npz`, without the prompt; only the index is kept."""
    with np.load(HERE.parent / model / "params.npz") as params:
        arrays = {mesh_name(name): params[name] for name in params if "/prompt/" not in name}
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/{model}", arrays | {"global_step": np.int64(T5X_STEP)})
        (HERE / f"{model}.index").write_bytes(pathlib.Path(folder, f"{model}.index").read_bytes())


# Not from the package's table of names, so that the one checks the other.
LAYERS = {
    "attention": "layer_000/SelfAttention",
    "self_attention": "layer_000/SelfAttention",
    "encoder_decoder_attention": "layer_001/EncDecAttention",
    "pre_attention_layer_norm": "layer_000/rms_norm",
    "pre_self_attention_layer_norm": "layer_000/rms_norm",
    "pre_cross_attention_layer_norm": "layer_001/rms_norm",
}


def mesh_name(name):
    """Returns the name of a parameter of t5x in Mesh TensorFlow."""
    match name.split("/"):
        case ["token_embedder", "embedding"]:
            return "shared/embedding"
        case ["decoder", "logits_dense", "kernel"]:
            return "decoder/logits/kernel"
        case [stack, "relpos_bias", "rel_embedding"]:
            return f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"
        case [stack, "encoder_norm" | "decoder_norm", "scale"]:
            return f"{stack}/rms_norm/scale"
        case [stack, layer, sublayer, *rest]:
            block = f"{stack}/block_{int(layer.removeprefix('layers_')):03d}"
            last = {"encoder": "layer_001", "decoder": "layer_002"}[stack]
            if sublayer == "mlp":
                return f"{block}/{last}/DenseReluDense/{'/'.join(rest)}"
            if sublayer == "pre_mlp_layer_norm":
                return f"{block}/{last}/rms_norm/scale"
            if rest[-1] == "scale":
                return f"{block}/{LAYERS[sublayer]}/scale"
            return f"{block}/{LAYERS[sublayer]}/{rest[0][0]}"
    raise ValueError(name)


def others():
    """Checkpoints that are not of one T5: every type of number, slices, text."""
    numbers = np.array([[1, 2, 3], [4, 5, 6]])
    types = ("float32", "float64", "int32", "int64", "bfloat16", "float16")
    save(HERE / "types", {name: tf.cast(numbers, name) for name in types} | {"scalar": np.int64(7)})
    save(
        HERE / "slices",
        {"a": np.float32([1, 2])},
        {"a": np.float32([3, 4])},
        slices=("4 0,2", "4 2,2"),
    )
    save(HERE / "text", {"words": tf.constant(["one", "two"])})
    save(HERE / "resnet", {"resnet/conv1/kernel": np.zeros((2, 2), np.float32)})


if __name__ == "__main__":
    t5_1_0()
    for model in ("A", "C"):
        t5_1_1(model)
    others()
