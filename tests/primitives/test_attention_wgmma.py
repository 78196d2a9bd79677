"""Attention on sm_90a by TMA and wgmma: the rule, and what parity samples do not reach."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import emulator, kernels
from gpunn.device import probe
from gpunn.device.emulator_launch import emulated_chip
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.registry import intercepting, using

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


def inputs(batch, queries, keys, heads, kv_heads, dim, dtype=BFLOAT16):
    rng = np.random.default_rng(3)
    q = rng.normal(size=(batch, queries, heads, dim)).astype(dtype)
    k, v = rng.normal(size=(2, batch, keys, kv_heads, dim)).astype(dtype)
    return q, k, v


# ---- which kernel --------------------------------------------------------------------------------


def launched(q, k, v, arch="sm_90a", **options):
    launcher = RecordingLauncher("attention.cu", arch)
    with intercepting(lambda call, given: call.primitive.run_cuda(launcher, given)):
        kernels.attention_forward(q, k, v, **options)
    return [name for _, name in launcher.launches]


def test_the_rule():
    few, half = inputs(1, 32, 40, 2, 1, 128), inputs(2, 70, 40, 2, 1, 64, np.float16)
    bf16 = "attention_forward_wgmma<__nv_bfloat16, 128>"
    assert launched(*few) == [bf16]  # 64 rows in a table
    assert launched(*half) == ["attention_forward_wgmma<__half, 64>"]
    padded = launched(*inputs(1, 64, 40, 1, 1, 77))
    assert padded == 3 * ["attention_pad"] + [bf16, "attention_pad"]
    assert launched(*inputs(1, 64, 5000, 1, 1, 80)) == [bf16, "attention_combine<__nv_bfloat16>"]
    for arch in ("sm_80", "sm_100a"):
        assert launched(*half, arch=arch) == ["attention_forward_mma<__half, 64>"]
    for options in (
        {"mask": np.ones((1, 40), np.bool_)}, {"dropout_p": 0.1}, {"scale": 0.0}, {"scale": -1.0},
    ):  # fmt: skip
        assert launched(*half, **options) == ["attention_forward_mma<__half, 64>"]
    others = "attention_forward_mma<__nv_bfloat16, "
    assert launched(*inputs(1, 31, 40, 2, 1, 128)) == [f"{others}128>"]
    assert launched(*inputs(1, 64, 40, 1, 1, 136)) == [f"{others}256>"]
    q, k, v = few
    repeated = np.broadcast_to(k[:1, :1], k.shape)
    assert launched(q, repeated, v) == [f"{others}128>"]


# ---- results -------------------------------------------------------------------------------------

CASES = {
    # (B, Tq, Tk, H, Hkv, D), multiprocessors, options
    "keys in parts": ((1, 64, 1100, 1, 1, 64), 132, {}),
    "parts that see nothing": (
        (1, 40, 1200, 2, 1, 128), 132, {"causal": True, "causal_offset": 500},
    ),
    "six heads share keys": ((1, 40, 70, 6, 1, 64), 132, {}),
    "a block walks, warpgroups pass": (
        (2, 200, 270, 1, 1, 64), 1, {"causal": True, "causal_offset": 70, "window": 60},
    ),
    "lengths": (
        (3, 66, 290, 2, 2, 64), 4,
        {
            "kv_lengths": np.array([190, 0, 256]), "q_lengths": np.array([66, 66, 0]),
            "causal": True, "causal_offset": np.array([150, 20, 230]),
        },
    ),
}  # fmt: skip


@emulated
@pytest.mark.parametrize("name", CASES)
def test_results(name):
    sizes, multiprocessors, options = CASES[name]
    q, k, v = inputs(*sizes)
    for b, length in enumerate(options.get("kv_lengths", ())):
        k[b, length:] = v[b, length:] = np.nan
    wanted, logs = kernels.attention_forward(
        *(array.astype(np.float64) for array in (q, k, v)), **options
    )
    with (
        using("emulator"),
        emulated_chip(multiprocessors=multiprocessors),
        emulator.settings(check=True, schedule="random", seed=5),
    ):
        got, got_logs = kernels.attention_forward(q, k, v, **options)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=8e-3, atol=8e-3)
    np.testing.assert_allclose(got_logs, logs, rtol=1e-6, atol=3e-6)


@emulated
def test_slices_of_one_array_are_read_and_written_in_place():
    packed = np.random.default_rng(4).normal(size=(2, 130, 3, 2, 64)).astype(BFLOAT16)
    q, k, v = (packed[:, :, n] for n in range(3))
    out = np.full((2, 130, 4, 64), 7, BFLOAT16)
    with using("emulator"), emulator.settings(check=True):
        wanted, logs = kernels.attention_forward(*map(np.ascontiguousarray, (q, k, v)), causal=True)
        got, got_logs = kernels.attention_forward(q, k, v, causal=True, out=out[:, :, ::2])
    assert got.base is out and (out[:, :, 1::2] == 7).all()
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(got_logs, logs)
