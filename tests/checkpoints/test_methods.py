import dataclasses
import re

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from prompt_tuning.batch import PAD
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.methods import attach, attach_bank, fitted, of_t5x, to_t5x_names
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import BaseParam
from prompt_tuning.model.parameters import fingerprint, named
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.prompts import PromptBank, PromptParam, Suffix, prefix
from tests.reference_models import read
from tests.small_models import BATCH, MODELS, T5_1_0, T5_1_1, compiled, small_model

METHODS = [name for name in MODELS if MODELS[name][1]]
every_method = pytest.mark.parametrize("name", METHODS)


def learned(model):
    _, state, _ = nnx.split(model, PromptParam, ...)
    return {name: np.asarray(array) for name, array in named(state).items()}


def file_of(name):
    return PromptFile(arrays=learned(small_model(name)), step=7)


def raises(message):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


@every_method
def test_a_file_puts_its_method_on_a_model(name):
    expected = small_model(name)
    base = small_model("T5 1.1", **dataclasses.asdict(expected.config))
    base.hold(Partitioning().placement(1).layout)
    combine = Suffix() if "suffix" in name else None
    options = {} if combine is None else {"combine": combine}
    found = attach(base, file_of(name), **options)
    assert fingerprint(learned(found)) == fingerprint(learned(expected))
    assert found.layout == base.layout
    np.testing.assert_array_equal(
        compiled(found, "__call__", BATCH), compiled(expected, "__call__", BATCH)
    )


@every_method
def test_the_base_is_shared_and_the_model_that_is_given_stays_as_it_is(name):
    base = small_model("T5 1.0 with a suffix" if "1.0" in name else "T5 1.1")
    before = learned(base)
    found = attach(base, file_of(name))
    ours, theirs = (named(nnx.state(model, BaseParam)) for model in (base, found))
    assert ours.keys() == theirs.keys()
    assert all(theirs[key] is array for key, array in ours.items())
    assert fingerprint(learned(base)) == fingerprint(before)


@every_method
def test_a_method_takes_the_place_of_the_one_before(name):
    found = attach(small_model("T5 1.1 with a prompt"), file_of(name))
    assert learned(found).keys() == file_of(name).arrays.keys()


@every_method
def test_shapes_are_enough_of_a_model(name):
    shapes = nnx.eval_shape(lambda: small_model("T5 1.1"))
    found = attach(shapes, file_of(name))
    base = jax.tree.leaves(nnx.state(found, BaseParam))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in base)
    assert fingerprint(learned(found)) == fingerprint(file_of(name).arrays)


def test_a_prompt_of_another_width_is_refused():
    message = (
        "The prompt was trained on a model of another size: 'encoder/prompt/prompt' has shape "
        "(3, 8), this model needs (3, 16). Choose the one that was trained over this base, or the "
        "base that it was trained over."
    )
    with raises(message):
        attach(small_model("T5 1.1"), PromptFile.of(np.ones((3, 8), np.float32)))


@pytest.mark.parametrize("name", ["T5 1.1 with a prefix", "T5 1.1 with scales"])
def test_a_method_of_another_depth_is_refused(name):
    deeper = small_model("T5 1.1", decoder_layers=4)
    with pytest.raises(CheckpointError, match=r"trained on a model of another size: 'decoder/.+"):
        attach(deeper, file_of(name))


def test_a_prompt_may_have_any_length():
    file = PromptFile.of(np.ones((7, 16), np.float32))
    assert learned(attach(small_model(), file))["encoder/prompt/prompt"].shape == (7, 16)


# Scales of PEFT.

KEYS = "decoder/layers/self_attention/k_conv/ia3_scaling"


def test_scales_that_a_file_lacks_are_one():
    arrays = file_of("T5 1.1 with scales").arrays
    found = fitted(PromptFile(arrays={KEYS: arrays[KEYS]}), T5_1_1).arrays
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        expected = arrays[name] if name == KEYS else np.ones_like(arrays[name])
        np.testing.assert_array_equal(array, expected)


