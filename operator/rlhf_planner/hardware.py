"""How much memory a device has for a program."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

GIB: Final = 2.0**30


FREE: Final = 0.05
"""Share of a device that is better left: for fragments, and what an estimate is wrong by."""


class Device(NamedTuple):
    """One accelerator, as a pod gets it."""

    name: str
    memory: float  # bytes

    @property
    def room(self) -> float:
        """Bytes that a stage may be estimated to take."""
        return (1 - FREE) * self.memory


DEVICES: Final = tuple(
    Device(name, gib * GIB)
    for name, gib in {
        "A10": 22.0,
        "L4": 22.0,
        "L40S": 44.5,
        "A100-40GB": 39.4,
        "A100-80GB": 79.0,
        "H100": 79.0,
        "H200": 139.0,
        "B200": 178.0,
        "MI250X": 63.0,
        "MI300X": 191.0,
        "MI325X": 255.0,
    }.items()
)
"""What drivers report of devices of 24, 24, 48, 40, 80, 80, 141, 180, 64, 192 and 256 GB, less what
they keep. A MI250X is two devices to Kubernetes; this is one of them."""
SLICE: Final = re.compile(r"mig-\d+g\.(\d+)gb")
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(Gi?)B?", re.IGNORECASE)
KEPT_OF_A_SLICE: Final = 1 * GIB


def device_named(text: str) -> Device | None:
    """A device by its name, or by its memory alone (`80GB`, `79Gi`); None where it is neither."""
    plain = _plain(text)
    for device in DEVICES:
        if _plain(device.name) == plain:
            return device
    size = SIZE.fullmatch(text.strip())
    if size is None or not float(size[1]):
        return None
    return Device(text.strip(), float(size[1]) * (GIB if "i" in size[2].lower() else 1e9))


def device_of_resource(resource: str) -> Device | None:
    """What the name of an extended resource tells: of a MIG slice its memory, of others nothing."""
    found = SLICE.search(resource)
    return Device(resource, float(found[1]) * GIB - KEPT_OF_A_SLICE) if found else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
