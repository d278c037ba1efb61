"""What a user's own module looks like to gin: plain functions and classes, no decorator."""

import dataclasses
from typing import Any

import jax

from prompt_tuning.errors import DivergedError

DEFAULT_LENGTH = 100


class HidesTheSignature(type):
    """A metaclass with the catch-all call of `nnx.Module`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Prompt(metaclass=HidesTheSignature):
    """Gets its length from gin and its width from the model, as our prompts do."""

    def __init__(self, *, length: int, embed_dim: int, scale: float = 0.5) -> None:
        self.length = length
        self.embed_dim = embed_dim
        self.scale = scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = 0.3
    factored: bool = True


def schedule(*, base: float, warmup: int = 0) -> tuple[float, int]:
    return base, warmup


def accepts_anything(**options: Any) -> dict[str, Any]:
    return options


def train(
    *,
    model_dir: str,
    prompt: Any,
    steps: int = 10,
    lengths: Any = None,
    optimizer: Any = None,
    schedule: Any = None,
    fault: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Returns its arguments, the prompt built as a model would build it, or fails as told."""
    if fault == "diverged":
        raise DivergedError("The loss is not finite at step 3.")
    if fault == "device out of memory":
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room for 9 bytes.\nBuffers: ...")
    if fault == "host out of memory":
        raise MemoryError
    if fault == "interrupted":
        raise KeyboardInterrupt
    if fault == "bug":
        raise RuntimeError("a bug of ours")
    return {
        "model_dir": model_dir,
        "prompt": prompt(embed_dim=4) if prompt else None,
        "steps": steps,
        "lengths": lengths,
        "optimizer": optimizer,
        "schedule": schedule,
        "dry_run": dry_run,
    }
