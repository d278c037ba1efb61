"""Our prompts in PEFT, and its adapters with us: the same logits, the same answers.

Needs torch, transformers and peft, which we never import ourselves.
"""

import dataclasses
import functools

import numpy as np
import peft
import pytest
import torch
from etils import epath

from prompt_tuning.checkpoints.hugging_face import save_hugging_face
from prompt_tuning.checkpoints.methods import attach
from prompt_tuning.checkpoints.peft import open_peft, save_peft
from prompt_tuning.checkpoints.prompt_file import PromptFile
from tests.interop.test_transformers import (
    PLAIN,
    TOLERANCE,
    our_tokens,
    stored,
    their_logits,
    their_model,
    their_tokens,
)
from tests.reference_models import forward
from tests.small_models import BATCH, T5_1_1, small_model

MODELS = {
    "T5 1.1": ({"encoder_layers": 3, "decoder_layers": 3}, "t5"),
    "T5 1.0": ({"encoder_layers": 2, "decoder_layers": 2, **PLAIN}, "t5"),
    "mT5": ({"encoder_layers": 2, "decoder_layers": 2}, "mt5"),
}


@pytest.fixture(scope="module", params=MODELS)
def base(request, tmp_path_factory):
    """Our model without a method, and the folder in which transformers finds it."""
    changes, family = MODELS[request.param]
    path = tmp_path_factory.mktemp("models") / family
    model = small_model("T5 1.1", **changes)
    save_hugging_face(stored(model), model.config, None, epath.Path(path), family=family)
    return model, path


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def scales(config):
    """Returns factors around 1 for a model of this depth."""
    heads = (config.num_heads, config.head_dim)
    arrays = {
        f"encoder/layers/attention/{name}_conv/ia3_scaling": random(config.encoder_layers, *heads)
        for name in "kv"
    } | {
        f"decoder/layers/{attention}/{name}_conv/ia3_scaling": random(config.decoder_layers, *heads)
        for attention in ("self_attention", "encoder_decoder_attention")
        for name in "kv"
    }
    for stack, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        name = f"{stack}/layers/mlp/intermediate_conv/ia3_scaling"
        arrays[name] = random(layers, config.mlp_dim)
    return {name: 1 + array / 4 for name, array in arrays.items()}


def prefix(config):
    """Returns a prefix as PEFT can have it: of an even number of layers the halves are alike."""
    layers = config.decoder_layers
    whole = random(2, layers, 3, config.num_heads, config.head_dim)
    if layers % 2 == 0:
        whole[:, layers // 2 :] = whole[:, : layers // 2]
    return {"decoder/prefix/keys": whole[0], "decoder/prefix/values": whole[1]}


OURS = {
    "prompt": lambda config: {"encoder/prompt/prompt": random(3, config.embed_dim)},
    "prefix": prefix,
    "scales": scales,
}


def assert_same(ours, theirs):
    real = np.asarray(BATCH.targets) != 0
    found, expected = np.asarray(forward(ours, BATCH)[1]), their_logits(theirs)
    np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(our_tokens(ours), their_tokens(theirs))


@pytest.mark.parametrize("method", OURS)
def test_what_we_learned_does_the_same_in_peft(base, method, tmp_path):
    model, path = base
    file = PromptFile(arrays=OURS[method](model.config), base_name=str(path))
    ours = attach(model, file)
    without = forward(model, BATCH)[1]
    assert np.max(np.abs(forward(ours, BATCH)[1] - without)) > 0.1
    save_peft(file, tmp_path / "adapter", config=model.config)
    assert_same(
        ours, peft.PeftModel.from_pretrained(their_model(path), tmp_path / "adapter").eval()
    )


TOKENS = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 3}
WIDTH = {"token_dim": T5_1_1.num_heads * T5_1_1.head_dim}
THEIRS = {
    "prompt tuning": lambda: peft.PromptTuningConfig(**TOKENS),
    "p-tuning": lambda: peft.PromptEncoderConfig(**TOKENS, encoder_hidden_size=8),
    "prefix tuning": lambda: peft.PrefixTuningConfig(**TOKENS, **WIDTH),
    "prefix tuning with a network": lambda: peft.PrefixTuningConfig(
        **TOKENS, **WIDTH, prefix_projection=True, encoder_hidden_size=8
    ),
    "ia3": lambda: peft.IA3Config(task_type="SEQ_2_SEQ_LM", init_ia3_weights=False),
    "ia3 of values alone": lambda: peft.IA3Config(
        task_type="SEQ_2_SEQ_LM",
        init_ia3_weights=False,
        target_modules=["v"],
        feedforward_modules=[],
    ),
}


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_an_adapter_of_peft_does_the_same_with_us(base, method, safe, tmp_path):
    model, path = base
    torch.manual_seed(0)
    theirs = peft.get_peft_model(their_model(path), THEIRS[method]()).eval()
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    assert (tmp_path / "adapter_model.bin").exists() is not safe
    ours = attach(model, open_peft(tmp_path))
    assert np.max(np.abs(forward(ours, BATCH)[1] - forward(model, BATCH)[1])) > 1e-3
    theirs = peft.PeftModel.from_pretrained(their_model(path), tmp_path).eval()
    assert_same(ours, theirs)


@pytest.mark.parametrize("submodules", [1, 2])
def test_every_task_of_a_multitask_adapter_does_the_same_with_us(base, submodules, tmp_path):
    model, path = base
    torch.manual_seed(0)
    config = peft.MultitaskPromptTuningConfig(
        **TOKENS, num_tasks=2, num_ranks=2, num_transformer_submodules=submodules
    )
    theirs = peft.get_peft_model(their_model(path), config).eval()
    for name, parameter in theirs.named_parameters():
        if "prefix_task" in name:
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(their_model(path), tmp_path).eval()
    for task in range(2):
        theirs.generate = functools.partial(
            type(theirs).generate, theirs, task_ids=torch.full((4,), task)
        )
        ours = attach(model, open_peft(tmp_path, task=task))
        np.testing.assert_array_equal(our_tokens(ours), their_tokens(theirs))


def test_a_prompt_comes_back_from_peft_bit_by_bit(base, tmp_path):
    model, path = base
    file = PromptFile.of(random(3, model.config.embed_dim), base_name=str(path))
    save_peft(file, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(their_model(path), tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = open_peft(tmp_path / "theirs")
    assert back.vectors.tobytes() == file.vectors.tobytes()
    assert dataclasses.replace(back, arrays=file.arrays).base_name == str(path)
