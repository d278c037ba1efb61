"""One of several processes that take a step and answer; prints what it has found as JSON.

python connected_run.py PORT PROCESSES INDEX PARTITIONS
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from prompt_tuning.checkpoints.run_trees import to_trees
from prompt_tuning.data.examples import Example
from prompt_tuning.data.task_split import ExactMatch
from prompt_tuning.evaluation import Decode, TaskMetrics, TeacherForced
from prompt_tuning.model import BaseParam
from prompt_tuning.model.parameters import named
from prompt_tuning.partitioning import Partitioning, connect, is_main, on_host
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import laid_out, split_model, start
from prompt_tuning.training.step import make_train_step
from prompt_tuning.vocabulary import ByteVocabulary
from tests.data.splits import split_of

EXAMPLES = [
    Example(np.array([5 + n, 9, 1], np.int32), np.array([7, 8 + n, 1], np.int32)) for n in range(5)
]


def main(port, processes, index, partitions):
    if processes > 1:
        connect(
            coordinator_address=f"localhost:{port}", process_count=processes, process_index=index
        )
    # Only now, as it makes an array, which starts the devices.
    from tests.small_models import BATCH, small_model

    here = Partitioning(num_partitions=partitions).placement()
    # The vocabulary, filled up to an even number.
    model = small_model(vocab_size=-(-ByteVocabulary().size // 2) * 2, dropout_rate=0.3)
    model.hold(here.layout)
    graph, prompt, frozen = split_model(model, PromptParam)
    optimizer = adafactor()
    prompt, opt_state, *_ = laid_out(start(prompt, optimizer, step=0), here)
    frozen, key = here.parameters(frozen), here.replicated(jax.random.key(0))
    batch = here.batch(jax.tree.map(np.asarray, BATCH), microbatches=2)
    step = make_train_step(graph, optimizer, microbatches=2, placement=here)
    prompt, opt_state, sums = step(prompt, opt_state, frozen, batch, jax.random.fold_in(key, 1))
    split = split_of("five", EXAMPLES)
    split = dataclasses.replace(split, judge=ExactMatch(decode=lambda ids: str(ids.tolist())))
    forced = TeacherForced(name="five", split=split, batch_size=3).prepare(graph, here.batch)
    judged = TaskMetrics(
        name="five",
        split=split,
        answering=Decode(vocabulary=ByteVocabulary()),
        batch_size=3,
    )
    answers = judged.prepare(graph, here.batch)(prompt, frozen)
    (name,) = named(prompt)
    found = {
        "main": is_main(),
        "mesh": here.describe(),
        "sums": {key: float(value) for key, value in jax.device_get(sums).items()},
        "moment": np.sqrt(on_host(opt_state[name][0].v)).ravel().tolist(),
        "prompt": on_host(named(prompt)[name]).ravel().tolist(),
        "metrics": forced(prompt, frozen).metrics,
        "answers": [row["prediction"] for row in answers.rows],
        "tuned": tuned(model, here, batch),
    }
    print(json.dumps(found))


def tuned(model, here, batch):
    """Returns sums of what a step of model tuning saves, array by array."""
    model.encoder.prompt = None
    graph, weights, frozen = split_model(model, BaseParam)
    optimizer = adafactor(multiply_by_parameter_scale=True, min_dim_size_to_factor=8)
    state = laid_out(start(weights, optimizer, step=0), here)
    step = make_train_step(graph, optimizer, microbatches=2, placement=here)
    weights, slots, _ = step(state.trainable, state.opt_state, frozen, batch, None)
    trees = to_trees(state._replace(trainable=weights, opt_state=slots), {})
    return {
        f"{kind}/{name}": float(np.sum(np.abs(array), dtype=np.float64))
        for kind in sorted(trees)
        for name, array in trees[kind].items()
    }


main(*map(int, sys.argv[1:]))
