"""A quantized model that is divided among devices, or lies in the host's memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.losses import Loss
from prompt_tuning.model.parameters import named
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.state import split_model
from tests.jaxprs import equations
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, small_model

SIZES = {"vocab_size": 64, "mlp_dim": 32, "num_heads": 8, "head_dim": 2}
INT8 = {"quantization": "int8"}
INT4 = {"quantization": "int4", "quantization_group": 4}


def loss_and_gradient(partitioning, devices=None, **changes):
    """Returns the function and its arguments where they lie."""
    placed = partitioning.placement(devices)
    module = small_model(**SIZES, **changes)
    module.hold(placed.layout)
    graph, prompt, frozen = split_model(module, PromptParam)

    def loss(prompt, frozen, batch):
        return Loss()(nnx.merge(graph, prompt, frozen)(batch), batch)[0]

    return jax.value_and_grad(loss), (
        placed.parameters(prompt),
        placed.parameters(frozen),
        placed.batch(BATCH),
    )


def measured(*args, **changes):
    function, arguments = loss_and_gradient(*args, **changes)
    loss, gradient = jax.jit(function, compiler_options=QUICKLY)(*arguments)
    return loss, named(gradient)["encoder/prompt/prompt"], arguments[1]


@pytest.mark.parametrize(
    ("changes", "partitioning"),
    [
        (INT8, Partitioning(num_partitions=2)),
        pytest.param(INT4, Partitioning(num_partitions=2), marks=pytest.mark.slow),
        pytest.param(INT8, Partitioning(fsdp=2, num_partitions=2), marks=pytest.mark.slow),
        pytest.param(INT4, Partitioning(fsdp=2, num_partitions=2), marks=pytest.mark.slow),
    ],
)
def test_devices_that_share_integers_find_the_gradient_of_one(changes, partitioning):
    loss, gradient, frozen = measured(partitioning, **changes)
    for name, array in named(frozen).items():
        if f"{name}_scale" in named(frozen):
            assert array.addressable_shards[0].data.size <= array.size // 2, name
    expected_loss, expected, _ = measured(Partitioning(), 1, **changes)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


# In the host's memory.


@pytest.mark.parametrize("changes", [{}, INT4], ids=["float32", "int4"])
def test_kernels_in_the_hosts_memory_change_nothing(changes):
    loss, gradient, frozen = measured(Partitioning(offload=True), 1, **changes)
    kinds = {name: array.sharding.memory_kind for name, array in named(frozen).items()}
    assert kinds["encoder/layers/mlp/wo/kernel"] == "pinned_host"
    assert kinds["encoder/layers/pre_mlp_layer_norm/scale"] == "device"
    expected_loss, expected, _ = measured(Partitioning(), 1, **changes)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_backward_pass_fetches_again_and_keeps_nothing(remat):
    function, arguments = loss_and_gradient(Partitioning(offload=True), 1, remat=remat)
    found = list(equations(function, *arguments))
    fetched = [one for one in found if one.primitive.name == "device_put"]
    # 7 kernels in a layer of the encoder and 11 in one of the decoder, there and back.
    kernels = [out.aval.shape for one in fetched for out in one.outvars if out.aval.ndim == 2]
    assert len(kernels) == 2 * (7 + 11)
    shapes = set(kernels)
    for scan in (one for one in found if one.primitive.name == "scan"):
        made = [out.aval for out in scan.outvars[scan.params["num_carry"] :]]
        assert not {one.shape[1:] for one in made} & shapes
    assert jnp.float32 == named(arguments[1])["encoder/layers/mlp/wo/kernel"].dtype
