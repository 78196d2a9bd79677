"""linear_cross_entropy: the loss and gradients of linear and cross_entropy without their logits."""

from __future__ import annotations

import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpunn.autograd as g
import gpunn.nn.functional as F
from gpunn.autograd.functions import linear_cross_entropy
from gpunn.autograd.functions.linear_cross_entropy import (
    FLOAT16_ROWS,
    SCRATCH_BYTES,
    default_chunk_rows,
)
from gpunn.autograd.gradcheck import gradcheck
from gpunn.device import Device, probe

OPTIONS = (
    {},
    {"ignore_index": 3},
    {"label_smoothing": 0.2},
    {"class_weight": True},
    {"class_weight": True, "label_smoothing": 0.1, "ignore_index": 3},
)


def leaf(array, dtype=np.float64, device="cpu"):
    return g.tensor(array, device=device).to(dtype).detach().requires_grad_()


def case(rows=11, features=6, classes=7, bias=True, dtype=np.float64, device="cpu", seed=0):
    """([x, W, b or None], labels), every third label 3."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, features), (classes, features), (classes,)]
    leaves = [leaf(rng.normal(size=shape), dtype, device) for shape in shapes]
    labels = rng.integers(0, classes, rows)
    labels[::3] = 3
    return [*leaves[:2], leaves[2] if bias else None], g.tensor(labels, device=device)


def resolved(options, leaves):
    """The options, with class weights where they are asked for."""
    if not options.get("class_weight"):
        return dict(options)
    classes, like = leaves[1].shape[0], leaves[0]
    weight = g.tensor(np.linspace(0.5, 2, classes), device=like.device).to(like.dtype)
    return options | {"class_weight": weight}


def apart(leaves, labels, class_weight=None, **options):
    """The same loss by way of the logits."""
    return F.cross_entropy(F.linear(*leaves), labels, class_weight, **options)


def gradients(loss, leaves, upstream=None):
    loss.backward(upstream)
    found = [None if t is None else t.grad for t in leaves]
    for t in leaves:
        if t is not None:
            t.grad = None
    return found


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o) or "plain")
@pytest.mark.parametrize("chunk_rows", [1, 4, 11, 50])
def test_loss_and_gradients_are_those_of_the_two_functions(options, reduction, chunk_rows):
    leaves, labels = case()
    options = resolved(options, leaves) | {"reduction": reduction}
    upstream = g.tensor(np.linspace(-1, 2, 11), device="cpu") if reduction == "none" else None
    expected_loss = apart(leaves, labels, **options)
    expected = gradients(expected_loss, leaves, upstream)
    x, w, b = leaves
    loss = F.linear_cross_entropy(x, w, b, labels, chunk_rows=chunk_rows, **options)
    assert loss.shape == expected_loss.shape and loss.dtype == expected_loss.dtype
    np.testing.assert_allclose(loss.detach(), expected_loss.detach(), rtol=1e-12)
    for a, e in zip(gradients(loss, leaves, upstream), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_by_finite_differences(reduction):
    leaves, labels = case(5, 3, 4)
    options = resolved(OPTIONS[-1], leaves) | {"reduction": reduction, "chunk_rows": 2}
    assert gradcheck(
        lambda x, w, b: F.linear_cross_entropy(x, w, b, labels, **options), leaves, atol=1e-7
    )


@pytest.mark.parametrize(
    ("dtype", "bound"), [(g.bfloat16, 1.2e-2), (np.float16, 1.5e-3), (np.float32, 1e-6)]
)
@pytest.mark.parametrize("chunk_rows", [8, 64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_narrow_types_stay_near_float64(dtype, bound, chunk_rows, reduction):
    leaves, labels = case(64, 32, 50, dtype=dtype)
    wide = [leaf(np.asarray(t.detach().float().numpy(), np.float64)) for t in leaves]
    upstream = np.linspace(0.5, 2, 64) if reduction == "none" else np.float64(4)
    exact = apart(wide, labels, reduction=reduction)
    expected = gradients(exact, wide, g.tensor(upstream, device="cpu"))
    x, w, b = leaves
    loss = F.linear_cross_entropy(x, w, b, labels, chunk_rows=chunk_rows, reduction=reduction)
    assert loss.dtype == (dtype if reduction == "none" else np.float32)
    upstream = g.tensor(upstream, device="cpu").to(loss.dtype)
    for a, e in zip(gradients(loss, leaves, upstream), expected, strict=True):
        assert a.dtype == dtype
        error = np.linalg.norm(a.float().numpy() - e.numpy()) / np.linalg.norm(e.numpy())
        assert error < bound
    np.testing.assert_allclose(loss.detach().float(), exact.detach().float(), rtol=2 * bound)


def test_a_loss_scaled_up_in_float16_loses_nothing():
    """A mean over many rows divides each gradient by their number, after it was rounded."""
    leaves, labels = case(4096, 8, 5, dtype=np.float16)
    x, w, b = leaves
    scaled = F.linear_cross_entropy(x, w, b, labels) * 65536.0
    found = gradients(scaled, leaves)[0].float().numpy() / 65536
    wide = [leaf(np.asarray(t.detach().float().numpy(), np.float64)) for t in leaves]
    expected = gradients(apart(wide, labels), wide)[0].numpy()
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("rows", [16384, 200_000])
@pytest.mark.parametrize("chunk_rows", [None, 10**9])
def test_a_plain_sum_beyond_float16(rows, chunk_rows):
    """The sums over rows are -4.5 and -0.5 times their number; only the mean fits into float16."""
    x = g.tensor(np.full((rows, 1), 9.0), device="cpu").to(np.float16).requires_grad_()
    w, b = leaf(np.zeros((2, 1)), np.float16), leaf(np.zeros(2), np.float16)
    labels = g.tensor(np.zeros(rows, np.int64), device="cpu")
    (F.linear_cross_entropy(x, w, b, labels, chunk_rows=chunk_rows) * 128.0).backward()
    assert w.grad.float().tolist() == [[-576.0], [576.0]]
    assert b.grad.float().tolist() == [-64.0, 64.0]
    assert (x.grad.float() == 0).all()


def test_how_far_float16_reaches_and_what_vanishes():
    """One class of 2048 rows with |x| = 500 is 512,000, eight times what float16 holds."""
    rows = FLOAT16_ROWS
    x = leaf(np.full((rows, 1), 500.0), np.float16)
    w, b = leaf(np.zeros((3, 1)), np.float16), leaf([0, 0, -20.0], np.float16)
    labels = g.tensor(np.zeros(rows, np.int64), device="cpu")
    found = gradients(F.linear_cross_entropy(x, w, b, labels), [x, w, b])
    assert found[1].float().tolist() == [[-250.0], [250.0], [0.0]]  # exp(-20) / 2 is below 2^-25
    assert found[2].float().tolist() == [-0.5, 0.5, 0]


def test_float16_is_cut_into_chunks_that_fit_it():
    assert default_chunk_rows(10**6, 2, 2, FLOAT16_ROWS) == FLOAT16_ROWS
    assert default_chunk_rows(2049, 2, 2, FLOAT16_ROWS) == 1152
    assert default_chunk_rows(2048, 2, 2, FLOAT16_ROWS) == 2048
    assert default_chunk_rows(10**6, 2, 2) == 10**6


@pytest.mark.parametrize("chunk_rows", [2, 8])
def test_weights_that_sum_to_nothing_are_no_reason_for_a_gradient_of_zero(chunk_rows):
    """All rows ignored give 0, as cross_entropy; rows that count and weigh nothing do not."""
    leaves, labels = case(4)
    nothing = g.zeros(7, device="cpu").double()
    expected = gradients(apart(leaves, labels, nothing), leaves)
    loss = F.linear_cross_entropy(*leaves, labels, nothing, chunk_rows=chunk_rows)
    assert math.isnan(loss.item())
    for a, e in zip(gradients(loss, leaves), expected, strict=True):
        assert np.isnan(e.numpy()).all() and np.isnan(a.numpy()).all()
    labels[:] = -100
    loss = F.linear_cross_entropy(*leaves, labels, nothing, chunk_rows=chunk_rows)
    assert all((t == 0).all() for t in gradients(loss, leaves))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "uint64"])
def test_labels_of_every_kind_of_integer(dtype):
    leaves, labels = case()
    expected = apart(leaves, labels)
    narrow = g.tensor(labels.numpy().astype(dtype), device="cpu", dtype=dtype)
    assert narrow.array.dtype == dtype
    found = F.linear_cross_entropy(*leaves, narrow, chunk_rows=4)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, g.bfloat16, np.float16])
@pytest.mark.parametrize("chunk_rows", [4, 64])
def test_a_walk_that_keeps_no_graph_changes_what_it_saved_and_one_that_does_not(dtype, chunk_rows):
    leaves, labels = case(dtype=dtype)
    loss = F.linear_cross_entropy(*leaves, labels, chunk_rows=chunk_rows)
    three = g.tensor(3.0, device="cpu").to(loss.dtype)
    loss.backward(three, retain_graph=True)
    kept = loss.grad_fn.saved[0]
    once = [t.grad.float().numpy().copy() for t in leaves]
    for t in leaves:
        t.grad = None
    loss.backward(three)
    for t, grad in zip(leaves, once, strict=True):
        np.testing.assert_array_equal(t.grad.float().numpy(), grad)
    assert np.shares_memory(leaves[0].grad.array, kept)  # multiplied in place
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_leading_dimensions_and_no_bias():
    (x, w, _), labels = case(12, bias=False)
    loss = F.linear_cross_entropy(
        x.reshape(2, 3, 2, 6), w, None, labels.reshape(2, 3, 2), reduction="none", chunk_rows=5
    )
    assert loss.shape == (2, 3, 2)
    expected = apart((x, w, None), labels, reduction="none")
    np.testing.assert_allclose(loss.detach().reshape(12), expected.detach(), rtol=1e-12)
    one = F.linear_cross_entropy(x[0], w, None, labels[0])
    assert one.item() == pytest.approx(expected[0].item(), rel=1e-12)


def test_no_rows_and_no_row_that_counts():
    leaves, labels = case()
    x, w, b = leaves
    empty = F.linear_cross_entropy(x[:0], w, b, labels[:0], reduction="sum")
    assert empty.item() == 0
    assert all((t == 0).all() for t in gradients(empty, [w, b]))
    x.grad = None
    ignored = F.linear_cross_entropy(x, w, b, labels * 0 - 100, chunk_rows=3)
    assert math.isnan(ignored.item())
    assert all((t == 0).all() for t in gradients(ignored, leaves))


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), ()])
def test_only_gradients_that_are_wanted_are_made(needed):
    leaves, labels = case()
    expected = gradients(apart(leaves, labels), leaves)
    for position, tensor in enumerate(leaves):
        tensor.requires_grad_(position in needed)
    loss = F.linear_cross_entropy(*leaves, labels, chunk_rows=4)
    assert loss.requires_grad == bool(needed)
    if needed:
        for position, found in enumerate(gradients(loss, leaves)):
            assert (found is not None) == (position in needed)
            if found is not None:
                np.testing.assert_allclose(found, expected[position], rtol=1e-10, atol=1e-14)


def test_a_second_backward_and_a_gradient_that_is_not_one():
    leaves, labels = case()
    for reduction in ("mean", "sum"):
        loss = F.linear_cross_entropy(*leaves, labels, reduction=reduction, chunk_rows=4)
        loss.backward(retain_graph=True)
        once = [t.grad.numpy().copy() for t in leaves]
        loss.backward(g.tensor(3.0, device="cpu").double(), retain_graph=True)
        loss.backward()
        for t, grad in zip(leaves, once, strict=True):
            np.testing.assert_allclose(t.grad.numpy(), 5 * grad, rtol=1e-12)
            t.grad = None


@given(
    rows=st.integers(1, 10**6), classes=st.integers(1, 10**6), itemsize=st.sampled_from([2, 4, 8])
)
def test_chunks_fit_the_scratch_memory_and_are_even(rows, classes, itemsize):
    chunk = default_chunk_rows(rows, classes, itemsize)
    assert 1 <= chunk <= rows
    assert chunk <= 128 or chunk * classes * itemsize <= SCRATCH_BYTES
    chunks = -(-rows // chunk)
    assert chunk == rows or chunk % 128 == 0
    assert rows - (chunks - 1) * chunk > chunk - 128 * chunks  # the last is about as long


@pytest.mark.parametrize(("memory", "rows"), [(8, 2048), (24, 2816), (80, 8192), (141, 8192)])
def test_a_gpu_gives_a_64th_of_its_memory_to_the_scratch_array(monkeypatch, memory, rows):
    """8192 tokens of GPT-2's 50,257 classes, in 16 bits; GiB of memory, rows of a chunk."""
    found = {"totalGlobalMem": memory * 2**30}
    monkeypatch.setattr(linear_cross_entropy, "device_properties", lambda index: found)
    scratch = linear_cross_entropy.scratch_bytes(SimpleNamespace(type="cuda", index=0))
    assert default_chunk_rows(8192, 50257, 2, 8192, scratch) == rows
    assert linear_cross_entropy.scratch_bytes(Device("cpu")) == SCRATCH_BYTES


