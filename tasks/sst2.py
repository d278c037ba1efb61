"""SST-2, is a sentence about a film negative or positive, over the files of GLUE."""

import os
from collections.abc import Sequence

from etils import epath

from prompt_tuning.vocabulary import Vocabulary

from . import preprocessors, text_files

LABEL_NAMES = ("negative", "positive")


def register_sst2_tsv(
    *,
    directory: str | os.PathLike[str],
    vocabulary: Vocabulary,
    train: str = "train.tsv",
    validation: str = "validation.tsv",
    label_names: Sequence[str] = LABEL_NAMES,
) -> str:
    """Registers `sst2_tsv` and `taskless_sst2_tsv` over two files with `sentence` and `label`.

    `label_names` are what the model says for the labels 0 and 1; GLUE's own unless given.

    Returns this module's name, so that a gin file can say
    `MIXTURE_OR_TASK_MODULE = @sst2.register_sst2_tsv()` and leave the choice of the task to the
    command line.
    """
    folder = epath.Path(directory)
    for prefix in ("", "taskless_"):
        text_files.register_tsv_task(
            text_files.TsvTask(
                name=f"{prefix}sst2_tsv",
                splits={
                    "train": os.fspath(folder / train),
                    "validation": os.fspath(folder / validation),
                },
                text_format=preprocessors.glue_format("sst2", ["sentence"]),
                label_names=label_names,
                vocabulary=vocabulary,
                taskless=bool(prefix),
            )
        )
    return __name__
