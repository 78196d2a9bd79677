"""The elementwise losses of `loss`: their NumPy reference and the launches of their kernels.

All of them share one signature, that of ``Call.run`` in `loss`:

    forward    (prediction, target, out, reduction, delta, weight, pos_weight)
    backward   (grad_output, prediction, target, out, reduction, delta, weight, pos_weight)

delta belongs to Huber's loss, the weights to binary cross-entropy; they are in the accumulator's
dtype and repeat along the elements, or are None.
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import BLOCK, elementwise_grid
from gpunn.primitives.registry import Primitive
from gpunn.primitives.samples import accumulator_dtype

# ---- reference -----------------------------------------------------------------------------------

# Elements worked on at a time: what is computed in between stays in the cache.
_CHUNK = 1 << 15


def _mse_value(p, t, *_):
    d = p - t
    return np.multiply(d, d, out=d)


def _mse_slope(p, t, *_):
    d = p - t
    return np.add(d, d, out=d)


def _l1_value(p, t, *_):
    d = p - t
    return np.abs(d, out=d)


def _huber_value(p, t, delta, *_):
    d = _l1_value(p, t)
    c = np.minimum(d, delta)
    return c * (d - 0.5 * c)


def _binary_value(x, t, delta, weight, positive):
    no, yes = 1 - t, t if positive is None else positive * t
    loss = np.abs(x)
    bend = np.exp(-loss)
    np.log1p(bend, out=bend)
    far = np.where(x > 0, no, yes)
    loss *= far
    np.copyto(loss, 0, where=far == 0)  # 0 * inf is 0: a certain and right answer
    loss += bend if positive is None else bend * (no + yes)
    return loss if weight is None else loss * weight


def _binary_slope(x, t, delta, weight, positive):
    no, yes = 1 - t, t if positive is None else positive * t
    e = np.exp(-np.abs(x))
    large = 1 / (1 + e)
    small, right = e * large, x >= 0
    slope = no * np.where(right, large, small) - yes * np.where(right, small, large)
    return slope if weight is None else slope * weight


_VALUE = {
    "mse": _mse_value,
    "l1": _l1_value,
    "huber": _huber_value,
    "binary_cross_entropy": _binary_value,
}
_SLOPE = {
    "mse": _mse_slope,
    "l1": lambda p, t, *_: np.sign(p - t),
    "huber": lambda p, t, delta, *_: np.clip(p - t, -delta, delta),
    "binary_cross_entropy": _binary_slope,
}


def _parts(arrays, factors, accumulator):
    """(slice, pieces of the arrays, pieces of the factors), widened, a chunk at a time."""
    shape, size = arrays[0].shape, arrays[0].size
    arrays = [array.reshape(-1) for array in arrays]
    factors = [
        f.reshape(1) if f is not None and f.size == 1
        else f if f is None else np.broadcast_to(f, shape).reshape(-1)
        for f in factors
    ]  # fmt: skip
    for start in range(0, size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield (
            part,
            [array[part].astype(accumulator, copy=False) for array in arrays],
            [f if f is None or f.size == 1 else f[part] for f in factors],
        )


def _forward_reference(loss: str):
    value = _VALUE[loss]

    def reference(prediction, target, out, reduction, delta, weight, positive):
        accumulator, total = accumulator_dtype(prediction.dtype), 0.0
        flat = out.reshape(-1)
        with quiet():
            parts = _parts((prediction, target), (weight, positive), accumulator)
            for part, arrays, factors in parts:
                losses = value(*arrays, delta, *factors)
                if reduction == "none":
                    flat[part] = losses
                else:
                    total += float(losses.sum())
            if reduction == "mean":
                total = total / prediction.size if prediction.size else math.nan
            if reduction != "none":
                out[...] = total

    return reference


def _backward_reference(loss: str):
    slope = _SLOPE[loss]

    def reference(grad_output, prediction, target, out, reduction, delta, weight, positive):
        accumulator, flat = accumulator_dtype(prediction.dtype), out.reshape(-1)
        divisor = max(prediction.size, 1) if reduction == "mean" else 1
        arrays = (prediction, target) + ((grad_output,) if reduction == "none" else ())
        with quiet():
            scale = accumulator.type(float(grad_output) / divisor) if reduction != "none" else None
            for part, (p, t, *grad), factors in _parts(arrays, (weight, positive), accumulator):
                slopes = slope(p, t, delta, *factors)
                slopes *= grad[0] if grad else scale
                flat[part] = slopes

    return reference


# ---- launch --------------------------------------------------------------------------------------

_STRUCT = {"mse": "MSE", "l1": "L1", "huber": "Huber", "binary_cross_entropy": "BinaryCrossEntropy"}


def _types(launch, loss: str, dtype, options, vector: bool) -> str:
    """The template arguments of a kernel."""
    weighted = any(factor is not None for factor in options[1:])
    struct = f"Weighted{_STRUCT[loss]}" if weighted else _STRUCT[loss]
    return f"{launch.ctype(dtype)}, {struct}, {str(vector).lower()}"


def _options(accumulator, delta, weight, positive) -> tuple:
    """The kernels' last arguments: delta, and each factor with its number of elements."""
    sizes = [np.int64(0 if f is None else f.size) for f in (weight, positive)]
    return accumulator.type(delta), weight, sizes[0], positive, sizes[1]


