"""The launch that all weight updates share, by CUDA and Numba; see kernels/cuda/optimizer.cuh."""

from __future__ import annotations

import functools

import numpy as np

from gpunn.primitives.samples import FLOAT32, accumulator_dtype

THREADS = 256
UNROLL = 2  # packs a thread, as in optimizer.cuh


def launch_update(
    launch, kernel: str, flags: tuple, arrays: tuple, hyper, skip, last: tuple
) -> None:
    """Launch ``kernel<T, *flags, VECTOR>(*arrays, hyper, skip, n, *last)``, absent arrays null."""
    parameters = arrays[0]
    if parameters.size == 0:
        return
    vector = launch.aligned(16, *arrays)
    width = 16 // accumulator_dtype(parameters.dtype).itemsize if vector else 1
    launch(
        _expression(kernel, launch.ctype(parameters.dtype), (*flags, vector)),
        grid=(max(1, -(-(parameters.size // width) // (THREADS * UNROLL))),),
        block=(THREADS,),
        args=(*arrays, hyper, skip, launch.int64(parameters.size), *map(np.bool_, last)),
    )


@functools.cache
def _expression(kernel: str, ctype: str, flags: tuple[bool, ...]) -> str:
    return f"{kernel}<{', '.join([ctype, *(str(flag).lower() for flag in flags)])}>"


def launch_numba(launch, kernel: str, arrays: tuple, hyper, skip, *flags: bool) -> None:
    """Launch `kernel`, two elements a thread; Numba takes no None for an absent array."""
    parameters = arrays[0]
    if parameters.size == 0:
        return
    absent = launch.empty((1,), accumulator_dtype(parameters.dtype))
    arrays = [absent if array is None else array for array in arrays]
    has_skip = skip is not None
    skip = skip if has_skip else launch.empty((1,), FLOAT32)
    grid = (min(-(-parameters.size // 256), 65535),)
    launch(kernel, grid, (128,), (*arrays, hyper, *map(np.bool_, flags), skip, np.bool_(has_skip)))
