import pytest

from prompt_tuning.checkpoints.containers.sorted_table import read_table, unpacked
from tests.conftest import GOLDEN
from tests.tensor_bundles import block, table, trailed, varint, with_index

# As Mesh TensorFlow wrote it: compressed, and keys share their beginnings.
T5X_TINY = (GOLDEN / "mtf/t5x_tiny.index").read_bytes()

# Compressed bytes and what they stand for: the length, then literals and copies.
SNAPPY = {
    "nothing": (b"\x00", b""),
    "a literal": (b"\x03\x08abc", b"abc"),
    "a literal whose length takes a byte of its own": (b"\x3d\xf0\x3c" + b"x" * 61, b"x" * 61),
    "a copy with one byte of distance": (b"\x08\x0cabcd\x01\x04", b"abcdabcd"),
    "a copy with two bytes of distance": (b"\x06\x08abc\x0a\x03\x00", b"abcabc"),
    "a copy with four bytes of distance": (b"\x06\x08abc\x0b\x03\x00\x00\x00", b"abcabc"),
    "a copy that runs into itself": (b"\x09\x04ab\x1a\x02\x00", b"ababababa"),
}

NOT_SNAPPY = {
    "a literal beyond the end": (b"\x03\x08ab", "3 bytes are announced where 2 are left"),
    "a copy from before the beginning": (b"\x08\x0cabcd\x01\x05", "a copy reaches 5 bytes back"),
    "a copy of nothing": (b"\x08\x0cabcd\x01\x00", "a copy reaches 0 bytes back into 4"),
    "more than announced": (b"\x02\x08abc", "are more than the 2 they claim"),
    "less than announced": (b"\x04\x08abc", "are 3 and not the 4 they claim"),
    "a size that no such bytes can have": (
        varint(1 << 40) + b"\x08abc",
        "claim to be 1099511627776",
    ),
    "a size without end": (b"\xff" * 20, "more than 64 bits"),
}

NOT_TABLES = {
    "nothing": (b"", "magic number"),
    "another file": (b"\x80\x02}q\x00." * 20, "magic number"),
    "another magic number": (table(block([]))[:-1] + b"\0", "magic number"),
    "no block where the index should be": (with_index(b"", b"")[5:], "reaches beyond its end"),
    "an unknown compression": (table(block([]), compression=4), "unknown method 4"),
    "blocks that overlap": (
        with_index(
            trailed(block([(b"a", b"")])),
            block([(b"1", varint(0) + varint(8)), (b"2", varint(0) + varint(8))]),
        ),
        "the block at 0 overlaps the one before",
    ),
    "keys out of order": (table(block([(b"b", b""), (b"a", b"")])), "keys are not in order"),
    "a key twice": (table(block([(b"a", b"")]), block([(b"a", b"")])), "keys are not in order"),
    "a key that shares what is not there": (
        table(b"\x02\x01\x00a" + bytes(4)),
        "a key shares 2 bytes with one of 0 and adds 1",
    ),
    "a key without end": (table(b"\x00\xff\xff\x7f\x00a" + bytes(4)), "adds 2097151"),
    "a value beyond the end": (table(b"\x00\x01\x09avalue" + bytes(4)), "9 bytes are announced"),
    "more restarts than bytes": (table(b"\xff\xff\xff\xff"), "announces 4294967295 restarts"),
    "an empty block": (table(b""), "announces 0 restarts"),
    "too many entries": (
        table(block([(b"%06d" % i, b"") for i in range(20_001)])),
        "more than 20000 entries",
    ),
}


@pytest.mark.parametrize("name", SNAPPY)
def test_snappy_is_undone(name):
    packed, content = SNAPPY[name]
    assert unpacked(packed) == content


@pytest.mark.parametrize("name", NOT_SNAPPY)
def test_what_is_not_snappy_is_refused(name):
    packed, reason = NOT_SNAPPY[name]
    with pytest.raises(ValueError, match=reason):
        unpacked(packed)


def test_entries_of_all_blocks_are_read():
    first, second = [(b"", b"1"), (b"a", b"22")], [(b"ab", b"")]
    assert read_table(table(block(first), block(second))) == dict(first + second)


def test_keys_share_their_beginnings():
    content = b"\x00\x03\x01abc1" + b"\x02\x02\x01xy2" + b"\x00\x01\x01b3" + bytes(4)
    assert read_table(table(content)) == {b"abc": b"1", b"abxy": b"2", b"b": b"3"}


@pytest.mark.parametrize("name", NOT_TABLES)
def test_what_is_not_a_table_is_refused(name):
    content, reason = NOT_TABLES[name]
    with pytest.raises(ValueError, match=reason):
        read_table(content)


def test_a_table_cut_short_anywhere_is_refused():
    for length in range(0, len(T5X_TINY), 5):
        with pytest.raises(ValueError, match="magic number"):
            read_table(T5X_TINY[:length])


def test_no_flipped_bit_changes_an_entry():
    entries = read_table(T5X_TINY)
    refused = 0
    for at in range(0, len(T5X_TINY), 7):
        damaged = bytearray(T5X_TINY)
        damaged[at] ^= 1 << at % 8
        try:
            assert read_table(bytes(damaged)) == entries
        except ValueError:
            refused += 1
    # What is not refused lies in the padding of the footer or in the place of the empty block.
    assert refused > 240
