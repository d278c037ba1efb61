"""The original's modules of tasks, and which of ours register the same names."""

_TASKS = "prompt_tuning.tasks"

OURS = {
    "prompt_tuning.data.glue": (f"{_TASKS}.glue",),
    "prompt_tuning.data.super_glue": (f"{_TASKS}.super_glue",),
    "prompt_tuning.data.glue_transfer": (f"{_TASKS}.glue_transfer",),
    "prompt_tuning.data.qa": (f"{_TASKS}.qa",),
    "prompt_tuning.data.summarization": (f"{_TASKS}.summarization",),
    "prompt_tuning.data.c4": (f"{_TASKS}.c4",),
    "prompt_tuning.data.tasks": tuple(
        f"{_TASKS}.{name}"
        for name in ("glue", "super_glue", "glue_transfer", "qa", "summarization", "c4")
    ),
    "prompt_tuning.extended.perceptron.data.tasks": (f"{_TASKS}.perceptron",),
    **{
        f"prompt_tuning.spot.data.{name}": (f"{_TASKS}.spot",)
        for name in ("tasks", "glue", "mrqa", "nli", "summarization")
    },
    **{
        f"prompt_tuning.recycling.data.{name}": (f"{_TASKS}.recycling",)
        for name in ("c4", "imdb", "qqp", "record", "sst2")
    },
    # T5's own tasks, as far as there are ours of the same names.
    **{
        module: tuple(
            f"{_TASKS}.{name}" for name in ("glue", "super_glue", "qa", "summarization", "c4")
        )
        for module in ("t5.data.mixtures", "t5.data.tasks")
    },
}


def ours(module: str) -> tuple[str, ...]:
    """Returns the modules that stand for one of the original's; any other stands for itself.

    >>> ours("prompt_tuning.data.glue")
    ('prompt_tuning.tasks.glue',)
    """
    return OURS.get(module, (module,))
