"""What `@shipped.mini_base()` and its like stand for, known without binding a configuration."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from prompt_tuning import shipped
from prompt_tuning.cli.configuration.gin_reader import Reference

_PATHS = dict(inspect.getmembers(shipped, inspect.isfunction))
# With the name of the module: a function by itself may be anybody's.
_NAME = re.compile(r"(?:prompt_tuning\.)?shipped\.(\w+)")
_TEXT = re.compile(rf"@{_NAME.pattern}\(\)")


def with_paths(value: Any) -> Any:
    """Returns a value with the paths that calls of `shipped` stand for, in containers too.

    >>> with_paths({"train": Reference("shipped.everyday", True)})
    {'train': '.../prompt_tuning/shipped/everyday'}
    """
    if isinstance(value, Reference) and value.evaluate:
        name = _NAME.fullmatch(value.selector)
        return _PATHS[name[1]]() if name and name[1] in _PATHS else value
    if isinstance(value, dict):
        return {with_paths(key): with_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(with_paths, value))
    return value


def spelled_out(values: Mapping[str, str]) -> dict[str, str]:
    """Returns the same of values as gin text, see `config.operative_values`."""

    def path(call: re.Match) -> str:
        return repr(_PATHS[call[1]]()) if call[1] in _PATHS else call[0]

    return {name: _TEXT.sub(path, value) for name, value in values.items()}
