"""`prompt-tuning diff`: where two checkpoints or prompts differ (the original's script)."""

import argparse
import dataclasses
import json

from etils import epath

from prompt_tuning.checkpoints import formats
from prompt_tuning.checkpoints.comparison import ArrayDifference, compare
from prompt_tuning.checkpoints.containers import storage

DIFFERENT = 1


def run(arguments: argparse.Namespace) -> int:
    """Prints the differences; returns 0 if there are none and 1 if there are, as diff(1) does."""
    a, b = (
        formats.variables(epath.Path(path), parameters_only=arguments.limit_to_params)
        for path in (arguments.a, arguments.b)
    )
    if not arguments.compare_step:
        a.pop("state/step", None)
        b.pop("state/step", None)
    found = compare(
        a,
        b,
        relative=arguments.rtol,
        absolute=arguments.atol,
        fraction=arguments.frac,
        always=arguments.check,
        seed=arguments.seed,
    )
    for name, difference in found.items():
        print(f"{name}: {_shown(difference)}")
    print(f"{len(found)} of {len(a.keys() | b.keys())} arrays differ.")
    if arguments.output is not None:
        rows = {name: dataclasses.asdict(difference) for name, difference in found.items()}
        report = {"a": arguments.a, "b": arguments.b, "differences": rows}
        storage.write_whole(epath.Path(arguments.output), json.dumps(report, indent=2).encode())
    return DIFFERENT if found else 0


def _shown(one: ArrayDifference) -> str:
    if one.kind == "value":
        share = one.mismatches / one.size
        return (
            f"{one.mismatches:,} of {one.size:,} values ({share:.1%}), by {one.largest:.3g} at most"
        )
    if one.kind in ("shape", "dtype"):
        return f"{one.a} in A, {one.b} in B"
    return f"{one.kind}, {one.a or one.b}"
