"""`Device`: where arrays live and kernels run, and the choice of a default."""

from __future__ import annotations

import contextlib
import functools
import os

from gpunn.device import probe
from gpunn.errors import DeviceError

KINDS = ("cpu", "cuda", "emulator")


class Device:
    """A place to compute: ``Device("cpu")``, ``Device("cuda")`` (GPU 0), ``Device("cuda:1")``.

    ``Device("emulator")`` runs the CUDA C++ kernels on the host, slowly: to see them work, and to
    find their faults, without a GPU. A CUDA device and the emulator are checked when they are made:
    if one cannot be used, `DeviceError` says in one sentence what to install or set. Devices are
    values: equal, hashable, usable as dictionary keys.

    Attributes
    ----------
    type : ``"cpu"``, ``"cuda"`` or ``"emulator"``
    index : the GPU's number, 0 for the others
    """

    __slots__ = ("type", "index")

    type: str
    index: int

    def __new__(cls, spec: str | Device = "cpu", index: int | None = None) -> Device:
        if isinstance(spec, Device):
            return spec
        kind, number = _parse(spec, index)
        return _device(cls, kind, number)

    def __repr__(self) -> str:
        return f"device({str(self)!r})"

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.type == "cuda" else self.type

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            other = _device(Device, *_parse(other, None), check=False)
        return isinstance(other, Device) and self.type == other.type and self.index == other.index

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __reduce__(self):
        return (Device, (str(self),))

    def activate(self):
        """A context in which CuPy allocates and launches on this GPU."""
        cuda = probe.import_cupy().cuda
        # CuPy's own context sets the device on leaving even if it was the current one all along.
        return _HERE if cuda.runtime.getDevice() == self.index else cuda.Device(self.index)


def _parse(spec: str, index: int | None) -> tuple[str, int]:
    if not isinstance(spec, str):
        raise TypeError(
            "device: expected a string such as 'cpu', 'cuda' or 'cuda:1', got "
            f"{type(spec).__name__}"
        )
    kind, colon, tail = spec.strip().lower().partition(":")
    if colon and index is not None:
        raise ValueError(f"device: {spec!r} already names an index; leave out index={index}")
    if colon:
        if not tail.isdecimal():
            raise ValueError(f"device: {spec!r} has no valid index; write for example 'cuda:0'")
        index = int(tail)
    if kind not in KINDS:
        raise ValueError(
            f"device: {spec!r} is not known; use 'cpu', 'cuda', 'cuda:1' or 'emulator'"
        )
    if kind != "cuda" and index:
        name = "CPU device" if kind == "cpu" else "emulator"
        raise ValueError(f"device: {spec!r}: there is one {name}, {kind!r}")
    return kind, index or 0


_HERE = contextlib.nullcontext()
_made: dict[tuple[str, int], Device] = {}


def _device(cls, kind: str, index: int, check: bool = True) -> Device:
    """One object for each device, checked for use the first time."""
    known = _made.get((kind, index))
    if known is not None:
        return known
    if kind == "cuda" and check:
        probe.require_cuda(index)
    elif kind == "emulator" and check:
        from gpunn.emulator import toolchain  # not on the path of `import gpunn`

        toolchain.require()
    device = object.__new__(cls)
    object.__setattr__(device, "type", kind)
    object.__setattr__(device, "index", index)
    if check:
        _made[kind, index] = device
    return device


_default: Device | None = None


def set_default_device(spec: str | Device | None) -> None:
    """Choose the device that new tensors and models use; None returns to the automatic choice."""
    global _default
    _default = None if spec is None else Device(spec)


def default_device() -> Device:
    """The device used where none is named.

    In this order: what `set_default_device` set; the environment variable ``GPUNN_DEVICE`` (an
    error if that device cannot be used); the first GPU if it is really usable; the CPU.
    """
    if _default is not None:
        return _default
    wanted = os.environ.get("GPUNN_DEVICE", "").strip()
    if wanted:
        try:
            return Device(wanted)
        except (DeviceError, ValueError) as error:
            raise type(error)(f"GPUNN_DEVICE={wanted}: {error}") from error
    return _automatic()


@functools.cache
def _automatic() -> Device:
    return Device("cuda") if probe.cuda_usable() else Device("cpu")


def as_device(spec: str | Device | None) -> Device:
    """`spec` as a Device; None gives the default device."""
    return default_device() if spec is None else Device(spec)
