"""One of several processes that take a step and answer; prints what it has found as JSON.

python connected_run.py PORT PROCESSES INDEX
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from prompt_tuning.data.examples import Example
from prompt_tuning.data.task_split import ExactMatch
from prompt_tuning.evaluation import Decode, TaskMetrics, TeacherForced
from prompt_tuning.model.parameters import named
from prompt_tuning.partitioning import connect, is_main, on_host, placement
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_train_step
from prompt_tuning.vocabulary import ByteVocabulary
from tests.data.splits import split_of

EXAMPLES = [
    Example(np.array([5 + n, 9, 1], np.int32), np.array([7, 8 + n, 1], np.int32)) for n in range(5)
]


def main(port, processes, index):
    if processes > 1:
        connect(
            coordinator_address=f"localhost:{port}", process_count=processes, process_index=index
        )
    # Only now, as it makes an array, which starts the devices.
    from tests.small_models import BATCH, small_model

    here = placement()
    model = small_model(vocab_size=ByteVocabulary().size, dropout_rate=0.3)
    graph, prompt, frozen = split_model(model, PromptParam)
    optimizer = adafactor()
    state = prompt, optimizer.init(prompt, step=0), frozen, jax.random.key(0)
    prompt, opt_state, frozen, key = here.replicated(state)
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
        "devices": here.rows,
        "sums": {key: float(value) for key, value in jax.device_get(sums).items()},
        "moment": np.sqrt(on_host(opt_state[name][0].v)).ravel().tolist(),
        "prompt": on_host(named(prompt)[name]).ravel().tolist(),
        "metrics": forced(prompt, frozen).metrics,
        "answers": [row["prediction"] for row in answers.rows],
    }
    print(json.dumps(found))


main(*map(int, sys.argv[1:]))
