import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import CheckpointError, ConfigError
from prompt_tuning.prompts import (
    from_array,
    from_class_labels,
    from_embedded_string,
    from_sampled_vocabulary,
    symmetric_uniform,
    uniform,
)

# 20 tokens of width 4; row i is i, i + 0.25, i + 0.5, i + 0.75: exact in every dtype below.
TABLE = (np.arange(80, dtype=np.float32) / 4).reshape(20, 4)


class Letters:
    """Token ids of lower-case texts: a is 3, b is 4 .. and a blank is nothing."""

    def encode(self, text):
        return [ord(letter) - ord("a") + 3 for letter in text if letter != " "]


class Recorded(dict):
    """The ids that the original's vocabulary gave to each text."""

    encode = dict.__getitem__


def zeros(key, shape):
    return jnp.zeros(shape)


# Every initializer, made from an embedding table. A new one gets the laws with one line.
INITIALIZERS = {
    "uniform": lambda table: uniform(),
    "symmetric_uniform": lambda table: symmetric_uniform(),
    "from_array": lambda table: from_array(table[:5]),
    "from_sampled_vocabulary": lambda table: from_sampled_vocabulary(table),
    "from_sampled_vocabulary(10)": lambda table: from_sampled_vocabulary(table, 10),
    "from_class_labels": lambda table: from_class_labels(table, Letters(), ["ab", "c"]),
    "from_class_labels, uniform": lambda table: from_class_labels(
        table, Letters(), ["ab", "c"], uniform()
    ),
    "from_embedded_string": lambda table: from_embedded_string(table, Letters(), "ab c"),
    "from_embedded_string, uniform": lambda table: from_embedded_string(
        table, Letters(), "ab c", uniform()
    ),
}
every_initializer = pytest.mark.parametrize(
    "initializer", INITIALIZERS.values(), ids=INITIALIZERS.keys()
)
FROM_TABLE = {
    name: make
    for name, make in INITIALIZERS.items()
    if name not in ("uniform", "symmetric_uniform", "from_array")
}
every_initializer_from_a_table = pytest.mark.parametrize(
    "initializer", FROM_TABLE.values(), ids=FROM_TABLE.keys()
)
SHAPE = (5, 4)


# Laws.


@every_initializer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, np.float64, np.float16])
def test_result_is_float32_and_does_not_depend_on_the_dtype_of_the_table(initializer, dtype, key):
    result = initializer(TABLE.astype(dtype))(key, SHAPE)
    assert (result.shape, result.dtype) == (SHAPE, jnp.float32)
    assert isinstance(result, jax.Array)
    np.testing.assert_array_equal(result, initializer(TABLE)(key, SHAPE))


@every_initializer
def test_a_table_may_be_on_the_host_or_on_the_device(initializer, key):
    on_device = initializer(jnp.asarray(TABLE))(key, SHAPE)
    np.testing.assert_array_equal(on_device, initializer(TABLE)(key, SHAPE))


@every_initializer
def test_the_same_key_gives_the_same_prompt(initializer):
    first = initializer(TABLE)(jax.random.key(7), SHAPE)
    np.testing.assert_array_equal(first, initializer(TABLE)(jax.random.key(7), SHAPE))
    # Typed and raw keys hold the same bits.
    np.testing.assert_array_equal(first, initializer(TABLE)(jax.random.PRNGKey(7), SHAPE))


@every_initializer
def test_another_key_gives_another_prompt_unless_everything_is_given(initializer, request):
    first, second = (initializer(TABLE)(jax.random.key(seed), SHAPE) for seed in (7, 8))
    given = request.node.callspec.id == "from_array"
    assert np.array_equal(first, second) == given


@every_initializer
def test_tracing_changes_nothing(initializer, key):
    traced = jax.jit(initializer(TABLE), static_argnums=1)(key, SHAPE)
    np.testing.assert_array_equal(traced, initializer(TABLE)(key, SHAPE))


@every_initializer_from_a_table
def test_a_function_loads_the_table_when_a_prompt_is_made(initializer, key):
    loaded = []

    def load():
        loaded.append(True)
        return TABLE

    init = initializer(load)
    assert not loaded
    np.testing.assert_array_equal(init(key, SHAPE), initializer(TABLE)(key, SHAPE))
    assert len(loaded) == 1


