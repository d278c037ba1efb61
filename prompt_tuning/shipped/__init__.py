"""Where the files lie that the package brings along: a base model, its vocabulary and a data set.

Paths are texts, so that a gin file can name them wherever the package is installed:

    from prompt_tuning import shipped

    INITIAL_CHECKPOINT_PATH = @shipped.mini_base()
"""

import pathlib

_FOLDER = pathlib.Path(__file__).resolve().parent


def mini_base() -> str:
    """Returns the path of the pretrained base of the size `ours_mini`, a model file."""
    return str(_FOLDER / "mini.safetensors")


def mini_vocabulary() -> str:
    """Returns the path of the SentencePiece model of `mini_base`."""
    return str(_FOLDER / "mini.model")


def everyday() -> str:
    """Returns the folder of the data set `everyday`, with a TSV file for each split."""
    return str(_FOLDER / "everyday")
