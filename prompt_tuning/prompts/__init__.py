"""What is trained instead of the model: prompts and their kin, and how a prompt starts."""

from prompt_tuning.prompts.bank import Choice, PromptBank, PromptLengths, chosen
from prompt_tuning.prompts.combine import Combine, Suffix, after_bos, prefix
from prompt_tuning.prompts.ia3 import Scale
from prompt_tuning.prompts.initializers import (
    Initializer,
    from_array,
    from_class_labels,
    from_embedded_string,
    from_sampled_vocabulary,
    symmetric_uniform,
    uniform,
)
from prompt_tuning.prompts.key_value_prefix import KeyValuePrefix
from prompt_tuning.prompts.prompt import Prompt, PromptParam

__all__ = [
    "Choice",
    "Combine",
    "Initializer",
    "KeyValuePrefix",
    "Prompt",
    "PromptBank",
    "PromptLengths",
    "PromptParam",
    "Scale",
    "Suffix",
    "after_bos",
    "chosen",
    "from_array",
    "from_class_labels",
    "from_embedded_string",
    "from_sampled_vocabulary",
    "prefix",
    "symmetric_uniform",
    "uniform",
]
