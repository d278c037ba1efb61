"""A command as ours are: parse, then call one function with its bindings."""

from typing import Any

import toy_methods

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments

results: list[dict[str, Any]] = []


def run(arguments: RunArguments) -> int:
    config.parse(arguments)
    results.append(config.call(toy_methods.train, dry_run=arguments.dry_run))
    return 0
