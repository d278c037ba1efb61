"""`prompt-tuning find-module`: in which folder an importable package lies.

For `--gin_search_paths`, when a package of one's own brings gin files along. Nothing of the package
is executed but the parents that an installation in development mode has to ask.
"""

import argparse
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

from prompt_tuning.cli.arguments import Parser
from prompt_tuning.errors import ConfigError, nearest


def parse(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the one argument."""
    parser = Parser(
        prog=program,
        description=about,
        allow_abbrev=False,
        epilog=f'example: --gin_search_paths="$({program} my_package)/.."',
    )
    parser.add_argument("name", metavar="NAME", help="of a package or module: my_package.gin")
    parsed, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise ConfigError(f"Unexpected argument {unknown[0]!r} (see `{program} --help`).")
    return parsed


def run(arguments: argparse.Namespace) -> int:
    """Prints the folder."""
    print(folder_of(arguments.name))
    return 0


def folder_of(name: str) -> str:
    """Returns the folder of a package, or the one that a module's file lies in.

    Raises:
        ConfigError: there is none of this name.
    """
    above = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        found = _find(part, above)
        if found is None:
            raise ConfigError(_missing(part, above))
        above = found.submodule_search_locations
        if above is None and end < len(parts):
            raise ConfigError(
                f"{part} is a module and no package: there is no {'.'.join(parts[: end + 1])}."
            )
    if found.has_location and found.origin:
        return os.path.dirname(os.path.abspath(found.origin))
    if above:  # a namespace, such as a folder of gin files: it has no __init__.py
        return os.path.abspath(next(iter(above)))
    raise ConfigError(f"{name} is part of Python itself and lies in no folder.")


def _find(name: str, above: Sequence[str] | None) -> ModuleSpec | None:
    """Asks as `import` would, but for the parents: `importlib.util.find_spec` executes them."""
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    for finder in sys.meta_path:
        try:
            if found := finder.find_spec(name, above):
                return found
        except KeyError:  # a folder without Python; the parent that it asks for is not imported
            found = ModuleSpec(name, None, is_package=True)
            part = name.rpartition(".")[2]
            found.submodule_search_locations = [os.path.join(one, part) for one in above or ()]
            return found
    return None


def _missing(name: str, above: Sequence[str] | None) -> str:
    if above is not None:
        package = name.rpartition(".")[0]
        known = [f"{package}.{module.name}" for module in pkgutil.iter_modules(above)]
        return f"The package {package} has no {name!r}.{nearest(name, known)}"
    import importlib.metadata  # a tenth of what `--help` takes, which comes past this module

    installed = importlib.metadata.packages_distributions()
    return (
        f"No package {name!r} is installed, nor in a folder of PYTHONPATH."
        f"{nearest(name, sorted(installed))}"
    )
