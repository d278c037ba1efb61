"""Records of data sets as TFDS would give them, and the values of tasks as JSON has them.

`make.py` writes with it what the original does, and the test of our tasks reads that.
"""

import json
import math
import pathlib

import numpy as np
import seqio
import tensorflow as tf

RECORDS = json.loads((pathlib.Path(__file__).parent / "records.json").read_text(encoding="utf-8"))


def specs(dtypes):
    if isinstance(dtypes, dict):
        return {key: specs(value) for key, value in dtypes.items()}
    dtype, *dimensions = dtypes.replace("]", "").split("[")
    shape = [int(size) if size else None for size in dimensions]
    if len(shape) > 1:
        return tf.RaggedTensorSpec(shape, dtype)
    return tf.TensorSpec(shape, dtype)


def value(record, spec):
    if isinstance(spec, dict):
        return {key: value(record[key], spec[key]) for key in spec}
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.ragged.constant(record, spec.dtype, ragged_rank=1)
    return tf.constant(record, spec.dtype, shape=None if record else [0] * spec.shape.rank)


def dataset(name, records=None):
    """Returns records as TFDS would give them."""
    spec = specs(RECORDS[name]["dtypes"])
    rows = [value(one, spec) for one in (RECORDS[name]["records"] if records is None else records)]
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=spec)


def plain(found):
    """Returns a value as JSON has it: bytes as text, arrays as lists, NaN as a word."""
    if isinstance(found, dict):
        return {key: plain(item) for key, item in found.items()}
    if isinstance(found, (bytes, np.bytes_)):
        return found.decode("utf-8")
    if isinstance(found, seqio.metrics.Text):
        return "text"
    if isinstance(found, seqio.metrics.Scalar):
        return plain(found.value)
    if isinstance(found, (np.ndarray, np.generic)):
        return plain(found.tolist())
    if isinstance(found, (list, tuple)):
        return [plain(item) for item in found]
    if isinstance(found, float):
        return float(f"{found:.10g}") if math.isfinite(found) else str(found)
    return found


def attempt(function, *args, **kwargs):
    """Returns what a call answers, or its exception."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  # whatever the original raises is written down
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}


def failed(found):
    return isinstance(found, dict) and set(found) == {"error"}


def tokens(example, key):
    """Returns the ids, small as they are, in one string; ranked ones with their rows."""
    ids = np.asarray(example[key])
    if ids.ndim == 2:
        return [" ".join(map(str, row)) for row in ids.T]
    return " ".join(map(str, ids))


def text_of(example):
    kept = {key: plain(item) for key, item in example.items() if key not in ("inputs", "targets")}
    return {
        **kept,
        "ids": {key: tokens(example, key) for key in ("inputs", "targets") if key in example},
    }


def correct(example):
    target = example["targets_pretokenized"]
    if np.ndim(target):
        target = target[int(np.argmax(example["is_correct"]))]
    return target.decode()


def short(found, example, text):
    """Names what a dict of `_examples` copies from its example instead of repeating it."""
    if not isinstance(found, dict) or "prediction_pretokenized" not in found:
        return plain(found)
    copied = sorted(
        key for key in found if key in example and plain(found[key]) == plain(example[key])
    )
    rest = {key: item for key, item in found.items() if key not in copied}
    if rest.get("prediction_pretokenized") == text:
        del rest["prediction_pretokenized"]
        copied.append("prediction_pretokenized")
    return plain(rest | {"copied": copied})


def lines(found, depth):
    """Writes JSON with one item a line below a depth."""
    if depth == 0 or not isinstance(found, (dict, list)) or not found:
        return json.dumps(found, ensure_ascii=False, sort_keys=True)
    if isinstance(found, dict):
        rows = [
            f"{json.dumps(key, ensure_ascii=False)}: {lines(found[key], depth - 1)}"
            for key in sorted(found)
        ]
        return "{\n" + ",\n".join(rows) + "\n}"
    return "[\n" + ",\n".join(lines(item, depth - 1) for item in found) + "\n]"
