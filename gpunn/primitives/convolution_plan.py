"""Which kernel makes a pass of a convolution: the rule.

======== ========= ===================== =========================================================
dtype    precision architecture          candidates
======== ========= ===================== =========================================================
float64  any       any                   simt
float32  highest   sm_80 and later       simt; mma on three bfloat16 parts each
float32  other     sm_80 and later       mma in TF32
16 bits  any       sm_90a                mma; wgmma where tensor copies can read the operands
16 bits  any       sm_80 and later       mma
any      any       older than sm_80      simt
======== ========= ===================== =========================================================

Of the candidates the one with the least estimated time is taken. Depthwise convolutions have
kernels of their own, on every architecture.

A convolution that is a plain product of matrices is handed to `matmul_launch`, which has more
kernels (wgmma among them): a kernel of one tap with strides of 1 and no padding (pointwise), and
one that covers the whole input (a linear layer).
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.device.recipe import Recipe, Recorder
from gpunn.primitives import (
    convolution_depthwise,
    convolution_mma,
    convolution_simt,
    convolution_wgmma,
    matmul_precision,
)
from gpunn.primitives.convolution_pass import INPUT, OUTPUT, WEIGHT, Pass
from gpunn.primitives.convolution_problem import Geometry
from gpunn.primitives.matmul_launch import multiply
from gpunn.primitives.matmul_option import Option, number_of
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.matmul_simt import column_sums


def options(p: Pass, chip) -> list[Option]:
    """Every way to make a pass on a chip; the rule of this file."""
    itemsize, direct = p.out.itemsize, convolution_depthwise.options(p, chip)
    if direct:
        return direct
    if itemsize == 8 or number_of(chip.arch) < 80:
        return convolution_simt.options(p, chip)
    if itemsize == 2:
        found = convolution_wgmma.options(p, chip) + convolution_mma.options(p, chip, "native")
    elif matmul_precision.get_matmul_precision() == "highest":
        found = convolution_simt.options(p, chip) + convolution_mma.options(p, chip, "split")
    else:
        found = convolution_mma.options(p, chip, "tf32")
    return found or convolution_simt.options(p, chip)  # arrays too large for mma's counts


def as_matrices(shape: Geometry) -> tuple[int, int] | None:
    """(rows, depth) of the plain product that a convolution is, or None.

    Forward it is then ``x (rows, depth) @ weight (outputs, depth)^T``.
    """
    if shape.groups > 1 or any(shape.low) or any(shape.high):
        return None
    if shape.taps == 1 and set(shape.stride) == {1}:
        return shape.batch * math.prod(shape.size), shape.channels
    if shape.kernel == shape.size:
        return shape.batch, shape.taps * shape.channels
    return None


# ---- launch --------------------------------------------------------------------------------------

# What was launched for a kind of pass on a GPU, or None where it cannot be repeated.
_recipes: dict[tuple, Recipe | None] = {}
MAX_RECIPES = 16384


def launch_output(launch, x, weight, shape, finish) -> None:
    """Launch the forward pass."""
    plain = as_matrices(shape)
    if plain is not None:
        weight = weight.reshape(shape.outputs, -1)
        products = launch.sibling("matmul.cu")
        multiply(products, x.reshape(plain), weight.T, _flat(finish, shape.outputs))
        return

    def run(launch):
        flat = _flat(finish, shape.outputs)
        _launch(launch, Pass(OUTPUT, x, weight, shape.in_three(), flat))

    key = OUTPUT, shape, finish.activation, finish.alpha
    _repeat(launch, (x, weight, *finish.arrays()), key, run)


def launch_input(launch, grad_output, weight, shape, finish) -> None:
    """Launch the gradient of the input."""
    plain = as_matrices(shape)
    if plain is not None and (finish.bias is None or plain[1] == shape.channels):
        grad = grad_output.reshape(-1, shape.outputs)
        weight = weight.reshape(shape.outputs, plain[1])
        multiply(launch.sibling("matmul.cu"), grad, weight, _flat(finish, plain[1]))
        return

    def run(launch):
        flat = _flat(finish, shape.channels)
        _launch(launch, Pass(INPUT, grad_output, weight, shape.in_three(), flat))

    key = INPUT, shape, finish.activation, finish.alpha
    _repeat(launch, (grad_output, weight, *finish.arrays()), key, run)


def launch_weight(launch, grad_output, x, shape, out, sums) -> None:
    """Launch the gradients of the weight, and of the bias where `sums` is an array."""
    plain = as_matrices(shape)
    if plain is not None:
        rows, out = grad_output.reshape(-1, shape.outputs), out.reshape(shape.outputs, -1)
        finish = Finish(out, row_sums=sums)
        multiply(launch.sibling("matmul.cu"), rows.T, x.reshape(plain), finish)
        return

    def run(launch):
        finish = Finish(out.reshape(shape.outputs, -1))
        _launch(launch, Pass(WEIGHT, grad_output, x, shape.in_three(), finish))
        if sums is not None:
            rows = grad_output.reshape(-1, shape.outputs)
            column_sums(launch.sibling("matmul.cu"), rows, sums)

    _repeat(launch, (grad_output, x, out, sums), (WEIGHT, shape), run)


def _launch(launch, p: Pass) -> None:
    """Launch the option with the least estimated time."""
    if p.out.size:
        min(options(p, launch), key=lambda option: option.seconds).run(launch, p)


def _repeat(launch, arrays: tuple, key: tuple, run) -> None:
    """``run(launch)``; on a GPU the launches of each kind of pass are noted once and repeated.

    key : what the launch code looks at, but for the arrays' dtype and addresses
    """
    if isinstance(arrays[0], np.ndarray):
        run(launch)
        return
    pointers = [0 if x is None else x.data.ptr for x in arrays]
    low = tuple([pointer & 15 for pointer in pointers])
    present = tuple([pointer and pointers.index(pointer) + 1 for pointer in pointers])
    kind = (launch, arrays[0].dtype, *key, low, present, matmul_precision.get_matmul_precision())
    recipe = _recipes.get(kind)
    if recipe is not None:
        recipe.run(launch, arrays)
    elif kind in _recipes:
        run(launch)
    else:
        recorder = Recorder(launch, arrays)
        run(recorder)
        if len(_recipes) >= MAX_RECIPES:
            _recipes.clear()
        _recipes[kind] = recorder.recipe if recorder.recipe.repeatable else None


def _flat(finish: Finish, columns: int) -> Finish:
    """The same with every array as rows of `columns`."""

    def rows(x):
        return None if x is None else x.reshape(-1, columns)

    return Finish(
        rows(finish.out), finish.bias, rows(finish.preactivation), finish.activation, finish.alpha,
        finish.scale, rows(finish.residual),
    )  # fmt: skip