def test_scales_with_heads_joined_are_parted():
    arrays = file_of("T5 1.1 with scales").arrays
    joined = {name: array.reshape(len(array), -1) for name, array in arrays.items()}
    found = fitted(PromptFile(arrays=joined), T5_1_1).arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_scales_of_what_a_model_does_not_have_are_refused():
    arrays = {"decoder/layers/attention/k_conv/ia3_scaling": np.ones((3, 2, 6), np.float32)}
    with pytest.raises(CheckpointError) as error:
        attach(small_model("T5 1.1"), PromptFile(arrays=arrays))
    assert str(error.value) == (
        "The names in the prompt file do not match the model: 0 missing, 1 left over.\n"
        "  left over 'decoder/layers/attention/k_conv/ia3_scaling'."
    )


# Checkpoints of the original.


def contents(step=50):
    where = epath.Path("some/checkpoint_50")
    return Contents(kind="t5x", where=where, config=T5_1_0, tensors={}, step=step)


def test_the_prompt_of_an_original_checkpoint_is_ours():
    vectors = np.ones((3, 16), np.float32)
    file = of_t5x({"encoder/prompt/prompt/prompt": vectors}, contents())
    np.testing.assert_array_equal(file.vectors, vectors)
    assert (file.step, file.base, file.base_name) == (50, None, "some/checkpoint_50")
    [(name, stored)] = to_t5x_names(file).items()
    assert name == "encoder/prompt/prompt/prompt"
    np.testing.assert_array_equal(stored.load(), vectors)


def test_the_scales_of_an_original_checkpoint_are_ours_and_back():
    recorded = {
        name.removeprefix("params/"): array
        for name, array in read("A/ia3.npz").items()
        if name.startswith("params/")
    }
    file = of_t5x(recorded, contents())
    assert file.method == "ia3"
    assert file.arrays["encoder/layers/attention/k_conv/ia3_scaling"].shape == (2, 4, 8)
    back = to_t5x_names(file)
    assert back.keys() == recorded.keys()
    for name, array in recorded.items():
        np.testing.assert_array_equal(back[name].load(), array)


def test_a_method_that_only_the_original_has_is_named():
    arrays = {"encoder/prompt/shared_prompt": np.ones((3, 16), np.float32)}
    with pytest.raises(CheckpointError, match=r"'encoder/prompt/shared_prompt', which no method"):
        of_t5x(arrays, contents())


def test_a_prefix_has_no_place_in_an_original_checkpoint():
    with pytest.raises(
        CheckpointError, match=r"^A prefix of keys and values has no place in a t5x"
    ):
        to_t5x_names(file_of("T5 1.1 with a prefix"))


def test_joined_heads_have_no_place_in_an_original_checkpoint():
    message = (
        f"'{KEYS}' has shape (3, 12), which does not say how many heads there are. Name the base "
        "model it belongs to."
    )
    with raises(message):
        to_t5x_names(PromptFile(arrays={KEYS: np.ones((3, 12), np.float32)}))


def test_a_prompt_goes_where_its_file_says():
    place = {"name": "Suffix", "before_eos": False, "eos_id": 1}
    file = PromptFile.of(np.ones((2, 16), np.float32), details={"combine": place})
    assert attach(small_model(), file).encoder.prompt.combine == Suffix(before_eos=False)
    assert attach(small_model(), file, combine=Suffix()).encoder.prompt.combine == Suffix()


@pytest.mark.parametrize("place", [{"name": "middle"}, "prefix", None])
def test_a_place_that_is_none_of_ours_is_refused(place):
    file = PromptFile.of(np.ones((2, 32), np.float32), details={"combine": place})
    with pytest.raises(CheckpointError, match="which is none of ours"):
        attach(small_model(), file)


# Banks of prompts.


def prompt_file(length=3, *, width=16, place=None, **provenance):
    details = {} if place is None else {"combine": place}
    vectors = np.random.default_rng(length).normal(size=(length, width)).astype(np.float32)
    return PromptFile.of(vectors, details=details, **provenance)


SUFFIX = {"name": "Suffix", "before_eos": False, "eos_id": 1}


