import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints.methods import attach, fitted
from prompt_tuning.checkpoints.numpy_file import load_numpy, save_numpy_file
from prompt_tuning.checkpoints.peft import looks_like_peft, open_peft, save_peft
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.decoding import greedy
from prompt_tuning.errors import CheckpointError, ConfigError
from tests.model.test_t5_hugging_face import CASES, CONFIGS, read_batch, read_model
from tests.reference_models import GOLDEN, QUICKLY, forward, read

FOLDER = GOLDEN / "peft"
SINGLE = [
    "prompt_tuning",
    "prompt_tuning_sub1",
    "prompt_tuning_vocab",
    "p_tuning",
    "p_tuning_lstm",
    "prefix_tuning",
    "prefix_tuning_proj",
    "ia3",
]
MULTITASK = ["multitask_prompt_tuning_sub1", "multitask_prompt_tuning"]
BASE = "t5v11_a"
both = pytest.mark.filterwarnings("ignore:.+PEFT trains this adapter with vectors in front")


@functools.cache
def base():
    return read_model(read(f"hf/{BASE}.npz"), CONFIGS[BASE])


@functools.cache
def batch():
    return read_batch(read(f"hf/{BASE}.npz"))


# What the adapters do.


def outputs(name, task=None):
    """Returns the encoder's outputs and the logits of all cases."""
    model = attach(base(), open_peft(FOLDER / name, task=task))
    hidden, logits = forward(model, batch())
    return np.asarray(hidden), np.asarray(logits)


def by_case(arrays):
    """Yields each case with its rows of the batch, its masks and its labels."""
    row = 0
    for case in CASES:
        labels, mask = arrays[f"{case}/labels"], arrays[f"{case}/attention_mask"]
        yield case, slice(row, row := row + len(labels)), mask, labels


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=QUICKLY)
def generate(graph, state, inputs, length):
    return greedy(nnx.merge(graph, state), inputs, length=length)


@both
@pytest.mark.parametrize("name", [*SINGLE, *MULTITASK])
def test_an_adapter_does_what_it_does_in_peft(name):
    recorded, inputs = read(f"peft/{name}.npz"), read(f"hf/{BASE}.npz")
    tasks = [None] if name in SINGLE else [0, 1, 2]
    compared = 0
    for task in tasks:
        hidden, logits = outputs(name, task)
        for case, rows, mask, labels in by_case(inputs):
            own = recorded.get(f"{case}/task_ids", np.full(len(labels), task)) == task
            if task is None:
                own = np.ones(len(labels), bool)
            if case == "short":
                length = recorded["short/encoder_last_hidden_state"].shape[1]
                added = np.ones((len(mask), length - mask.shape[1]), mask.dtype)
                real = (np.concatenate([added, mask], axis=1) != 0) & own[:, None]
                expected = recorded["short/encoder_last_hidden_state"][real]
                np.testing.assert_allclose(hidden[rows, :length][real], expected, atol=1e-5)
                compared += real.any(axis=1).sum()
            if f"{case}/label_logprobs" not in recorded:
                continue  # What PEFT trains this adapter with is not what it generates with.
            found = logits[rows, : labels.shape[1]]
            if case == "short":
                # All labels of real positions, of all rows in turn.
                expected = np.zeros_like(found)
                expected[labels >= 0] = recorded["short/logits"]
                real = (labels >= 0) & own[:, None]
                np.testing.assert_allclose(found[real], expected[real], atol=5e-5)
            real = (labels >= 0) & own[:, None]
            found = np.asarray(jax.nn.log_softmax(found[real].astype(np.float32)))
            found = np.take_along_axis(found, labels[real][:, None], axis=1)[:, 0]
            expected = recorded[f"{case}/label_logprobs"][real]
            np.testing.assert_allclose(found, expected, atol=5e-5, err_msg=case)
    assert compared == 4


@both
@pytest.mark.parametrize("name", [*SINGLE, *MULTITASK])
def test_an_adapter_generates_what_it_generates_in_peft(name):
    recorded, inputs = read(f"peft/{name}.npz"), read(f"hf/{BASE}.npz")
    tokens = jnp.asarray(inputs["short/input_ids"] * inputs["short/attention_mask"])
    expected = recorded["greedy"][:, 1:]
    tasks = recorded.get("short/task_ids", [None] * 4)
    for task in set(tasks):
        file = open_peft(FOLDER / name, task=None if task is None else int(task))
        found = generate(*nnx.split(attach(base(), file)), tokens, expected.shape[1])
        own = [one == task for one in tasks]
        np.testing.assert_array_equal(np.asarray(found)[own], expected[own])


# What is read.


