"""What all tests share: the count of parity checks that closes the run, and quiet surroundings."""

from __future__ import annotations

import os
from collections import Counter

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items):
    """Tests that need a GPU are only collected where one is usable."""
    from gpunn.device import probe

    if not probe.cuda_usable():
        items[:] = [item for item in items if item.get_closest_marker("gpu") is None]


@pytest.fixture(autouse=True)
def device_by_default(request, monkeypatch):
    """Where there is a GPU, only the tests that need one use it without naming it."""
    from gpunn.device import probe

    if probe.cuda_usable() and request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("GPUNN_DEVICE", "cpu")


@pytest.fixture
def count_parity(record_property):
    """Call it with (primitive, implementation, samples checked, samples too large for it); the
    sums are printed at the end."""

    def count(primitive: str, implementation: str, samples: int, left_out: int = 0) -> None:
        record_property("parity", f"{primitive}|{implementation}|{samples}|{left_out}")

    return count


def pytest_terminal_summary(terminalreporter):
    """Primitives x implementations x samples checked, and the devices that were there."""
    samples, left_out, pairs = Counter(), Counter(), set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "parity" and getattr(report, "when", "") == "call":
                    primitive, implementation, count, larger = value.split("|")
                    samples[implementation] += int(count)
                    left_out[implementation] += int(larger)
                    pairs.add((primitive, implementation))
    if not pairs:
        return
    terminalreporter.section("kernel table")
    for implementation in sorted(samples):
        primitives = sum(1 for _, name in pairs if name == implementation)
        larger = left_out[implementation]
        terminalreporter.line(
            f"{implementation:23} {primitives:3} primitives  {samples[implementation]:6} samples"
            + (f", {larger} larger ones left out" if larger else "")
        )
    total = sum(samples.values())
    terminalreporter.line(
        f"{len({p for p, _ in pairs})} primitives x {len(samples)} implementations: "
        f"{total} samples checked; devices: {', '.join(devices())}"
    )


def devices() -> list[str]:
    """Names of the devices that tests could use."""
    from gpunn.device import probe

    found = ["cpu"]
    if probe.cuda_usable():
        found.append(probe.find_gpus().detail)
    else:
        found.append("no GPU (CUDA kernels were compiled, not run on hardware)")
    return found
