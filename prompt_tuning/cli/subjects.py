"""What `eval` and `infer` look at: a base model with a prompt, with each prompt of a run, or bare.

PROMPT_FILE       CHECKPOINTS   subjects
None              'latest'      the model in CHECKPOINT_PATH, with the prompt in it if it has one
None              'all', [..]   the model in each checkpoint of the run CHECKPOINT_PATH
a file            'latest'      the base with that prompt
a run's folder    'latest'      the base with the run's newest prompt
a run's folder    'best'        the base with the prompt in the run's `best/`
a run's folder    'all', [..]   the base with each prompt that the run saved
several of them   'latest'      the base with all of them at once: an ensemble
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from prompt_tuning.checkpoints import formats, methods, numpy_file
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.prompt_file import FILE, PromptFile
from prompt_tuning.cli.base import check_vocabulary, load_base, open_base
from prompt_tuning.cli.outputs import BEST
from prompt_tuning.errors import CheckpointError, ConfigError, nearest
from prompt_tuning.model import T5, parameters
from prompt_tuning.partitioning import Placement
from prompt_tuning.vocabulary import Vocabulary

Which = str | int | Sequence[int]
CHOICES = ("latest", "best", "all")


class Subject(NamedTuple):
    """One model to look at.

    Attributes:
        title: what was put on the base, or the base if nothing was.
        step: the global step.
        model: with all that was learned.
        made_of: hashes by which the same model is known again.
        prompts: how many prompts answer together; 1 for anything but an ensemble.
    """

    title: str
    step: int
    model: T5
    made_of: dict[str, Any]
    prompts: int = 1


class Learned(NamedTuple):
    """What is put on a base, and where it was found."""

    title: str
    file: PromptFile


def subjects(
    checkpoint: str,
    *,
    prompt: str | Sequence[str] | None = None,
    which: Which = "latest",
    model: Callable[..., T5] | None = None,
    settings: Mapping[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
    placed: Placement | None = None,
) -> Iterator[Subject]:
    """Yields the models that are to be looked at; a base is loaded once for all prompts.

    Args:
        checkpoint: the base, or a model that was trained as a whole (CHECKPOINT_PATH).
        prompt: what was learned over it, see above (PROMPT_FILE).
        which: see above (CHECKPOINTS).
        model: makes the model; None for the architecture of the checkpoint (MODEL).
        settings: fields of T5Config that no checkpoint decides, such as `dtype`, if the
            architecture is the checkpoint's.
        vocabulary: of the data, to check that the model has a row for every id.
        placed: where the models go; None for the default device.

    Raises:
        CheckpointError: there is no such model or prompt, or they do not belong together.
        ConfigError: a choice that does not fit what is chosen from.
    """
    _check_choice(which, several=not isinstance(prompt, str | None))

    def loaded(contents: Contents) -> tuple[T5, str]:
        module, digest = load_base(contents, model, settings or {}, placed)
        if vocabulary is not None:
            check_vocabulary(vocabulary, module.config)
        return module, digest

    if prompt is None and which != "latest":
        found = formats.model_checkpoints(epath.Path(checkpoint))
        for step, path in _chosen(found, which, f"CHECKPOINT_PATH {checkpoint!r}").items():
            contents = open_base(os.fspath(path), "CHECKPOINT_PATH")
            module, base = loaded(contents)
            yield Subject(os.fspath(path), step, module, {"base": base})
        return

    contents = open_base(checkpoint, "CHECKPOINT_PATH")
    # Before the base, which takes longer to read.
    learned = _learned(contents, prompt, which)
    module, base = loaded(contents)
    first_step = contents.step or 0
    if not learned:
        yield Subject(checkpoint, first_step, module, {"base": base})
    elif not isinstance(prompt, str | None):
        files = [_over(one, base) for one in learned]
        yield Subject(
            title=f"an ensemble of {len(files)} prompts",
            step=max(first_step if file.step is None else file.step for file in files),
            model=methods.attach_bank(module, files, names=[one.title for one in learned]),
            made_of={"base": base, "prompts": [_digest(file) for file in files]},
            prompts=len(files),
        )
    else:
        for one in learned:
            file = _over(one, base)
            with _naming(f"PROMPT_FILE {one.title!r}"):
                whole = methods.attach(module, file)
            yield Subject(
                title=one.title,
                step=first_step if file.step is None else file.step,
                model=whole,
                made_of={"base": base, "prompts": [_digest(file)]},
            )


def _learned(contents: Contents, prompt: str | Sequence[str] | None, which: Which) -> list[Learned]:
    """Reads what is to be put on a base."""
    if prompt is None:
        found = [formats.prompt_of(contents)] if contents.methods else []
        return [Learned(str(contents.where), file) for file in found]
    if not isinstance(prompt, str):
        return [Learned(path, _read(path)) for path in prompt]
    run = epath.Path(prompt)
    if which == "latest":
        return [Learned(prompt, _read(prompt))]
    if not formats.is_prompt_run(run):
        raise ConfigError(
            f"CHECKPOINTS is {which!r}, but PROMPT_FILE {prompt!r} is not the folder of a run. "
            "Name the MODEL_DIR that the prompts were trained in, or leave CHECKPOINTS out."
        )
    if which == "best":
        path = run / BEST / FILE
        if not path.exists():
            raise CheckpointError(
                f"PROMPT_FILE {prompt!r} has no {BEST}/{FILE}: the run had no MONITOR to say what "
                "is best. Evaluate CHECKPOINTS='all' to find it."
            )
        return [Learned(os.fspath(path), PromptFile.load(path))]
    # Of all prompts but the newest there are only vectors; the rest they have in common.
    newest = PromptFile.load(run / FILE)
    steps = _chosen(numpy_file.saved_prompts(run), which, f"PROMPT_FILE {prompt!r}")
    return [
        Learned(
            os.fspath(path),
            dataclasses.replace(
                newest, arrays=numpy_file.open_numpy(path).arrays, step=step, metrics={}
            ),
        )
        for step, path in steps.items()
    ]


def _read(path: str) -> PromptFile:
    with _naming("PROMPT_FILE"):
        return formats.open_prompt(path)


def _over(one: Learned, base: str) -> PromptFile:
    with _naming(f"PROMPT_FILE {one.title!r}"):
        return one.file.over(base)


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Says which setting named what is wrong."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{setting}: {error}") from error


def _digest(file: PromptFile) -> str:
    digest = parameters.Fingerprint()
    for name, array in file.arrays.items():
        digest.add(name, array)
    return digest.hexdigest()


def _check_choice(which: Which, *, several: bool) -> None:
    hint = nearest(which, CHOICES) if isinstance(which, str) else ""
    if which not in CHOICES if isinstance(which, str) else not _steps(which):
        raise ConfigError(
            f"CHECKPOINTS is {which!r}, expected one of {', '.join(CHOICES)}, a step or a list of "
            f"steps.{hint}"
        )
    if several and which != "latest":
        raise ConfigError(
            f"CHECKPOINTS is {which!r}, but PROMPT_FILE names several prompts, which answer "
            "together. Name one run, or leave CHECKPOINTS out."
        )


def _chosen(found: Mapping[int, epath.Path], which: Which, where: str) -> Mapping[int, epath.Path]:
    if which == "best":
        raise ConfigError(
            "CHECKPOINTS is 'best', but only runs that trained a prompt keep their best state. "
            f"Choose 'latest', 'all' or steps: {', '.join(map(str, found))}."
        )
    if not found:
        raise CheckpointError(f"{where} has no saved steps to choose from.")
    if isinstance(which, str):
        return found
    steps = _steps(which)
    for step in steps:
        if step not in found:
            raise CheckpointError(
                f"{where} has no step {step} (CHECKPOINTS). It has: {', '.join(map(str, found))}."
            )
    return {step: found[step] for step in steps}


def _steps(which: int | Sequence[int]) -> Sequence[int]:
    return [which] if isinstance(which, int) else which
