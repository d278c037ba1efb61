"""`prompt-tuning doctor`: what is wrong with an installation, a machine and a configuration.

Every group of questions is asked, whatever the others have found, and nothing is changed but by
`--kill`.
"""

import importlib
import json
import os
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.cli.checkups.machine import Machine
from prompt_tuning.cli.doctor_arguments import DoctorArguments
from prompt_tuning.errors import ConfigError

WIDEST = 110
COLUMN = 24  # for names


def run(arguments: DoctorArguments) -> int:
    """Prints the report and returns the exit code of the worst fault; 0 if there is none."""
    environment = dict(os.environ)  # as it is now: libraries change it when they are imported
    findings = list(examined(arguments, Machine(), environment, sys.path))
    code = worst(findings)
    if arguments.json:
        rows = [finding.row() for finding in findings]
        print(json.dumps({"rows": rows, "exit_code": code}, indent=1))
    else:
        width = min(shutil.get_terminal_size((100, 0)).columns, WIDEST)
        print("\n".join(report(findings, width)))
    return code


def examined(
    arguments: DoctorArguments,
    machine: Machine,
    environment: Mapping[str, str],
    folders: Sequence[str],
) -> Iterator[Finding]:
    """Yields what every group finds.

    Args:
        arguments: the flags.
        machine: where to look for accelerators.
        environment: the variables of a run.
        folders: what Python imports from.
    """
    try:
        from prompt_tuning.cli.checkups import conflicts, devices, locks, versions
        from prompt_tuning.cli.checkups import environment as variables
        from prompt_tuning.cli.checkups.distributions import Distributions
    except ImportError as error:  # `packaging`, without which versions cannot be compared
        raise ConfigError(f"{error}. Install it: pip install {error.name}") from error

    installed = Distributions(folders)
    yield from versions.check(installed)
    yield from conflicts.check(installed, working_folder=pathlib.Path.cwd())
    yield from variables.check(environment, machine)
    yield from locks.check(machine, kill=arguments.kill)
    # What reads configurations and checkpoints needs libraries, of which some may be missing.
    try:
        configuration = importlib.import_module("prompt_tuning.cli.checkups.configuration")
        folder_checks = importlib.import_module("prompt_tuning.cli.checkups.folders")
        reach = importlib.import_module("prompt_tuning.cli.checkups.reach")
    except ImportError as error:
        problem = f"cannot be looked at: {error}"
        yield Finding(group="configuration", name="gin", state="fault", found=problem)
        mesh = devices.Mesh()
        yield from devices.check(
            machine, installed, environment, mesh=mesh, timeout=arguments.timeout
        )
        return
    settings, findings = configuration.read(arguments.run)
    mesh = devices.mesh_of(settings)
    yield from devices.check(machine, installed, environment, mesh=mesh, timeout=arguments.timeout)
    yield from findings
    yield from folder_checks.check(settings, arguments.run)
    yield from reach.check(settings, arguments.run, installed, environment)


def worst(findings: Sequence[Finding]) -> int:
    """Returns the exit code of the worst fault: what another flag cannot mend is worse."""
    return max((finding.exit_code for finding in findings), default=0)


def report(findings: Sequence[Finding], width: int) -> Iterator[str]:
    """Yields the lines of the report, one block for each group."""
    for group in dict.fromkeys(finding.group for finding in findings):
        ours = [finding for finding in findings if finding.group == group]
        yield group
        if group == "versions":  # a line for each would be a page
            fine = [f"{one.name} {one.found}" for one in ours if one.state == "ok"]
            ours = [finding for finding in ours if finding.state != "ok"]
            yield from _wrapped(", ".join(fine), "  ok       ", width)
        names = min(COLUMN, max((len(one.name) for one in ours), default=0))
        for one in ours:
            front = f"  {one.state:<7}  {one.name:<{names}}  "
            yield from _wrapped(one.found, front, width, indent=13 + names)
            if one.advice:
                yield from _wrapped(one.advice, " " * (13 + names) + "-> ", width)
    counts = {state: sum(one.state == state for one in findings) for state in ("fault", "warning")}
    said = [f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n]
    yield ""
    yield f"{' and '.join(said)}." if said else "Everything is in order."


def _wrapped(text: str, front: str, width: int, indent: int | None = None) -> Iterator[str]:
    """Yields text behind `front`; its own lines are kept, and further ones indented."""
    space = " " * (len(front) if indent is None else indent)
    for line in text.splitlines() or [""]:
        listed = len(line) - len(line.lstrip())  # of an error's list, which is indented
        yield from textwrap.wrap(
            line,
            width,
            initial_indent=front,
            subsequent_indent=space + " " * (2 * listed),
            # Paths and commands are to be copied.
            break_long_words=False,
            break_on_hyphens=False,
        )
        front = space
