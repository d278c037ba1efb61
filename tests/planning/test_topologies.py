import jax
import pytest

from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.planning import topologies
from prompt_tuning.planning.chips import CHIPS, TPUS, like


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", r"no chip 'v5x'\. Did you mean '.*'v5e'.*Known are v4, v5e, "),
        ("v5e:4x4x1", r"slices of v5e have 2 sides: v5e:1x1, .*Did you mean '4x4'"),
        ("v4:4x4", r"slices of v4 have 3 sides"),
        ("cpu", r"expected the number of devices, as in cpu:8"),
        ("h100:0", r"expected the number of devices, as in h100:8"),
    ],
)
def test_a_wrong_name_is_told_what_there_is(name, message):
    with pytest.raises(ConfigError, match=message):
        topologies.check(name)


def test_slices_of_a_family_grow():
    for name in ("v4:2x2x1", "v5e:4x4", "v5p:2x2x1", "v6e:1x1", "cpu:4", "h100:8"):
        sizes = [topologies.devices_in(one) for one in topologies.family_of(name)]
        assert sizes == sorted(sizes), name
        for one in topologies.family_of(name):
            topologies.check(one)


def test_cpus_share_the_memory_of_the_machine():
    one, eight = topologies.topology("cpu:1"), topologies.topology("cpu:8")
    assert len(eight.devices) == 8
    assert eight.chip.memory == one.chip.memory // 8
    with pytest.raises(DeviceError, match=r"JAX_NUM_CPU_DEVICES=1000"):
        topologies.topology("cpu:1000")


def test_without_a_gpu_one_that_is_named_is_estimated():
    found = topologies.topology("h100:8")
    assert found.is_estimate
    assert found.devices == jax.devices()[:8]
    # Of which JAX takes three quarters.
    assert found.chip.memory == round(CHIPS["h100"].memory * 0.75)
    with pytest.raises(ConfigError, match=r"no GPU here to ask.*h100:2"):
        topologies.topology("gpu:2")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_a_device_is_known_by_what_it_calls_itself(kind, name):
    found = like(kind)
    assert found is not None
    assert found.name == name


def test_a_device_of_another_kind_is_not():
    assert like("NVIDIA GeForce GTX 1080") is None
    assert like("cpu") is None


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("family", TPUS)
def test_tpus_are_there_without_one(family):
    name = {"v4": "v4:2x2x1", "v5p": "v5p:2x2x1"}.get(family, f"{family}:2x2")
    found = topologies.topology(name)
    assert len(found.devices) == topologies.devices_in(name)
    assert like(found.devices[0].device_kind) == TPUS[family]
    assert not found.is_estimate
