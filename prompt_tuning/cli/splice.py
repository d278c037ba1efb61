"""`prompt-tuning splice`: a prompt into a full t5x checkpoint (original `recreate_checkpoint`)."""

import argparse

from etils import epath

from prompt_tuning.checkpoints import formats, methods, t5x


def run(arguments: argparse.Namespace) -> int:
    """Writes the checkpoint with the prompt in it; returns the exit code."""
    source = formats.newest(epath.Path(arguments.checkpoint_dir))
    file = formats.open_prompt(arguments.prompt)
    file = methods.fitted(file, formats.open_model(source).config)
    step = file.step if arguments.step is None else arguments.step
    target = epath.Path(arguments.output_path)
    t5x.splice(source, methods.to_t5x_names(file), target, step=step)
    print(f"{arguments.prompt} in {source} -> {target}")
    return 0
