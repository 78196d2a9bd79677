"""Checks and preparations that every matrix product shares."""

from __future__ import annotations

import math

import numpy as np

from gpunn.primitives.samples import FLOATING

# Where the kernels of every product are, for `primitive`.
SOURCES = {
    "cuda": "matmul.cu",
    "numba": "matmul.py",
    "siblings": ("matmul_wgmma.cu", "matmul_mma.cu", "matmul_prepare.cu"),
}


def operands(call, a, b, transpose_a: bool, transpose_b: bool):
    """(a (..., M, K), b (..., K, N), shape of the product), checked; views of any strides."""
    a = call.array("a", a, dtypes=FLOATING, strided=True)
    b = call.array("b", b, dtypes=FLOATING, strided=True)
    if a.dtype != b.dtype:
        call.same_dtype(a=a, b=b)
    if a.ndim < 2 or b.ndim < 2:
        _refuse_vector(call, a, b)
    left = a.swapaxes(-1, -2) if transpose_a else a
    right = b.swapaxes(-1, -2) if transpose_b else b
    if left.shape[-1] != right.shape[-2]:
        _refuse_inner(call, a, b, transpose_a, transpose_b)
    if left.ndim == 2 and right.ndim == 2:
        return left, right, (left.shape[0], right.shape[1])
    return left, right, (*_batch_shape(call, a, b), left.shape[-2], right.shape[-1])


def like_out(call, name: str, value, shape, dtype, wanted: bool, /, **inputs):
    """An array to write like the output: the given one, checked, a new one if `wanted`, or None."""
    if value is not None:
        value = call.output(name, value, shape=shape, dtype=dtype)
        refuse_overlap(call, name, value, **inputs)
    elif wanted:
        value = call.empty(shape, dtype)
    return value


def fold(a, b, *like):
    """Many matrices times the same one are one tall matrix times that, where `a` has no gaps.

    Returns a, b and the arrays `like` the output (None among them), folded if possible.
    """
    out = like[0]
    if out.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous and out.size > 0:
        rows = math.prod(a.shape[:-1])  # not -1: K may be 0
        a = a.reshape(rows, a.shape[-1])
        like = tuple(None if x is None else x.reshape(rows, out.shape[-1]) for x in like)
    return a, b, *like


def _refuse_vector(call, a, b) -> None:
    name, value = ("a", a) if a.ndim < 2 else ("b", b)
    if value.ndim == 0:
        call.refuse(name, value, "a matrix (at least 2 dimensions)", "Multiply by a number with *.")
    make = "a row with a[None, :]" if name == "a" else "a column with b[:, None]"
    call.refuse(name, value, "a matrix (at least 2 dimensions)", f"Make it {make}.")


def _refuse_inner(call, a, b, transpose_a, transpose_b) -> None:
    rows_a, columns_a = a.shape[-2:]
    rows_b, columns_b = b.shape[-2:]
    k_a, other_a = (rows_a, columns_a) if transpose_a else (columns_a, rows_a)
    k_b, other_b = (columns_b, rows_b) if transpose_b else (rows_b, columns_b)
    if k_a == other_b:
        remedy = f"pass transpose_b={not transpose_b}"
    elif other_a == k_b:
        remedy = f"pass transpose_a={not transpose_a}"
    elif other_a == other_b:
        remedy = f"pass transpose_a={not transpose_a} and transpose_b={not transpose_b}"
    else:
        remedy = "no transpose makes them fit"
    turned = [f"transpose_{n}=True" for n, t in (("a", transpose_a), ("b", transpose_b)) if t]
    given = f" with {' and '.join(turned)}" if turned else ""
    raise ValueError(
        f"matmul: a has shape {a.shape} and b {b.shape}{given}: the inner dimensions are {k_a} and "
        f"{k_b}, expected equal ones; {remedy}."
    )


def _batch_shape(call, a, b) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(
            f"matmul: a has shape {a.shape} and b {b.shape}: the batch dimensions {a.shape[:-2]} "
            f"and {b.shape[:-2]} do not broadcast; make each pair equal, or one of it 1."
        ) from None


def refuse_overlap(call, name, out, /, **inputs) -> None:
    on_cpu = type(out) is np.ndarray
    overlap = np.may_share_memory if on_cpu else call.xp.may_share_memory  # compares bounds: quick
    for other, value in inputs.items():
        if value is None or not overlap(out, value):
            continue
        if not on_cpu or np.shares_memory(out, value):
            call.refuse(name, out, f"memory of its own, but it overlaps {other}", "Leave it out.")