def test_memory_is_that_of_one_chunk():
    """4096 rows of 2000 classes are 64 MB of logits in float64; a chunk of 128 is 2 MB."""
    leaves, labels = case(4096, 8, 2000)
    x, w, b = leaves
    F.linear_cross_entropy(x[:200], w, b, labels[:200], chunk_rows=128)  # what is made once
    for reduction in ("mean", "none"):
        upstream = None if reduction == "mean" else g.ones(4096, device="cpu").double()
        tracemalloc.start()
        loss = F.linear_cross_entropy(x, w, b, labels, chunk_rows=128, reduction=reduction)
        loss.backward(upstream)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The scratch array, gradients twice over, and the reference's pieces of 2^16 elements.
        gradient_bytes = 8 * (x.numel() + w.numel() + b.numel())
        assert peak < 8 * 128 * 2000 + 2 * gradient_bytes + 4 * 2**20
        for t in leaves:
            t.grad = None


def test_gradients_go_straight_into_an_arena():
    from gpunn import nn, optim

    head = nn.LinearCrossEntropyLoss(6, 7, device="cpu", dtype=np.float64, chunk_rows=4)
    optimizer = optim.SGD(head.parameters(), lr=1.0)
    (x, _, _), labels = case()
    optimizer.zero_grad()
    before = [p.detach().numpy().copy() for p in head.parameters()]
    loss = head(x, labels)
    leaves = [x.detach().requires_grad_(), *(leaf(value) for value in before)]
    expected = gradients(apart(leaves, labels), leaves)[1:]
    loss.backward()
    optimizer.step()
    for p, value, grad in zip(head.parameters(), before, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), value - grad.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
