"""Small splits to be cached, also by processes of their own: `python -m tests.data.cached_splits`.

The arguments are the cache's folder, what happens (see MOMENTS) and a file that gets a line for
each call of `make`. Then it waits at that moment, having printed a line, or runs to its end.
"""

import logging
import os
import sys
import time

import numpy as np
from etils import epath

from prompt_tuning.data import cache, fingerprints
from prompt_tuning.errors import DataError

DESCRIPTION = {
    "task": "tiny",
    "split": "train",
    "vocabulary": "abc",
    "lengths": {"inputs": 5},
    "seed": 0,
    "source": {"files": ["x", None]},
}
ROWS = 10_000
MOMENTS = ("first row", "later row", "counting", "moving")


def row(number):
    """Returns a record with features of every kind."""
    return {
        "inputs": np.arange(number % 5 + 1, dtype=np.int32) + number,
        "targets": np.full(1 + number % 2, number, np.int32),
        "text": b"number %d\0" % number,
        "word": f"Wörter {number}",
        "idx": np.int64(number),
        "known": np.bool_(number % 2),
        "weight": np.float32(number / 3),
        "words": np.array([b"w%d" % i for i in range(number % 3)], object),
        "ids": np.arange(number % 4, dtype=np.int64),
        "grid": np.full((2, number % 3), number, np.float16),
        "masks": np.array([[True, False]] * (number % 2), np.bool_).reshape(-1, 2),
    }


def records(count=ROWS, **values):
    """Returns the records 0, 1, 2 ... of a split."""
    return cache.Records(rows=map(row, range(count)), expected=count, **values)


def wait(moment, now):
    if moment == now:
        print(now, flush=True)
        time.sleep(60)


def main(folder, moment, calls):
    logging.basicConfig(level=logging.INFO)

    def make():
        with open(calls, "a") as file:
            file.write(f"{os.getpid()}\n")

        def rows():
            for number in range(ROWS):
                if number in (0, 9000):
                    wait(moment, "first row" if number == 0 else "later row")
                if moment == "slowly" and number % 1000 == 0:
                    time.sleep(0.1)
                yield row(number)

        def truncated():
            wait(moment, "counting")
            return {"inputs": 0}

        return cache.Records(rows=rows(), expected=ROWS, truncated=truncated)

    rename = os.rename
    os.rename = lambda *paths: (wait(moment, "moving"), rename(*paths))
    made = cache.cached(folder, DESCRIPTION, make)
    print(made.fingerprint)


def in_an_object_store(root):
    """Writes, reads and damages splits under a `gs://` path."""
    split = cache.cached(root, DESCRIPTION, lambda: records(50))
    assert split.examples[49].inputs.tolist() == row(49)["inputs"].tolist()
    assert split.columns["text"][3] == row(3)["text"]
    [folder] = (epath.Path(root) / "tiny").iterdir()
    assert len(list(folder.iterdir())) == 2

    def while_another_one_writes():
        for number in range(60):
            if number == 20:
                cache.cached(root, DESCRIPTION | {"seed": 1}, lambda: records(60))
            yield row(number)

    rows = cache.Records(rows=while_another_one_writes())
    assert len(cache.cached(root, DESCRIPTION | {"seed": 1}, lambda: rows).examples) == 60
    for one in (epath.Path(root) / "tiny").iterdir():
        assert len(list(one.iterdir())) == 2, list(one.iterdir())

    def fails():
        yield row(0)
        raise ValueError("in the middle")

    try:
        cache.cached(root, DESCRIPTION | {"seed": 2}, lambda: cache.Records(rows=fails()))
    except ValueError:
        assert len(cache.cached(root, DESCRIPTION | {"seed": 2}, lambda: records(3)).examples) == 3

    [arrow] = folder.glob("*.arrow")
    before = fingerprints.of_files([str(arrow)])
    assert fingerprints.of_files([str(arrow)]) == before
    arrow.write_bytes(arrow.read_bytes()[:-1])
    assert fingerprints.of_files([str(arrow)]) != before
    try:
        cache.cached(root, DESCRIPTION, None)
    except DataError as error:
        print(error)


if __name__ == "__main__":
    if sys.argv[1].startswith("gs://"):
        in_an_object_store(*sys.argv[1:])
    else:
        main(*sys.argv[1:])
