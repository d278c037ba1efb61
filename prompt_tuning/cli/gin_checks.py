"""What gin would let pass, or report one at a time and without a place, checked before it runs."""

import pathlib
import re

from gin.config_parser import BindingStatement

from prompt_tuning.cli.arguments import gin_flag
from prompt_tuning.cli.gin_reader import Configuration, Macro, binding_name, macros_in, place
from prompt_tuning.errors import ConfigError, nearest

REQUIRED = "gin.REQUIRED"


def check_macros(configuration: Configuration, package: pathlib.Path) -> None:
    """Checks that each macro that is read has a value, and that each macro given is read.

    A macro set by this package's own files is never too much: models/ and runs/ are combined
    freely, and not every run reads everything that a model sets.

    Args:
        configuration: as it was read.
        package: the folder of this package's gin files.

    Raises:
        ConfigError: all macros that nothing reads, or else all settings without a value.
    """
    bindings = list(configuration.bindings())
    # Nothing is imported yet, so two spellings of one parameter are told by their last parts.
    last = {(one.scope, one.selector.split(".")[-1], one.arg_name): one for one in bindings}
    given = {binding_name(one): one for one in last.values() if not one.arg_name}

    known = {macro.name for binding in bindings for macro in macros_in(binding.value)}
    known |= {binding_name(binding) for binding in bindings if _is_in(package, binding)}
    unread = [
        f"{place(binding)}: nothing reads the macro {name}.{nearest(name, known)}"
        for name, binding in given.items()
        if name not in known
    ]
    if unread:
        raise ConfigError("\n".join(unread))

    without_value = {
        name: f"  {name} ({place(binding)}): {gin_flag(name, _example(binding))}"
        for name, binding in given.items()
        if Macro(REQUIRED) in macros_in(binding.value)
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


def _is_in(folder: pathlib.Path, binding: BindingStatement) -> bool:
    file = binding.location.filename
    return bool(file) and pathlib.Path(file).resolve().is_relative_to(folder.resolve())


def _example(binding: BindingStatement) -> str:
    """What the comment of a required setting proposes: `NAME = %gin.REQUIRED  # e.g. VALUE`."""
    example = re.search(r"#\s*e\.g\.\s+(.+)", binding.location.line_content)
    return example[1].strip() if example else "VALUE"
