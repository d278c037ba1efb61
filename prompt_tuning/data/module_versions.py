"""Which modules a version number describes, and which can change without one."""

import functools
import importlib.metadata
import importlib.util
import pathlib
import sys

_INSTALLED = {"site-packages", "dist-packages"}


class UnversionedError(Exception):
    """A module of a library that does not say its version."""


@functools.cache
def is_versioned(module: str, package: str) -> bool:
    """Tells whether a module is the standard library's or another one's of fixed contents.

    Args:
        module: its full name.
        package: the package that is asked for. Its own modules may be another's tomorrow under the
            same version, if it was installed from a folder or a repository.
    """
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names:
        return True
    path = _path(module)
    if path is None or not _INSTALLED & set(pathlib.PurePath(path).parts):
        return False
    return top != package or not _is_from_elsewhere(top)


@functools.cache
def name_with_version(module: str) -> str:
    """Returns the name of a module and the version of its library, for reading and comparing.

    Raises:
        UnversionedError: nobody knows the version.
    """
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names:
        return f"{module} of Python {sys.version_info.major}.{sys.version_info.minor}"
    version = getattr(sys.modules.get(top), "__version__", None)
    if not isinstance(version, str):
        known = [importlib.metadata.version(name) for name in _distributions(top)]
        if not known:
            raise UnversionedError(f"the module {module!r}, which has no version")
        version = ",".join(sorted(known))
    return f"{module} of {version}"


def _path(module: str) -> str | None:
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None and module not in sys.modules:
        try:
            path = getattr(importlib.util.find_spec(module), "origin", None)
        except (ImportError, ValueError):  # its package cannot be imported, or has no specification
            return None
    return path


def _is_from_elsewhere(package: str) -> bool:
    """Tells whether a package was not installed from an index, where versions are for ever."""
    return any(
        importlib.metadata.distribution(name).read_text("direct_url.json")
        for name in _distributions(package)
    )


def _distributions(package: str) -> list[str]:
    return list(_packages().get(package, ()))


_packages = functools.cache(importlib.metadata.packages_distributions)
