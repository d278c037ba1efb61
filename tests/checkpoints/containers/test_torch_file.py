import contextlib
import io
import os
import pickle
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.checkpoints.containers.torch_file import open_torch
from prompt_tuning.errors import CheckpointError
from tests.reference_models import GOLDEN

LAYOUTS = ("zip", "legacy")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)

# What torch saved as tests/golden/hf/torch_views_*.bin.
X = np.arange(24, dtype=np.float32).reshape(4, 6)
VIEWS = {
    "whole": X,
    "again": X,
    "parameter": X,
    "turned": X.T,
    "rows": X[1:3],
    "columns": X[:, 2:4],
    "every_other": X[::2],
    "one": X[2, 3, ...],
    "empty": np.zeros((0, 3), np.float32),
    "bfloat16": X.astype(ml_dtypes.bfloat16),
    "float16": X.astype(np.float16),
    "float64": X.astype(np.float64),
    "int64": X.astype(np.int64),
    "int32": X.astype(np.int32),
    "int16": X.astype(np.int16),
    "int8": X.astype(np.int8),
    "uint8": X.astype(np.uint8),
    "bool": X > 3,
}


def views(layout):
    return epath.Path(GOLDEN / "hf" / f"torch_views_{layout}.bin")


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "pytorch_model.bin")


# What torch writes.


@every_layout
def test_every_dtype_and_every_view_is_read(layout):
    opened = open_torch(views(layout))
    assert set(opened) == set(VIEWS)
    for name, array in VIEWS.items():
        np.testing.assert_array_equal(opened[name].load(), array, err_msg=name, strict=True)


@every_layout
def test_parts_are_those_of_the_whole(layout):
    for name, one in open_torch(views(layout)).items():
        if len(one.shape) == 2:
            part = one[slice(1, 2), slice(1, 3)]
            np.testing.assert_array_equal(part, VIEWS[name][1:2, 1:3], err_msg=name)


@every_layout
def test_names_of_the_same_numbers_are_one_object(layout):
    opened = open_torch(views(layout))
    assert opened["whole"] is opened["again"] is opened["parameter"]
    assert opened["whole"] is not opened["turned"]


@every_layout
def test_a_state_dict_of_transformers_is_read(layout):
    # Made with the generator of each parameter's index, in the order of the names.
    opened = open_torch(epath.Path(GOLDEN / "hf" / f"torch_t5_{layout}.bin"))
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    for i, name in enumerate(sorted(opened.keys() - copies)):
        expected = np.random.default_rng(i).standard_normal(opened[name].shape, np.float32)
        np.testing.assert_array_equal(opened[name].load(), expected, err_msg=name)
    assert all(opened[name] is opened["shared.weight"] for name in copies)


# Pickles made by hand. What they name is run when it is unpickled by Python.


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Named:
    """Pickled as the name of something in a module that is not here."""

    def __init__(self, name):
        self.name = name


class Pickler(pickle._Pickler):
    """Writes the names of torch without torch, and storages as torch does."""

    def save(self, value, *args, **kwargs):
        if isinstance(value, Named):
            module, _, name = value.name.rpartition(".")
            self.write(f"c{module}\n{name}\n".encode())
        elif isinstance(value, Call) and isinstance(value.function, Named):
            self.save(value.function)
            self.save(value.arguments)
            self.write(b"R")
        elif isinstance(value, Storage):
            self.save((value.kind, Named(value.dtype), value.key, "cpu", value.count))
            self.write(b"Q")
        else:
            super().save(value, *args, **kwargs)


class Storage:
    def __init__(self, key="0", count=6, dtype="torch.FloatStorage", kind="storage"):
        self.key, self.count, self.dtype, self.kind = key, count, dtype, kind


REBUILD = Named("torch._utils._rebuild_tensor_v2")
ORDERED = Named("collections.OrderedDict")


