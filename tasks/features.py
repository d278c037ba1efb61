"""What a task's text becomes: seqio output features for the model's vocabulary."""

import seqio

from prompt_tuning.vocabulary import ByteVocabulary, Vocabulary


def t5_features(vocabulary: Vocabulary) -> dict[str, seqio.Feature]:
    """Returns the `inputs` and `targets` of an encoder-decoder, both closed by an end token."""
    theirs = seqio_vocabulary(vocabulary)
    return {
        # Tasks without inputs exist for language models; seqio must not refuse to register them.
        "inputs": seqio.Feature(vocabulary=theirs, add_eos=True, required=False),
        "targets": seqio.Feature(vocabulary=theirs, add_eos=True),
    }


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """Returns seqio's form of a vocabulary, with the same ids.

    TensorFlow's tokeniser may resolve a tie the other way, "xx x" for "x xx", where both have the
    same probability: so it does in 4 of the 67,349 sentences of SST-2.
    """
    if isinstance(vocabulary, ByteVocabulary):
        return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)
    return seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=vocabulary.extra_ids)
