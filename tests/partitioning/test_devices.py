import re
from typing import NamedTuple

import pytest
from jax.sharding import AxisType

from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.partitioning import Partitioning, placement
from prompt_tuning.partitioning.devices import boxes


def ids(grid):
    return [[device.id for device in row] for row in grid]


def mesh_of(devices=None, **settings):
    return ids(Partitioning(**settings).placement(devices).mesh.devices)


def test_alone_every_device_holds_a_model():
    assert mesh_of() == [[0], [1], [2], [3], [4], [5], [6], [7]]
    assert ids(placement(2).mesh.devices) == [[0], [1]]


def test_partitions_are_devices_side_by_side():
    assert mesh_of(num_partitions=2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert mesh_of(num_partitions=4, devices=4) == [[0, 1, 2, 3]]


def test_where_there_is_no_topology_a_submesh_counts_as_its_product():
    # 1 is what t5x's own gin files leave standing beside it.
    box = mesh_of(num_partitions=1, model_parallel_submesh=(2, 2, 1, 1))
    assert box == mesh_of(num_partitions=4)


def test_the_compiler_divides_what_the_rules_do_not_name():
    mesh = Partitioning(num_partitions=2).placement().mesh
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


def test_a_placement_describes_its_mesh():
    described = Partitioning(num_partitions=2).placement().describe()
    assert described == "mesh data 4 x model 2 over 8 cpu devices in 1 process"
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
        ({"parameter_partitioning_dims": 3}, "parameter_partitioning_dims 3, expected 1 or 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Partitioning(**settings)


# On a TPU the devices have a place.


class Core(NamedTuple):
    """What JAX says of a core of a TPU, of which there are none here."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    slice_index: int = 0


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