def tensor(storage=None, offset=0, shape=(2, 3), strides=(3, 1)):
    return Call(REBUILD, storage or Storage(), offset, shape, strides, False, {})


def pickled(value, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


NUMBERS = np.arange(6, dtype=np.float32)


def write_zip(path, content, *, storages=None, compression=zipfile.ZIP_STORED, more=None):
    storages = {"0": NUMBERS.tobytes()} if storages is None else storages
    members = {"model/data.pkl": content} | (more or {})
    members |= {f"model/data/{key}": data for key, data in storages.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_legacy(path, content, *, machine=None, keys=("0",), storages=None):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True} | (machine or {})]
    body = b"".join(pickled(one) for one in head) + content + pickled(list(keys))
    if storages is None:
        storages = (6).to_bytes(8, "little") + NUMBERS.tobytes()
    path.write_bytes(body + storages)


# torch before 1.6 knew protocol 2 only.
@pytest.mark.parametrize(
    ("write", "protocol"),
    [(write_legacy, 2), *((write_zip, protocol) for protocol in (2, 3, 4, 5))],
)
def test_a_file_made_by_hand_is_read(path, write, protocol):
    write(path, pickled({"x": tensor()}, protocol))
    np.testing.assert_array_equal(open_torch(path)["x"].load(), NUMBERS.reshape(2, 3))


