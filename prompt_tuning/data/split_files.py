"""Which file is which split of a file task, and what the task is called."""

import os
import re
from collections.abc import Iterator, Mapping

from etils import epath

from prompt_tuning.errors import DataError, nearest

_SPLIT = "{split}"
# A word of its own, as in `books.train.tsv` and `sst2_train.tsv`, but not in `training.tsv`.
_TRAIN = re.compile(r"(?<![^\W_])train(?![^\W_])")
_ENDING = re.compile(r"\.\w+(\.gz)?$", re.IGNORECASE)


def in_folder(folder: str | os.PathLike[str], file: str = "{split}.tsv") -> str:
    """Returns the name of the task whose splits lie in a folder, for gin files."""
    return os.fspath(epath.Path(folder) / file)


def task_name(name: str) -> str:
    """Returns what a file task is called: its file without the split, or else its folder.

    >>> task_name("reviews/books.train.tsv"), task_name("sst2/{split}.tsv.gz")
    ('books', 'sst2')
    """
    path = epath.Path(name)
    for part in (_ENDING.sub("", path.name), *(parent.name for parent in path.parents)):
        if rest := _TRAIN.sub("", part.replace(_SPLIT, "")).strip("._-"):
            return rest
    return "task"


def find_split(name: str, split: str, splits: Mapping[str, str], *, itself: bool = False) -> str:
    """Returns the file of a split.

    Args:
        name: of the task, see `lines.file_split`.
        split: the name of the split.
        splits: the files of those that lie elsewhere.
        itself: a file whose name has no place for a split is every split.

    Raises:
        DataError: there is none; says where it was looked for and what is there.
    """
    if itself and split not in splits and _SPLIT not in name and _around_split(name) is None:
        split = "train"
    path, reason = _split_path(name, split, splits)
    if path is not None and epath.Path(path).exists():
        return path
    if split == "train" and split not in splits and _SPLIT not in name:
        folder = epath.Path(name).parent
        files = [one.name for one in folder.iterdir()] if folder.is_dir() else []
        raise DataError(
            f"MIXTURE_OR_TASK_NAME is the file {name!r}, but there is no such file."
            f"{nearest(epath.Path(name).name, files)}"
        )
    beside = sorted({*_splits_beside(name), *splits})
    known = f" There are: {', '.join(beside)}.{nearest(split, beside)}" if beside else ""
    raise DataError(
        f"The file task {name!r} has no split {split!r}: {reason}.{known} Name its file in "
        f"`FileTask.splits = {{{split!r}: 'PATH'}}`, or choose another split (EVAL_SPLIT for the "
        "one to evaluate on)."
    )


def _split_path(name: str, split: str, splits: Mapping[str, str]) -> tuple[str | None, str]:
    """Returns where a split should lie, and the reason to give if it does not."""
    if split in splits:
        return splits[split], f"`FileTask.splits` says {splits[split]!r}, but there is no such file"
    if _SPLIT in name:
        path = name.replace(_SPLIT, split)
        return path, f"there is no file {path!r}"
    if split == "train":
        return name, "there is no such file"
    if (around := _around_split(name)) is None:
        return None, f"its file's name has no 'train' that {split!r} could stand in place of"
    path = os.fspath(epath.Path(name).parent / split.join(around))
    return path, f"there is no file {path!r}, its name with {split!r} in place of 'train'"


def _splits_beside(name: str) -> Iterator[str]:
    """Yields the splits whose files lie where those of a task should."""
    folder = epath.Path(name).parent
    if (around := _around_split(name)) is None or not folder.exists():
        return
    pattern = re.compile(r"(\w+)".join(map(re.escape, around)))
    for path in folder.iterdir():
        if found := pattern.fullmatch(path.name):
            yield found[1]


def _around_split(name: str) -> tuple[str, str] | None:
    """Returns what stands before and after the split in the name of a file."""
    file = epath.Path(name).name
    if _SPLIT in file:
        before, _, after = file.partition(_SPLIT)
        return before, after
    places = list(_TRAIN.finditer(file))
    return (file[: places[-1].start()], file[places[-1].end() :]) if places else None
