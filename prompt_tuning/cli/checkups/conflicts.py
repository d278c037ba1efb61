"""Packages that are known to get in each other's way, and files that are not their owner's."""

import dataclasses
import importlib.machinery
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import prompt_tuning
from prompt_tuning.cli.checkups.distributions import Distributions
from prompt_tuning.cli.checkups.finding import Finding

GROUP = "conflicts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """A distribution that should not be here.

    Attributes:
        state: how bad it is.
        why: what it does.
        advice: the command that mends it.
    """

    state: Literal["ok", "warning", "fault"]
    why: str
    advice: str = ""


def _instead(name: str, package: str, *, extra: str = "") -> Conflict:
    return Conflict(
        state="fault",
        why=f"writes over the files of {package}: whichever was installed last is imported",
        advice=f"pip uninstall -y {name} {package}{extra}, then pip install --no-deps {package} in "
        "the version that is needed",
    )


CONFLICTS = {
    "seqio-nightly": _instead("seqio-nightly", "seqio", extra=" t5"),
    "t5": Conflict(
        state="warning",
        why="requires seqio-nightly, which the next pip install may bring back over seqio",
        advice="pip uninstall -y t5; its tasks and metrics are part of prompt_tuning.tasks",
    ),
    "tf-nightly": _instead("tf-nightly", "tensorflow"),
    "tf-nightly-cpu": _instead("tf-nightly-cpu", "tensorflow"),
    "tensorflow-cpu": _instead("tensorflow-cpu", "tensorflow"),
    "tfds-nightly": _instead("tfds-nightly", "tensorflow-datasets"),
    "jax-nightly": _instead("jax-nightly", "jax"),
    "orbax": Conflict(
        state="warning",
        why="is the old package of what is orbax-checkpoint today",
        advice="pip uninstall -y orbax, then pip install --force-reinstall --no-deps "
        "orbax-checkpoint in the version that is needed",
    ),
    "t5x": Conflict(state="ok", why="is harmless, and not used"),
    "flaxformer": Conflict(state="ok", why="is harmless, and not used"),
}

# What is imported, and the distribution that its files must be of.
OWNERS = {
    "seqio": "seqio",
    "gin": "gin-config",
    "flax": "flax",
    "jax": "jax",
    "optax": "optax",
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
}
# Of these all files are compared with what was installed: names alone do not tell.
COMPARED = ("seqio", "gin-config")


def check(installed: Distributions, *, working_folder: pathlib.Path) -> Iterator[Finding]:
    """Yields a finding for each conflict, or one that says that there is none.

    Args:
        installed: the folders that Python imports from.
        working_folder: which `python -m` imports from first.
    """
    found = [
        *_listed(installed),
        *_owned(installed),
        *_other_copies(installed.folders, working_folder),
    ]
    if all(finding.state == "ok" for finding in found):
        about = f"none of {len(CONFLICTS)} known ones; no package over the files of another"
        yield Finding(group=GROUP, name="conflicts", state="ok", found=about)
    yield from found


def _listed(installed: Distributions) -> Iterator[Finding]:
    for name, conflict in CONFLICTS.items():
        if version := installed.version(name):
            yield Finding(
                group=GROUP,
                name=name,
                state=conflict.state,
                found=f"{version} {conflict.why}",
                advice=conflict.advice,
            )


def _owned(installed: Distributions) -> Iterator[Finding]:
    for package, owner in OWNERS.items():
        version = installed.version(owner)
        if version is None:
            continue  # `versions` says so
        again = f"pip install --force-reinstall --no-deps '{owner}=={version}'"
        spec = importlib.machinery.PathFinder.find_spec(package, list(installed.folders))
        origin = spec.origin if spec else None
        if origin is None:
            yield _fault(package, f"cannot be imported, though {owner} is installed", again)
        elif not (owners := installed.owners(f"{package}/__init__.py", origin)):
            folder = os.path.dirname(origin)
            yield _fault(
                package,
                f"is imported from {folder}, which is not {owner}",
                "Take that folder off PYTHONPATH, or uninstall the package that it belongs to; "
                f"then {again}",
            )
        elif others := sorted(set(owners) - {owner}):
            yield _fault(
                package,
                f"has been installed by {', '.join(others)} as well as by {owner}",
                f"pip uninstall -y {' '.join(others)}, then {again}",
            )
        elif owner in COMPARED and (damaged := installed.damaged(owner)):
            count = f"{len(damaged)} files" if len(damaged) > 1 else "a file"
            yield _fault(
                package,
                f"has {count} that {owner} {version} did not install, or misses them: "
                f"{', '.join(damaged[:3])}",
                again,
            )


def _other_copies(folders: Sequence[str], working_folder: pathlib.Path) -> Iterator[Finding]:
    """Yields packages of our own name elsewhere, such as a clone of the original."""
    ours = pathlib.Path(prompt_tuning.__file__).resolve().parent
    for folder in dict.fromkeys([str(working_folder), *folders]):
        other = pathlib.Path(folder or ".").resolve() / "prompt_tuning"
        if other == ours or not (other / "__init__.py").is_file():
            continue
        yield Finding(
            group=GROUP,
            name="prompt_tuning",
            state="warning",
            found=f"another package of this name lies in {other}; this one is {ours}",
            advice="`python -m prompt_tuning` and Python code may import it instead. Leave that "
            "folder or take it off PYTHONPATH, or pip uninstall what it belongs to.",
        )


def _fault(name: str, found: str, advice: str) -> Finding:
    return Finding(group=GROUP, name=name, state="fault", found=found, advice=advice)
