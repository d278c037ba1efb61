"""What a prompt tuning step of T5 1.1 XXL takes on TPUs, as their compiler says; no TPU is needed.

Inputs of 540 tokens behind 100 vectors, targets of 64. One row for each way to lay it out: what a
chip needs, its FLOPs over the analytic minimum and over that of the rematerialisation policy, and
what is exchanged. A row takes about one and a half minutes of two cores; `--rows` chooses some.

    python benchmarks/xxl_plan.py [--quick] [--rows=v5e-int8,v5p]
"""

import argparse
import functools
import json
import os
import time

import jax
from flax import nnx

from prompt_tuning.cli.reports import planned
from prompt_tuning.model import T5, t5_config
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.planning import Plan, Split, plan_training, topology
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_train_step

INPUTS, TARGETS, PROMPT = 540, 64, 100
# Of each row: topology, examples, microbatches, partitions, and fields of T5Config.
ROWS = {
    "v5e-int8": ("v5e:1x1", 32, 16, 1, {"quantization": "int8"}),
    "v5e-int8-full": ("v5e:1x1", 32, 16, 1, {"quantization": "int8", "remat": "full"}),
    "v5e-int4": ("v5e:1x1", 8, 1, 1, {"quantization": "int4", "remat": "full"}),
    "v6e": ("v6e:1x1", 32, 8, 1, {}),
    "v5p": ("v5p:1x1x1", 32, 2, 1, {}),
    "v5e-16-by-2": ("v5e:4x4", 32, 1, 2, {}),
    "v5e-16-by-4": ("v5e:4x4", 32, 1, 4, {}),
    "v5e-8-int8": ("v5e:2x4", 16, 1, 1, {"quantization": "int8"}),
    "v5e-256-int8": ("v5e:16x16", 512, 1, 1, {"quantization": "int8"}),
    "v5e-256-by-4": ("v5e:16x16", 512, 1, 4, {}),
}


def main() -> None:
    """Compiles every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model instead of XXL")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    arguments = parser.parse_args()
    # Nothing is computed here, and a TPU or GPU that is here is left alone.
    jax.config.update("jax_platforms", "cpu")
    names = ["v5e-int8", "v5e-16-by-2"] if arguments.quick else arguments.rows.split(",")
    found: dict[str, Plan] = {}
    for name in names:
        began = time.process_time()
        found[name] = plan(*ROWS[name], size="ours_tiny" if arguments.quick else "t5_1_1_xxl")
        print(f"{name}: {time.process_time() - began:.0f} s of processor time", flush=True)
        print(planned.of_topology([found[name]], name), flush=True)
    print(planned.of_several(list(found.values()), "Training steps"))
    rows = {name: one.as_dict() for name, one in found.items()}
    last = {"benchmark": "xxl_plan", "load": os.getloadavg(), "cores": os.cpu_count(), "rows": rows}
    if {"v5e-8-int8", "v5e-256-int8"} <= rows.keys():
        last["ratio"] = rows["v5e-256-int8"]["flops"] / rows["v5e-8-int8"]["flops"]
    print(json.dumps(last))


def plan(name: str, rows: int, parts: int, partitions: int, fields: dict, *, size: str) -> Plan:
    """Compiles the step of one row."""
    config = t5_config(size, param_dtype="bfloat16", **{"remat": "projections"} | fields)
    chosen = topology(name)
    placement = Partitioning(num_partitions=partitions).placement(chosen.devices)
    prompt = functools.partial(Prompt, length=PROMPT, init=uniform())
    module = nnx.eval_shape(lambda: T5(config, prompt=prompt, rngs=nnx.Rngs(0)))
    module.hold(placement.layout)
    graph, chosen_state, frozen = split_model(module, PromptParam)
    optimizer = adafactor()
    return plan_training(
        Split(model=module, graph=graph, chosen=chosen_state, frozen=frozen),
        make_train_step(graph, optimizer, microbatches=parts, placement=placement),
        optimizer,
        chosen,
        placement,
        rows=rows,
        inputs=INPUTS,
        targets=TARGETS,
        microbatches=parts,
    )


if __name__ == "__main__":
    main()
