"""The gin files as completion sees them: names and macros, without gin.

`gin_reader` reads gin for real. Here a TAB is to be answered before one notices, so a macro is what
looks like one.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import prompt_tuning
from prompt_tuning.cli.configuration import t5x_files

_MACRO = re.compile(r"^([A-Z][A-Z0-9_]*) *= *(.*)$", re.M)
_INCLUDE = re.compile(r"""^include +['"](.+)['"]""", re.M)


def package_root() -> pathlib.Path:
    """Returns the folder of the gin files that come with this package.

    It is inside the package in a wheel and beside it in a checkout; `importlib.resources` finds it
    only in the former.
    """
    package = pathlib.Path(prompt_tuning.__file__).parent
    installed = package / "gin"
    return installed if installed.is_dir() else package.parent / "gin"


def next_names(prefix: str, search_paths: Sequence[str]) -> list[str]:
    """Returns the gin files and folders that a name which begins with `prefix` may go on with.

    As shells do, one folder at a time: `` leads to `runs/`, and `runs/pr` to `runs/pretrain.gin`.
    """
    front, _, start = prefix.rpartition("/")
    front = prefix[: len(prefix) - len(start)]
    found = set()
    for root in search_paths:
        for path in entries(os.path.join(root, front)):
            if path.name.startswith(start) and (start or not path.name.startswith(".")):
                if path.is_dir():
                    found.add(f"{front}{path.name}/")
                elif path.name.endswith(".gin"):
                    found.add(f"{front}{path.name}")
    return sorted(found)


def macros(files: Iterable[str], search_paths: Sequence[str]) -> dict[str, str]:
    """Returns the macros that files and their includes set, with what they set them to.

    A file that is not there has none. Without any, all macros of this package are returned.
    """
    found: dict[str, str] = {}
    for name in files:
        _read(name, search_paths, found, seen=set())
    return found or _macros_of_the_package()


def _macros_of_the_package() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(package_root().rglob("*.gin")):
        for name, value in _MACRO.findall(path.read_text("utf-8")):
            found.setdefault(name, value)
    return found


def _read(name: str, search_paths: Sequence[str], found: dict[str, str], seen: set[str]) -> None:
    names = (name, t5x_files.ours(name))  # those of the original stand for ours
    places = (os.path.join(root, one) for one in names if one for root in search_paths)
    path = next(filter(os.path.isfile, places), None)
    if path is None or path in seen:
        return
    seen.add(path)
    text = pathlib.Path(path).read_text("utf-8", errors="replace")
    for included in _INCLUDE.findall(text):
        _read(included, search_paths, found, seen)
    found.update(_MACRO.findall(text))


def entries(folder: str) -> list[os.DirEntry]:
    """Returns what is in a folder; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
