"""`prompt-tuning pretrain`: the same loop over every weight of a T5, on running text."""

from prompt_tuning.cli import train
from prompt_tuning.cli.arguments import RunArguments


def run(arguments: RunArguments) -> int:
    """Pretrains as the gin files and bindings say; returns the exit code."""
    return train.run(arguments, trainable="model")
