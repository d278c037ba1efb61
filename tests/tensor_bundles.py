"""Writes sorted tables and the messages in them, also such as TensorFlow never would."""

from prompt_tuning.checkpoints.containers.sorted_table import masked_crc32c

MAGIC = bytes.fromhex("57fb808b247547db")


def varint(number):
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def message(*fields):
    """Returns a protocol buffer of numbers and of messages in it."""
    parts = []
    for number, value in fields:
        if isinstance(value, bytes):
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
        else:
            parts.append(varint(number << 3) + varint(value))
    return b"".join(parts)


def header(shards=1):
    return message((1, shards))


def entry(*, dtype=1, shape=(2,), shard=0, offset=0, size=8, more=()):
    dims = b"".join(message((2, message((1, one)))) for one in shape)
    return message((1, dtype), (2, dims), (3, shard), (4, offset), (5, size), *more)


def block(entries):
    """Returns a block in which no key shares anything with the one before."""
    lines = [
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries
    ]
    return b"".join(lines) + bytes(4)


def table(*blocks, compression=0):
    """Returns a table of these blocks; its checksums are right."""
    content, index = b"", []
    for i, one in enumerate(blocks):
        index.append((b"%06d" % i, varint(len(content)) + varint(len(one))))
        content += trailed(one, compression)
    return with_index(content, block(index))


def with_index(content, index):
    place = varint(len(content)) + varint(len(index))
    return content + trailed(index) + (varint(0) + varint(0) + place).ljust(40, b"\0") + MAGIC


def trailed(content, compression=0):
    kind = bytes([compression])
    return content + kind + masked_crc32c(content + kind).to_bytes(4, "little")
