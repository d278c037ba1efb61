"""`prompt-tuning convert`: models and prompts from every format to every other."""

import argparse

from etils import epath

from prompt_tuning.checkpoints import conversion, formats, verification
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.errors import CheckpointError, ConfigError

# Logits of the same arrays by the same program. A cast is allowed what it costs.
TOLERANCE = 1e-5


def run(arguments: argparse.Namespace) -> int:
    """Converts, and verifies if asked to; returns the exit code."""
    wanted = conversion.Conversion(
        source=epath.Path(arguments.source),
        target=epath.Path(arguments.target),
        source_format=arguments.from_format,
        target_format=arguments.to_format,
        base=None if arguments.base is None else epath.Path(arguments.base),
        base_name=arguments.base_name,
        dtype=arguments.dtype,
        step=arguments.step,
        task=arguments.task,
        family=arguments.family,
        without_prompt=arguments.without_prompt,
    ).resolved()
    to_prompt = wanted.target_format in formats.PROMPT_FORMATS
    if arguments.verify and to_prompt and wanted.base is None:
        raise ConfigError(
            "--verify of a prompt compares logits over its base model: name it with --base."
        )
    conversion.convert(wanted)
    print(f"{wanted.source} ({wanted.source_format}) -> {wanted.target} ({wanted.target_format})")
    if arguments.verify:
        _verify(wanted)
    return 0


def _verify(wanted: conversion.Conversion) -> None:
    found = verification.verify(wanted)
    print(
        f"Largest difference of logits (float32, random tokens): {found.largest:.3g}; "
        f"their standard deviation is {found.scale:.3g}."
    )
    if wanted.dtype is None and not found.largest <= TOLERANCE:
        storage.remove(wanted.target)
        raise CheckpointError(
            f"What was made of {wanted.source!s} does not give its logits: they differ by "
            f"{found.largest:.3g}, expected at most {TOLERANCE:g}. {wanted.target!s} was removed."
        )