def test_rows_that_peft_never_uses_are_left_out():
    file = open_peft(FOLDER / "prompt_tuning")
    stored = safetensors.numpy.load_file(FOLDER / "prompt_tuning/adapter_model.safetensors")
    assert stored["prompt_embeddings"].shape == (10, 32)
    np.testing.assert_array_equal(file.vectors, stored["prompt_embeddings"][:5])
    assert file.details == {
        "peft_type": "PROMPT_TUNING",
        "peft_version": "0.21.2",
        "unused_rows": 5,
    }
    assert (file.base, file.base_name, file.step) == (None, BASE, None)


def test_a_prompt_trained_with_the_decoders_prompt_warns():
    with pytest.warns(UserWarning, match=r"PEFT trains this adapter with vectors in front of the"):
        file = open_peft(FOLDER / "multitask_prompt_tuning", task=2)
    assert "leaves them out when it generates" in file.details["note"]
    assert file.details["task_id"] == 2


@pytest.mark.parametrize(("task", "asked"), [(None, "none was chosen"), (3, "3 was asked for")])
def test_a_task_has_to_be_chosen_among_those_there_are(task, asked):
    with pytest.raises(ConfigError) as error:
        open_peft(FOLDER / "multitask_prompt_tuning_sub1", task=task)
    assert str(error.value) == (
        f"{FOLDER}/multitask_prompt_tuning_sub1 holds the prompts of 3 tasks, 0 to 2, but {asked}."
    )


def test_where_there_is_one_prompt_no_task_is_chosen():
    with pytest.raises(ConfigError, match=r"^Task 0 was asked for, but .+ holds a single prompt"):
        open_peft(FOLDER / "prompt_tuning", task=0)


def prefix_folder(path, layers, **changes):
    """Writes a prefix whose entry e is the number e everywhere, as PEFT would."""
    entries = np.arange(2 * layers, dtype=np.float32)[None, :, None]
    tensor = np.broadcast_to(entries, (3, 2 * layers, 8)).reshape(3, -1)
    settings = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "SEQ_2_SEQ_LM",
        "num_virtual_tokens": 3,
        "num_transformer_submodules": 2,
        "num_layers": layers,
        "num_attention_heads": 2,
        "token_dim": 8,
    }
    return folder(path, settings | changes, {"prompt_embeddings": np.ascontiguousarray(tensor)})


def folder(path, settings, tensors):
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(settings))
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
    return path


@pytest.mark.parametrize(
    ("layers", "keys"),
    [(1, [0]), (2, [0, 0]), (3, [0, 4, 2]), (4, [0, 4, 0, 4]), (6, [0, 4, 8, 0, 4, 8])],
)
def test_each_layer_gets_the_entries_of_a_prefix_that_peft_gives_it(tmp_path, layers, keys):
    arrays = open_peft(prefix_folder(tmp_path, layers)).arrays
    assert arrays["decoder/prefix/keys"].shape == (layers, 3, 2, 4)
    assert [int(array[0, 0, 0]) for array in arrays["decoder/prefix/keys"]] == keys
    assert [int(array[2, 1, 3]) - 1 for array in arrays["decoder/prefix/values"]] == keys


