"""Peers: the same primitives by other libraries, checked before they are timed.

==============  ==================================================================
numpy           plain NumPy (CPU)
cupy            the same lines in CuPy; matmul is cuBLAS (GPU)
torch           PyTorch eager: its own functions and fused optimizers
torch.compile   PyTorch compiled
triton          our own small Triton kernels, where there is one (GPU)
==============  ==================================================================

Peers work on the very arrays that our implementation gets, and into the same ``out`` where the
library can. One whose result disagrees with the reference is not timed, and the result says why.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import gpunn.kernels
from gpunn.bench.cases import DTYPES, Case, Inputs, dtype_of, host_inputs, moved
from gpunn.bench.timing import one_line
from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.primitives import parity
from gpunn.primitives.registry import Primitive
from gpunn.primitives.samples import FLOATING

CPU_PEERS = ("numpy", "torch", "torch.compile")
GPU_PEERS = ("cupy", "torch", "torch.compile", "triton")

# Peers may round where they like: ten times what our implementations are allowed.
BOUNDS = {dtype: 10 * bound for dtype, bound in parity.TOLERANCE.items()}
# At the full size only against gross errors; a sum over everything may cancel to almost nothing.
FULL_SIZE_BOUND = 0.02
RANDOM = ("random_uniform", "random_normal", "dropout", "augment_images")
CHECK_EDGE = 200
CHECK_ELEMENTS = 1 << 20  # of shapes with more than three axes: images take NumPy seconds


class PeerError(Exception):
    """A peer cannot be timed; the text says why."""


def available(device: Device) -> tuple[str, ...]:
    """Peers that are installed and run on the device; torch.compile on a CPU only if asked for."""
    found = []
    for name in GPU_PEERS if device.type == "cuda" else CPU_PEERS[:2]:
        module = name.partition(".")[0]
        if importlib.util.find_spec(module) is None:
            continue
        if name.startswith("torch") and device.type == "cuda" and not _torch_has_cuda():
            continue
        found.append(name)
    return tuple(found)


def at_once(primitive: str, names: Sequence[str]) -> tuple[str, ...]:
    """Of the peers that are there the one that compiles nothing: PyTorch's; CuPy's without it."""
    for peer in ("torch", "cupy"):
        if peer in names and has(peer, primitive):
            return (peer,)
    return ()


def has(peer: str, primitive: str) -> bool:
    """Whether a peer has a primitive."""
    try:
        prepare(peer, primitive, ())
    except PeerError:
        return False
    return True


def choose(names: Sequence[str] | None, device: Device) -> tuple[str, ...]:
    """The peers a user asked for; None is all that are there, "none" is none."""
    if names is None:
        return available(device)
    if list(names) == ["none"]:
        return ()
    allowed = GPU_PEERS if device.type == "cuda" else CPU_PEERS
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"{name} is no peer on {device}; choose from {', '.join(allowed)} or none"
            )
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            raise ValueError(f"the peer {name} is not installed here")
    return tuple(dict.fromkeys(names))


def _torch_has_cuda() -> bool:
    try:
        import torch
    except (ImportError, OSError):  # installed, but not in working order
        return False
    return torch.cuda.is_available()


def library_of(peer: str) -> str:
    """Whose graphs capture a peer: Triton launches through PyTorch."""
    return "torch" if peer in ("torch", "torch.compile", "triton") else peer


# ---- preparing -----------------------------------------------------------------------------------


def prepare(peer: str, name: str, sets: Sequence[Inputs]) -> list[Callable[[], Any]]:
    """What to call for each set of inputs; PeerError if the peer has no such primitive.

    Updates get their hyperparameters as Python numbers, as their users have them.
    """
    if name.endswith("_update"):
        sets = [replace(s, args=(*s.args[:-1], s.args[-1].tolist())) for s in sets]
    own = gpunn.kernels.table()[name].peers
    if peer in ("numpy", "cupy"):
        from gpunn.bench import array_peers

        function = own.get("numpy") or array_peers.PEERS.get(name)
        if function is None:
            raise PeerError(f"{peer} has no peer of {name}")
        module = importlib.import_module(peer)
        return [_bound(functools.partial(function, module), s) for s in sets]
    tensors = [as_tensors(inputs) for inputs in sets]
    if peer == "triton":
        from gpunn.bench import peers_triton

        if name not in peers_triton.PEERS:
            raise PeerError(f"there is no Triton kernel of {name} here")
        return [_bound(peers_triton.PEERS[name], s) for s in tensors]
    from gpunn.bench import torch_peers

    if peer == "torch" and "torch" in own:
        return [_bound(own["torch"], s) for s in tensors]
    if peer == "torch" and name in torch_peers.PREPARED:
        return [torch_peers.PREPARED[name](*s.args, **s.kwargs) for s in tensors]
    if name not in torch_peers.PEERS and (peer == "torch" or name not in torch_peers.COMPILED):
        raise PeerError(f"{peer} has no peer of {name}")
    if peer == "torch":
        return [_bound(torch_peers.PEERS[name], s) for s in tensors]
    function = torch_peers.compiled(name)
    return [_bound(function, Inputs(s.args, s.kwargs)) for s in tensors]


def _bound(function: Callable, inputs: Inputs) -> Callable[[], Any]:
    if inputs.out is None:
        return functools.partial(function, *inputs.args, **inputs.kwargs)
    return functools.partial(function, *inputs.args, **inputs.kwargs, out=inputs.out)


def as_tensors(inputs: Inputs) -> Inputs:
    """The same arrays as PyTorch tensors, sharing their memory."""
    return Inputs(
        tuple(map(as_tensor, inputs.args)),
        {name: as_tensor(value) for name, value in inputs.kwargs.items()},
        as_tensor(inputs.out),
    )


def as_tensor(value: Any) -> Any:
    """A NumPy or CuPy array as a tensor on its memory; anything else as it is."""
    if not isinstance(value, np.ndarray) and not arrays.is_cupy(value):
        return value
    import torch

    # Neither NumPy nor CuPy can hand over bfloat16 itself.
    narrow = value.dtype == DTYPES["bfloat16"]
    raw = value.view(np.int16) if narrow else value
    tensor = torch.from_numpy(raw) if isinstance(raw, np.ndarray) else torch.from_dlpack(raw)
    return tensor.view(torch.bfloat16) if narrow else tensor


# ---- checking ------------------------------------------------------------------------------------


def check(peer: str, case: Case, device: Device, full: Inputs | None = None) -> None:
    """Raise PeerError unless the peer agrees with our float64 reference on a small shape.

    With `full`, the inputs to be timed, it must also agree roughly with our implementation there.
    """
    made = gpunn.kernels.table()[case.primitive]
    small = Case(case.primitive, small_shape(case.shape), case.dtype)
    try:
        # The eager peer has the same formula; compiling it for one more shape takes seconds.
        if peer != "torch.compile" or full is None:
            _check_small(peer, made, small, device)
        if full is not None and made.name not in RANDOM:
            _check_full(peer, made, full, device)
    except PeerError:
        raise
    except Exception as error:
        raise PeerError(one_line(error)) from error


def small_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Each axis cut to what is soon checked; of many axes the first, the batch, cut the most."""
    first, *rest = (min(n, CHECK_EDGE) for n in shape)
    if len(rest) > 2:
        first = max(1, min(first, CHECK_ELEMENTS // math.prod(rest)))
    return (first, *rest)


def _check_small(peer: str, made: Primitive, case: Case, device: Device) -> None:
    host, wide, expected = _reference(made, case)
    inputs = moved(host, device)
    result = _first(prepare(peer, made.name, [inputs])[0]())
    if made.name in RANDOM:
        _check_distribution(expected, _numpy(result if result is not None else inputs.args[0]))
        return
    bound = BOUNDS[dtype_of(case.dtype)]
    pairs = [] if result is None else [("its result", result, expected)]
    for i, (before, got, want) in enumerate(zip(host.args, inputs.args, wide.args, strict=True)):
        if isinstance(before, np.ndarray) and not np.array_equal(_widen(before), want):
            pairs.append((f"argument {i} after it", got, want))
    if not pairs:
        raise PeerError("it returned nothing and changed nothing")
    for what, got, want in pairs:
        _, reason = parity.compare(_like(_numpy(got), want), np.asarray(want), bound)
        if reason:
            raise PeerError(f"{what} disagrees with the reference: {reason}")


@functools.lru_cache(maxsize=1)
def _reference(made: Primitive, case: Case) -> tuple[Inputs, Inputs, Any]:
    """Inputs of a case, the same in float64 after the call, and what it returned; once for all
    peers of a case. Random numbers are those of the case's own dtype."""
    host = host_inputs(made, case.shape, case.dtype, seed=1)
    used = moved(host, "cpu") if made.name in RANDOM else Inputs(
        tuple(map(_widen, host.args)), {name: _widen(v) for name, v in host.kwargs.items()}
    )  # fmt: skip
    return host, used, _first(used.call(made))


def _check_full(peer: str, made: Primitive, full: Inputs, device: Device) -> None:
    ours, theirs = moved(full, device), moved(full, device)
    expected = [_first(ours.call(made)), *ours.args]
    result = _first(prepare(peer, made.name, [theirs])[0]())
    got = [None if result is None else _array(result), *theirs.args]
    for one, two in zip(got, expected, strict=True):
        if one is None or not hasattr(two, "dtype") or two.dtype not in FLOATING:
            continue
        error = relative_error(one, two)
        if not error <= FULL_SIZE_BOUND:
            raise PeerError(f"differs from ours at the full size: relative error {error:.2e}")


def relative_error(got, expected) -> float:
    """The Frobenius norm of the difference over that of `expected`, both on one device."""
    xp = arrays.array_module(arrays.device_of(expected))
    got, expected = got.reshape(-1), expected.reshape(-1)
    difference = norm = 0.0
    step = 1 << 24  # so that the wide copies stay small
    for start in range(0, expected.size, step):
        a = _single(got[start : start + step])
        b = _single(expected[start : start + step])
        difference += float(xp.square(a - b).sum(dtype=np.float64))
        norm += float(xp.square(b).sum(dtype=np.float64))
    return (difference / norm) ** 0.5 if norm else difference**0.5


def _single(array):
    """In float32; bfloat16 by its bits, which are the upper half of a float32's."""
    if array.dtype == DTYPES["bfloat16"]:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _check_distribution(expected: np.ndarray, got: np.ndarray) -> None:
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    for what, statistic in (("mean", np.mean), ("standard deviation", np.std)):
        a, b = statistic(got), statistic(expected)
        if not abs(a - b) <= 10 * np.std(expected) / np.sqrt(expected.size):
            raise PeerError(f"the {what} of its numbers is {a:.4f}, that of ours {b:.4f}")


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def _array(value: Any):
    """A result as a NumPy or CuPy array; bfloat16 tensors, which neither takes, in float32."""
    if hasattr(value, "detach"):
        value = value.detach()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return arrays.as_array(value)


def _numpy(value: Any) -> np.ndarray:
    return arrays.to_numpy(_array(value))


def _like(got: np.ndarray, want: Any) -> np.ndarray:
    """The peer's numbers in a dtype that the comparison knows; losses may come in another."""
    got = np.asarray(got).reshape(np.shape(want))
    if got.dtype in FLOATING or np.asarray(want).dtype not in FLOATING:
        return got
    return got.astype(np.float64)


def _widen(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if value.dtype in FLOATING else value.copy()
    return value
