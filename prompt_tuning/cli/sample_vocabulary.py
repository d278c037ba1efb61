"""`prompt-tuning sample-vocabulary`: rows of the embeddings as an initial prompt.

The same seed draws the same rows as the original's `subsample_vocab` script, which draws with
replacement.
"""

import argparse

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import formats, numpy_file
from prompt_tuning.errors import CheckpointError, ConfigError


def run(arguments: argparse.Namespace) -> int:
    """Writes the rows as a numpy file; returns the exit code."""
    if arguments.prompt_length < 1:
        raise ConfigError(f"--prompt_length={arguments.prompt_length}: expected at least 1.")
    stored = formats.variable(epath.Path(arguments.checkpoint_dir), arguments.embeddings_path)
    if len(stored.shape) != 2:
        raise CheckpointError(
            f"{stored.where} has shape {stored.shape}; rows are drawn from a table of two "
            "dimensions [V, D]. Set --embeddings_path to the token embeddings."
        )
    rows = stored.shape[0]
    population = min(arguments.population_size, rows) if arguments.population_size > 0 else rows
    chosen = np.random.default_rng(arguments.seed).choice(population, arguments.prompt_length)
    table = stored[slice(0, population), slice(0, stored.shape[1])]
    numpy_file.write(
        epath.Path(arguments.output_path), table[chosen].astype(arguments.restore_dtype)
    )
    print(f"{len(chosen)} of {population} rows of {stored.where} -> {arguments.output_path}")
    return 0
