"""Attention: what is seen, strides, dropout, which kernel runs, errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import attention_cpu, attention_reference
from gpunn.primitives.registry import intercepting, using

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
IMPLEMENTATIONS = ["numpy", pytest.param("emulator", marks=emulated)]


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def inputs(batch=2, queries=5, keys=7, heads=4, kv_heads=2, dim=8, dtype=np.float64):
    q = draw(batch, queries, heads, dim, seed=1, dtype=dtype)
    k, v = draw(2, batch, keys, kv_heads, dim, seed=2, dtype=dtype)
    return q, k, v


def dense(q, k, v, seen=True, added=0.0, keep=1.0):
    """The formula with all scores at once; `seen` and `keep` broadcast to (B, H, Tq, Tk)."""
    group = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[3]) + added
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=3, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=3, keepdims=True)
    weights = weights / np.where(total, total, 1) * keep
    return np.einsum("bhij,bjhd->bihd", weights, v)


def both(q, k, v, grad=None, **options):
    """(out, log_sum_exp, grad_q, grad_k, grad_v)"""
    out, normalizer = kernels.attention_forward(q, k, v, **options)
    grad = draw(*q.shape, seed=5, dtype=q.dtype) if grad is None else grad
    grads = kernels.attention_backward(grad, q, k, v, out, normalizer, **options)
    return (out, normalizer, *grads)


# ---- what a query sees ---------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rules_of_who_sees_what(implementation):
    q, k, v = inputs()
    i, j = np.arange(5)[:, None], np.arange(7)
    cases = [
        ({"causal": True}, j <= i),
        ({"causal": True, "causal_offset": 2}, j <= i + 2),
        ({"causal": True, "causal_offset": -2, "window": 2}, (j <= i - 2) & (j > i - 4)),
        ({"kv_lengths": np.array([3, 7])}, j < np.array([3, 7])[:, None, None, None]),
        ({"q_lengths": np.array([0, 4])}, i < np.array([0, 4])[:, None, None, None]),
        (
            {"causal": True, "causal_offset": np.array([1, 4])},
            j <= i + np.array([1, 4])[:, None, None, None],
        ),
        ({"causal": True, "causal_offset": 9, "window": 5}, j > i + 4),  # beyond the keys
        ({"causal": True, "causal_offset": 1 << 30}, j >= 0),
        (
            {"causal": True, "causal_offset": np.array([1 << 40, -(1 << 40)])},
            np.array([True, False])[:, None, None, None],
        ),
        ({"mask": (i + j) % 3 > 0}, (i + j) % 3 > 0),
    ]
    for options, seen in cases:
        with using(implementation):
            got, _ = kernels.attention_forward(q, k, v, **options)
        np.testing.assert_allclose(got, dense(q, k, v, seen), rtol=1e-12, atol=1e-14)
    added = draw(4, 1, 7, seed=3)
    got, normalizer = kernels.attention_forward(q, k, v, mask=added)
    np.testing.assert_allclose(got, dense(q, k, v, added=added), rtol=1e-12, atol=1e-14)
    assert normalizer.shape == (2, 4, 5) and normalizer.dtype == np.float64
    assert kernels.attention_forward(q, k, v, keep=False)[1] is None


def test_equal_keys_give_the_mean():
    q, k, v = inputs(kv_heads=4)
    out, normalizer = kernels.attention_forward(q, np.zeros_like(k), v)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(1)[:, None], out.shape), rtol=1e-12)
    np.testing.assert_allclose(normalizer, np.log(7), rtol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
def test_a_query_that_sees_nothing_and_keys_that_are_not_read(implementation, dtype):
    q, k, v = inputs(dtype=dtype)
    k[0, 3:] = v[0, 3:] = np.nan
    mask = np.ones((2, 1, 5, 7), np.bool_)
    mask[1, 0, 2] = False
    lengths = {"kv_lengths": np.array([3, 7]), "q_lengths": np.array([5, 4]), "mask": mask}
    with using(implementation):
        out, normalizer, *grads = both(q, k, v, **lengths)
    for array in (out, *grads):
        assert np.isfinite(array.astype(np.float32)).all()
    for at in (2, 4):
        assert not out[1, at].any() and not grads[0][1, at].any()
        assert (normalizer[1, :, at] == -np.inf).all()
    assert not grads[1][0, 3:].any() and not grads[2][0, 3:].any()
    assert out[1, 3].all() and grads[1][1].all()


def test_tiles_do_not_change_the_result(monkeypatch):
    q, k, v = inputs(queries=90, keys=100)
    options = {"causal": True, "causal_offset": 10, "window": 30, "dropout_p": 0.2, "seed": 4}
    whole = both(q, k, v, **options)
    monkeypatch.setattr(attention_reference, "_TILE", 1)
    monkeypatch.setattr(attention_reference, "_PIECE", 1)  # each head alone, and on threads
    monkeypatch.setattr(attention_reference, "_THREADS", 0)
    monkeypatch.setattr(attention_reference, "_FLAGS", 0)
    for got, want in zip(both(q, k, v, **options), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_short_sequences_together_give_what_each_gives_alone(dtype, dropout):
    q, k, v = inputs(batch=5, dtype=dtype)
    mask = np.random.default_rng(1).random((5, 1, 5, 7)) > 0.3
    lengths = np.array([1, 3, 7, 0, 5])
    options = {"causal_offset": 2, "window": 3, "dropout_p": dropout, "seed": 4}
    cases = [{"mask": mask}, {"causal": True, **options}, {"kv_lengths": lengths, "mask": mask}]
    for case in cases:
        together = both(q, k, v, **case)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_cpu.Short, "fits", False)
            alone = both(q, k, v, **case)
        for got, want in zip(together, alone, strict=True):
            if "kv_lengths" in case:  # sums over as many more zeros
                np.testing.assert_allclose(
                    got.astype(float), want.astype(float), rtol=2e-3, atol=1e-5
                )
            else:
                np.testing.assert_array_equal(got, want)
        with pytest.MonkeyPatch.context() as patch:  # two at a time, the last one alone
            patch.setattr(attention_reference, "_TILE", 2 * 4 * 5 * 7)
            patch.setattr(attention_reference, "_THREADS", 0)
            pieces = both(q, k, v, **case)
        for got, want in zip(pieces, together, strict=True):
            np.testing.assert_array_equal(got, want)


# ---- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_takes_the_words_of_the_generator(implementation):
    q, k, v = inputs(dtype=np.float32)
    words = kernels.random_bits(np.empty(2 * 4 * 5 * 8, np.uint32), seed=9, offset=3)
    kept = words.reshape(2, 4, 5, 8)[..., :7] >> 8 >= 0.25 * 2**24
    with using(implementation):
        out, _ = kernels.attention_forward(q, k, v, dropout_p=0.25, seed=9, offset=3)
    np.testing.assert_allclose(out, dense(q, k, v, keep=kept / 0.75), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_dropout_from_a_counter_is_that_by_value(implementation, dtype):
    q, k, v = (array.astype(dtype) for array in inputs())
    counter = np.array([(3 << 40) + 9, (1 << 64) - 2], np.uint64)
    with using(implementation):
        counted = both(q, k, v, dropout_p=0.25, seed=1, offset=5, counter=counter)
        given = both(q, k, v, dropout_p=0.25, seed=(3 << 40) + 9, offset=3)
        other = both(q, k, v, dropout_p=0.25, seed=(3 << 40) + 9, offset=5)
    for one, same, different in zip(counted, given, other, strict=True):
        np.testing.assert_array_equal(one, same)
        if one is not counted[1]:  # the normalisers know nothing of dropout
            assert not np.array_equal(one, different)


# ---- strides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_slices_of_one_array_are_read_and_written_in_place(implementation, dtype):
    packed = draw(2, 9, 3, 2, 16, dtype=dtype)
    q, k, v = (packed[:, :, n] for n in range(3))
    assert not q.flags.c_contiguous
    mask = (draw(1, 1, 9, 18, seed=7) > -1)[..., ::2]
    options = {"causal": True, "mask": mask}
    grad = draw(2, 9, 2, 16, seed=5, dtype=dtype)
    written = np.full_like(packed, 7)
    out = np.full((2, 9, 4, 16), 7, dtype)
    with using(implementation):
        wanted = both(*map(np.ascontiguousarray, (q, k, v)), grad, **options)
        got, normalizer = kernels.attention_forward(q, k, v, **options, out=out[:, :, ::2])
        grads = kernels.attention_backward(
            grad, q, k, v, got, normalizer, **options,
            grad_q=written[:, :, 0], grad_k=written[:, :, 1], grad_v=written[:, :, 2],
        )  # fmt: skip
    assert got.base is out and (out[:, :, 1::2] == 7).all()
    assert all(grad.base is written for grad in grads)
    for one, other in zip((got, normalizer, *grads), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- which kernel --------------------------------------------------------------------------------


def launched(*args, arch="sm_90a", made=kernels.attention_forward, **options):
    launcher = RecordingLauncher("attention.cu", arch)
    with intercepting(lambda call, given: call.primitive.run_cuda(launcher, given)):
        made(*args, **options)
    return [name for _, name in launcher.launches]


def test_the_rule():
    low = inputs(dim=72, dtype=np.float16)
    assert launched(*low) == ["attention_forward_mma<__half, 128>"]
    assert launched(*low, arch="sm_75") == ["attention_forward<__half>"]
    assert launched(*inputs(dtype=np.float32)) == ["attention_forward<float>"]
    odd = launched(*inputs(dim=12, dtype=BFLOAT16))
    assert odd == 3 * ["attention_pad"] + [
        "attention_forward_mma<__nv_bfloat16, 64>", "attention_pad",
    ]  # fmt: skip
    decoding = launched(*inputs(queries=1, keys=4096, dtype=np.float16))
    assert decoding == ["attention_forward_mma<__half, 64>", "attention_combine<__half>"]
    q, k, v = low
    backward = (q, q, k, v, q, np.zeros((2, 4, 5), np.float32))
    assert launched(*backward, made=kernels.attention_backward) == [
        "attention_delta<__half>", "attention_grad_kv_mma<__half, 128>",
        "attention_grad_q_mma<__half, 128>",
    ]  # fmt: skip


def test_cost_counts_what_is_seen():
    q, k, v = inputs(queries=6, keys=6)
    whole = kernels.attention_forward.cost_of(q, k, v)
    half = kernels.attention_forward.cost_of(q, k, v, causal=True)
    assert half.flops / whole.flops == pytest.approx(21 / 36)
    assert whole.read == q.nbytes + 2 * k.nbytes


# ---- errors --------------------------------------------------------------------------------------

Q, K, V = inputs()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": Q.astype(np.float32)}, TypeError, "k has shape.*float32"),
        ({"v": V[:, :3]}, ValueError, r"v has shape \(2, 3, 2, 8\).*shape of k, \(2, 7, 2, 8\)"),
        ({"q": Q[..., :6]}, ValueError, r"k has shape \(2, 7, 2, 8\) and q \(2, 5, 4, 6\)"),
        ({"q": Q[:, :, :3]}, ValueError, "q has 3 heads and k 2"),
        ({"q": Q[0]}, ValueError, "q has shape.*4 dimensions"),
        ({"mask": np.ones((5, 6), bool)}, ValueError, r"mask .*\(2, 4, 5, 7\)"),
        ({"mask": np.ones((5, 7), np.int32)}, TypeError, "mask .*bool or float64"),
        ({"kv_lengths": np.array([7, 8])}, ValueError, "kv_lengths holds 8.*0 to 7"),
        ({"q_lengths": np.array([-1, 2])}, ValueError, "q_lengths holds -1.*0 to 5"),
        ({"kv_lengths": np.array([7])}, ValueError, r"kv_lengths .*\(2,\)"),
        ({"window": 3}, ValueError, "window is 3 and causal is False"),
        ({"window": 0, "causal": True}, ValueError, "window is 0"),
        ({"causal_offset": 3}, ValueError, "causal_offset is 3 and causal is False"),
        ({"causal_offset": 0.5, "causal": True}, TypeError, "causal_offset is 0.5"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p is 1.5"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"counter": np.zeros(3, np.uint64)}, ValueError, r"counter has shape \(3,\)"),
        ({"out": np.zeros((2, 5, 4, 16))[..., ::2]}, ValueError, "out .*last dimension"),
        ({"out": Q.astype(np.float32)}, TypeError, "out .*float64"),
        ({"out": Q}, ValueError, "out .*overlaps q"),
    ],
)
def test_errors(change, error, text):
    with pytest.raises(error, match=f"attention_forward: {text}"):
        kernels.attention_forward(**{"q": Q, "k": K, "v": V, **change})


def test_heads_are_limited_and_backward_wants_what_forward_made():
    big = np.zeros((1, 1, 1, 257))
    with pytest.raises(ValueError, match="heads of dimension 257; expected 1 to 256"):
        kernels.attention_forward(big, big, big)
    out, normalizer = kernels.attention_forward(Q, K, V)
    with pytest.raises(ValueError, match="attention_backward: out has shape"):
        kernels.attention_backward(Q, Q, K, V, out[:, :2], normalizer)
    with pytest.raises(TypeError, match="attention_backward: log_sum_exp .*float64"):
        kernels.attention_backward(Q, Q, K, V, out, normalizer.astype(np.float32))
