"""Prompts as files that others can read.

One portable file (safetensors, `prompt.safetensors`), and the original's numpy file, whose name is
the t5x path of the variable with dots and without a suffix:
`numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt`.
"""

import dataclasses
import io
import json
import uuid

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from jaxtyping import Float

from prompt_tuning.checkpoints.mapping import T5X_PROMPT
from prompt_tuning.errors import CheckpointError

FILE = "prompt.safetensors"
_FORMAT = "prompt-tuning 1"
_TENSOR = "prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A prompt and where it belongs.

    Attributes:
        vectors: float32, one row per prompt position.
        base: hash of the frozen parameters that it was trained over, see `parameters.fingerprint`.
        step: the global step.
        details: anything else worth knowing, as JSON.
    """

    vectors: Float[np.ndarray, "P D"]
    base: str
    step: int
    details: dict = dataclasses.field(default_factory=dict)

    def save(self, path: epath.PathLike) -> None:
        """Writes the file so that it is either whole or absent."""
        metadata = {
            "format": _FORMAT,
            "base": self.base,
            "step": str(self.step),
            "details": json.dumps(self.details, sort_keys=True),
        }
        tensors = {_TENSOR: np.ascontiguousarray(self.vectors, np.float32)}
        _write_whole(epath.Path(path), safetensors.numpy.save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: epath.PathLike, *, base: str | None = None) -> "PromptFile":
        """Reads a file written by `save`.

        Args:
            base: hash of the model that the prompt is for; None does not check.

        Raises:
            CheckpointError: no such file, not a prompt, or a prompt of another base.
        """
        path = epath.Path(path)
        if not path.exists():
            raise CheckpointError(f"No prompt file at {path!s} (PROMPT_FILE).")
        content = path.read_bytes()
        try:
            tensors = safetensors.numpy.load(content)
            metadata = _metadata(content)
            vectors = tensors[_TENSOR]
            if vectors.ndim != 2:
                raise ValueError(f"its tensor has shape {vectors.shape}")
            prompt = cls(
                vectors=vectors,
                base=metadata["base"],
                step=int(metadata["step"]),
                details=json.loads(metadata["details"]),
            )
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path!s} is not a prompt file ({error}). Expected safetensors with one tensor "
                f"{_TENSOR!r} of two dimensions [P, D] and the metadata base, step and details."
            ) from error
        if base is not None and base != prompt.base:
            raise CheckpointError(
                f"The prompt {path!s} was trained over another base model: its base has hash "
                f"{prompt.base[:12]}, this one {base[:12]}. Load the base it was trained over, or "
                "the prompt of this base."
            )
        return prompt


def save_numpy(model_dir: epath.PathLike, step: int, vectors: Float[np.ndarray, "P D"]) -> None:
    """Writes the prompt where the original's users look for it."""
    folder = epath.Path(model_dir) / "numpy_checkpoints" / f"checkpoint_{step}"
    file = io.BytesIO()
    np.save(file, np.asarray(vectors, np.float32))
    _write_whole(folder / T5X_PROMPT.replace("/", "."), file.getvalue())


def load_numpy(path: epath.PathLike) -> Float[np.ndarray, "P D"]:
    """Reads a prompt from a numpy file, with or without the suffix `.npy`.

    Raises:
        CheckpointError: no such file, or not an array of two dimensions.
    """
    path = epath.Path(path)
    if not path.exists():
        raise CheckpointError(f"No prompt file at {path!s} (PROMPT_FILE).")
    try:
        # Not `np.load`, which takes other formats as well and guesses which it is.
        array = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except ValueError as error:
        raise CheckpointError(f"{path!s} is not a numpy array file ({error}).") from error
    if array.ndim != 2:
        raise CheckpointError(
            f"{path!s} holds an array of shape {array.shape}, a prompt has two dimensions [P, D]."
        )
    return array.astype(np.float32)


def load_vectors(path: epath.PathLike) -> Float[np.ndarray, "P D"]:
    """Reads the vectors of a prompt file of either kind."""
    if epath.Path(path).suffix == ".safetensors":
        return PromptFile.load(path).vectors
    return load_numpy(path)


def _metadata(content: bytes) -> dict[str, str]:
    # safetensors gives the metadata only of local files; the header is JSON behind its length.
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def _write_whole(path: epath.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
