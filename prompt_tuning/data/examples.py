"""One tokenised example, as tasks and objectives make it and batches take it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Example(NamedTuple):
    """Input and target ids with their end tokens and without padding."""

    inputs: Int[np.ndarray, " T"]
    targets: Int[np.ndarray, " U"]
