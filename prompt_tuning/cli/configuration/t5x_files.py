"""The gin files of the original and of t5x, and which of ours stand for them.

Command lines and includes go on naming files as they did: `prompt_tuning/configs/...`,
`t5x/configs/...`. Those files configure the original's classes, so ours are read in their place
wherever one is found, and no search path is needed.
"""

import re

_SIZES = "small|base|large|xl|xxl"
_T5X = r"(?:t5x/examples/(?:t5|scalable_t5)|t5x/contrib/gpu/t5)"

# What a name looks like, and our name for it.
FILES = (
    (rf"prompt_tuning/configs/models/(t5_1_1_(?:{_SIZES}))_prompt", r"models/\1"),
    (rf"prompt_tuning/configs/models/(mt5_(?:{_SIZES}|80b|150b))_prompt", r"models/\1"),
    (r"prompt_tuning/configs/models/(t5_1_1|mt5)_prompt", r"models/\1"),
    (rf"prompt_tuning/configs/models/sizes/({_SIZES}|80b|150b)", r"models/sizes/\1"),
    (r"prompt_tuning/configs/models/decoding/(beam_search|nucleus_sampling)", r"decoding/\1"),
    (r"prompt_tuning/configs/prompts/(from_\w+)", r"prompts/\1"),
    (r"prompt_tuning/configs/runs/(prompt_(?:finetune|eval|infer))", r"runs/\1"),
    (r"t5x/(?:configs|contrib/gpu/t5/configs)/runs/(finetune|eval|infer)", r"runs/\1"),
    # Ours of that name reads text files.
    (r"t5x/(?:configs|contrib/gpu/t5/configs)/runs/pretrain", r"runs/pretrain_task"),
    (rf"{_T5X}/(t5_1_1|mt5|byt5)/({_SIZES})", r"models/\1_\2"),
    (r"t5x/(?:examples|contrib/gpu)/t5/t5_1_0/(small|base|large|3b|11b)", r"models/t5_\1"),
    (rf"flaxformer/t5x/configs/t5/models/((?:t5_1_1|mt5|byt5)_(?:{_SIZES}))", r"models/\1"),
    (r"flaxformer/t5x/configs/t5/models/(t5_(?:small|base|large|3b|11b))", r"models/\1"),
    # The folder of the gin files lies in an installed package, and beside it in a checkout.
    (r"prompt_tuning/gin/(.+)", r"\1"),
)

# Those that nothing stands for, and what to do.
NONE = (
    (
        r"(prompt_tuning|flaxformer/t5x)/configs/(.*/)?architectures/.*",
        "The architecture is part of the models/ file, and MODEL_NAME and the macros EMBED_DIM, "
        "NUM_HEADS, HEAD_DIM, MLP_DIM, NUM_ENCODER_LAYERS and NUM_DECODER_LAYERS change it.",
    ),
    (
        r"prompt_tuning/(configs/extended|extended)/.*",
        "IA3, prompts in every layer, multitask and wayward prompts are parts of the library "
        "(`prompt_tuning.prompts`), and have no configuration for `train`.",
    ),
    (
        r"prompt_tuning/configs/test/.*",
        "For a model that runs a step in milliseconds use models/ours_tiny.gin.",
    ),
    (
        r"t5x/.*/(export|export_seqio|precompile|infer_from_tfexample_file)\.gin",
        "There is no such run here; `prompt-tuning convert` writes models for other programs.",
    ),
)


def ours(name: str) -> str | None:
    """Returns which of our gin files stands for one of the original's or of t5x; None if none.

    >>> ours("prompt_tuning/configs/models/t5_1_1_xl_prompt.gin")
    'models/t5_1_1_xl.gin'
    """
    stem = re.sub(r"_(3|11)B$|/(3|11)B$", lambda found: found[0].lower(), name.removesuffix(".gin"))
    for pattern, file in FILES:
        if found := re.fullmatch(pattern, stem):
            return f"{found.expand(file)}.gin"
    return None


def advice(name: str) -> str:
    """Returns what to do about a file of the original's that nothing stands for; or nothing."""
    return next((f" {text}" for pattern, text in NONE if re.fullmatch(pattern, name)), "")
