"""What chips can do, by the numbers that their makers publish."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as a program sees it.

    Attributes:
        name: as topologies call it.
        platform: `tpu`, `gpu` or `cpu`.
        memory: bytes that a program may use.
        bf16: FLOPs a second of products in bfloat16.
        int8: the same in int8.
        bandwidth: bytes a second between main memory and cores.
        link: bytes a second that one device sends to its neighbours along an axis of a mesh.
    """

    name: str
    platform: str
    memory: int
    bf16: float = 0.0
    int8: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0


Number = float | int


def _tpu(
    name: str, gib: Number, bf16: Number, int8: Number, bandwidth: Number, link: Number
) -> Chip:
    return Chip(
        name=name,
        platform="tpu",
        memory=round(gib * GIB),
        bf16=bf16 * 1e12,
        int8=int8 * 1e12,
        bandwidth=bandwidth * 1e9,
        link=link * 1e9,
    )


# Memory: what the compiler of libtpu 0.0.42 calls available, less than what is built in. The rest
# is of Google's pages on each TPU version (cloud.google.com/tpu/docs/v5e and so on) and of "How to
# Scale Your Model" (jax-ml.github.io/scaling-book): one link, both ways of a ring.
# A v4 chip shows itself as two devices, each with half of everything.
TPUS = {
    chip.name: chip
    for chip in [
        _tpu("v4", 15.25, 137.5, 137.5, 614, 45),
        _tpu("v5e", 15.75, 197, 394, 819, 90),
        _tpu("v5p", 95.74, 459, 918, 2765, 180),
        _tpu("v6e", 31.25, 918, 1836, 1640, 180),
    ]
}


def _gpu(
    name: str, gib: Number, bf16: Number, int8: Number, bandwidth: Number, link: Number
) -> Chip:
    return dataclasses.replace(_tpu(name, gib, bf16, int8, bandwidth, link), platform="gpu")


# Memory as the driver shows it; dense products; NVLink or PCIe one way. Of NVIDIA's data sheets
# (the SXM form where there is one).
GPUS = {
    chip.name: chip
    for chip in [
        _gpu("l4", 22.5, 121, 242, 300, 32),
        _gpu("a100-40gb", 39.4, 312, 624, 1555, 300),
        _gpu("a100", 79.1, 312, 624, 2039, 300),
        _gpu("h100", 79.1, 989, 1979, 3350, 450),
        _gpu("h200", 139.8, 989, 1979, 4800, 450),
        _gpu("b200", 178.4, 2250, 4500, 7700, 900),
    ]
}
# Of a GPU's memory JAX takes this part, unless XLA_PYTHON_CLIENT_MEM_FRACTION says another.
GPU_FRACTION = 0.75

CHIPS = TPUS | GPUS


def like(kind: str) -> Chip | None:
    """Returns the chip that a device says that it is, None if it is not in the tables.

    >>> like("TPU v5 lite").name
    'v5e'
    """
    words = {"v5 lite": "v5e", "v6 lite": "v6e", "v5p": "v5p", "v5": "v5p", "v4": "v4"}
    text = kind.lower()
    if "tpu" in text:
        return next((TPUS[name] for word, name in words.items() if word in text), None)
    if "a100" in text and "40gb" in text:
        return GPUS["a100-40gb"]
    return next((chip for name, chip in GPUS.items() if name in text), None)
