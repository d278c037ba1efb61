"""What is installed in folders of packages, read from its metadata; nothing is imported."""

import base64
import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@dataclasses.dataclass(frozen=True, eq=False)
class Distributions:
    """The distributions that Python would find in some folders, by name.

    >>> Distributions(sys.path).version("jax")
    '0.10.2'
    """

    folders: Sequence[str]

    @functools.cached_property
    def _by_name(self) -> dict[str, importlib.metadata.Distribution]:
        found: dict[str, importlib.metadata.Distribution] = {}
        unpacked: dict[str, importlib.metadata.Distribution] = {}
        for one in importlib.metadata.distributions(path=list(self.folders)):
            # A checkout on the path has an egg-info of whenever it was last built.
            kind = unpacked if one.read_text("RECORD") is None else found
            if name := one.metadata["Name"]:
                kind.setdefault(canonicalize_name(name), one)
        return unpacked | found

    def version(self, name: str) -> str | None:
        """Returns the installed version of a distribution; None if there is none."""
        found = self._by_name.get(canonicalize_name(name))
        return found.version if found else None

    def requirements(self, name: str, extra: str = "") -> list[Requirement]:
        """Returns what a distribution needs here, or only with one of its extras."""
        found = self._by_name.get(canonicalize_name(name))
        everything = [Requirement(line) for line in (found.requires if found else None) or ()]
        return [
            one
            for one in everything
            if (one.marker is None or one.marker.evaluate({"extra": extra}))
            and not (extra and (one.marker is None or one.marker.evaluate({"extra": ""})))
        ]

    def requires_python(self, name: str) -> str:
        """Returns the versions of Python that a distribution is for, as a specifier."""
        found = self._by_name.get(canonicalize_name(name))
        return (found.metadata["Requires-Python"] or "") if found else ""

    def extras(self, name: str) -> list[str]:
        """Returns the names of the extras of a distribution."""
        found = self._by_name.get(canonicalize_name(name))
        return list(found.metadata.get_all("Provides-Extra") or ()) if found else []

    def owners(self, file: str, path: str) -> list[str]:
        """Returns the names of those that have installed a file.

        Args:
            file: as it is recorded, such as `seqio/__init__.py`.
            path: where it lies.
        """
        return sorted(
            name
            for name, one in self._by_name.items()
            if f"\n{file}," in f"\n{self._records[name]}"
            if os.path.samefile(str(one.locate_file(file)), path)
        )

    @functools.cached_property
    def _records(self) -> dict[str, str]:
        return {name: one.read_text("RECORD") or "" for name, one in self._by_name.items()}

    def damaged(self, name: str) -> list[str]:
        """Returns those Python files of a distribution that are not the ones it has installed.

        Another distribution has written over them, or has taken them along when it was removed.
        """
        found = self._by_name[canonicalize_name(name)]
        return [path for path, digest in _recorded(found) if _digest(found, path) != digest]


def _recorded(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, str]]:
    for path, digest, *_ in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        if path.endswith(".py") and digest.startswith("sha256="):
            yield path, digest.removeprefix("sha256=")


def _digest(distribution: importlib.metadata.Distribution, path: str) -> str:
    try:
        content = pathlib.Path(str(distribution.locate_file(path))).read_bytes()
    except OSError:
        return ""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
