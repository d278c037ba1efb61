"""`split.json`, the document that makes a folder a cached split."""

import json
from collections.abc import Mapping
from typing import Any

import google_crc32c
from etils import epath

from prompt_tuning.errors import DataError

# Part of every key and of every document. A change of what is written needs another number.
FORMAT = 1
DOCUMENT = "split.json"
RECORDS = "examples.arrow"
_CHECKSUM = "crc32c"


def render(document: Mapping[str, Any]) -> str:
    """Returns the text of a document, with a checksum over it."""
    plain = json.dumps(document, sort_keys=True)
    sealed = {**document, _CHECKSUM: google_crc32c.value(plain.encode())}
    return json.dumps(sealed, sort_keys=True, indent=1) + "\n"


def read_document(folder: epath.Path) -> dict[str, Any]:
    """Returns what `split.json` says of a folder.

    Raises:
        DataError: there is none, or it is not as it was written, or its format is another.
    """
    try:
        text = (folder / DOCUMENT).read_bytes()
    except OSError as error:
        raise damaged(folder, f"{DOCUMENT} cannot be read ({error})") from error
    try:
        document = json.loads(text)
        found = document.get("format")
    except (ValueError, AttributeError) as error:
        raise damaged(folder, f"{DOCUMENT} is not JSON ({error})") from error
    if found != FORMAT:
        raise DataError(
            f"The cached split {str(folder)!r} has format {found!r}, but this version reads format "
            f"{FORMAT}. Delete the folder, or choose another CACHE_DIR; the split is made again."
        )
    document.pop(_CHECKSUM, None)
    # The text itself is compared, so that no byte of it can change unseen.
    if render(document).encode() != text:
        raise damaged(folder, f"the checksum of {DOCUMENT} is wrong")
    return document


def damaged(folder: epath.Path, what: str) -> DataError:
    """Returns the error about a folder whose contents are not what was written."""
    return DataError(
        f"The cached split {str(folder)!r} is damaged: {what}. Delete the folder; the next run "
        "makes it again."
    )
