"""What became of a prompt: how long its vectors are, how far they came, what they lie next to."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from prompt_tuning.errors import CheckpointError
from prompt_tuning.prompts import neighbours
from prompt_tuning.reporting.blocks import Figures, Section, Text, Vector, Vectors, number
from prompt_tuning.reporting.curves import bands
from prompt_tuning.reporting.plots import drawn
from prompt_tuning.reporting.run_files import RunFiles

# How many tokens are named for each vector.
NEAREST = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The token embeddings that a prompt is looked at among.

    Attributes:
        table: one row for each token.
        piece: the text of a token; None shows its number.
        about: whose they are, in a sentence.
    """

    table: Float[np.ndarray, "V D"]
    piece: Callable[[int], str] | None
    about: str


def movement_of(run: RunFiles, embeddings: Embeddings | None) -> Section:
    """Returns norms and drift over all saved steps of a prompt."""
    name, title = "prompt", "The prompt on its way"
    if not run.prompts:
        return Section(name=name, title=title, reason=no_prompt(run))
    _check_alike(run.prompts)
    first = min(run.prompts)
    start = run.prompts[first]
    drift = {step: neighbours.drift(vectors, start) for step, vectors in run.prompts.items()}
    level = None
    if embeddings is not None:
        norms = np.linalg.norm(embeddings.table.astype(np.float32), axis=1)
        level = ("mean token", float(norms.mean()))
    length, width = start.shape
    plots = [
        bands(
            "prompt-norms",
            "Norms of the vectors",
            {step: np.linalg.norm(vectors, axis=1) for step, vectors in run.prompts.items()},
            level=level,
        ),
        bands(
            "prompt-distances",
            "Distances from the start",
            {step: one.distance for step, one in drift.items()},
        ),
        bands(
            "prompt-cosines",
            "Cosines with the start",
            {step: one.cosine for step, one in drift.items()},
        ),
    ]
    said = (
        f"{length:,} vectors of {width:,} numbers, at {len(run.prompts):,} saved steps. Shaded "
        "from the least to the largest of the vectors; the start is the prompt of step "
        f"{first:,}."
    )
    figures = Figures(plots=[drawn(one) for one in plots if one is not None])
    return Section(name=name, title=title, blocks=[Text(text=said), figures])


def tokens_of(run: RunFiles, embeddings: Embeddings | None, reason: str | None) -> Section:
    """Returns the tokens nearest to each vector of the newest prompt.

    Args:
        run: its files.
        embeddings: of the base.
        reason: why there are none.
    """
    name, title = "tokens", "Nearest tokens"
    if not run.prompts:
        return Section(name=name, title=title, reason=no_prompt(run))
    if embeddings is None:
        return Section(name=name, title=title, reason=reason or "No base was named.")
    first, newest = min(run.prompts), max(run.prompts)
    vectors = run.prompts[newest]
    moved = neighbours.drift(vectors, run.prompts[first]).distance
    near = neighbours.nearest_by_cosine(vectors, embeddings.table, NEAREST)
    rows = [
        Vector(
            number=i,
            norm=number(float(np.linalg.norm(vector))),
            moved=number(float(moved[i])),
            near=[
                (_shown(int(token), embeddings.piece), f"{value:.2f}")
                for token, value in zip(near.ids[i], near.values[i], strict=True)
            ],
        )
        for i, vector in enumerate(vectors)
    ]
    said = (
        f"By the cosine with the token embeddings of {embeddings.about}, at step {newest:,}. A "
        "cosine near 1 is the same direction. Trained vectors often lie near no token at all."
    )
    return Section(name=name, title=title, blocks=[Text(text=said), Vectors(vectors=rows)])


def no_prompt(run: RunFiles) -> str:
    """Says why a run has no vectors of a prompt."""
    if run.is_evaluation:
        return "This is an evaluation: the steps of a prompt lie in the folder of its training."
    if run.trains_model:
        return "This run trains the model itself: it has no prompt."
    if run.prompt is not None and run.prompt.method != "prompt":
        return f"What was trained is {run.prompt.method}, which is no vectors before the input."
    return "No prompt is saved in numpy_checkpoints/ yet."


def _check_alike(prompts: Mapping[int, Float[np.ndarray, "P D"]]) -> None:
    shapes = {vectors.shape: step for step, vectors in prompts.items()}
    if len(shapes) > 1:
        said = ", ".join(f"{shape} at step {step}" for shape, step in shapes.items())
        raise CheckpointError(
            f"The prompts in numpy_checkpoints are of several shapes: {said}. They are not of one "
            "run."
        )


def _shown(token: int, piece: Callable[[int], str] | None) -> str:
    return f"#{token}" if piece is None else piece(token)