@every_initializer_from_a_table
def test_a_table_of_another_width_is_refused(initializer, key):
    with pytest.raises(CheckpointError) as error:
        initializer(TABLE)(key, (5, 8))
    assert str(error.value) == (
        "The embeddings have shape (20, 4), but the prompt of this model is (5, 8). Use the "
        "embeddings of this model's own checkpoint, width 8."
    )


# Equality with the original.

KEYS = {"raw": lambda: jax.random.PRNGKey(42), "typed": lambda: jax.random.key(42)}
every_key = pytest.mark.parametrize("make_key", KEYS.values(), ids=KEYS.keys())


@pytest.fixture
def recorded(golden):
    arrays = golden("misc/prompt_init.npz")
    assert arrays["jax_threefry_partitionable"] == jax.config.jax_threefry_partitionable
    return arrays


@pytest.fixture
def recorded_table(golden):
    rows = golden("misc/prompt_init_rows.npz")
    table = np.full((rows["size"], 4), np.nan, np.float32)  # reading any other row would show
    table[rows["ids"]] = rows["rows"]
    return table


@every_key
@pytest.mark.parametrize(
    ("name", "scale"), [("uniform_scale_0p5/5x8", 0.5), ("uniform_default/5x8", 0.01)]
)
def test_uniform_equals_the_original(recorded, make_key, name, scale):
    np.testing.assert_array_equal(uniform(scale)(make_key(), (5, 8)), recorded[name])


@every_key
@pytest.mark.parametrize(
    ("name", "population_size", "length"),
    [
        ("all_p5", None, 5),
        ("pop10_p5", 10, 5),
        ("pop10_p10", 10, 10),
        ("pop_too_big_p5", 1000, 5),
    ],
)
def test_sampled_vocabulary_equals_the_original(recorded, make_key, name, population_size, length):
    init = from_sampled_vocabulary(recorded["embeddings_32x8"], population_size)
    np.testing.assert_array_equal(init(make_key(), (length, 8)), recorded[f"sample/{name}/prompt"])


def test_sampling_with_replacement_equals_the_original_and_warns(recorded):
    init = from_sampled_vocabulary(recorded["embeddings_32x8"], 10)
    with pytest.warns(UserWarning) as warned:
        result = init(jax.random.key(42), (12, 8))
    np.testing.assert_array_equal(result, recorded["sample/pop10_p12_with_replacement/prompt"])
    assert [str(warning.message) for warning in warned] == [
        "A prompt of 12 vectors is longer than the population of 10 tokens to draw them from: "
        "tokens are drawn with replacement and some vectors start equal. Raise population_size to "
        "avoid it."
    ]


@pytest.mark.parametrize("name", ["single_piece", "class_labels", "phrases"])
@pytest.mark.parametrize("fallback", ["none", "sample5000", "uniform0p5"])
def test_class_labels_equal_the_original(recorded, recorded_table, name, fallback):
    texts = recorded[f"embedded_list/{name}/texts"].tolist()
    ends = np.cumsum(recorded[f"embedded_list/{name}/num_ids"])
    ids = np.split(recorded[f"embedded_list/{name}/ids_concat"], ends[:-1])
    vocabulary = Recorded(zip(texts, (row.tolist() for row in ids), strict=True))
    fallbacks = {
        "none": uniform(0.01),
        "sample5000": from_sampled_vocabulary(recorded_table, 5000),
        "uniform0p5": uniform(0.5),
    }
    init = from_class_labels(recorded_table, vocabulary, texts, fallbacks[fallback])
    np.testing.assert_allclose(
        init(jax.random.key(42), (6, 4)),
        recorded[f"embedded_list/{name}/{fallback}/prompt_6x4"],
        rtol=1e-6,
        atol=1e-7,
    )


def test_surplus_class_labels_are_dropped_as_in_the_original_with_a_warning(
    recorded, recorded_table
):
    texts = recorded["embedded_list/more_than_prompt/texts"].tolist()
    ids = recorded["embedded_list/more_than_prompt/ids_concat"].reshape(7, 2).tolist()
    init = from_class_labels(recorded_table, Recorded(zip(texts, ids, strict=True)), texts)
    with pytest.warns(UserWarning) as warned:
        result = init(jax.random.key(42), (6, 4))
    np.testing.assert_allclose(
        result, recorded["embedded_list/more_than_prompt/none/prompt_6x4"], rtol=1e-6, atol=1e-7
    )
    assert [str(warning.message) for warning in warned] == [
        "A prompt of 6 vectors has no place for the labels ['g']: they are dropped. Set `length` "
        "to at least 7 to keep them."
    ]


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        ("short", []),
        (
            "long",
            [
                "A prompt of 6 vectors has no place for the last 11 of the 17 pieces of 'Classify "
                "this movie review based on its sentiment . Use 2 classes .': they are dropped. "
                "Set `length` to at least 17 to keep them."
            ],
        ),
    ],
)
def test_embedded_string_equals_the_original(recorded, recorded_table, recwarn, name, warnings):
    text = str(recorded[f"embedded_string/{name}/text"])
    vocabulary = Recorded({text: recorded[f"embedded_string/{name}/ids"].tolist()})
    init = from_embedded_string(recorded_table, vocabulary, text, zeros)
    np.testing.assert_array_equal(
        init(jax.random.key(42), (6, 4)), recorded[f"embedded_string/{name}/zeros/prompt_6x4"]
    )
    assert [str(warning.message) for warning in recwarn] == warnings