ATTACKS = {
    "a command": lambda marker: Call(os.system, f"touch {marker}"),
    "a text": lambda marker: Call(eval, f"__import__('os').mkdir({marker!r})"),
    "beside a tensor": lambda marker: {"y": Call(os.mkdir, marker), "x": tensor()},
    "inside another call": lambda marker: {"x": Call(ORDERED, Call(os.mkdir, marker))},
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_in_a_file_is_run(path, write, protocol, name):
    marker = path.with_name("marker")
    write(path, pickled(ATTACKS[name](str(marker)), protocol))
    with pytest.raises(CheckpointError) as error:
        open_torch(path)
    assert not marker.exists()
    if protocol > 1:
        assert re.search(r"wants to run '(posix|io|_io|builtins|__builtin__)\.", str(error.value))


@pytest.mark.parametrize("name", ATTACKS)
def test_python_itself_would_run_it(tmp_path, name):
    marker = tmp_path / "marker"
    with contextlib.suppress(ImportError, TypeError):  # Too late.
        pickle.loads(pickled(ATTACKS[name](str(marker))))
    assert marker.exists()


def test_the_refused_name_stands_in_the_message(path):
    write_zip(path, pickled(Call(os.system, "true")))
    with pytest.raises(CheckpointError) as error:
        open_torch(path)
    assert str(error.value) == (
        f"{path}: model/data.pkl wants to run 'posix.system', which a dictionary of tensors does "
        "not need. Nothing of it was run. Ask who made the file for safetensors."
    )


REFUSED = {
    "a list": ([tensor()], "holds a list, expected a dictionary"),
    "a tensor": (tensor(), "holds a Tensor, expected a dictionary"),
    "a number": ({"x": tensor(), "epoch": 3}, "holds a int under 'epoch', expected a tensor"),
    "a training checkpoint": (
        {"state_dict": {"x": tensor()}},
        "holds a dict under 'state_dict', expected a tensor. Is it a training checkpoint?",
    ),
    "a name that is a number": ({3: tensor()}, "holds a int where a dictionary of tensors has"),
    "a name that is a tuple": ({(3,): tensor()}, "holds a tuple where"),
    "a global": ({"x": REBUILD}, "holds a Global under 'x'"),
    "a storage that is called": ({"x": Call(Named("torch.FloatStorage"), 3)}, "is damaged"),
    "a tensor of nothing": ({"x": Call(REBUILD)}, "describes a tensor by 0 items"),
    "a tensor of numbers": ({"x": Call(REBUILD, 1, 0, (2,), (1,))}, "holds a int where"),
    "an ordered dictionary of something": ({"x": Call(ORDERED, {})}, "an OrderedDict of something"),
    "a parameter of nothing": (
        {"x": Call(Named("torch._utils._rebuild_parameter"))},
        "holds a parameter without a tensor",
    ),
    "a storage that is missing": ({"x": tensor(Storage(key="7"))}, "storage '7', which is missing"),
    "a storage of another kind": ({"x": tensor(Storage(kind="module"))}, "something else than"),
    "a storage of something": (
        {"x": tensor(Storage(dtype="collections.OrderedDict"))},
        "else than",
    ),
    "a storage without an end": ({"x": tensor(Storage(count=2**70))}, "sizes that are not"),
    "more rows": ({"x": tensor(shape=(3, 3))}, "does not fit into its storage of 24 bytes"),
    "an offset": ({"x": tensor(offset=1)}, "does not fit into its storage of 24 bytes"),
    "a negative offset": ({"x": tensor(offset=-1)}, "sizes that are not those of a tensor"),
    "a negative size": ({"x": tensor(shape=(-2, -3))}, "sizes that are not those of a tensor"),
    "a negative stride": ({"x": tensor(strides=(-3, 1))}, "sizes that are not those of a tensor"),
    "a size beyond all": ({"x": tensor(shape=(2**63, 3))}, "sizes that are not those of a tensor"),
    "a stride beyond all": ({"x": tensor(strides=(2**39, 1))}, "does not fit into its storage"),
    "a size that is a truth": ({"x": tensor(shape=(True, 3))}, "sizes that are not those"),
    "sizes that are a list": ({"x": tensor(shape=[2, 3])}, "holds a list where"),
    "one stride": ({"x": tensor(strides=(1,))}, "other strides"),
    # A terabyte out of 24 bytes.
    "one number over and over": (
        {"x": tensor(shape=(500_000, 500_000), strides=(0, 0))},
        "does not fit into its storage of 24 bytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_dictionary_of_tensors_is_refused(path, name):
    value, message = REFUSED[name]
    write_zip(path, pickled(value))
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        open_torch(path)
    assert str(path) in str(error.value)


HEAD = b"\x80\x02"
# Instructions of pickle that are refused, or that would need more memory or time than there is.
PROGRAMS = {
    "nothing": b"",
    "no end": HEAD,
    "an empty stack": HEAD + b".",
    "an empty tuple of three": HEAD + b"\x87.",
    "items for nothing": HEAD + b"(u.",
    "a mark that is missing": HEAD + b"t.",
    "a memory that is missing": HEAD + b"h\x07.",
    "an unknown instruction": HEAD + b"\xff.",
    "an object": HEAD + b"ccollections\nOrderedDict\n)\x81.",
    "an instance": HEAD + b"(iposix\nsystem\n.",
    "an extension": HEAD + b"\x82\x01.",
    "an escape in a name": HEAD + b"c\\q\n\\q\n.",
    "a buffer": HEAD + b"\x97.",
    "attributes of a name": HEAD + b"ccollections\nOrderedDict\n}b.",
    "bytes without end": HEAD + b"\x8e" + b"\xff" * 7 + b"\x00.",
    "a text without end": HEAD + b"\x8d" + b"\xff" * 7 + b"\x00.",
    "a number without end": HEAD + b"\x8b\xff\xff\xff\x7f.",
    "digits without end": HEAD + b"I" + b"9" * 10_000 + b"\n.",
    # Each tuple holds the one before twice: its hash and its text take 2**60 steps.
    "a key without end": HEAD + b"}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "a value without end": HEAD + b"}X\x01\x00\x00\x00xK\x01" + b"q\x00h\x00\x86" * 60 + b"s.",
    "a name without end": HEAD + b"K\x01" + b"q\x00h\x00\x86" * 60 + b")R.",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_wrong_pickle_is_refused_at_once(path, write, name):
    write(path, PROGRAMS[name])
    with pytest.raises(CheckpointError):
        open_torch(path)


def test_a_place_in_memory_far_away_takes_no_memory(path):
    write_zip(path, HEAD + b"}r\xff\xff\xff\x7f.")
    assert open_torch(path) == {}


# Archives made by hand.


def test_a_compressed_archive_is_refused(path):
    zeros = bytes(10_000_000)
    write_zip(
        path,
        pickled({"x": tensor(Storage(count=2_500_000), shape=(2_500_000,), strides=(1,))}),
        storages={"0": zeros},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().length < 20_000
    with pytest.raises(CheckpointError, match=r"is compressed, torch\.save never does that"):
        open_torch(path)


ARCHIVES = {
    "two of them": ({"other/data.pkl": b""}, "with 2 files data.pkl"),
    "big endian": ({"model/byteorder": b"big"}, "was saved by a big-endian machine"),
    "names without end": ({"model/data.pkl": bytes(5_000_000)}, "expected no more than 4000000"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_torch_does_not_write_is_refused(path, name):
    more, message = ARCHIVES[name]
    write_zip(path, pickled({"x": tensor()}), more=more)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_torch(path)


def test_another_archive_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../etc/passwd", "")
    with pytest.raises(CheckpointError, match=r"with 0 files data\.pkl"):
        open_torch(path)


def test_a_directory_that_is_said_to_be_large_is_not_read(path):
    write_zip(path, pickled({"x": tensor()}), storages={"0": bytes(6_000_000)})
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = (5_500_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="5500000 bytes where the names"):
        open_torch(path)


def test_a_member_that_is_not_where_it_should_be_is_refused(path):
    write_zip(path, pickled({"x": tensor()}))
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x03\x04", 4)
    content[second] = 0
    path.write_bytes(content)
    x = open_torch(path)["x"]  # The storage's header is looked at when it is read.
    with pytest.raises(CheckpointError, match="is not where it is said to be"):
        x.load()


# The layout before torch 1.6.


LEGACY = {
    "big endian": ({"machine": {"little_endian": False}}, "was saved by a big-endian machine"),
    "other storages": ({"keys": ["1"]}, "lists other storages than its tensors lie in"),
    "keys that are numbers": ({"keys": [0]}, "lists other storages than its tensors lie in"),
    "too few bytes": ({"storages": bytes(20)}, "The file is cut short"),
    "too many bytes": ({"storages": bytes(40)}, "its tensors end at byte"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_an_old_file_that_torch_did_not_write_is_refused(path, name):
    options, message = LEGACY[name]
    write_legacy(path, pickled({"x": tensor()}), **options)
    with pytest.raises(CheckpointError, match=message):
        open_torch(path)


def test_an_old_storage_of_another_size_is_refused(path):
    write_legacy(path, pickled({"x": tensor()}), storages=(5).to_bytes(8, "little") + bytes(24))
    x = open_torch(path)["x"]
    with pytest.raises(CheckpointError, match="is said to hold 6 numbers and holds 5"):
        x.load()


@pytest.mark.parametrize("content", [b"", b"\x80", b"text", pickled({"x": 1}), pickled(3) * 3])
def test_what_torch_did_not_save_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        open_torch(path)


# Damage.


@every_layout
def test_a_file_cut_anywhere_is_refused(path, layout):
    whole = views(layout).read_bytes()
    for end in range(0, len(whole), 23):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            open_torch(path)


@every_layout
@settings(max_examples=60)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_is_harmless(tmp_path_factory, layout, position, value):
    whole = bytearray(views(layout).read_bytes())
    whole[position % len(whole)] = value
    path = epath.Path(tmp_path_factory.mktemp("changed") / "x.bin")
    path.write_bytes(whole)
    try:
        for one in open_torch(path).values():
            one.load()
    except CheckpointError:
        pass
