"""`prompt-tuning config`: what a configuration comes to, before and after it has run."""

from prompt_tuning.cli.config_arguments import DiffArguments, ExplainArguments


def run(arguments: ExplainArguments | DiffArguments) -> int:
    """Prints what was asked for; returns the exit code."""
    # The other one's imports are not waited for: to compare runs, checkpoints are read with JAX.
    if isinstance(arguments, ExplainArguments):
        from prompt_tuning.cli import config_explain

        return config_explain.run(arguments)
    from prompt_tuning.cli import config_diff

    return config_diff.run(arguments)