@pytest.mark.parametrize("place", [None, SUFFIX])
def test_a_bank_of_files_has_in_each_row_what_its_file_holds(place):
    files = [prompt_file(3, place=place), prompt_file(1, place=place)]
    base = small_model("T5 1.1")
    found = attach_bank(base, files)
    assert found.encoder.prompt.combine == (Suffix(before_eos=False) if place else prefix)
    found.encoder.prompt.choice.set_value(np.asarray([1, 0, 0, 1]))
    logits = compiled(found, "__call__", BATCH)
    each = [compiled(attach(base, file), "__call__", BATCH) for file in files]
    expected = np.stack([each[k][i] for i, k in enumerate([1, 0, 0, 1])])
    said = np.asarray(BATCH.targets != PAD)  # Logits at padding see hidden positions.
    np.testing.assert_allclose(logits[said], expected[said], atol=1e-5)  # Another order of sums.


def test_a_bank_takes_the_place_of_a_method_and_shares_the_base():
    base = small_model("T5 1.1 with scales")
    found = attach_bank(base, [prompt_file()])
    ours, theirs = (named(nnx.state(model, BaseParam)) for model in (base, found))
    assert ours.keys() == theirs.keys()
    assert all(theirs[key] is array for key, array in ours.items())
    assert learned(found).keys() == {"encoder/prompt/prompts"}
    assert len(learned(base)) > 1  # It still has its scales.


def test_a_bank_goes_where_it_is_told():
    found = attach_bank(small_model(), [prompt_file(place=SUFFIX), prompt_file()], combine=Suffix())
    assert isinstance(found.encoder.prompt, PromptBank)
    assert found.encoder.prompt.combine == Suffix()


def test_shapes_are_enough_of_a_model_for_a_bank():
    found = attach_bank(nnx.eval_shape(lambda: small_model("T5 1.1")), [prompt_file()])
    base = jax.tree.leaves(nnx.state(found, BaseParam))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in base)
    assert found.encoder.prompt.size == 1


# The second file, and what is said of it.
NOT_IN_ONE_BANK = {
    "another method": (
        file_of("T5 1.1 with scales"),
        "a bank holds prompts, this file ia3, among which rows cannot choose. Leave it out, and "
        "attach it by itself.",
    ),
    "another width": (
        prompt_file(width=8),
        "The prompt was trained on a model of another size: 'encoder/prompt/prompt' has shape "
        "(3, 8), this model needs (3, 16). Choose the one that was trained over this base, or the "
        "base that it was trained over.",
    ),
    "another base": (
        prompt_file(base="b" * 64),
        "this prompt was trained over the base with hash bbbbbbbbbbbb, but one.npy over "
        "aaaaaaaaaaaa. A bank has one base: make one bank for each.",
    ),
    "another place": (
        prompt_file(place=SUFFIX),
        "this prompt goes to {'name': 'Suffix', 'before_eos': False, 'eos_id': 1}, but one.npy to "
        "{'name': 'prefix'}. A bank has one place: make one bank for each, or say `combine`.",
    ),
    "a strange place": (
        prompt_file(place={"name": "middle"}),
        "The prompt file says that its prompt goes to {'name': 'middle'}, which is none of ours. "
        "Pass the function that puts it there as `combine`.",
    ),
}


@pytest.mark.parametrize("case", NOT_IN_ONE_BANK)
def test_prompts_that_cannot_be_in_one_bank_are_named(case):
    file, message = NOT_IN_ONE_BANK[case]
    files = [prompt_file(base="a" * 64), prompt_file(), file]
    with raises(f"three.npy: {message}"):
        attach_bank(small_model(), files, names=["one.npy", "two.npy", "three.npy"])
    with raises(f"Prompt 2 of the bank: {message.replace('one.npy', 'Prompt 0 of the bank')}"):
        attach_bank(small_model(), files)


def test_a_bank_of_no_files_is_refused():
    with raises("A bank of prompts needs at least one prompt file, got none."):
        attach_bank(small_model(), [])
