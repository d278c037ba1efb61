"""Whether the versions of everything installed go together, by the installed metadata."""

import platform
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import prompt_tuning
from prompt_tuning.cli.checkups.distributions import Distributions
from prompt_tuning.cli.checkups.finding import Finding

GROUP = "versions"
OURS = "prompt-tuning"


def check(installed: Distributions) -> Iterator[Finding]:
    """Yields a finding for Python, ourselves, each dependency and each plugin of JAX."""
    yield _python(installed)
    yield _ourselves(installed)
    needed = installed.requirements(OURS)
    for requirement in needed:
        yield _dependency(requirement, installed)
    yield from _second_hand(needed, installed)
    yield from _plugins(installed)


def _python(installed: Distributions) -> Finding:
    version = platform.python_version()
    bounds = SpecifierSet(installed.requires_python(OURS))
    if bounds.contains(version, prereleases=True):
        return Finding(group=GROUP, name="Python", state="ok", found=version)
    return Finding(
        group=GROUP,
        name="Python",
        state="fault",
        found=f"{version}, but {bounds} is needed ({sys.executable})",
        advice="Make a virtual environment with another Python and install there.",
    )


def _ourselves(installed: Distributions) -> Finding:
    version, ours = installed.version(OURS), prompt_tuning.__version__
    if version == ours:
        return Finding(group=GROUP, name=OURS, state="ok", found=ours)
    if version is None:
        found = f"{ours}, which runs from its folder and is not installed"
        advice = "Install it, so that its dependencies are known: pip install -e ."
    else:
        found = f"{ours}, but the metadata is of {version}"
        advice = "Install again: pip install -e . in a checkout, else pip install --force-reinstall"
    return Finding(group=GROUP, name=OURS, state="fault", found=found, advice=advice)


def _dependency(requirement: Requirement, installed: Distributions, of: str = "") -> Finding:
    """Returns whether a requirement is met; `of` names who requires it, if it is not us."""
    name, bounds = requirement.name, requirement.specifier
    version = installed.version(name)
    if version is not None and bounds.contains(version, prereleases=True):
        return Finding(group=GROUP, name=name, state="ok", found=version)
    needed = f"{of} needs {bounds}" if of else f"{bounds} is needed"
    return Finding(
        group=GROUP,
        name=name,
        state="fault",
        found="not installed" if version is None else f"{version}, but {needed}",
        advice=f"pip install '{name}{bounds}'",
    )


def _second_hand(needed: list[Requirement], installed: Distributions) -> Iterator[Finding]:
    """Yields what our dependencies need of each other and do not find, as jax its own jaxlib."""
    ours = {requirement.name for requirement in needed}
    for owner in sorted(ours):
        for requirement in installed.requirements(owner):
            finding = _dependency(requirement, installed, of=owner)
            if finding.state != "ok" and installed.version(owner) is not None:
                yield finding
    jax, jaxlib = installed.version("jax"), installed.version("jaxlib")
    if jaxlib is not None:
        same = jax is not None and Version(jax).release == Version(jaxlib).release
        yield Finding(
            group=GROUP,
            name="jaxlib",
            state="ok" if same else "warning",
            found=jaxlib if same else f"{jaxlib} beside jax {jax}",
            advice=""
            if same
            else f"Take them of one version: pip install 'jax=={jax}' 'jaxlib=={jax}'",
        )


def _plugins(installed: Distributions) -> Iterator[Finding]:
    """Yields what is there for accelerators, against what this jax needs of it."""
    seen = set()
    for extra in installed.extras("jax"):
        for requirement in installed.requirements("jax", extra):
            about_devices = requirement.name.startswith(("jax-", "libtpu"))
            if not about_devices or requirement.name in seen:
                continue
            seen.add(requirement.name)
            if installed.version(requirement.name) is not None:
                yield _dependency(requirement, installed, of=f"jax {installed.version('jax')}")
