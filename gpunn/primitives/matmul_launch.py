"""From the operands of a product to the launch of the kernel that makes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.device.recipe import Recipe, Recorder
from gpunn.primitives import matmul_precision, matmul_tune
from gpunn.primitives.matmul_plan import choose
from gpunn.primitives.matmul_problem import Finish, batch_dimensions, problem_of
from gpunn.primitives.matmul_simt import column_sums

# What was launched for a kind of product on a GPU, or None where it cannot be repeated.
_recipes: dict[tuple, Recipe | None] = {}
MAX_RECIPES = 16384


def multiply(launch, a, b, finish: Finish) -> None:
    """Launch ``finish(a @ b)`` on arrays of any strides; `launch` is the launcher of matmul.cu.

    On a GPU the launches of each kind of product are noted once and repeated: see device/recipe.py.
    """
    if finish.out.size == 0:
        return
    if isinstance(a, np.ndarray) or matmul_tune.forced() is not None or launch.launches_nothing:
        _multiply(launch, a, b, finish)
        return
    arrays = (a, b, *finish.all_arrays())
    key = _kind(launch, arrays, finish)
    recipe = _recipes.get(key)
    if recipe is not None:
        recipe.run(launch, arrays)
    elif key in _recipes:
        _multiply(launch, a, b, finish)
    else:
        recorder = Recorder(launch, arrays)
        _multiply(recorder, a, b, finish)
        if len(_recipes) >= MAX_RECIPES:
            _recipes.clear()
        _recipes[key] = recorder.recipe if recorder.recipe.repeatable else None


def _kind(launch, arrays: tuple, finish: Finish) -> tuple[Any, ...]:
    """All that the launch code looks at, and which arrays are the same memory."""
    a, b, out = arrays[0], arrays[1], finish.out
    pointers = [0 if x is None else x.data.ptr for x in arrays]
    low = tuple([pointer & 15 for pointer in pointers])
    present = tuple([pointer and pointers.index(pointer) + 1 for pointer in pointers])
    return (
        launch, a.dtype, a.shape, a.strides, b.shape, b.strides, out.shape, low, present,
        finish.activation, finish.alpha, finish.scale, matmul_precision.get_matmul_precision(),
        matmul_tune.is_on(),
    )  # fmt: skip


def _multiply(launch, a, b, finish: Finish) -> None:
    out = finish.out
    dims = batch_dimensions(a, b, out.shape[:-2])
    if len(dims) > 2:  # the kernels know two batch dimensions: one launch for each of the others
        for i in range(out.shape[0]):
            _multiply(launch, item(a, i, out.ndim), item(b, i, out.ndim), finish.matrix(i))
        if finish.column_sums is not None:
            column_sums(launch, out.reshape(-1, out.shape[-1]), finish.column_sums)
        return
    problem = problem_of(a, b, finish, dims)
    choose(launch, problem).run(launch, problem)


def item(x, index: int, ndim: int):
    """Matrix block `index` of the first dimension of `x` broadcast to `ndim` dimensions."""
    return x if x.ndim < ndim else x[index if x.shape[0] > 1 else 0]
