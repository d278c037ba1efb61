"""One of several processes that train a small model for 20 steps; prints the prompt as JSON.

python trained_run.py PORT PROCESSES INDEX FSDP PARTITIONS MODEL
"""

import json
import sys

from prompt_tuning.partitioning import Partitioning, connect


def main(port, processes, index, fsdp, partitions, model):
    connect(coordinator_address=f"localhost:{port}", process_count=processes, process_index=index)
    # Only now, as they make arrays, which starts the devices.
    from tests.partitioning.test_divided_models import SIZES, Run, batches
    from tests.small_models import small_model

    here = Partitioning(num_partitions=partitions, fsdp=fsdp).placement()
    run = Run(here, model=small_model(model, **SIZES))
    for batch in batches():
        run.take(batch)
    (prompt,) = run.learned().values()
    print(json.dumps({"mesh": here.describe(), "prompt": prompt.tolist()}))


main(*map(int, sys.argv[1:6]), sys.argv[6])
