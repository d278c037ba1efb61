import json
import os
import subprocess
import sys

import pytest
from etils import epath

from prompt_tuning.checkpoints.t5x import save_orbax
from tests.conftest import GOLDEN
from tests.fake_bucket import fake_bucket
from tests.object_store_cases import CASES, CONFIGS, base_of_c

ROOT = GOLDEN.parent.parent


def upload(bucket, folder, key):
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.put(f"{key}/{file.relative_to(folder)}", file.read_bytes())


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What each case says, all of them run in one process over one bucket."""
    local = tmp_path_factory.mktemp("local")
    save_orbax(base_of_c(), CONFIGS["C"], 1000, epath.Path(local) / "checkpoint_1000")
    with fake_bucket() as bucket:
        upload(bucket, GOLDEN / "mtf" / "t5_1_0", "models/t5_1_0")
        upload(bucket, local, "models/orbax")
        ran = subprocess.run(
            [sys.executable, "-m", "tests.object_store_cases", "gs://models"],
            cwd=ROOT,
            env=os.environ | bucket.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        yield json.loads(ran.stdout)


@pytest.mark.parametrize("name", CASES)
def test_in_an_object_store(outcome, name):
    assert outcome[name] == "", outcome[name]