@pytest.mark.parametrize("dtype", [np.float32, g.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_on_the_emulator(dtype, reduction):
    found = {}
    for device in ("cpu", "emulator"):
        leaves, labels = case(20, 8, 12, dtype=dtype, device=device)
        upstream = g.ones(20, device=device).to(dtype) if reduction == "none" else None
        loss = F.linear_cross_entropy(*leaves, labels, chunk_rows=8, reduction=reduction)
        found[device] = [loss.detach(), *gradients(loss, leaves, upstream)]
    bound = 1e-5 if dtype == np.float32 else 2e-2
    for ours, theirs in zip(found["emulator"], found["cpu"], strict=True):
        assert str(ours.device) == "emulator"
        a, b = ours.cpu().float().numpy(), theirs.float().numpy()
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound * np.abs(b).max())


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[3], OPTIONS[4]], ids=lambda o: " ".join(o))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_classes_in_an_odd_number_get_more_that_nobody_is_in(options, reduction):
    """1027 classes are 1088 on the device, which shows nowhere: neither does it in a label."""
    found = {}
    for device in ("cpu", "emulator"):
        leaves, labels = case(6, 8, 1027, dtype=g.bfloat16, device=device)
        more = resolved(options, leaves)
        upstream = g.ones(6, device=device).to(g.bfloat16) if reduction == "none" else None
        loss = F.linear_cross_entropy(*leaves, labels, chunk_rows=4, reduction=reduction, **more)
        found[device] = [loss.detach(), *gradients(loss, leaves, upstream)]
        shapes = [t.shape for t in found[device][1:]]
        assert shapes == [(6, 8), (1027, 8), (1027,)]
    for ours, theirs in zip(found["emulator"], found["cpu"], strict=True):
        a, b = ours.cpu().float().numpy(), theirs.float().numpy()
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2 * np.abs(b).max())
    labels[1] = 1030  # on a GPU nobody looks
    wrong = F.linear_cross_entropy(*leaves, labels, reduction="none", **more).detach()
    assert np.isnan(wrong.cpu().float().numpy()).nonzero()[0].tolist() == [1]


