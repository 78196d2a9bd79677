"""Convolutions on the ordinary arithmetic units: parts of K, and the launch.

For every dtype, shape and architecture; see kernels/cuda/convolution.cu.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from gpunn.primitives import matmul_simt
from gpunn.primitives.convolution_pass import Pass, sizes, structure
from gpunn.primitives.matmul_option import Option, measured, parts_of
from gpunn.primitives.samples import accumulator_dtype

# The tile of a block, and its share of the arithmetic units' speed in packs and single elements: an
# estimate used only to choose.
SIDE, THREADS, RATES = 64, 128, {True: 0.65, False: 0.5}

# As in matmul_simt: seconds of a clock cycle, cycles of a load and of a block, multiply-adds of a
# multiprocessor in a cycle.
_CYCLE, _LATENCY, _BLOCK, _RATE = 0.57e-9, 700, 2000, {2: 128, 4: 128, 8: 64}


def options(p: Pass, chip) -> list[Option]:
    """The kernel with its best number of parts of K, with its estimated time."""
    # Few kernels for little: packs for float32 alone, the dtype that is computed here at length.
    packed = p.a.dtype == np.float32 and p.aligned(chip, 4)
    parts, length, seconds = _choice(
        *sizes(p.made, p.shape), p.out.itemsize, packed, chip.multiprocessors,
        chip.arch == "sm_80",
    )  # fmt: skip
    run_it = functools.partial(run, packed=packed, parts=parts, length=length)
    seconds *= measured("simt", chip.arch)
    return [Option(f"simt{' packed' * packed} k{parts}", seconds, run_it)]


@functools.lru_cache(maxsize=4096)
def _choice(rows, columns, depth, matrices, itemsize, packed, processors, slow):
    step = 8 if itemsize == 8 else 16
    blocks = -(-rows // SIDE) * -(-columns // SIDE) * matrices
    rate = _RATE[itemsize] / (2 if slow and itemsize < 8 else 1) * RATES[packed]
    best, least = (1, depth), math.inf
    for parts, length, extra in parts_of(
        rows, columns, depth, matrices, step, blocks, processors
    ):
        resident = -(-blocks * parts // processors)
        each = max(_LATENCY, resident * SIDE * SIDE * step / rate)
        cycles = _BLOCK + length / step * each
        if cycles * _CYCLE + extra < least:
            best, least = (parts, length), cycles * _CYCLE + extra
    return *best, least


def run(launch, p: Pass, *, packed: bool, parts: int, length: int, needed=None) -> None:
    """Launch with `parts` parts of K, each `length` long.

    needed : an int on the device, or None: with 0 the kernel does nothing
    """
    finish, accumulator = p.finish, accumulator_dtype(p.out.dtype)
    rows, columns, _, matrices = sizes(p.made, p.shape)
    tiles_m, tiles_n = -(-rows // SIDE), -(-columns // SIDE)
    partial = launch.empty((parts, *p.out.shape), accumulator) if parts > 1 else None
    activation, alpha, _ = finish.numbers()
    launch(
        f"convolution<{launch.ctype(p.out.dtype)}, {p.made}, {str(packed).lower()}>",
        grid=(tiles_m * tiles_n * matrices * parts,),
        block=(THREADS,),
        args=(
            p.a, p.b, structure(p.shape), np.uint32(tiles_m), np.uint32(tiles_n),
            np.uint32(matrices), np.int64(length), np.int64(p.out.size), partial, finish.bias,
            finish.residual, finish.out, finish.preactivation, activation, alpha,
            np.bool_(p.vector(launch, 16 // accumulator.itemsize)), needed,
        ),
    )  # fmt: skip
    if parts > 1:
        matmul_simt.combine(launch.sibling("matmul.cu"), finish, partial, needed)
