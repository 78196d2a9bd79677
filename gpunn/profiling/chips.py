"""What the data sheets of a few GPUs promise, for floors that need no GPU.

Sources: NVIDIA H200 and H100 Tensor Core GPU data sheets (SXM), NVIDIA A100 80GB data sheet (SXM).
Rates of tensor cores are those without sparsity, half of what the H100's and H200's sheets print.
No kernel reaches them: what was measured on such a chip stands in docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpunn.bench.ceilings import Ceilings
from gpunn.device import Device
from gpunn.device.launch import device_properties
from gpunn.primitives.matmul_precision import get_matmul_precision

# Below this a kernel's time is that of starting and ending it, whatever it does (public measure-
# ments of kernels in a captured graph give 1.3 us from one to the next; not measured by us).
LAUNCH_SECONDS = 2e-6


@dataclass(frozen=True)
class Chip:
    """One GPU.

    Attributes
    ----------
    name, arch, multiprocessors, shared_limit : as launch code asks for them
    bandwidth : bytes a second of main memory
    rates : FLOP/s: "float32" and "float64" of the ordinary cores, "tf32", "bfloat16" and
        "float64 tensor" of the tensor cores
    memory : bytes
    clock : cycles a second at the most
    """

    name: str
    arch: str
    multiprocessors: int
    bandwidth: float
    memory: float
    shared_limit: int
    clock: float
    rates: dict[str, float] = field(hash=False)

    def rate(self, dtype: str, tensor: bool) -> float:
        """FLOP/s for a dtype, on the tensor cores or not.

        Float32 on tensor cores is as `gpunn.set_matmul_precision` says: TF32, bfloat16, or, as
        exact as float32, six products of bfloat16 parts for one.
        """
        if dtype == "float64":
            return self.rates["float64 tensor" if tensor else "float64"]
        if not tensor:
            return self.rates["float32"]
        if dtype != "float32":
            return self.rates["bfloat16"]
        precision = get_matmul_precision()
        exact = self.rates["bfloat16"] / 6
        return {"highest": exact, "high": self.rates["tf32"], "medium": self.rates["bfloat16"]}[
            precision
        ]

    def ceilings(self) -> Ceilings:
        """As what the tables of `gpunn bench` and of a profile hold rates against."""
        how = {"copy": f"the {self.name}'s data sheet"}
        rates = {name: self.rate(name, True) for name in ("float16", "bfloat16")}
        rates["float32"] = max(self.rate("float32", True), self.rate("float32", False))
        rates["float64"] = self.rate("float64", False)
        return Ceilings(self.name, self.bandwidth, rates, how)


def _hopper(name: str, bandwidth: float, memory: float) -> Chip:
    rates = {
        "float32": 67e12, "float64": 34e12, "tf32": 494.7e12, "bfloat16": 989.4e12,
        "float64 tensor": 67e12,
    }  # fmt: skip
    return Chip(name, "sm_90a", 132, bandwidth, memory, 227 << 10, 1.98e9, rates)


_AMPERE = {
    "float32": 19.5e12, "float64": 9.7e12, "tf32": 156e12, "bfloat16": 312e12,
    "float64 tensor": 19.5e12,
}  # fmt: skip

CHIPS = {
    "h200": _hopper("H200", 4.8e12, 141e9),
    "h100": _hopper("H100", 3.35e12, 80e9),
    "a100": Chip("A100", "sm_80", 108, 2.039e12, 80e9, 163 << 10, 1.41e9, _AMPERE),
}


def find_chip(name: str) -> Chip:
    """The chip of that name. ValueError, naming those there are, if there is none."""
    chip = CHIPS.get(name.lower())
    if chip is None:
        raise ValueError(f"there is no data sheet of {name!r} here; known: {', '.join(CHIPS)}")
    return chip


def chip_of(device: Device) -> Chip | None:
    """The data sheet of a GPU that is there; None if it is another kind of GPU."""
    name = device_properties(device.index)["name"]
    name = name.decode() if isinstance(name, bytes) else name
    words = name.lower().replace("-", " ").split()
    return next((chip for key, chip in CHIPS.items() if key in words), None)


def as_measured(chip: Chip, ceilings: Ceilings) -> Chip:
    """The chip at the bandwidth and the rates that were measured on it.

    TF32, which the ceilings do not have, loses as much of the data sheet as bfloat16 does.
    """
    measured = {name: ceilings.rates.get(name, rate) for name, rate in chip.rates.items()}
    measured["tf32"] = chip.rates["tf32"] * measured["bfloat16"] / chip.rates["bfloat16"]
    if "float64" in ceilings.rates:  # a product, on tensor cores where there are any for it
        measured["float64 tensor"] = ceilings.rates["float64"]
        measured["float64"] = min(chip.rates["float64"], ceilings.rates["float64"])
    return replace(chip, bandwidth=ceilings.copy, rates=measured)


def ceilings_of(device: Device) -> Ceilings | None:
    """The ceilings by data sheet of a GPU that is there; None if it is another kind of GPU."""
    chip = chip_of(device)
    return None if chip is None else chip.ceilings()
