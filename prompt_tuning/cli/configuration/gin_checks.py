"""What gin would let pass, or report one at a time and without a place, checked before it runs."""

import pathlib
import re
from collections.abc import Collection

from gin.config_parser import BindingStatement

from prompt_tuning.cli.arguments import gin_flag
from prompt_tuning.cli.configuration.gin_reader import (
    Configuration,
    Macro,
    binding_name,
    macros_in,
    place,
    setting_of,
)
from prompt_tuning.errors import ConfigError, nearest

REQUIRED = "gin.REQUIRED"
# The folders of this package in the order in which their files are to be read.
STAGES = (
    "models",
    "models/sizes",
    "prompts",
    "decoding",
    "partitioning",
    "data",
    "runs",
    "examples",
)


def check_macros(
    configuration: Configuration,
    package: pathlib.Path,
    demanded: Collection[str] | None = None,
) -> None:
    """Checks that each macro that is read has a value, and that each macro given is read.

    A macro set by this package's own files is never too much: models/ and runs/ are combined
    freely, and not every run reads everything that a model sets.

    Args:
        configuration: as it was read.
        package: the folder of this package's gin files.
        demanded: the macros that must have a value; None for all.

    Raises:
        ConfigError: all macros that nothing reads, or else all settings without a value.
    """
    bindings = list(configuration.bindings())
    last = {setting_of(one): one for one in bindings}
    given = {binding_name(one): one for one in last.values() if not one.arg_name}

    known = {macro.name for binding in bindings for macro in macros_in(binding.value)}
    known |= {
        binding_name(binding) for binding in bindings if _is_in(package, binding.location.filename)
    }
    unread = [
        f"{place(binding)}: nothing reads the macro {name}.{nearest(name, known)}"
        for name, binding in given.items()
        if name not in known
    ]
    if unread:
        raise ConfigError("\n".join(unread))

    without_value = {
        name: f"  {name} ({place(binding)}): {gin_flag(name, example(binding))}"
        for name, binding in given.items()
        if Macro(REQUIRED) in macros_in(binding.value) and (demanded is None or name in demanded)
    }
    never_set = {
        macro.name: f"  {macro.name} (read at {place(binding)}): {gin_flag(macro.name, 'VALUE')}"
        f"{nearest(macro.name, given)}"
        for binding in last.values()
        for macro in macros_in(binding.value)
        if macro.name not in given and not macro.is_constant
    }
    if without_value or never_set:
        lines = [*without_value.values(), *never_set.values()]
        raise ConfigError("\n".join(["Required settings without a value:", *lines]))


def check_order(configuration: Configuration, package: pathlib.Path) -> None:
    """Checks that no file of this package takes back what one that belongs after it has set.

    A models/ file has values for everything that a prompts/ file is there to change, so the wrong
    order would train something else, in silence.

    Args:
        configuration: as it was read.
        package: the folder of this package's gin files.

    Raises:
        ConfigError: all settings that are taken back, and the right order.
    """
    set_before: dict[tuple[str, ...], BindingStatement] = {}
    taken_back: dict[tuple[str, ...], tuple[BindingStatement, BindingStatement]] = {}
    for binding in configuration.bindings():
        key = setting_of(binding)
        before = set_before.get(key)
        taken_back.pop(key, None)
        if before is not None and before.value != binding.value:
            stages = [_stage(one.location.filename, package) for one in (before, binding)]
            if None not in stages and stages[0] > stages[1]:
                taken_back[key] = before, binding
        set_before[key] = binding
    if not taken_back:
        return
    lines = [
        f"  {binding_name(before)} of {place(before)} is taken back at {place(after)}"
        for before, after in taken_back.values()
    ]
    raise ConfigError(
        "\n".join(
            [
                "Files are read in the order given, and the later one wins. In this order:",
                *lines,
                f"The right order is: {_right_order(configuration, package)}",
            ]
        )
    )


def _right_order(configuration: Configuration, package: pathlib.Path) -> str:
    files = [file.path for file in configuration.files if file.path]
    stages = {file: _stage(file, package) for file in files}
    if None in stages.values():
        return "models/, models/sizes/, prompts/, decoding/ and partitioning/, runs/."
    names = {file: pathlib.Path(file).resolve().relative_to(package.resolve()) for file in files}
    return " ".join(f"--gin_file={names[file]}" for file in sorted(files, key=stages.__getitem__))


def _stage(file: str | None, package: pathlib.Path) -> int | None:
    """Where a file belongs among those of this package; None for one of somebody else's."""
    if file is None or not _is_in(package, file):
        return None
    folder = pathlib.Path(file).resolve().parent.relative_to(package.resolve()).as_posix()
    return STAGES.index(folder) if folder in STAGES else None


def _is_in(folder: pathlib.Path, file: str | None) -> bool:
    return bool(file) and pathlib.Path(file).resolve().is_relative_to(folder.resolve())


def example(binding: BindingStatement) -> str:
    """What the comment of a required setting proposes: `NAME = %gin.REQUIRED  # e.g. VALUE`."""
    proposed = re.search(r"#\s*e\.g\.\s+(.+)", binding.location.line_content)
    return proposed[1].strip() if proposed else "VALUE"
