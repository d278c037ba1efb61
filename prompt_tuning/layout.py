"""What a model's program must know of the devices that it runs on."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

Stream = Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where arrays lie, as far as it does not follow from where the parameters and rows lie.

    The numbers are the same with every layout; `Layout()` is that of one device.

    Attributes:
        stream: holds what runs from block to block to its place on the mesh; None leaves it to the
            compiler, which may then gather a batch where it should gather a divided kernel.
        mesh: for kernels, which the compiler neither chooses nor divides by itself; None stands for
            one of JAX's default devices.
        cross_first: make the decoder's keys and values over the input for all layers before its
            loop, so that a divided encoder output has one gradient to exchange instead of one for
            each layer.
        fetch: the parameters of the layers lie in the host's memory, and each layer is fetched when
            its turn comes.
    """

    stream: Stream | None = None
    mesh: Mesh | None = None
    cross_first: bool = False
    fetch: bool = False

    @property
    def platform(self) -> str:
        """For which a program is compiled: `cpu`, `gpu` or `tpu`; not always that of this host."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def device_kind(self) -> str:
        """The name that JAX has for such a device."""
        device = jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]
        return device.device_kind
