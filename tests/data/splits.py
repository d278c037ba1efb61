"""Splits made of a few examples, as a task would give them."""

from collections import Counter

from prompt_tuning.data.task_split import ExactMatch, Lengths, TaskSplit


def split_of(task, examples, *, split="train", fingerprint=None, **lengths):
    """Returns examples as a split; `lengths` may say what `Lengths` to have."""
    counted = {
        "inputs": Lengths(counts=Counter(len(example.inputs) for example in examples)),
        "targets": Lengths(counts=Counter(len(example.targets) for example in examples)),
    }
    return TaskSplit(
        task=task,
        split=split,
        examples=examples,
        columns={},
        judge=ExactMatch(decode=str),
        lengths=counted | lengths,
        fingerprint=fingerprint or f"the fingerprint of {task}",
    )
