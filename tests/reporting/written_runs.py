"""The files of a run, written by hand: everything that a report shows, and what would break it."""

import json

import numpy as np

from prompt_tuning.checkpoints import PromptFile, numpy_file

STEPS = [1_100_000, 1_100_010, 1_100_020]
LABELS = ("bad", "good")
# A text that would be markup, code or mathematics if nobody looked after it.
HOSTILE = "<script>alert('x')</script> & \"quoted\" $x^2$ {{ 7 * 7 }} \u2028 日本"
CONFIG = """import __gin__

# Macros:
# ==============================================================================
BATCH_SIZE = 8
INITIAL_CHECKPOINT_PATH = 'somewhere/base'
VOCABULARY_FILE = 'somewhere/small.model'

# Parameters for train_script.train:
# ==============================================================================
train_script.train.trainable = 'prompt'
"""


def write_run(folder, *, task="films", text="it is a charming film", prompts=True):
    """Writes a finished run of 20 steps over a base that stands at 1,100,000; returns its folder.

    Args:
        folder: where to.
        task: its name.
        text: what stands in every example.
        prompts: whether it trained a prompt, or the model.
    """
    train = [_training(step) for step in range(STEPS[0] + 2, STEPS[-1] + 1, 2)]
    _lines(folder / "train/metrics.jsonl", train)
    measured = [{"step": step, "accuracy": 50.0 + 10 * i} for i, step in enumerate(STEPS)]
    _lines(folder / f"inference_eval/{task}-metrics.jsonl", measured)
    losses = [{**_training(step), "step": step} for step in STEPS]
    _lines(folder / f"training_eval/{task}-metrics.jsonl", losses)
    for step in STEPS:
        rows = [_row(i, text) for i in range(20)]
        _lines(folder / f"inference_eval/{task}-{step:06}.jsonl", rows)
        counts = {
            "targets": LABELS,
            "predictions": [*LABELS, "(other)"],
            "counts": [[6, 3, 1], [2, 8, 0]],
        }
        _lines(folder / f"inference_eval/{task}-{step:06}-confusion.json", [counts])
    variables = {"token_embedder/embedding": 800, "encoder/layers/mlp/wi/kernel": 200}
    if prompts:
        variables |= {"encoder/prompt/prompt": 32}
        for i, step in enumerate(STEPS):
            numpy_file.save_numpy(folder, step, vectors(i))
        file = PromptFile.of(vectors(2), step=STEPS[-1], base="0" * 64, base_name="somewhere/base")
        file.save(folder / "prompt.safetensors")
    table = [
        f"Variable {name:<40} size {size:<9} shape (x={size})" for name, size in variables.items()
    ]
    (folder / "model-info.txt").write_text("\n".join(table))
    (folder / "config.gin").write_text(CONFIG)
    (folder / "environment.json").write_text(json.dumps({"jax": "0.10.2", "devices": "1 cpu"}))
    (folder / "summary.json").write_text(json.dumps(_summary(task)))
    return folder


def vectors(i):
    """The prompt of the i-th saved step: 4 vectors that go straight on from where they started."""
    start = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    return start + np.float32(i)


def _training(step):
    done = step - STEPS[0]
    return {
        "step": step,
        "loss": 40.0 / (done + 1),
        "loss_per_nonpadding_target_token": 4.0 / (done + 1),
        "accuracy": 1.0 - 1.0 / (done + 2),
        "learning_rate": 0.3,
        "timing/steps_per_second": 5.0 + done % 3,
    }


def _row(i, text):
    return {
        "id": f"validation/{i}",
        "input": {"inputs_pretokenized": f"{text} {i}", "targets_pretokenized": LABELS[i % 2]},
        "target": i % 2,
        "prediction": LABELS[i % 2 if i % 3 else 1 - i % 2],
        "aux_scores": -0.1 * i,
    }


def _summary(task):
    best = {"best": {"step": STEPS[-1], "value": 70.0}, "best_is": "highest", "watched": True}
    return {
        "status": "finished",
        "first_step": STEPS[0],
        "step": STEPS[-1],
        "last_step": STEPS[-1],
        "examples": 160,
        "target_tokens": 320,
        "metrics": {f"inference_eval/{task}/accuracy": best},
        "base": {"path": "somewhere/base", "hash": "0" * 64},
        "warnings": ["A sentence that a person should read."],
        "timing": {"processes": 2, "seconds": {"train": 4.0, "compile": 7.5, "other": 0.0}},
    }


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
