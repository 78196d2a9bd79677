"""Einstein sums by permutations and batched matrix products."""

from __future__ import annotations

import math
import string
from collections.abc import Callable

import gpunn
from gpunn.autograd.functions.shape import permute, reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.onnx.operators.common import floating, plain


def contraction(equation: str) -> Callable[..., Tensor]:
    """The function of tensors that `equation` describes. Raises ValueError for a bad one."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    for term in [*terms, right]:
        if term.count("...") > 1 or not set(term.replace("...", "")) <= set(string.ascii_letters):
            raise ValueError("expected letters, commas, at most one '...' a term and one '->'")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." if "..." in left else ""
        right += "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    missing = set(right.replace("...", "")) - set(left)
    if missing:
        raise ValueError(f"the result names {sorted(missing)}, which no operand has")
    return lambda *tensors: _evaluate(terms, right, tensors)


def _evaluate(terms: list[str], right: str, tensors: tuple[Tensor, ...]) -> Tensor:
    if len(terms) != len(tensors):
        raise ValueError(f"einsum: {len(terms)} terms for {len(tensors)} operands")
    if not all(map(floating, tensors)):
        text = ",".join(terms) + "->" + right
        return plain(lambda xp, *arrays: xp.einsum(text, *arrays), *tensors)
    unused = [x for x in string.ascii_letters if x not in "".join(terms)]
    longest = max(t.ndim - len(s.replace("...", "")) for s, t in zip(terms, tensors, strict=True))
    dots = unused[:longest] if longest > 0 else []
    operands = []
    for term, tensor in zip(terms, tensors, strict=True):
        if "..." in term:
            count = tensor.ndim - len(term) + 3
            term = term.replace("...", "".join(dots[len(dots) - count :]))
        if len(term) != tensor.ndim:
            raise ValueError(f"einsum: {term!r} for a tensor of shape {tensor.shape}")
        operands.append(_diagonal(list(term), tensor))
    wanted = list(right.replace("...", "".join(dots)))
    labels, total = operands[0]
    for position, (more, tensor) in enumerate(operands[1:], 1):
        later = {x for rest, _ in operands[position + 1 :] for x in rest} | set(wanted)
        labels, total = _contract(labels, total, more, tensor, later)
    labels, total = _summed(labels, total, set(wanted))
    return permute(total, *(labels.index(x) for x in wanted))


def _diagonal(labels: list[str], x: Tensor) -> tuple[list[str], Tensor]:
    """Without repeated labels: the elements where their indices are equal."""
    while len(set(labels)) < len(labels):
        twice = next(x for x in labels if labels.count(x) > 1)
        a = labels.index(twice)
        b = labels.index(twice, a + 1)
        order = [at for at in range(x.ndim) if at not in (a, b)]
        index = wrap(x._xp.arange(x.shape[a]))
        x = permute(x, a, b, *order)[index, index]
        labels = [twice, *(labels[at] for at in order)]
    return labels, x


def _summed(labels: list[str], x: Tensor, kept: set[str]) -> tuple[list[str], Tensor]:
    """Summed over the labels that nobody needs any more."""
    gone = tuple(at for at, label in enumerate(labels) if label not in kept)
    if not gone:
        return labels, x
    return [label for label in labels if label in kept], gpunn.sum(x, gone)


def _contract(
    a: list[str], x: Tensor, b: list[str], y: Tensor, later: set[str]
) -> tuple[list[str], Tensor]:
    """Two operands as one batched product: batch dimensions, then rows, then columns."""
    a, x = _summed(a, x, later | set(b))
    b, y = _summed(b, y, later | set(a))
    sizes = dict(zip(b, y.shape, strict=True)) | {
        label: size for label, size in zip(a, x.shape, strict=True) if size != 1 or label not in b
    }
    batch = [label for label in a if label in b and label in later]
    inner = [label for label in a if label in b and label not in later]
    rows = [label for label in a if label not in b]
    columns = [label for label in b if label not in a]
    x = permute(x, *(a.index(label) for label in batch + rows + inner))
    y = permute(y, *(b.index(label) for label in batch + inner + columns))
    x = x.expand(*(sizes[label] for label in batch + rows + inner))
    y = y.expand(*(sizes[label] for label in batch + inner + columns))

    def size(labels: list[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    x = reshape(x, size(batch), size(rows), size(inner))
    y = reshape(y, size(batch), size(inner), size(columns))
    out = gpunn.matmul(x, y)
    labels = batch + rows + columns
    return labels, reshape(out, *(sizes[label] for label in labels))
