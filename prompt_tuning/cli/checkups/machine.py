"""Where Linux shows its accelerators and who uses them."""

import dataclasses
import pathlib
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to look; tests look at folders of their own."""

    lock: pathlib.Path = pathlib.Path("/tmp/libtpu_lockfile")
    dev: pathlib.Path = pathlib.Path("/dev")
    proc: pathlib.Path = pathlib.Path("/proc")

    def tpu_devices(self) -> list[pathlib.Path]:
        """Returns the device files of TPU chips."""
        chips = [*self.dev.glob("accel[0-9]*"), *self.dev.glob("vfio/[0-9]*")]
        return sorted(chips)

    def gpu_devices(self) -> list[pathlib.Path]:
        """Returns the device files of NVIDIA GPUs, without those of the driver itself."""
        return sorted(self.dev.glob("nvidia[0-9]*"))

    def driver(self) -> str | None:
        """Returns the version of NVIDIA's driver; None if there is none."""
        try:
            text = (self.proc / "driver/nvidia/version").read_text("utf-8", errors="replace")
        except OSError:
            return None
        found = re.search(r"Module(?: for \S+)?\s+(\d[\d.]*)", text)
        return found[1] if found else None
