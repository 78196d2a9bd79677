"""The launches of the random primitives, in CUDA C++ and in Numba.

All take what the primitive gives to ``Call.run``.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.random_counter import numba_arguments

BLOCK = 256
UINT32 = np.dtype(np.uint32)


def _grid(launch, size: int, each: int = 4) -> tuple[int]:
    """Blocks of threads, `each` elements a thread; with more than 16 a multiprocessor they loop."""
    return (max(1, min(-(-size // (each * BLOCK)), 16 * launch.multiprocessors)),)


def _run(launch, kernel: str, array, args, source=None) -> None:
    """Launch ``kernel<T, VECTOR>`` (for words ``kernel<VECTOR>``) over the elements of `array`.

    With a `source` that is read, threads take 16 bytes of 16-bit types too, and not 8.
    """
    if array.size == 0:
        return
    each = 8 if source is not None and array.itemsize == 2 else 4
    vector = str(launch.aligned(min(16, each * array.itemsize), array, source)).lower()
    types = vector if array.dtype == UINT32 else f"{launch.ctype(array.dtype)}, {vector}"
    launch(f"{kernel}<{types}>", _grid(launch, array.size, each), (BLOCK,), args)


def random_bits(launch, out, seed, offset, counter, first_block):
    place = (np.uint64(seed), np.uint64(offset), counter)
    args = (out, launch.int64(out.size), *place, np.uint64(first_block))
    _run(launch, "random_bits", out, args)


def random_uniform(launch, out, seed, offset, counter, low, width):
    args = (out, launch.int64(out.size), np.uint64(seed), np.uint64(offset), counter, low, width)
    _run(launch, "random_uniform", out, args)


def random_normal(launch, out, seed, offset, counter, mean, std):
    args = (out, launch.int64(out.size), np.uint64(seed), np.uint64(offset), counter, mean, std)
    _run(launch, "random_normal", out, args)


def dropout(launch, x, out, seed, offset, counter, threshold, scale):
    place = (np.uint64(seed), np.uint64(offset), counter)
    args = (x, out, launch.int64(x.size), *place, threshold, scale)
    _run(launch, "dropout", out, args, source=x)


def advance_counter(launch, counter, draws):
    launch("advance_counter", grid=(1,), block=(1,), args=(counter, np.uint64(draws)))


def _numba_grid(size: int) -> tuple[int]:
    return (min(-(-size // (4 * 128)), 65535),)


def numba_random_bits(launch, out, seed, offset, counter, first_block):
    if out.size:
        place = numba_arguments(launch, seed, offset, counter)
        args = (out.reshape(-1), *place, np.uint64(first_block))
        launch("random_bits", _numba_grid(out.size), (128,), args)


def numba_random_uniform(launch, out, seed, offset, counter, low, width):
    if out.size:
        args = (out.reshape(-1), *numba_arguments(launch, seed, offset, counter), low, width)
        launch(f"random_uniform_{out.dtype}", _numba_grid(out.size), (128,), args)


def numba_random_normal(launch, out, seed, offset, counter, mean, std):
    if out.size:
        args = (out.reshape(-1), *numba_arguments(launch, seed, offset, counter), mean, std)
        launch(f"random_normal_{out.dtype}", _numba_grid(out.size), (128,), args)


def numba_dropout(launch, x, out, seed, offset, counter, threshold, scale):
    if x.size:
        place = numba_arguments(launch, seed, offset, counter)
        args = (x.reshape(-1), out.reshape(-1), *place, threshold, scale)
        launch("dropout", _numba_grid(x.size), (128,), args)


def numba_advance_counter(launch, counter, draws):
    launch("advance_counter", (1,), (1,), (counter, np.uint64(draws)))
