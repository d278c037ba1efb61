"""Trainable prompts: the module, where it goes in the text, and how it starts."""

from prompt_tuning.prompts.combine import Combine, Suffix, after_bos, prefix
from prompt_tuning.prompts.initializers import (
    Initializer,
    from_array,
    from_class_labels,
    from_embedded_string,
    from_sampled_vocabulary,
    symmetric_uniform,
    uniform,
)
from prompt_tuning.prompts.prompt import Prompt, PromptParam

__all__ = [
    "Combine",
    "Initializer",
    "Prompt",
    "PromptParam",
    "Suffix",
    "after_bos",
    "from_array",
    "from_class_labels",
    "from_embedded_string",
    "from_sampled_vocabulary",
    "prefix",
    "symmetric_uniform",
    "uniform",
]
