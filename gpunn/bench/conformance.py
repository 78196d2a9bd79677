"""Which conformance kernels of the emulator a device can run."""

from __future__ import annotations

from gpunn.device.device import Device
from gpunn.device.launch import device_properties
from gpunn.emulator.conformance import CASES


def conformance_cases(device: Device) -> tuple[list[str], list[str]]:
    """Names of the cases for a GPU (all of them for the emulator), and of those that are not."""
    number = 90
    if device.type == "cuda":
        properties = device_properties(device.index)
        number = properties["major"] * 10 + properties["minor"]
    hopper = number // 10 == 9  # wgmma is sm_90a's alone
    fits = {
        case.name: case.arch <= number and (hopper or not any("wgmma" in c for c in case.covers))
        for case in CASES
    }
    return [name for name in fits if fits[name]], [name for name in fits if not fits[name]]