def ia3_folder(path, *, drop=(), rename=(), **changes):
    """Changes the recorded IA3."""
    settings = json.loads((FOLDER / "ia3/adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(FOLDER / "ia3/adapter_model.safetensors")
    for name in list(tensors):
        if any(one in name for one in drop):
            del tensors[name]
    for old, new in rename:
        for name in list(tensors):
            if old in name:
                array = tensors.pop(name)
                tensors[name.replace(old, new)] = array.T.copy() if new == "wi_1" else array
    return folder(path, settings | changes, tensors)


def test_scales_of_an_mt5_are_those_of_a_t5(tmp_path):
    path = ia3_folder(
        tmp_path,
        rename=[("wo", "wi_1")],
        target_modules=["wi_1", "v", "k"],
        feedforward_modules=[],
    )
    expected = open_peft(FOLDER / "ia3").arrays
    found = open_peft(path).arrays
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_scales_of_some_projections_leave_the_others_at_one(tmp_path):
    path = ia3_folder(tmp_path, drop=[".k.", ".wo."], target_modules=["v"], feedforward_modules=[])
    found = fitted(open_peft(path), CONFIGS[BASE]).arrays
    expected = fitted(open_peft(FOLDER / "ia3"), CONFIGS[BASE]).arrays
    for name, array in expected.items():
        same = array if "v_conv" in name else np.ones_like(array)
        np.testing.assert_array_equal(found[name], same)


# What is refused.

GOOD = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "SEQ_2_SEQ_LM",
    "num_virtual_tokens": 5,
    "num_transformer_submodules": 1,
}
VECTORS = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
EMBEDDINGS = {"prompt_embeddings": VECTORS}


def test_the_smallest_configuration_is_enough(tmp_path):
    file = open_peft(folder(tmp_path, GOOD, EMBEDDINGS))
    np.testing.assert_array_equal(file.vectors, VECTORS)
    assert file.base_name is None


def test_settings_of_newer_versions_are_harmless_while_they_are_off(tmp_path):
    new = {"new_text": "", "new_switch": False, "new_thing": None, "new_list": [], "new": {}}
    open_peft(folder(tmp_path, GOOD | new, EMBEDDINGS))


MULTI = GOOD | {"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 1, "num_ranks": 2}
PREFIX = GOOD | {"peft_type": "PREFIX_TUNING", "num_transformer_submodules": 2}
HUGE = 10**15
REFUSED = {
    "LoRA": (GOOD | {"peft_type": "LORA"}, EMBEDDINGS, "adapter of type 'LORA'. Those that can be"),
    "a misspelt type": (GOOD | {"peft_type": "PROMT_TUNING"}, EMBEDDINGS, "mean 'PROMPT_TUNING'"),
    "no type": ({}, EMBEDDINGS, "adapter of type 'None'"),
    "a type that is no text": (GOOD | {"peft_type": ["IA3"]}, EMBEDDINGS, "adapter of type"),
    "another task": (GOOD | {"task_type": "CAUSAL_LM"}, EMBEDDINGS, "'CAUSAL_LM', expected 'SEQ"),
    "no task": (GOOD | {"task_type": None}, EMBEDDINGS, "task_type in"),
    "weights of the model": (GOOD | {"modules_to_save": ["lm_head"]}, EMBEDDINGS, "replaces parts"),
    "a setting that is not known": (
        GOOD | {"num_virtual_tokenz": 7},
        EMBEDDINGS,
        "Did you mean 'num_virtual_tokens'?",
    ),
    "no length": (GOOD | {"num_virtual_tokens": None}, EMBEDDINGS, "num_virtual_tokens in"),
    "a length of truth": (GOOD | {"num_virtual_tokens": True}, EMBEDDINGS, "whole number"),
    "a negative length": (GOOD | {"num_virtual_tokens": -5}, EMBEDDINGS, "whole number"),
    "a huge length": (GOOD | {"num_virtual_tokens": HUGE}, EMBEDDINGS, "whole number"),
    "another length": (GOOD | {"num_virtual_tokens": 4}, EMBEDDINGS, r"expected (4, width)"),
    "three stacks": (GOOD | {"num_transformer_submodules": 3}, EMBEDDINGS, "a T5 has 2"),
    "another width": (GOOD | {"token_dim": 16}, EMBEDDINGS, "expected (5, 16)"),
    "no tensors": (GOOD, {}, "missing 'prompt_embeddings'"),
    "a stranger": (GOOD, EMBEDDINGS | {"lm_head": VECTORS}, "left over 'lm_head'"),
    "a misspelt tensor": (
        GOOD,
        {"prompt_embedding": VECTORS},
        "missing 'prompt_embeddings'. Did you mean 'prompt_embedding'?",
    ),
    "whole numbers": (GOOD, {"prompt_embeddings": np.ones((5, 32), np.int64)}, "holds int64"),
    "one dimension": (GOOD, {"prompt_embeddings": VECTORS.reshape(-1)}, "expected (5, width)"),
    "tasks without their factors": (MULTI, EMBEDDINGS, "missing 'prefix_task_cols'"),
    "factors of other ranks": (
        MULTI,
        EMBEDDINGS
        | {
            "prefix_task_cols": np.ones((1, 5, 3), np.float32),
            "prefix_task_rows": np.ones((1, 3, 32), np.float32),
        },
        "expected (1, 5, 2)",
    ),
    "a prefix of one stack": (
        PREFIX | {"num_transformer_submodules": 1},
        EMBEDDINGS,
        "PEFT's own for a T5 has 2",
    ),
    "a prefix without layers": (PREFIX, EMBEDDINGS, "num_layers in"),
    "a prefix of another size": (
        PREFIX | {"num_layers": HUGE // 10**7, "num_attention_heads": 4, "token_dim": 32},
        EMBEDDINGS,
        "expected (5, 6400000000)",
    ),
    "heads that do not divide": (
        PREFIX | {"num_layers": 1, "num_attention_heads": 3, "token_dim": 16},
        EMBEDDINGS,
        "which do not divide",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_with_the_reason(tmp_path, case):
    settings, tensors, reason = REFUSED[case]
    with pytest.raises(CheckpointError) as error:
        open_peft(folder(tmp_path, settings, tensors))
    assert str(tmp_path) in str(error.value)
    assert reason in str(error.value)


WRONG_SCALES = {
    "no scales": ({"drop": [".k.", ".v.", ".wo."]}, "is IA3 without any scales"),
    "scales of queries": ({"rename": [(".k.", ".q.")]}, "q.ia3_l', which is none of the scales"),
    "scales of wi_0": ({"rename": [(".wo.", ".wi_0.")]}, "wi_0.ia3_l', which is none of"),
    "another model": ({"rename": [("SelfAttention", "Attention")]}, "which is none of the scales"),
    "a layer in the wrong place": ({"rename": [("layer.0", "layer.2")]}, "which is none of the"),
    "a missing layer": ({"drop": ["encoder.block.0"]}, "Layers [0] of"),
    "a far layer": ({"rename": [("block.1.", "block.9999.")]}, "are missing"),
    "a layer beyond counting": (
        {"rename": [("block.1.", f"block.{'9' * 5000}.")]},
        "which is none of the scales",
    ),
    "targets that leave one out": ({"target_modules": ["k", "v"]}, "not among target_modules"),
    "a pattern": ({"target_modules": ".*(k|v)$"}, "a pattern is not followed here"),
    "inputs of keys": ({"feedforward_modules": ["wo", "k"]}, "scales the input of 'k'"),
    "outputs of wo": ({"feedforward_modules": []}, "scales the output of 'wo'"),
    "modules that are left out": ({"exclude_modules": ["wo"]}, "or leaves some out"),
}


@pytest.mark.parametrize("case", WRONG_SCALES)
def test_scales_that_we_do_not_have_are_refused_with_the_reason(tmp_path, case):
    changes, reason = WRONG_SCALES[case]
    with pytest.raises(CheckpointError) as error:
        open_peft(ia3_folder(tmp_path, **changes))
    assert reason in str(error.value)
    assert len(str(error.value)) < 1000


def test_scales_of_another_shape_are_refused(tmp_path):
    path = ia3_folder(tmp_path)
    tensors = safetensors.numpy.load_file(path / "adapter_model.safetensors")
    name = next(name for name in tensors if ".k." in name)
    tensors[name] = tensors[name].T.copy()
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"has shape \(1, 32\), expected \(features, 1\)"):
        open_peft(path)


def test_an_mlp_that_is_scaled_twice_is_refused(tmp_path):
    path = ia3_folder(tmp_path, target_modules=["k", "v", "wo", "wi_1"])
    tensors = safetensors.numpy.load_file(path / "adapter_model.safetensors")
    name = next(name for name in tensors if ".wo." in name)
    tensors[name.replace("wo", "wi_1")] = tensors[name].T.copy()
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"in two places \(wo and wi_1\)"):
        open_peft(path)


def test_an_incomplete_adapter_says_what_is_missing(tmp_path):
    assert not looks_like_peft(epath.Path(tmp_path))
    with pytest.raises(CheckpointError, match=r"^There is no file at .+/adapter_config\.json"):
        open_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(GOOD))
    assert looks_like_peft(epath.Path(tmp_path))
    with pytest.raises(CheckpointError, match=r"none of adapter_model\.safetensors, adapter_model"):
        open_peft(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"a":' * 100_000])
def test_a_configuration_that_is_not_json_is_refused(tmp_path, content):
    folder(tmp_path, GOOD, EMBEDDINGS)
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        open_peft(tmp_path)


def test_an_adapter_that_is_cut_off_anywhere_is_refused(tmp_path):
    path = folder(tmp_path, GOOD, EMBEDDINGS) / "adapter_model.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 29):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_peft(tmp_path)


# What is written.


def test_a_prompt_is_written_as_peft_reads_it(tmp_path):
    file = PromptFile.of(VECTORS, step=7, base="ab" * 32, base_name="google/t5-base-lm-adapt")
    save_peft(file, tmp_path / "adapter", config=CONFIGS[BASE])
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "prompt_card.json",
    }
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text()) == {
        "auto_mapping": None,
        "base_model_name_or_path": "google/t5-base-lm-adapt",
        "inference_mode": True,
        "num_attention_heads": 4,
        "num_layers": 2,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": 5,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": "SEQ_2_SEQ_LM",
        "token_dim": 32,
        "tokenizer_name_or_path": None,
    }
    with safetensors.safe_open(
        tmp_path / "adapter/adapter_model.safetensors", framework="numpy"
    ) as reader:
        assert reader.metadata() == {"format": "pt"}
        assert reader.keys() == ["prompt_embeddings"]
        np.testing.assert_array_equal(reader.get_tensor("prompt_embeddings"), VECTORS)


def test_the_card_says_where_the_prompt_belongs(tmp_path):
    file = PromptFile.of(
        VECTORS,
        step=7,
        base="ab" * 32,
        task="glue_sst2",
        metrics={"accuracy": 95.07},
        config="prompts.Prompt.length = 5\n",
        details={"seed": 1},
    )
    save_peft(file, tmp_path / "adapter", base_name='a "base"\n---')
    card = (tmp_path / "adapter/README.md").read_text()
    front = card.split("---\n")[1].splitlines()
    assert front == [
        'library_name: "peft"',
        'tags: ["prompt-tuning", "method:prompt"]',
        'base_model: "a \\"base\\"\\n---"',
    ]
    for line in ("- Base hash: abab", "- Task: glue_sst2", "- Global step: 7", "- Metric accuracy"):
        assert f"\n{line}" in card
    assert json.loads((tmp_path / "adapter/prompt_card.json").read_text()) == {
        "base": "ab" * 32,
        "base_name": 'a "base"\n---',
        "config": "prompts.Prompt.length = 5\n",
        "details": {"seed": 1},
        "length": 5,
        "method": "prompt",
        "metrics": {"accuracy": 95.07},
        "step": 7,
        "task": "glue_sst2",
    }


def test_nothing_is_known_of_a_bare_prompt_and_the_card_says_so(tmp_path):
    save_peft(PromptFile.of(VECTORS), tmp_path / "adapter")
    card = (tmp_path / "adapter/README.md").read_text()
    assert "Nothing else is known about it." in card
    assert 'from_pretrained("BASE_MODEL")' in card
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None
    assert "num_layers" not in settings


def test_a_prompt_survives_all_its_formats_bit_by_bit(tmp_path):
    np.save(tmp_path / "first.npy", VECTORS)
    PromptFile.of(load_numpy(tmp_path / "first.npy")).save(tmp_path / "prompt.safetensors")
    save_peft(PromptFile.load(tmp_path / "prompt.safetensors"), tmp_path / "adapter")
    save_numpy_file(open_peft(tmp_path / "adapter"), epath.Path(tmp_path / "last.npy"))
    assert (tmp_path / "last.npy").read_bytes() == (tmp_path / "first.npy").read_bytes()


def test_scales_come_back_as_they_went(tmp_path):
    file = fitted(open_peft(FOLDER / "ia3"), CONFIGS[BASE])
    save_peft(file, tmp_path / "adapter", config=CONFIGS[BASE])
    back = fitted(open_peft(tmp_path / "adapter"), CONFIGS[BASE])
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
    ours, theirs = (
        safetensors.numpy.load_file(path / "adapter_model.safetensors")
        for path in (tmp_path / "adapter", FOLDER / "ia3")
    )
    assert {name: array.shape for name, array in ours.items()} == {
        name: array.shape for name, array in theirs.items()
    }
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["target_modules"] == ["k", "v", "wo"]
    assert settings["feedforward_modules"] == ["wo"]


def prefix_of(*layers):
    """A prefix with one number in each layer."""
    keys = np.stack([np.full((3, 2, 4), number, np.float32) for number in layers])
    return PromptFile(arrays={"decoder/prefix/keys": keys, "decoder/prefix/values": -keys})


@pytest.mark.parametrize("layers", [(1,), (1, 2, 3), (5, 4, 3, 2, 1), (1, 1), (1, 2, 1, 2)])
def test_a_prefix_that_peft_can_have_comes_back_as_it_went(tmp_path, layers):
    file = prefix_of(*layers)
    save_peft(file, tmp_path / "adapter")
    back = open_peft(tmp_path / "adapter")
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)


def test_a_prefix_that_peft_cannot_have_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(CheckpointError) as error:
        save_peft(prefix_of(1, 2), tmp_path / "adapter")
    assert str(error.value) == (
        "A prefix of 2 layers cannot be written for PEFT: its PREFIX_TUNING gives the layers l and "
        "l + L / 2 the same keys and values when their number L is even, and here they differ. "
        "Keep it as a prompt file."
    )
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(CheckpointError, match=r"^.+/adapter already exists"):
        save_peft(PromptFile.of(VECTORS), tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_prompt_that_is_no_prefix_is_not_exported(tmp_path):
    file = PromptFile.of(VECTORS, details={"combine": {"name": "after_bos"}})
    with pytest.raises(CheckpointError, match="PEFT puts every prompt in front of the text"):
        save_peft(file, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
