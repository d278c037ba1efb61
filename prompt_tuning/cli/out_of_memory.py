"""What a run that meets the end of memory says: what its programs take, and what to change."""

import jax

from prompt_tuning.cli.planned_run import planned_run
from prompt_tuning.cli.reports import planned
from prompt_tuning.errors import PromptTuningError
from prompt_tuning.planning import topologies


def explanation() -> str:
    """Returns the plan of the run that gin is configured for on the devices at hand, and advice."""
    try:
        found = planned_run()
        here = topologies.here(jax.devices())
        plans = [found.plan(program, here) for program in found.shapes]
        config_of = found.make(found.partitioning.placement(here.devices)).config
    # A command without a plan, or data of which no shapes are known; or the host's memory is at its
    # end, which a compiler needs. The first fault is what must be told.
    except (PromptTuningError, RuntimeError, MemoryError):
        return _GENERAL
    rows = max(-(-plan.rows // plan.microbatches // plan.devices) for plan in plans)
    parts = found.microbatches if found.training else None
    changes = planned.advice(config_of, microbatches=parts, rows=rows)
    return "\n".join(
        [
            planned.of_topology(plans, "What it takes of each device, at the longest examples"),
            "What to change, in this order:",
            *(f"  {i}. {change}." for i, change in enumerate(changes, 1)),
            *([_GOES_ON] if found.training else []),
            "`prompt-tuning plan` with the same flags says what fits before it runs: "
            "--search=batch, --search=slice.",
        ]
    )


_GOES_ON = (
    "What was saved is whole; the same command goes on with it, and with "
    "--gin.train.accept_changes=True so does one with these changes."
)
_GENERAL = (
    "Use more microbatches (same result), shorter TASK_FEATURE_LENGTHS, a remat policy that keeps "
    "less, or a smaller BATCH_SIZE."
)
