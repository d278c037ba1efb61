import importlib.util
import pathlib

import pytest
import seqio

from prompt_tuning import tasks
from prompt_tuning.tasks.features import t5_features
from prompt_tuning.vocabulary import ByteVocabulary, SentencePieceVocabulary
from tests.small_vocabulary import SENTENCES


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_features_have_the_ids_of_the_vocabulary(vocabulary, extra_ids):
    for ours in (SentencePieceVocabulary(vocabulary.path, extra_ids), ByteVocabulary(extra_ids)):
        for feature in t5_features(ours).values():
            assert feature.vocabulary.vocab_size == ours.size
            for text in [*SENTENCES, "<extra_id_0> é"]:
                assert feature.vocabulary.encode_tf(text).numpy().tolist() == ours.encode(text)


def test_features_are_those_of_t5(vocabulary):
    features = t5_features(vocabulary)
    assert list(features) == ["inputs", "targets"]
    assert [feature.add_eos for feature in features.values()] == [True, True]
    assert [feature.required for feature in features.values()] == [False, True]
    assert isinstance(features["inputs"].vocabulary, seqio.SentencePieceVocabulary)


def test_tasks_under_another_name_are_refused():
    path = pathlib.Path(tasks.__file__)
    spec = importlib.util.spec_from_file_location("tasks", path)
    with pytest.raises(ImportError, match=r"^Import `prompt_tuning\.tasks`, not 'tasks'\.$"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
