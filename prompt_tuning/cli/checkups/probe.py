"""Asks JAX for its devices, in a process of its own: it may wait for ever, or be ended by XLA.

Started by `devices` with the settings of the mesh as JSON. Prints what it finds as it goes, one
JSON object a line, so that the last line says how far it came.
"""

import json
import sys
from typing import Any


def main(settings: dict[str, Any]) -> None:
    """Prints what can be imported, which devices there are, and which mesh a run would use."""
    import flax.nnx
    import jax
    import jax.numpy as jnp

    from prompt_tuning.errors import PromptTuningError
    from prompt_tuning.partitioning import Partitioning

    say(imported=[jax.__version__, flax.__version__])
    devices = jax.devices()
    memory = devices[0].memory_stats() or {}
    say(
        platform=devices[0].platform,
        kind=devices[0].device_kind,
        count=len(devices),
        memory=memory.get("bytes_limit"),
    )
    # Drivers that are too old are found out here.
    say(sum=int(jnp.arange(4).sum()))
    try:
        submesh = settings["submesh"] and tuple(settings["submesh"])
        partitioning = Partitioning(
            num_partitions=settings["partitions"],
            model_parallel_submesh=submesh,
            fsdp=settings["fsdp"],
        )
        say(mesh=partitioning.placement().axes())
    except PromptTuningError as error:
        say(mesh_error=str(error), exit_code=error.exit_code)


def say(**found: Any) -> None:
    """Prints a line, at once."""
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