def _divisor(accumulator, reduction: str, size: int):
    return accumulator.type(size if reduction == "mean" else 1)


def _forward_cuda(loss: str):
    def launch_forward(launch, prediction, target, out, reduction, *options):
        size, accumulator = prediction.size, accumulator_dtype(prediction.dtype)
        arrays = (prediction, target) + ((out,) if reduction == "none" else ())
        vector = (launch.alike if reduction == "none" else launch.aligned)(16, *arrays)
        types = _types(launch, loss, prediction.dtype, options, vector)
        (blocks,) = elementwise_grid(size, prediction.itemsize, vector)
        options = _options(accumulator, *options)
        if reduction == "none":
            if size:
                args = (prediction, target, out, launch.int64(size), *options)
                launch(f"loss_forward<{types}>", (blocks,), (BLOCK,), args)
            return
        # Up to four tiles, one block walks over them all: that saves the second launch.
        blocks = 1 if blocks <= 4 else min(blocks, 8 * launch.multiprocessors)
        partial = launch.empty((blocks,), accumulator) if blocks > 1 else None
        divisor = _divisor(accumulator, reduction, size)
        args = (prediction, target, partial, out, launch.int64(size), divisor, *options)
        launch(f"loss_forward_reduced<{types}>", (blocks,), (BLOCK,), args)
        if blocks > 1:
            args = (partial, launch.int32(blocks), out, divisor)
            launch(f"loss_finish<{launch.ctype(accumulator)}>", (1,), (BLOCK,), args)

    return launch_forward


def _backward_cuda(loss: str):
    def launch_backward(launch, grad_output, prediction, target, out, reduction, *options):
        size, accumulator = prediction.size, accumulator_dtype(prediction.dtype)
        if size == 0:
            return
        none = reduction == "none"
        vector = launch.alike(16, prediction, target, out, grad_output if none else None)
        types = _types(launch, loss, prediction.dtype, options, vector)
        grid = elementwise_grid(size, prediction.itemsize, vector)
        args = (grad_output, prediction, target, out, launch.int64(size))
        args += () if none else (_divisor(accumulator, reduction, size),)
        name = "loss_backward" if none else "loss_backward_reduced"
        launch(f"{name}<{types}>", grid, (BLOCK,), args + _options(accumulator, *options))

    return launch_backward


# Of Numba's blocks; the sum's tree in kernels/numba/loss.py has this many leaves.
_NUMBA_BLOCK = 64


def _numba_arguments(launch, arrays, delta, weight, positive) -> tuple:
    """Flat arrays, delta, and the factors, of which an empty one stands for None."""
    accumulator = accumulator_dtype(arrays[-1].dtype)
    none = launch.empty((0,), accumulator)
    factors = [none if f is None else f.reshape(-1) for f in (weight, positive)]
    return *(array.reshape(-1) for array in arrays), accumulator.type(delta), *factors


def _forward_numba(loss: str):
    def launch_forward(launch, prediction, target, out, reduction, *options):
        size, dtype = prediction.size, prediction.dtype
        blocks = max(1, min(-(-size // (4 * _NUMBA_BLOCK)), 1024))
        if reduction == "none":
            args = _numba_arguments(launch, (prediction, target, out), *options)
            launch(f"loss_forward_{loss}", (blocks,), (_NUMBA_BLOCK,), args)
            return
        partial = launch.empty((blocks,), dtype)
        args = _numba_arguments(launch, (prediction, target, partial), *options)
        launch(f"loss_forward_reduced_{loss}", (blocks,), (_NUMBA_BLOCK,), args)
        args = (partial, out.reshape(1), _divisor(dtype, reduction, size))
        launch("loss_finish", (1,), (_NUMBA_BLOCK,), args)

    return launch_forward


def _backward_numba(loss: str):
    def launch_backward(launch, grad_output, prediction, target, out, reduction, *options):
        size = prediction.size
        if size == 0:
            return
        blocks = max(1, min(-(-size // (4 * _NUMBA_BLOCK)), 1024))
        grad, *args = _numba_arguments(launch, (grad_output, prediction, target, out), *options)
        if reduction != "none":
            args.insert(3, _divisor(prediction.dtype, reduction, size))
        kind = "" if reduction == "none" else "reduced_"
        launch(f"loss_backward_{kind}{loss}", (blocks,), (_NUMBA_BLOCK,), (grad, *args))

    return launch_backward


def implement(forward: Primitive, backward: Primitive, loss: str) -> None:
    """Register the implementations of one loss."""
    forward.reference(_forward_reference(loss))
    forward.cuda(_forward_cuda(loss))
    forward.numba(_forward_numba(loss))
    backward.reference(_backward_reference(loss))
    backward.cuda(_backward_cuda(loss))
    backward.numba(_backward_numba(loss))
