"""What the tests of the public kernels share: compile a file once, launch its kernels, checked."""

import functools
from pathlib import Path

import numpy as np

from gpunn import emulator

FOLDER = Path(__file__).parent
F = np.float32
RNG = np.random.default_rng(7)


@functools.cache
def module(file, *names, **options):
    """The module of a file, for its plain kernels or for name expressions."""
    return emulator.RawModule(
        path=FOLDER / f"{file}.cu", name_expressions=names, check=True, **options
    )


def run(name, grid, block, *args, shared=0, **settings):
    """Launch "file.kernel"; what else a test wants of the launch comes in settings."""
    file, kernel = name.split(".", 1)
    names = (kernel,) if "<" in kernel else ()
    found = module(file, *names).get_function(kernel)
    found(grid, block, args, shared_mem=shared, **settings)


def uniform(*shape, low=-1.0, high=1.0, dtype=F):
    """Random numbers of a shape."""
    return RNG.uniform(low, high, shape).astype(dtype)
