"""`prompt-tuning inspect`: what a checkpoint or prompt is, without loading more than it must."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from prompt_tuning.checkpoints import formats, inspection
from prompt_tuning.checkpoints.base import load_embeddings
from prompt_tuning.errors import ConfigError
from prompt_tuning.vocabulary import SentencePieceVocabulary


def run(arguments: argparse.Namespace) -> int:
    """Prints the description of a checkpoint or prompt; returns the exit code."""
    if arguments.neighbours < 1:
        raise ConfigError(f"--neighbours={arguments.neighbours}: expected at least 1.")
    path = formats.newest(epath.Path(arguments.path))
    about = _model(path, arguments) if _is_model(path) else _prompt(path, arguments)
    print(json.dumps(about, indent=2) if arguments.json else "\n".join(_lines(about)))
    return 0


def _is_model(path: epath.Path) -> bool:
    """A run that trained a prompt is asked for its prompt, any other run for its model."""
    name = formats.format_of(path)
    return name in formats.MODEL_FORMATS and not formats.is_prompt_run(path)


def _model(path: epath.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    return inspection.about_model(formats.open_model(path), values=arguments.values)


def _prompt(path: epath.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    file = formats.open_prompt(path)
    start = (
        inspection.initial_prompt(path)
        if arguments.init is None
        else formats.open_prompt(arguments.init).vectors
    )
    table = None if arguments.base is None else load_embeddings(arguments.base)
    vocabulary = arguments.vocabulary and SentencePieceVocabulary(arguments.vocabulary)
    if table is not None and vocabulary:
        # Tables are padded with rows that are no token's.
        table = table[: vocabulary.size]
    return inspection.about_prompt(
        file,
        where=path,
        kind=formats.format_of(path),
        table=table,
        piece=vocabulary.piece if vocabulary else None,
        start=start,
        count=arguments.neighbours,
    )


def _lines(about: dict[str, Any]) -> Iterator[str]:
    """One line for every fact; arrays and vectors as tables at the end."""
    for name, value in about.items():
        if name not in ("arrays", "vectors") and value not in (None, {}, []):
            yield f"{name:<16} {_shown(value)}"
    yield ""
    for name, one in about["arrays"].items():
        numbers = {key: value for key, value in one.items() if key not in ("shape", "dtype")}
        yield f"{name:<66} {one['dtype']:<9} {one['shape']!s:<16} {_pairs(numbers)}".rstrip()
    for i, vector in enumerate(about.get("vectors", [])):
        yield ""
        yield f"vector {i}: {_pairs({'norm': vector['norm']} | vector.get('drift', {}))}"
        for name in ("cosine", "distance"):
            if near := vector.get(f"nearest_by_{name}"):
                yield f"  by {name}: " + ", ".join(map(_token, near))


def _token(token: dict[str, Any]) -> str:
    shown = repr(token["piece"]) if "piece" in token else token["id"]
    return f"{shown} {token['value']:.3f}"


def _pairs(values: dict[str, Any]) -> str:
    known = {name: value for name, value in values.items() if value is not None}
    return ", ".join(f"{name} {_shown(value)}" for name, value in known.items())


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return _pairs(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)
