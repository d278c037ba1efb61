"""Our converters against seqio's, on the same examples."""

import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.batch import shift_right
from prompt_tuning.data.batches import assemble, fixed
from prompt_tuning.data.converters import CONVERTERS
from prompt_tuning.data.examples import Example
from prompt_tuning.errors import ConfigError, DataError

SEQIO = {
    "enc_dec": (seqio.EncDecFeatureConverter(pack=False), ("inputs", "targets")),
    "decoder_only": (seqio.DecoderFeatureConverter(pack=False), ("targets",)),
    "prefix_lm": (seqio.PrefixLMFeatureConverter(pack=False), ("inputs", "targets")),
    "prefix_lm_all": (
        seqio.PrefixLMFeatureConverter(pack=False, loss_on_targets_only=False),
        ("inputs", "targets"),
    ),
}
every_converter = pytest.mark.parametrize("name", CONVERTERS)

EXAMPLES = [
    ([7, 8, 5, 1], [3, 9, 1]),
    ([9, 1], [4, 1]),
    ([8, 4, 9, 3, 1], [2, 2, 2, 1]),
    ([1], [1]),
    ([], [3, 1]),  # a task without inputs
    ([5, 1], []),
    ([], []),
    ([7, 0, 5, 1], [3, 0, 1]),  # padding that is not at the end
]


def example(inputs, targets):
    return Example(np.array(inputs, np.int32), np.array(targets, np.int32))


def theirs(converter, examples, lengths):
    """Returns what seqio makes of examples, one row for each."""

    def generate():
        for inputs, targets in examples:
            yield {"inputs": inputs, "targets": targets}

    spec = tf.TensorSpec([None], tf.int32)
    dataset = tf.data.Dataset.from_generator(
        generate, output_signature={"inputs": spec, "targets": spec}
    )
    rows = list(converter(dataset, lengths).as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_every_converter_has_its_counterpart():
    assert list(CONVERTERS) == list(SEQIO)


@every_converter
@pytest.mark.parametrize("sizes", [(5, 4), (6, 9), (64, 8)])
def test_features_are_those_of_seqio(name, sizes):
    converter, features = SEQIO[name]
    lengths = {
        feature: n
        for feature, n in zip(("inputs", "targets"), sizes, strict=True)
        if feature in features
    }
    ours = CONVERTERS[name]([example(*one) for one in EXAMPLES], lengths)
    expected = theirs(converter, EXAMPLES, lengths)
    assert set(ours) == set(expected)
    for feature, values in expected.items():
        assert (ours[feature].dtype, ours[feature].tolist()) == (values.dtype, values.tolist())


@pytest.mark.parametrize(
    ("name", "feature"), [(name, one) for name, (_, features) in SEQIO.items() for one in features]
)
def test_what_is_too_long_is_refused_as_by_seqio(name, feature):
    converter, features = SEQIO[name]
    lengths = {one: 3 if one == feature else 9 for one in features}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"Feature .*{feature}.* has length"):
        theirs(converter, EXAMPLES, lengths)
    with pytest.raises(DataError, match=f"^An example has 4 {feature} tokens, but 3 were asked"):
        CONVERTERS[name]([example(*one) for one in EXAMPLES], lengths)


@every_converter
@pytest.mark.parametrize("lengths", [{}, {"targets": 4, "encoder": 5}])
def test_lengths_of_other_features_are_refused_as_by_seqio(name, lengths):
    converter, features = SEQIO[name]
    with pytest.raises(ValueError, match="task_feature_lengths"):
        theirs(converter, EXAMPLES, lengths)
    with pytest.raises(ConfigError, match=f"takes those of: {', '.join(features)}"):
        CONVERTERS[name]([example(*one) for one in EXAMPLES], lengths)


def test_a_batch_holds_what_an_encoder_and_decoder_are_fed():
    """`Batch` with the model's `shift_right` is EncDec, so training needs no converter."""
    examples = [example(*one) for one in EXAMPLES]
    lengths = {"inputs": 7, "targets": 5}
    fed = theirs(SEQIO["enc_dec"][0], EXAMPLES, lengths)
    batch = assemble(examples, inputs=fixed(7), targets=fixed(5))
    assert batch.inputs.tolist() == fed["encoder_input_tokens"].tolist()
    assert batch.targets.tolist() == fed["decoder_target_tokens"].tolist()
    assert batch.weights.tolist() == fed["decoder_loss_weights"].tolist()
    assert shift_right(jnp.asarray(batch.targets)).tolist() == fed["decoder_input_tokens"].tolist()
