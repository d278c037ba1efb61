"""Names of other software for the same arrays.

Our parameter names are t5x's, except that t5x numbers the layers (`encoder/layers_3/...`) where we
hold all of a stack in one array (`encoder/layers/...`), and that it nests the prompt once deeper.
"""

import re
from collections.abc import Mapping

import numpy as np

from prompt_tuning.errors import CheckpointError

PROMPT = "encoder/prompt/prompt"
T5X_PROMPT = "encoder/prompt/prompt/prompt"

_LAYER = re.compile(r"(?P<stack>encoder|decoder)/layers_(?P<index>\d+)/(?P<rest>.+)")


def from_t5x(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames t5x parameters (paths below `target/`) to ours and stacks the layers.

    Raises:
        CheckpointError: a layer is missing, or its shape differs from its siblings'.
    """
    ours: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        if match := _LAYER.fullmatch(name):
            stacked = f"{match['stack']}/layers/{match['rest']}"
            layers.setdefault(stacked, {})[int(match["index"])] = array
        else:
            ours[PROMPT if name == T5X_PROMPT else name] = array
    for name, by_index in layers.items():
        ours[name] = _stacked(name, by_index)
    return ours


def to_t5x(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undoes `from_t5x`."""
    theirs: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        stack, layers, rest = name.partition("/layers/")
        if layers:
            theirs |= {f"{stack}/layers_{i}/{rest}": array[i] for i in range(len(array))}
        else:
            theirs[T5X_PROMPT if name == PROMPT else name] = array
    return theirs


def _stacked(name: str, by_index: dict[int, np.ndarray]) -> np.ndarray:
    missing = sorted(set(range(max(by_index) + 1)) - set(by_index))
    if missing:
        raise CheckpointError(
            f"Layers {missing} of {name!r} are missing (found {sorted(by_index)}). "
            "The checkpoint is incomplete."
        )
    shapes = {array.shape for array in by_index.values()}
    if len(shapes) > 1:
        raise CheckpointError(
            f"The layers of {name!r} have different shapes, {sorted(shapes)}; a stack needs one."
        )
    return np.stack([by_index[i] for i in range(len(by_index))])
