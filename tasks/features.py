"""What a task's text becomes: seqio output features for the model's vocabulary."""

import seqio

from prompt_tuning.data.seqio_tasks import ModelVocabulary, seqio_vocabulary
from prompt_tuning.vocabulary import Vocabulary

# The prefix of a task's name tells for which family of models its text is tokenised.
FAMILIES = {"": "t5", "mt5_": "mt5", "byt5_": "byt5"}


def t5_features(vocabulary: Vocabulary) -> dict[str, seqio.Feature]:
    """Returns the `inputs` and `targets` of an encoder-decoder, both closed by an end token."""
    return _features(seqio_vocabulary(vocabulary))


def model_features(prefix: str = "") -> dict[str, seqio.Feature]:
    """Returns the same for the vocabulary of whichever model of a family learns the task.

    Args:
        prefix: of the task's name: "" for T5, "mt5_" or "byt5_".
    """
    return _features(ModelVocabulary(FAMILIES[prefix]))


def _features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    return {
        # Tasks without inputs exist for language models; seqio must not refuse to register them.
        "inputs": seqio.Feature(vocabulary=vocabulary, add_eos=True, required=False),
        "targets": seqio.Feature(vocabulary=vocabulary, add_eos=True),
    }
