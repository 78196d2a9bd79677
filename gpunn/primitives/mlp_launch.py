"""`mlp_train`: the launches of its kernels; how work is cut up is said in `mlp_plan`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpunn.device import device_of, synchronize, tracing
from gpunn.device.transfer import uploader
from gpunn.errors import UnsupportedError
from gpunn.primitives.activation import ACTIVATIONS
from gpunn.primitives.mlp_plan import COUNT_STRIDE, THREADS, choose, dropouts
from gpunn.primitives.samples import FLOAT32, FLOAT64

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
_PREPARE_BLOCK = 256

# As in mlp_train.cu: the bits of `options`.
_MOMENTUM, _ADAM, _NESTEROV, _DECOUPLED, _MSE, _CLIP, _VECTOR = (1 << bit for bit in range(7))


_TABLES = 32
_tables: dict[tuple[str, bytes], Any] = {}  # the plans' tables that lie on a GPU


def _on_device(launch, host: np.ndarray):
    """A plan's table on the device of the launch.

    On a GPU it stays there for the next call: that spares an upload, which a call that is captured
    into a graph could not make.
    """
    array = launch.empty(host.shape, host.dtype)
    if isinstance(array, np.ndarray):
        array[...] = host
        return array
    key = str(device_of(array)), host.tobytes()
    found = _tables.get(key)
    if found is None:
        found = uploader(device_of(array)).upload(host, out=array)
        if tracing.state.trace is None:  # the memory of a traced step is planned, and used again
            synchronize(device_of(array))  # once: other streams may use it from now on
            if len(_tables) >= _TABLES:
                _tables.clear()
            _tables[key] = found
    return found


def _options(work, first, vector: bool) -> int:
    flags = (
        (first is not None and work.rule == "sgd", _MOMENTUM), (work.rule == "adam", _ADAM),
        (work.nesterov, _NESTEROV), (work.decoupled, _DECOUPLED), (work.loss == "mse", _MSE),
        (work.max_norm is not None, _CLIP), (vector, _VECTOR),
    )  # fmt: skip
    return sum(bit for flag, bit in flags if flag)


def launch_cuda(
    launch, x, target, order, parameters, first, second, hyper, losses, correct, work
) -> None:
    """Prepare the copies of the weights, then all steps in one launch."""
    if x.dtype != FLOAT32:
        raise UnsupportedError(
            "mlp_train: the kernel trains in float32 only; convert x and the parameters with "
            ".astype('float32'), or train on the CPU."
        )
    steps, batch = order.shape
    clip = work.max_norm is not None
    plan = choose(
        work.network, batch, clip, launch.aligned(16, parameters), launch.multiprocessors,
        launch.shared_limit, work.blocks, work.team,
    )  # fmt: skip
    layers = len(work.network.layers)
    table = _on_device(launch, plan.table)
    scratch = launch.empty((1 if plan.resident else plan.scratch,), FLOAT32)
    gradients = launch.empty((parameters.size if clip else 1,), FLOAT32)
    squares = launch.empty((plan.tiles if clip else 1,), FLOAT64)
    meetings = (1 + plan.blocks // plan.members) * COUNT_STRIDE  # of all blocks, and of each team
    counts = launch.empty((steps + meetings,), INT32)  # before them the real rows of each step
    grid = (min(4 * launch.multiprocessors, -(-steps * 32 // _PREPARE_BLOCK)),)
    prepare = (order, np.int32(steps), np.int32(batch), counts, np.int32(meetings))
    launch("mlp_count_rows", grid, (_PREPARE_BLOCK,), prepare)
    vector = x.shape[1] % 4 == 0 and launch.aligned(16, x)
    floating = target if work.loss == "mse" else None
    labels = None if work.loss == "mse" else target
    args = (
        x, np.int64(x.shape[0]), labels, floating, order, np.int32(steps), np.int32(batch),
        parameters, first, second, hyper, np.int32(hyper.shape[1]), table, np.int32(layers),
        np.int32(plan.tiles), np.int32(plan.members), scratch, *map(np.int32, plan.buffers),
        gradients, squares, counts, losses, correct, np.float32(work.label_smoothing),
        np.float64(work.max_norm or 0), np.uint64(work.seed), np.uint64(work.offset),
        np.int32(dropouts(work.network)), np.int32(_options(work, first, vector)),
    )  # fmt: skip
    kernel = f"mlp_train<{str(plan.resident).lower()}>"
    launch(kernel, (plan.blocks,), (THREADS,), args, plan.shared)


# ---- Numba ---------------------------------------------------------------------------------------

_NUMBA_THREADS = 64


@functools.lru_cache(maxsize=64)
def _numba_table(network, batch: int):
    """(integers, reals, floats of scratch): for each layer what the Numba kernel reads of it."""
    integers, reals, used, order = [], [], 0, 0
    for layer in network.layers:
        place = used
        used += batch * (layer.inputs + 2 * layer.outputs)  # X, Z, dZ
        integers.append((
            layer.inputs, layer.outputs, layer.weight, layer.bias,
            ACTIVATIONS.index(layer.activation), int(np.ceil(layer.dropout * 2**24)),
            order if layer.dropout > 0 else -1, place,
        ))  # fmt: skip
        order += layer.dropout > 0
        scale = 1 / (1 - layer.dropout) if layer.dropout < 1 else 0.0
        reals.append((layer.alpha, scale))
    return np.array(integers, np.int64), np.array(reals, np.float64), used


def launch_numba(
    launch, x, target, order, parameters, first, second, hyper, losses, correct, work
) -> None:
    """One block; Numba takes no None, so empty arrays stand for what is absent."""
    dtype, batch = x.dtype, order.shape[1]
    integers, reals, used = _numba_table(work.network, batch)
    empty = launch.empty((0,), dtype)
    mse = work.loss == "mse"
    labels = launch.empty((0,), INT64) if mse else target
    floating = target if mse else launch.empty((0, 0), dtype)
    args = (
        x, labels, floating, order, parameters.reshape(-1), empty if first is None else first,
        empty if second is None else second, hyper, _on_device(launch, integers),
        _on_device(launch, reals).astype(dtype), launch.empty((max(used, 1),), dtype),
        launch.empty((parameters.size,), dtype), launch.empty((2, batch), FLOAT64), losses, correct,
        dtype.type(work.label_smoothing), np.float64(work.max_norm or 0),
        np.uint64(work.seed), np.uint64(work.offset), np.int32(dropouts(work.network)),
        np.int32(_options(work, first, False)),
    )  # fmt: skip
    launch(f"mlp_train_{dtype.name}", (1,), (_NUMBA_THREADS,), args)
