"""All families of devices, and which one a platform is of."""

from __future__ import annotations

from dataclasses import replace

from lichen.hw.device.device import Device
from lichen.hw.device.ecp5 import ECP5

PORTABLE = replace(ECP5, name="portable", parts="", cells=None)
"""No cells of any vendor. Costs are asked of the ECP5, whose blocks are of a usual size."""

FAMILIES = {device.name: device for device in (ECP5, PORTABLE)}
"""By name."""


def device_of(platform: object) -> Device:
    """The family of what ``elaborate`` is given; `PORTABLE` for None and what no family knows."""
    name = str(getattr(platform, "device", ""))
    for device in FAMILIES.values():
        if device.parts and name.startswith(device.parts):
            return device
    return PORTABLE
