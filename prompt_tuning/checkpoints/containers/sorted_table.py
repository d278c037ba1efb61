"""The sorted string table of LevelDB, in which TensorFlow keeps the index of a checkpoint.

    blocks   entries, sorted by key: length shared with the key before, length of the rest of the
             key, length of the value, rest of the key, value; then offsets that we do not need
    trailer  of each block: compression (0 none, 1 snappy) and checksum
    index    a block that holds, for every other block, its place
    footer   places of an empty block and of the index, and the magic number

Numbers are little-endian; lengths are varints, seven bits a byte. The layout is described in
LevelDB's `doc/table_format.md`, snappy's in its `format_description.txt`. Nothing that a file
claims is believed: every function raises ValueError with the reason, and the work is bounded.
"""

from collections.abc import Iterator

import google_crc32c

LIMIT = 1 << 20  # bytes; the index of the largest T5 takes a fifth

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER = 5
_LONGEST_KEY = 1 << 12
_PIECE = 1 << 20
_MOST_ENTRIES = 20_000
# A copy of three bytes stands for at most 64.
_SNAPPY_EXPANSION = 64


class Cursor:
    """Reads bytes from the front, and never beyond their end."""

    def __init__(self, content: bytes):
        self._content = content
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError(f"{size} bytes are announced where {self.left} are left")
        self._at += size
        return self._content[self._at - size : self._at]

    def varint(self) -> int:
        number = 0
        for shift in range(0, 64, 7):
            [byte] = self.take(1)
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise ValueError("a number has more than 64 bits")


def read_table(content: bytes) -> dict[bytes, bytes]:
    """Returns all entries of a table of at most `LIMIT` bytes."""
    if len(content) < _FOOTER or content[-8:] != _MAGIC.to_bytes(8, "little"):
        raise ValueError(f"it does not end in the magic number {_MAGIC:#x}")
    footer = Cursor(content[-_FOOTER:])
    _place(footer)
    index = _block(content, *_place(footer))
    entries: dict[bytes, bytes] = {}
    last, end = None, 0
    for _, place in _entries(index):
        offset, size = _place(Cursor(place))
        # In order and apart, so that no file can have the same bytes read again and again.
        if offset < end:
            raise ValueError(f"the block at {offset} overlaps the one before")
        end = offset + size
        for key, value in _entries(_block(content, offset, size)):
            if last is not None and key <= last:
                raise ValueError("its keys are not in order")
            if len(entries) == _MOST_ENTRIES:
                raise ValueError(f"it has more than {_MOST_ENTRIES} entries")
            entries[key] = value
            last = key
    return entries


def masked_crc32c(content: bytes | memoryview) -> int:
    """Returns the checksum that LevelDB and TensorFlow store with `content`."""
    crc = 0
    # In pieces, since the library takes nothing but bytes, which of an array are a copy.
    for start in range(0, len(content), _PIECE):
        crc = google_crc32c.extend(crc, bytes(content[start : start + _PIECE]))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _place(cursor: Cursor) -> tuple[int, int]:
    return cursor.varint(), cursor.varint()


def _block(content: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER > len(content) - _FOOTER:
        raise ValueError(f"a block of {size} bytes at {offset} reaches beyond its end")
    compression, checksum = content[end], content[end + 1 : end + _TRAILER]
    if masked_crc32c(content[offset : end + 1]) != int.from_bytes(checksum, "little"):
        raise ValueError(f"the checksum of the block at {offset} does not match")
    if compression not in (0, 1):
        raise ValueError(f"the block at {offset} is compressed by unknown method {compression}")
    return unpacked(content[offset:end]) if compression else content[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise ValueError(f"a block of {len(block)} bytes announces {restarts} restarts")
    cursor, key = Cursor(block[:end]), b""
    while cursor.left:
        shared, fresh, length = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key) or shared + fresh > _LONGEST_KEY:
            raise ValueError(f"a key shares {shared} bytes with one of {len(key)} and adds {fresh}")
        key = key[:shared] + cursor.take(fresh)
        yield key, cursor.take(length)


def unpacked(packed: bytes) -> bytes:
    """Undoes snappy's compression: literal bytes and copies of what came before."""
    cursor = Cursor(packed)
    size = cursor.varint()
    if size > _SNAPPY_EXPANSION * len(packed):
        raise ValueError(f"{len(packed)} compressed bytes claim to be {size}")
    content = bytearray()
    while cursor.left:
        [tag] = cursor.take(1)
        if tag & 3 == 0:
            content += cursor.take(_literal(cursor, tag))
        else:
            length, distance = _copy(cursor, tag)
            start = len(content) - distance
            if distance == 0 or start < 0:
                raise ValueError(f"a copy reaches {distance} bytes back into {len(content)}")
            # A copy may run into what it is itself writing: then it repeats.
            source = bytes(content[start : start + length])
            content += (source * (length // len(source) + 1))[:length]
        if len(content) > size:
            raise ValueError(f"the compressed bytes are more than the {size} they claim to be")
    if len(content) != size:
        raise ValueError(f"the compressed bytes are {len(content)} and not the {size} they claim")
    return bytes(content)


def _literal(cursor: Cursor, tag: int) -> int:
    """Returns the length of a literal; from 60 on, the tag says how many bytes hold it."""
    length = tag >> 2
    return 1 + (length if length < 60 else int.from_bytes(cursor.take(length - 59), "little"))


def _copy(cursor: Cursor, tag: int) -> tuple[int, int]:
    """Returns the length of a copy and how far back it begins."""
    if tag & 3 == 1:
        return 4 + (tag >> 2 & 7), (tag >> 5) << 8 | cursor.take(1)[0]
    return 1 + (tag >> 2), int.from_bytes(cursor.take(2 if tag & 3 == 2 else 4), "little")