# What the originals do not fix.


def test_symmetric_uniform_covers_the_interval_of_the_paper(key):
    drawn = symmetric_uniform(0.5)(key, (1000, 10))
    assert -0.5 <= jnp.min(drawn) < -0.499
    assert 0.499 < jnp.max(drawn) < 0.5
    assert abs(jnp.mean(drawn)) < 0.01


def test_sampled_tokens_are_different_and_from_the_population(key):
    drawn = from_sampled_vocabulary(TABLE, 10)(key, (10, 4))
    assert sorted(drawn[:, 0].tolist()) == TABLE[:10, 0].tolist()


def test_labels_are_means_of_their_pieces_and_the_rest_is_sampled_vocabulary(key):
    result = from_class_labels(TABLE, Letters(), ["ab", "c"])(key, SHAPE)
    sampled = from_sampled_vocabulary(TABLE)(key, SHAPE)
    np.testing.assert_array_equal(result[:2], [(TABLE[3] + TABLE[4]) / 2, TABLE[5]])
    np.testing.assert_array_equal(result[2:], sampled[2:])


def test_pieces_come_one_by_one_and_the_rest_is_sampled_vocabulary(key):
    result = from_embedded_string(TABLE, Letters(), "ab c")(key, SHAPE)
    sampled = from_sampled_vocabulary(TABLE)(key, SHAPE)
    np.testing.assert_array_equal(result[:3], TABLE[[3, 4, 5]])
    np.testing.assert_array_equal(result[3:], sampled[3:])


def test_labels_may_fill_the_prompt(key):
    result = from_class_labels(TABLE, Letters(), ["a", "b"])(key, (2, 4))
    np.testing.assert_array_equal(result, TABLE[[3, 4]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_sampled_vocabulary(TABLE, 0),
            "from_sampled_vocabulary.population_size is 0, expected 1 or more, or None for the "
            "whole vocabulary.",
        ),
        (
            lambda: from_class_labels(TABLE, Letters(), "positive"),
            "from_class_labels.labels is the string 'positive', which would be read letter by "
            "letter. Give a list, such as ['positive'].",
        ),
        (
            lambda: from_class_labels(TABLE, Letters(), ["a", " "])(jax.random.key(0), SHAPE),
            "The vocabulary turns ' ' into no pieces, so it has no embedding. Remove it or choose "
            "another text.",
        ),
        (
            lambda: from_embedded_string(TABLE, Letters(), "")(jax.random.key(0), SHAPE),
            "The vocabulary turns '' into no pieces, so it has no embedding. Remove it or choose "
            "another text.",
        ),
        (
            lambda: from_class_labels(TABLE, Letters(), ["az"])(jax.random.key(0), SHAPE),
            "Piece 28 of 'az' is beyond the 20 rows of the embeddings. The vocabulary and the "
            "embeddings must belong to the same model.",
        ),
    ],
    ids=["population", "one string", "blank label", "empty text", "piece beyond the table"],
)
def test_arguments_that_cannot_be_used_are_named(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (100, 4),
            "The given prompt has shape (20, 4), but Prompt(length=100) on this model needs (100, "
            "4). Set `length` to 20.",
        ),
        (
            (20, 8),
            "The given prompt has shape (20, 4), but Prompt(length=20) on this model needs (20, "
            "8). It was trained for a model of width 4: choose the prompt of this model's size, "
            "width 8.",
        ),
    ],
    ids=["length", "width"],
)
def test_an_array_of_another_shape_is_refused_with_the_fix(key, shape, message):
    with pytest.raises(CheckpointError) as error:
        from_array(TABLE)(key, shape)
    assert str(error.value) == message
