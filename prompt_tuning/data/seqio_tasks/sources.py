"""What the examples of a task follow from, described without making them."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
import tensorflow_text

from prompt_tuning.data.fingerprints import IndescribableError, of_files, of_function
from prompt_tuning.data.seqio_tasks.tfds_source import build

_LIBRARIES = (seqio, tf, tfds, tensorflow_text)


def describe_task(task: seqio.Task, split: str, *, from_cache: bool, seed: int) -> dict[str, Any]:
    """Returns all that the examples of a task follow from, besides their lengths, as JSON takes it.

    Args:
        task: the task.
        split: of the task.
        from_cache: seqio's own cache is the source, and only what comes after it is done.
        seed: for a source that draws.

    Raises:
        IndescribableError: a preprocessor or source depends on what cannot be described.
    """
    steps = list(task.preprocessors)
    if from_cache:
        placeholder = next(i for i, step in enumerate(steps) if _is_placeholder(step))
        source: Any = {"kind": "seqio's cache", "files": _cache_fingerprint(task, split)}
        # How many steps are left out decides the seeds of the others.
        skipped, steps = placeholder + 1, steps[placeholder + 1 :]
    else:
        source, skipped = describe_source(task.source, split, seed=seed), 0
    return {
        "features": {name: _describe(one) for name, one in task.output_features.items()},
        "preprocessors": [of_function(step, _describe) for step in steps],
        "skipped_preprocessors": skipped,
        "source": source,
        "libraries": {library.__name__: library.__version__ for library in _LIBRARIES},
    }


def describe_stream(task: seqio.Task) -> dict[str, Any]:
    """Returns what is known of the examples of a task whose source is never read to its end."""
    try:
        steps: Any = [of_function(step, _describe) for step in task.preprocessors]
    except IndescribableError:
        steps = len(task.preprocessors)
    return {
        "task": task.name,
        "features": {name: _describe(one) for name, one in task.output_features.items()},
        "preprocessors": steps,
        "source": f"{type(task.source).__module__}.{type(task.source).__qualname__}",
    }


def describe_source(source: Any, split: str, *, seed: int) -> dict[str, Any]:
    """Returns a description of the records of a source.

    Files are described by their contents. A source with a method `fingerprint(split)` describes
    itself. Of others, as of functions, nobody knows what they read: their records are read and
    hashed, which is cheap beside tokenising them.
    """
    kind = {"kind": f"{type(source).__module__}.{type(source).__qualname__}"}
    if callable(fingerprint := getattr(source, "fingerprint", None)):
        return kind | {"fingerprint": fingerprint(split)}
    if isinstance(source, seqio.TfdsDataSource):
        described = _describe_tfds(source, split)
        if described is not None:
            return kind | described
    elif isinstance(source, seqio.FileDataSource):
        return kind | {
            "files": of_files(source.list_shards(split)),
            "reader": of_function(source._reader, _describe),
            # The order in which the files are read.
            "interleaved": [source._cycle_length, source._block_length],
        }
    return kind | {"records": _hash_of_records(source, split, seed)}


def _describe_tfds(source: seqio.TfdsDataSource, split: str) -> dict[str, Any] | None:
    """Returns None if the records must be read, because of decoders of the user."""
    loader = source.tfds_dataset
    if loader._decoders or loader._builder_kwargs:
        return None
    build(source, split)
    builder = loader._get_builder(split)
    pieces = loader.files(split)
    return {
        "name": builder.get_reference().tfds_name(include_version=True),
        "files": of_files(sorted({piece.filename for piece in pieces})),
        "pieces": [[os.path.basename(piece.filename), piece.skip, piece.take] for piece in pieces],
        "features": repr(builder.info.features),
    }


def _cache_fingerprint(task: seqio.Task, split: str) -> str:
    source = task._get_cached_source(split)
    info = seqio.utils.get_cached_info_path(task.cache_dir, split)
    return of_files([info, *source.list_shards(split)])


def _hash_of_records(source: Any, split: str, seed: int) -> str:
    dataset = source.get_dataset(split=split, shuffle=False, seed=seed)
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise IndescribableError("its source is endless")
    result = hashlib.sha256()
    for record in dataset.as_numpy_iterator():
        for part in _flat(record):
            result.update(part)
    return result.hexdigest()


def _flat(value: Any) -> Sequence[bytes]:
    if isinstance(value, Mapping):
        return [part for key in value for part in (key.encode(), *_flat(value[key]))]
    if isinstance(value, tuple):  # also the parts of sparse and ragged tensors
        return [part for one in value for part in _flat(one)]
    array = np.asarray(value)
    about = f"|{array.dtype}{array.shape}|".encode()
    if array.dtype == object or array.dtype.kind == "S":
        texts = array.ravel().tolist() if array.ndim else [value]
        return [about, *(part for text in texts for part in (b"%d:" % len(text), text))]
    return [about, array.tobytes()]


def _describe(value: Any) -> str | None:
    """Describes what belongs to seqio; see `fingerprints.of_function`."""
    if isinstance(value, seqio.SentencePieceVocabulary):
        model = hashlib.sha256(value.sp_model).hexdigest()
        return f"SentencePiece {model} {getattr(value, '_use_fast_tokenizer', False)}"
    if isinstance(value, seqio.ByteVocabulary | seqio.PassThroughVocabulary):
        return f"{type(value).__name__} {value.vocab_size} {value.extra_ids} {value.eos_id}"
    if isinstance(value, seqio.Feature):
        return (
            f"{type(value).__name__} {value.add_eos} {value.required} {value.dtype} {value.rank} "
            f"{_describe(value.vocabulary) or type(value.vocabulary).__qualname__}"
        )
    if _is_placeholder(value):
        return "seqio's cache"
    return None


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, seqio.CacheDatasetPlaceholder)