ONES = g.ones(2, 3, device="cpu")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"input": g.ones(2, 4, device="cpu")}, ValueError, r"input has shape \(2, 4\) and weight"),
        ({"weight": g.ones(3, device="cpu")}, ValueError, r"weight \(3,\); expected"),
        (
            {"weight": g.ones(0, 3, device="cpu")},
            ValueError,
            r"weight has shape \(0, 3\), no classes; give it at least one row",
        ),
        ({"bias": g.ones(2, device="cpu")}, ValueError, r"bias has shape \(2,\); expected \(5,\)"),
        ({"input": ONES.double()}, TypeError, "dtype float64 and weight float32.*equal"),
        ({"target": ONES}, TypeError, r"target has shape \(2, 3\).*expected class indices"),
        ({"target": g.tensor([1], device="cpu")}, ValueError, r"target has shape \(1,\)"),
        ({"target": g.tensor([1, 5], device="cpu")}, ValueError, "label 5; expected 0 to 4, or ig"),
        ({"target": g.tensor([1, -1], device="cpu")}, ValueError, "the label -1"),
        ({"reduction": "avg"}, ValueError, "reduction 'avg' is not known"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows is 0; expected 1 or more"),
        (
            {"class_weight": g.ones(5, device="cpu").requires_grad_()},
            NotImplementedError,
            "class_weight requires a gradient",
        ),
    ],
)
def test_errors(change, error, text):
    arguments = {"input": ONES, "weight": g.ones(5, 3, device="cpu"), "bias": None}
    arguments |= {"target": g.tensor([0, 4], device="cpu")} | change
    with pytest.raises(error, match=f"linear_cross_entropy: .*{text}"):
        F.linear_cross_entropy(**arguments)
