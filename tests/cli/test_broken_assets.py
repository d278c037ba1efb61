"""Broken and hostile checkpoints: a clear error, exit code 4, and nothing is written."""

import gzip
import io
import json
import pathlib
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
from flax import serialization

from prompt_tuning import __main__
from prompt_tuning.checkpoints import formats
from tests import assets
from tests.reference_models import GOLDEN

QUERY = "encoder/layers/attention/query/kernel"
KERNEL = "target.encoder.layers_0.attention.query.kernel"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One good checkpoint or prompt of every format; the tests break copies."""
    folder = tmp_path_factory.mktemp("whole")
    for name in formats.WRITABLE:
        path = assets.write_model(folder / name, name)
        path.rename(folder / FILES.get(name, f"{name}.model"))
    assets.write_model(folder / "int8", "safetensors", dtype="int8").rename(folder / FILES["int8"])
    held = assets.opened()
    formats.MODEL_FORMATS["huggingface"].save(
        held.tensors,
        held.config,
        held.step,
        assets.epath.Path(folder / "sharded.model"),
        shard_bytes=20_000,
    )
    for name in formats.PROMPT_FORMATS:
        assets.write_prompt(folder, name)
    shutil.copytree(GOLDEN / "mtf/t5_1_0", folder / "mtf.model")
    return folder


# Each takes the copy and breaks it; it may return another path to convert from.


def cut(name, keep=0.5):
    def change(path):
        file = _one(path, name)
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * keep)])

    return change


def garbage(name):
    def change(path):
        _one(path, name).write_bytes(b"\x93garbage" * 40)

    return change


def removed(name):
    def change(path):
        found = _one(path, name)
        shutil.rmtree(found) if found.is_dir() else found.unlink()

    return change


def as_json(name, edit):
    def change(path):
        file = _one(path, name)
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))

    return change


def index(edit):
    """Edits the msgpack index of a t5x checkpoint."""

    def change(path):
        file = path / "checkpoint"
        content = serialization.msgpack_restore(file.read_bytes())
        edit(content["optimizer"]["target"])
        file.write_bytes(serialization.msgpack_serialize(content))

    return change


def query_of(target):
    return target["encoder"]["layers_0"]["attention"]["query"]


def header(edit):
    """Edits the JSON header of the first safetensors file."""

    def change(path):
        file = path if path.is_file() else _one(path, "*.safetensors")
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        parsed = json.loads(content[8 : 8 + size])
        edit(parsed)
        edited = json.dumps(parsed).encode()
        file.write_bytes(len(edited).to_bytes(8, "little") + edited + content[8 + size :])

    return change


def metadata(**values):
    return lambda content: content["__metadata__"].update(values)


def of_config(**values):
    """Edits the configuration inside the metadata of a model file."""

    def edit(content):
        config = json.loads(content["__metadata__"]["config"]) | values
        content["__metadata__"]["config"] = json.dumps(config)

    return edit


def longest_header(path):
    file = _one(path, "*.safetensors")
    file.write_bytes((1 << 62).to_bytes(8, "little") + file.read_bytes()[8:])


def pickled(payload):
    """Replaces the weights by a torch file with this pickle in it."""

    def change(path):
        _one(path, "*.safetensors").unlink()
        with zipfile.ZipFile(path / "pytorch_model.bin", "w") as archive:
            archive.writestr("archive/data.pkl", payload(path))
            archive.writestr("archive/version", "3\n")

    return change


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path / "HACKED",)


def zip_bomb(path):
    _one(path, "*.safetensors").unlink()
    with zipfile.ZipFile(
        path / "pytorch_model.bin", "w", compression=zipfile.ZIP_DEFLATED
    ) as archive:
        archive.writestr("archive/data.pkl", bytes(300_000_000))


def gzip_bomb(path):
    chunk = path / KERNEL / "0.0"
    chunk.write_bytes(gzip.compress(bytes(300_000_000), 1))


def claims(dtype, shape):
    """Writes a numpy file that says it holds more than it does."""

    def change(path):
        file = io.BytesIO()
        head = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        path.write_bytes(file.getvalue() + bytes(64))

    return change


def objects(path):
    np.save(path, np.asarray([[{"a": 1}]], object), allow_pickle=True)


def other_network(path):
    held = {"conv1.weight": np.zeros((4, 3)), "bn1.weight": np.zeros(4), "fc.weight": np.zeros(4)}
    file = _one(path, "*.safetensors")
    from prompt_tuning.checkpoints.containers.safetensors_file import write_safetensors

    file.unlink()
    write_safetensors(assets.epath.Path(file), assets.stored(held), {"format": "pt"})


def set_to(key, value):
    return lambda content: content.__setitem__(key, value)


def renamed(name, other):
    return lambda content: content.update({other: content.pop(name)})


def first_shard(value):
    return lambda content: content["weight_map"].__setitem__("shared.weight", value)


BROKEN = {
    # What there is not.
    "nothing there": ("npy", lambda path: path.with_name("typo.npy"), "nothing at .*typo.npy"),
    "an empty folder": (
        "t5x",
        lambda path: (shutil.rmtree(path), path.mkdir())[1],
        "No checkpoint of a known format is at",
    ),
    # t5x.
    "t5x, index cut": ("t5x", cut("checkpoint"), "checkpoint"),
    "t5x, index of garbage": ("t5x", garbage("checkpoint"), "checkpoint"),
    "t5x, an array is missing": ("t5x", removed(KERNEL), KERNEL),
    "t5x, a chunk is missing": ("t5x", removed(f"{KERNEL}/0.0"), KERNEL),
    "t5x, a chunk is cut": ("t5x", cut(f"{KERNEL}/0.0"), KERNEL),
    "t5x, a chunk of garbage": ("t5x", garbage(f"{KERNEL}/0.0"), KERNEL),
    "t5x, a chunk that unpacks to 300 MB": ("t5x", gzip_bomb, KERNEL),
    "t5x, .zarray of garbage": ("t5x", garbage(f"{KERNEL}/.zarray"), KERNEL),
    "t5x, .zarray of another shape": (
        "t5x",
        as_json(f"{KERNEL}/.zarray", set_to("shape", [4, 4])),
        KERNEL,
    ),
    "t5x, .zarray of a huge shape": (
        "t5x",
        as_json(f"{KERNEL}/.zarray", set_to("shape", [1 << 40, 1 << 20])),
        KERNEL,
    ),
    "t5x, .zarray of integers": (
        "t5x",
        as_json(f"{KERNEL}/.zarray", set_to("dtype", "<i4")),
        KERNEL,
    ),
    "t5x, a path that leaves the folder": (
        "t5x",
        index(lambda target: query_of(target)["kernel"]["kvstore"].update(path="../../etc/passwd")),
        r"\.\./\.\./etc/passwd",
    ),
    "t5x, another shape in the index": (
        "t5x",
        index(lambda target: query_of(target)["kernel"]["metadata"].update(shape=[3, 3])),
        "kernel",
    ),
    "t5x, a layer is missing": (
        "t5x",
        index(lambda target: target["encoder"].pop("layers_0")),
        "encoder/layers_0",
    ),
    "t5x, a parameter too many": (
        "t5x",
        index(lambda target: target.update(bias=np.zeros(3, np.float32))),
        "left over 'bias'",
    ),
    "t5x, a misspelt parameter": (
        "t5x",
        index(
            lambda target: target["encoder"].update(
                encoder_nrom=target["encoder"].pop("encoder_norm")
            )
        ),
        "encoder_nrom",
    ),
    # orbax.
    "orbax, no metadata of arrays": ("orbax", cut("state/_METADATA"), "_METADATA"),
    "orbax, its database is cut": ("orbax", cut("state/manifest.ocdbt"), "state"),
    "orbax, its data is gone": ("orbax", removed("state/d"), "state"),
    # Hugging Face.
    "safetensors cut": ("huggingface", cut("model.safetensors"), "model.safetensors"),
    "safetensors of garbage": ("huggingface", garbage("model.safetensors"), "model.safetensors"),
    "safetensors with a huge header": ("huggingface", longest_header, "model.safetensors"),
    "safetensors with overlapping tensors": (
        "huggingface",
        header(lambda content: content["shared.weight"].update(data_offsets=[0, 43520])),
        "model.safetensors",
    ),
    "safetensors with a shape of another size": (
        "huggingface",
        header(lambda content: content["shared.weight"].update(shape=[1 << 40, 40])),
        "shared.weight",
    ),
    "safetensors of integers": (
        "huggingface",
        header(lambda content: content["shared.weight"].update(dtype="I32")),
        "shared.weight",
    ),
    "a tensor under another name": (
        "huggingface",
        header(lambda content: content.update(sharde=content.pop("shared.weight"))),
        "sharde",
    ),
    "config.json of garbage": ("huggingface", garbage("config.json"), "config.json"),
    "config.json of another architecture": (
        "huggingface",
        as_json("config.json", set_to("model_type", "bert")),
        "bert",
    ),
    "config.json of another size": (
        "huggingface",
        as_json("config.json", set_to("d_model", 64)),
        "64",
    ),
    "config.json with text for a number": (
        "huggingface",
        as_json("config.json", set_to("num_heads", "many")),
        "num_heads",
    ),
    "no weights": ("huggingface", removed("model.safetensors"), "model.safetensors"),
    "the weights of another network": ("huggingface", other_network, "conv1.weight"),
    "a shard is missing": ("sharded", removed("model-00002-of-*"), "model-00002-of-"),
    "a shard is cut": ("sharded", cut("model-00002-of-*"), "model-00002-of-"),
    "a shard outside the folder": (
        "sharded",
        as_json("model.safetensors.index.json", first_shard("../../secret.safetensors")),
        r"\.\./\.\./secret",
    ),
    "a shard with an absolute path": (
        "sharded",
        as_json("model.safetensors.index.json", first_shard("/etc/passwd")),
        "/etc/passwd",
    ),
    "a shard without its tensor": (
        "sharded",
        as_json("model.safetensors.index.json", first_shard("model-00002-of-00002.safetensors")),
        "shared.weight|model-00002-of-00002",
    ),
    "a pickle that runs a function": (
        "huggingface",
        pickled(lambda path: pickle.dumps(Payload(path))),
        "pytorch_model.bin",
    ),
    "a pickle of garbage": ("huggingface", pickled(lambda path: b"\x80\x02garbage"), "bin"),
    "a zip bomb": ("huggingface", zip_bomb, "pytorch_model.bin"),
    # Our own.
    "a model file cut": ("safetensors", cut(""), "base.safetensors"),
    "a model file of garbage": ("safetensors", garbage(""), "base.safetensors"),
    "a model file of a later version": (
        "safetensors",
        header(metadata(format="prompt-tuning model 2")),
        "its metadata says format 'prompt-tuning model 2', expected 'prompt-tuning model 1'",
    ),
    "a model file without its configuration": (
        "safetensors",
        header(lambda content: content["__metadata__"].pop("config")),
        "missing 'embed_dim'",
    ),
    "a model file with a configuration of another size": (
        "safetensors",
        header(of_config(embed_dim=48)),
        "says embed_dim is 48, its arrays say 40",
    ),
    "a model file with text for a number": (
        "safetensors",
        header(of_config(num_heads="many")),
        "says num_heads is 'many', which is no value of it",
    ),
    "a model file with an unknown activation": (
        "safetensors",
        header(of_config(mlp_activations=["gelu", ["linear"]])),
        "says mlp_activations is a list of 2, which",
    ),
    "a model file with a step that is none": (
        "safetensors",
        header(metadata(step="soon")),
        "The metadata 'step' of .*base.safetensors is 'soon', expected",
    ),
    "a model file with a layer by itself": (
        "safetensors",
        header(renamed(QUERY, QUERY.replace("layers", "layers_0"))),
        "layers_0/attention/query/kernel.* expected all layers of a stack",
    ),
    "a model file with an array too few": (
        "safetensors",
        header(renamed("encoder/encoder_norm/scale", "encoder/encoder_nrom/scale")),
        "missing 'encoder/encoder_norm/scale'",
    ),
    "integers without scales": (
        "int8",
        header(renamed(f"{QUERY}.scale", f"{QUERY}.scales")),
        "is int8 of shape .2, 40, 48. and needs scales, .* there is none",
    ),
    "scales of another shape": (
        "int8",
        header(lambda content: content[f"{QUERY}.scale"].update(shape=[48, 2])),
        "are float32 of shape .2, 48.; there is float32 of shape .48, 2.",
    ),
    "integers where there are none": (
        "int8",
        header(renamed("token_embedder/embedding", "encoder/relpos_bias/embedding")),
        "encoder/relpos_bias/embedding holds int8, expected one of float32",
    ),
    # Mesh TensorFlow.
    "mesh, no data": ("mtf", removed("*.data-*"), "data-"),
    "mesh, data cut": ("mtf", cut("*.data-*"), "data-"),
    "mesh, index cut": ("mtf", cut("*.index"), "index"),
    "mesh, index of garbage": ("mtf", garbage("*.index"), "index"),
    # Prompts.
    "numpy cut": ("npy", cut(""), "prompt.npy"),
    "numpy of garbage": ("npy", garbage(""), "prompt.npy"),
    "numpy of objects": ("npy", objects, "prompt.npy"),
    "numpy of a huge shape": ("npy", claims("<f4", (1 << 40, 1 << 20)), "prompt.npy"),
    "numpy of integers": ("npy", claims("<i4", (4, 4)), "int32"),
    "numpy of one dimension": ("npy", claims("<f4", (16,)), r"\(16,\)"),
    "prompt file cut": ("prompt", cut(""), "prompt.safetensors"),
    "prompt file of garbage": ("prompt", garbage(""), "prompt.safetensors"),
    "prompt file with another tensor": (
        "prompt",
        header(lambda content: content.update(promt=content.pop("prompt"))),
        "promt",
    ),
    "adapter cut": ("peft", cut("adapter_model.safetensors"), "adapter_model.safetensors"),
    "adapter without weights": ("peft", removed("adapter_model.safetensors"), "adapter_model"),
    "adapter of garbage": ("peft", garbage("adapter_config.json"), "adapter_config.json"),
    "adapter of another method": (
        "peft",
        as_json("adapter_config.json", set_to("peft_type", "LORA")),
        "LORA",
    ),
    "adapter of another length": (
        "peft",
        as_json("adapter_config.json", set_to("num_virtual_tokens", 100)),
        "100",
    ),
}
NAMES = {"npy": "prompt.npy", "prompt": "prompt.safetensors", "peft": "adapter"}
FILES = NAMES | {"safetensors": "base.safetensors", "int8": "int8.safetensors"}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_source_is_refused(whole, tmp_path, capsys, case):
    kind, change, message = BROKEN[case]
    source = tmp_path / "source" / FILES.get(kind, "checkpoint_1")
    _copy(whole / FILES.get(kind, f"{kind}.model"), source)
    source = change(source) or source
    target = tmp_path / "out" / ("prompt.npy" if kind in NAMES else "converted")
    name = "npy" if kind in NAMES else "t5x" if kind != "t5x" else "huggingface"
    before = assets.tree(tmp_path)
    flags = ["convert", f"--from={source}", f"--to={target}", f"--to_format={name}"]
    assert __main__.main(flags) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(message, error), error
    assert assets.tree(tmp_path) == before


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in BROKEN.values()}))
def test_what_is_not_broken_is_converted(whole, tmp_path, kind):
    source = tmp_path / "source" / FILES.get(kind, "checkpoint_1")
    _copy(whole / FILES.get(kind, f"{kind}.model"), source)
    target = tmp_path / "out" / ("prompt.npy" if kind in NAMES else "converted")
    name = "npy" if kind in NAMES else "t5x" if kind != "t5x" else "huggingface"
    flags = ["convert", f"--from={source}", f"--to={target}", f"--to_format={name}"]
    assert __main__.main(flags) == 0


def _copy(source, target):
    target.parent.mkdir(parents=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def _one(path, name):
    """The one file or folder of this name or pattern; `path` itself if there is no name."""
    if not name:
        return path
    found = sorted(path.glob(name))
    assert found, f"there is no {name} in {sorted(p.name for p in path.iterdir())}"
    return found[0]
