"""`prompt-tuning extract`: one variable of a checkpoint as a numpy file (the original's script)."""

import argparse

from etils import epath

from prompt_tuning.checkpoints import formats, numpy_file


def run(arguments: argparse.Namespace) -> int:
    """Writes the variable; returns the exit code."""
    stored = formats.variable(epath.Path(arguments.checkpoint_dir), arguments.variable_path)
    array = stored.load().astype(arguments.restore_dtype)
    numpy_file.write(epath.Path(arguments.output_path), array)
    print(f"{stored.where}: {array.dtype} {list(array.shape)} -> {arguments.output_path}")
    return 0
