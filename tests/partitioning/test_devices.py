import dataclasses
import re
import types

import numpy as np
import pytest
from jax.sharding import AxisType

from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.partitioning import Partitioning, placement
from prompt_tuning.partitioning.devices import boxes


def ids(grid):
    return np.vectorize(lambda device: device.id)(grid).tolist()


def grid_of(devices=None, **settings):
    """Returns the numbers of the devices as [data, fsdp, model]."""
    return ids(Partitioning(**settings).placement(devices).mesh.devices)


def mesh_of(devices=None, **settings):
    """Returns them without the axis `fsdp`."""
    grid = grid_of(devices, **settings)
    assert {len(one) for one in grid} == {1}
    return [one[0] for one in grid]


def test_alone_every_device_holds_a_model():
    assert mesh_of() == [[0], [1], [2], [3], [4], [5], [6], [7]]
    assert ids(placement(2).mesh.devices) == [[[0]], [[1]]]


def test_partitions_are_devices_side_by_side():
    assert mesh_of(num_partitions=2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert mesh_of(num_partitions=4, devices=4) == [[0, 1, 2, 3]]


def test_devices_that_share_kernels_are_side_by_side_too():
    assert grid_of(fsdp=4) == [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]
    assert grid_of(fsdp=2, num_partitions=2) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_2d_parameters_are_shared_by_all_that_have_different_examples():
    two_d = {"parameter_partitioning_dims": 2}
    assert grid_of(**two_d) == grid_of(fsdp=8)
    assert grid_of(**two_d, num_partitions=2) == grid_of(fsdp=4, num_partitions=2)


def test_where_there_is_no_topology_a_submesh_counts_as_its_product():
    # 1 is what t5x's own gin files leave standing beside it.
    box = mesh_of(num_partitions=1, model_parallel_submesh=(2, 2, 1, 1))
    assert box == mesh_of(num_partitions=4)


def test_the_compiler_divides_what_the_rules_do_not_name():
    mesh = Partitioning(num_partitions=2).placement().mesh
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "model": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_a_placement_describes_its_mesh():
    described = Partitioning(num_partitions=2).placement().describe()
    assert described == "mesh data 4 x model 2 over 8 cpu devices in 1 process"
    described = Partitioning(fsdp=4).placement().describe()
    assert described == "mesh data 2 x fsdp 4 x model 1 over 8 cpu devices in 1 process"
    assert placement(1).describe() == "mesh data 1 x model 1 over 1 cpu device in 1 process"


@pytest.mark.parametrize("devices", [0, 9, -1])
def test_devices_that_are_not_there_are_refused(devices):
    message = (
        f"{devices} devices were asked for, but there are 8 (cpu). Choose 1 to 8, or leave the "
        "number out to use all."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        placement(devices)


def test_partitions_that_devices_do_not_make_are_refused():
    message = (
        "NUM_PARTITIONS is 3 devices for each copy of the model, which 8 (cpu) are not a multiple "
        "of. Set --gin.NUM_PARTITIONS to one of 1, 2, 4, 8: the smallest with which the model "
        "fits. A CPU can pass for several devices: JAX_NUM_CPU_DEVICES=3."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        Partitioning(num_partitions=3).placement()


def test_groups_that_copies_do_not_make_are_refused():
    message = (
        "FSDP is 8 with 2 devices for each copy of the model, which makes 16 devices that share "
        "its kernels; 8 (cpu) are not a multiple of that. Set --gin.FSDP to one of 1, 2, 4: the "
        "smallest with which the model fits. A CPU can pass for several devices: "
        "JAX_NUM_CPU_DEVICES=16."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        Partitioning(num_partitions=2, fsdp=8).placement()


def test_the_submesh_of_a_pod_is_refused_elsewhere():
    message = (
        "MODEL_PARALLEL_SUBMESH is (4, 4, 1, 2), which makes 32 devices for each copy of the "
        "model, which 8 (cpu) are not a multiple of. Set --gin.NUM_PARTITIONS to one of 1, 2, 4, "
        "8 and MODEL_PARALLEL_SUBMESH to None: "
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}"):
        Partitioning(model_parallel_submesh=(4, 4, 1, 2)).placement()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_partitions": 0}, "NUM_PARTITIONS is 0, expected 1 or more devices"),
        ({"model_parallel_submesh": (2, 2)}, "is (2, 2), expected four numbers (x, y, z, core)"),
        ({"model_parallel_submesh": (2, 0, 1, 1)}, "is (2, 0, 1, 1), expected four numbers"),
        (
            {"num_partitions": 2, "model_parallel_submesh": (2, 1, 1, 1)},
            "NUM_PARTITIONS is 2 and MODEL_PARALLEL_SUBMESH (2, 1, 1, 1), but they say the same",
        ),
        ({"fsdp": 0}, "FSDP is 0, expected 1 or more devices to share the kernels of the layers."),
        (
            {"fsdp": 2, "parameter_partitioning_dims": 2},
            "FSDP is 2 and parameter_partitioning_dims 2, which divides the kernels among all",
        ),
        ({"parameter_partitioning_dims": 3}, "parameter_partitioning_dims 3, expected 1 or 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Partitioning(**settings)


# On a TPU the devices have a place.


@dataclasses.dataclass(frozen=True)
class Core:
    """What JAX says of a core of a TPU, of which there are none here."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    slice_index: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    memories: tuple[str, ...] = ("device", "pinned_host")

    def addressable_memories(self):
        return [types.SimpleNamespace(kind=kind) for kind in self.memories]


def tpu(x, y, *, cores=1, slice_index=0):
    """A slice of chips, its cores in another order than that of their places."""
    made = [
        Core(1000 * slice_index + 100 * i + 10 * j + core, (i, j, 0), core, slice_index)
        for j in range(y)
        for core in range(cores)
        for i in range(x)
    ]
    return made[::-1]


def test_a_row_of_the_mesh_is_a_box_of_neighbours():
    assert ids(boxes(tpu(4, 2), (2, 2, 1, 1))) == [[0, 10, 100, 110], [200, 210, 300, 310]]
    assert ids(boxes(tpu(2, 2, cores=2), (2, 1, 1, 2))) == [[0, 1, 100, 101], [10, 11, 110, 111]]


def test_the_submesh_of_the_original_command_is_a_slice_of_32_cores():
    grid = boxes(tpu(4, 4, cores=2), (4, 4, 1, 2))
    assert grid.shape == (1, 32)


def test_no_box_reaches_into_another_slice():
    grid = boxes(tpu(2, 1, slice_index=1) + tpu(2, 1), (2, 1, 1, 1))
    assert ids(grid) == [[0, 100], [1000, 1100]]


def test_a_box_that_does_not_divide_the_slice_is_refused():
    message = (
        "MODEL_PARALLEL_SUBMESH is (2, 2, 1, 2), but the 16 devices are a slice of (4, 4, 1, 1) "
        "(x, y, z, core), whose every side must be a multiple of the box's. Boxes of TPU v3 have 2 "
        "cores a chip, those of later chips 1. Set --gin.NUM_PARTITIONS=8 instead to have "
        "neighbours chosen for you."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        boxes(tpu(4, 4), (2, 2, 1, 2))


# Slices are joined by the network of the data centre, which is slow.

SLICES = [*tpu(4, 2, slice_index=1), *tpu(4, 2)]
SHARED = [
    {"num_partitions": 2},
    {"num_partitions": 8},
    {"fsdp": 8},
    {"fsdp": 4, "num_partitions": 2},
    {"fsdp": 2, "num_partitions": 2},
    {"model_parallel_submesh": (2, 2, 1, 1), "fsdp": 2},
    {"model_parallel_submesh": (2, 1, 1, 1)},
]


@pytest.mark.parametrize("settings", SHARED)
def test_only_the_axis_of_examples_leads_from_slice_to_slice(settings):
    mesh = Partitioning(**settings).placement(SLICES).mesh
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    half = len(slices) // 2
    assert (slices[:half] == 0).all() and (slices[half:] == 1).all()
    assert sorted(np.unique(ids(mesh.devices))) == sorted(device.id for device in SLICES)


def test_a_model_on_chips_that_are_neighbours():
    """Both axes inside a slice: a row of the mesh is a chip and one beside it."""
    mesh = Partitioning(num_partitions=2, fsdp=2).placement(tpu(4, 4)).mesh
    for one, other in mesh.devices.reshape(-1, 2):
        assert sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True)) == 1


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ({"num_partitions": 16}, "1 x 16"),
        ({"fsdp": 16}, "16 x 1"),
        ({"fsdp": 4, "num_partitions": 4}, "4 x 4"),
        ({"parameter_partitioning_dims": 2}, "16 x 1"),
    ],
)
def test_what_does_not_fit_in_a_slice_is_refused(settings, shared):
    message = (
        f"FSDP x NUM_PARTITIONS is {shared}, but each of the 2 slices has 8 devices, and what "
        "devices share of a model must lie in one slice. Set --gin.NUM_PARTITIONS to one of 1, 2, "
        "4, 8 and --gin.FSDP to what divides the rest"
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}"):
        Partitioning(**settings).placement(SLICES)


def test_slices_of_different_sizes_are_refused():
    message = "The 2 slices have 4 and 8 devices, expected as many in each."
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}"):
        Partitioning().placement([*tpu(2, 2, slice_index=1), *tpu(4, 2)])


# The memory of the host.


def test_what_cannot_read_from_its_host_is_refused():
    message = (
        "OFFLOAD needs devices that read from the memory of their host ('pinned_host'), but TPU v5 "
        "lite (tpu) has 'device'. Set --gin.OFFLOAD=False."
    )
    without = [dataclasses.replace(core, memories=("device",)) for core in tpu(2, 1)]
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        Partitioning(offload=True).placement(without)
    assert Partitioning(offload=True).placement(tpu(2, 1)).layout.fetch
    assert not Partitioning().placement(without).layout.fetch
