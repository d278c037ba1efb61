"""`prompt-tuning pretrain`: the same loop over every weight of a T5, on running text."""

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.train import start_logging, train


def run(arguments: RunArguments) -> int:
    """Pretrains as the gin files and bindings say; returns the exit code."""
    start_logging()
    config.parse(arguments)
    config.call(train, dry_run=arguments.dry_run, trainable="model")
    return 0
