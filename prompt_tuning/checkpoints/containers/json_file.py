"""JSON of strangers: of bounded size, one object, and nothing said twice."""

import json
from typing import Any

from etils import epath

from prompt_tuning.checkpoints.containers.byte_range import damaged, read_whole
from prompt_tuning.errors import CheckpointError


def read_json(path: epath.Path, *, limit: int = 1_000_000) -> dict[str, Any]:
    """Returns the object in a file of at most `limit` bytes.

    Raises:
        CheckpointError: the file is not there, too large, or not one JSON object.
    """
    return parse_json(read_whole(path, limit=limit), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """Returns the object that UTF-8 encoded JSON describes; `where` is for messages.

    Raises:
        CheckpointError: it is not one JSON object, or a key stands in it twice.
    """
    with damaged(where, ValueError):
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repetition)
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} holds a JSON {type(found).__name__}, expected an object.")
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} stands in it twice")
    return found


def shown(value: Any) -> str:
    """Returns a value for a message, no longer than a line."""
    if isinstance(value, (dict, list)):  # Nested deeply, its text would overflow the stack.
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:80]
