"""How the rows of a file become inputs and targets, and how answers to them are judged."""

import dataclasses
import functools
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from prompt_tuning.data.examples import Example
from prompt_tuning.data.tables import Row
from prompt_tuning.data.task_split import (
    UNKNOWN_CLASS,
    UNKNOWN_LABEL,
    EqualAnswers,
    ExactMatch,
    Judge,
)
from prompt_tuning.errors import ConfigError, DataError, nearest
from prompt_tuning.vocabulary import Vocabulary

# What to say for the classes 0, 1 ..., or that by the names that the file has for them.
Names: TypeAlias = Sequence[str] | Mapping[str, str]

GIN_EXAMPLE = """
    from prompt_tuning.data import file_task
    FILE_TASK = @file_task.FileTask()
    file_task.FileTask:
      inputs = 'sst2 sentence: {sentence}'
      targets = '{label}'
      names = {'label': ['negative', 'positive']}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileTask:
    """How the rows of a file become inputs and targets.

    >>> FileTask(inputs="sst2 sentence: {sentence}", targets="{label}", names={"label": NAMES})

    Attributes:
        inputs: what the model reads, with columns in braces; `{{` and `}}` write braces.
        targets: what it should say. If this is one column with `names`, answers are judged as
            classes, otherwise by exact match. None where nobody knows: there is nothing to learn
            and nothing to judge, but the model can be asked.
        names: for columns that hold classes: what to say for the classes 0, 1 ... The file may
            hold the numbers or the names, and -1 where nobody knows. Where the model should say
            other words than the file: `{"negative": "bad", "positive": "good"}`.
        splits: the path of each split's file, for those that do not lie beside the training file
            under its name with the split's in place of `train`.
        name: of the task, in reports and output folders; by default the file's name without the
            split's, or its folder's name if nothing else is left.
    """

    inputs: str
    targets: str | None
    names: Mapping[str, Names] = dataclasses.field(default_factory=dict)
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str | None = None

    def __post_init__(self):
        self.templates  # noqa: B018 - raises what is wrong with them, before any file is read.
        for column, names in self.names.items():
            _check_names(column, names)

    @functools.cached_property
    def templates(self) -> dict[str, list[tuple[str, str | None]]]:
        """The pieces of `inputs` and `targets`: text, and the column after it if there is one."""
        return {
            feature: _parse(f"FileTask.{feature}", template)
            for feature in Example._fields
            if (template := getattr(self, feature)) is not None
        }

    @functools.cached_property
    def classes(self) -> dict[str, dict[str, int]]:
        """What the columns of `names` may hold, and which class it means."""
        return {column: class_numbers(names) for column, names in self.names.items()}

    def check_columns(self, path: str, columns: Iterable[str]) -> None:
        """Checks that a file has all the columns that are asked for."""
        for column in self.names:
            check_column(path, column, columns, "FileTask.names")
        for feature, pieces in self.templates.items():
            for _, column in pieces:
                if column is not None:
                    asker = f"FileTask.{feature} {getattr(self, feature)!r}"
                    check_column(path, column, columns, asker)

    def record(self, row: Row) -> dict[str, Any]:
        """Returns what a seqio task would keep of a row: its columns, and inputs and targets."""
        record: dict[str, Any] = {name: text or "" for name, text in row.fields.items()}
        said = {}
        for column, known in self.classes.items():
            number = class_number(_field(row, column), known, row.place)
            names = words_of(self.names[column])
            record[column] = np.int32(number)
            said[column] = UNKNOWN_LABEL if number == UNKNOWN_CLASS else names[number]
        for feature, pieces in self.templates.items():
            words = []
            for text, column in pieces:
                words.append(text)
                if column is not None:
                    words.append(said[column] if column in said else _field(row, column))
            record[f"{feature}_pretokenized"] = "".join(words)
        return record

    def judge(self, vocabulary: Vocabulary) -> Judge:
        """Returns who compares answers: class by class, text by text, or nobody."""
        if self.targets is None:
            return Unjudged()
        for column, names in self.names.items():
            if self.targets == f"{{{column}}}":
                return ClassAccuracy(names=words_of(names))
        return ExactMatch(decode=vocabulary.decode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassAccuracy(EqualAnswers):
    """Judges answers by their class: the number of the name that the whole text is, or -1."""

    names: tuple[str, ...]

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.names

    def target(self, record: Mapping[str, Any]) -> int:
        return self._class(record["targets_pretokenized"])

    def prediction(self, text: str, record: Mapping[str, Any]) -> int:
        del record
        return self._class(text)

    def _class(self, text: str) -> int:
        return self.names.index(text) if text in self.names else UNKNOWN_CLASS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unjudged:
    """Has no right answers, so that no answer is worth anything."""

    modes: frozenset[str] = dataclasses.field(default=frozenset(), init=False)
    label_names: None = dataclasses.field(default=None, init=False)

    def target(self, record: Mapping[str, Any]) -> None:
        del record

    def prediction(self, text: str, record: Mapping[str, Any]) -> str:
        del record
        return text

    def metrics(
        self, targets: Sequence[Any], predictions: Sequence[str], scores: Sequence[float] = ()
    ) -> dict[str, float | str]:
        del targets, predictions, scores
        return {}

    def score_metrics(
        self, targets: Sequence[Any], scores: Sequence[float]
    ) -> dict[str, float | str]:
        del targets, scores
        return {}


def plain_text(path: str, columns: Iterable[str]) -> FileTask:
    """Returns the task of a file that needs no templates.

    Its column `inputs` is what the model reads; `targets`, if it is there, what it should say.

    Raises:
        DataError: there is no such column.
    """
    columns = list(columns)
    check_column(path, "inputs", columns, "a file without a FILE_TASK")
    return FileTask(inputs="{inputs}", targets="{targets}" if "targets" in columns else None)


def words_of(names: Names) -> tuple[str, ...]:
    """Returns what to say for the classes 0, 1 ..."""
    return tuple(names.values() if isinstance(names, Mapping) else names)


def class_numbers(names: Names) -> dict[str, int]:
    """Returns what a column of classes may hold, numbers or names, and which class it means."""
    numbers = {str(number): number for number in range(UNKNOWN_CLASS, len(names))}
    return numbers | {name: number for number, name in enumerate(names)}


def class_number(text: str, known: Mapping[str, int], place: str) -> int:
    """Returns the class that a field means.

    Raises:
        DataError: it is neither a number nor a name of a class.
    """
    if text not in known:
        raise DataError(
            f"{place} has the label {text!r}, but it should be one of: {', '.join(known)}."
            f"{nearest(text, known)}"
        )
    return known[text]


def check_column(path: str, column: str, columns: Iterable[str], asker: str) -> None:
    """Checks that a file has a column that somebody asks for.

    Raises:
        DataError: it has not.
    """
    columns = list(columns)
    if column not in columns:
        raise DataError(
            f"{path} has no column {column!r}, which {asker} asks for.{nearest(column, columns)} "
            f"It has: {', '.join(columns)}."
        )


def _field(row: Row, column: str) -> str:
    text = row.fields[column]
    if text is None:
        raise DataError(f"{row.place} has no value for the column {column!r}: it is null.")
    return text


def _parse(setting: str, template: str) -> list[tuple[str, str | None]]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"{setting} is {template!r}: {error}. Braces hold the name of a column; write {{{{ "
            "for a brace."
        ) from error
    for _, column, form, conversion in parsed:
        if column == "" or form or conversion:
            raise ConfigError(
                f"{setting} is {template!r}, but braces hold the name of a column and nothing "
                "else, as in 'sst2 sentence: {sentence}'. Write {{ for a brace."
            )
    return [(text, column) for text, column, _, _ in parsed]


def _check_names(column: str, names: Names) -> None:
    setting = f"FileTask.names[{column!r}]"
    if isinstance(names, Mapping):
        _check_names(column, list(names))
        names = list(names.values())
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{setting} is {names!r}, but it should list what to say for the classes 0, 1 ..., "
            "like ['negative', 'positive']."
        )
    for number, name in enumerate(names):
        if names.index(name) != number:
            raise ConfigError(f"{setting} has {name!r} twice. Give every class its own name.")
        # "1" could be the class 1 or the class that is called "1".
        if name in map(str, range(UNKNOWN_CLASS, len(names))) and name != str(number):
            raise ConfigError(
                f"{setting} calls the class {number} {name!r}, which is the number of another "
                "class. If the column holds what the model should say, leave its names out."
            )
