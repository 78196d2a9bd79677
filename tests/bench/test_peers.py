"""Peers are checked before they are timed, and timed rows say what they should."""

import numpy as np
import pytest

from gpunn import kernels
from gpunn.bench import array_peers, peers
from gpunn.bench.cases import Case, depends_on_dtype, workload
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import Row, measure
from gpunn.device import Device

CPU = Device("cpu")
CEILINGS = Ceilings("cpu", 1e10, {"float32": 1e11}, {})
WITHOUT_PEER = {"advance_counter", "advance_step", "random_bits"}


def small(made):
    return tuple(min(n, 24) for n in made.bench_shapes[0])


@pytest.mark.parametrize("name", sorted(set(kernels.table()) - WITHOUT_PEER))
def test_plain_numpy_agrees_with_the_reference(name):
    made = kernels.table()[name]
    case = Case(name, small(made), "float32" if depends_on_dtype(made) else "-")
    peers.check("numpy", case, CPU, workload(case, CPU).sets[0])


def test_a_wrong_peer_is_not_timed(monkeypatch):
    wrong = lambda xp, x, *, out=None: xp.exp(x)  # noqa: E731
    monkeypatch.setitem(array_peers.PEERS, "softmax_forward", wrong)
    case = Case("softmax_forward", (4, 5), "float32")
    rows, skipped = measure(case, CPU, CEILINGS, peer_names=["numpy"], samples=2)
    assert [row.implementation for row in rows] == ["numpy"]
    assert skipped[0].contestant == "plain numpy"
    assert "its result disagrees with the reference: relative error" in skipped[0].reason


def test_a_peer_that_is_right_only_on_small_shapes_is_not_timed(monkeypatch):
    def wrong(xp, x, *, out=None):
        y = kernels.softmax_forward(x)
        return y * 2 if len(x) > 300 else y

    monkeypatch.setitem(array_peers.PEERS, "softmax_forward", wrong)
    case = Case("softmax_forward", (301, 5), "float32")
    with pytest.raises(peers.PeerError, match="differs from ours at the full size"):
        peers.check("numpy", case, CPU, workload(case, CPU).sets[0])


def test_a_peer_that_raises_says_what(monkeypatch):
    def broken(xp, x, *, out=None):
        raise MemoryError("too large")

    monkeypatch.setitem(array_peers.PEERS, "softmax_forward", broken)
    with pytest.raises(peers.PeerError, match="MemoryError: too large"):
        peers.check("numpy", Case("softmax_forward", (4, 5), "float32"), CPU)


def test_another_distribution_is_found(monkeypatch):
    wrong = lambda xp, out, *, seed: xp.multiply(out, 0, out=out)  # noqa: E731
    monkeypatch.setitem(array_peers.PEERS, "random_uniform", wrong)
    with pytest.raises(peers.PeerError, match="the mean of its numbers is 0.0000, that of ours"):
        peers.check("numpy", Case("random_uniform", (5000,), "float32"), CPU)


def test_rows_hold_floor_and_ratios():
    case = Case("softmax_forward", (8, 16), "float32")
    rows, skipped = measure(case, CPU, CEILINGS, peer_names=["numpy"], samples=3)
    assert skipped == []
    ours, peer = rows
    assert (ours.ours, peer.ours) == (True, False)
    assert (ours.mode, peer.implementation, ours.bound) == ("cpu", "plain numpy", "memory")
    assert ours.bytes == 2 * 8 * 16 * 4
    assert ours.floor == pytest.approx(ours.bytes / 1e10)
    assert len(ours.samples) == 3
    assert ours.peers["plain numpy"] == pytest.approx(peer.timing.median / ours.timing.median)
    assert ours.percent_of_floor == pytest.approx(100 * ours.floor / ours.timing.median)
    assert Row.from_json(ours.to_json()) == ours


def test_in_place_primitives_are_measured_too():
    rows, skipped = measure(
        Case("adam_update", (50,), "float32"), CPU, CEILINGS, peer_names=["numpy"], samples=2
    )
    assert len(rows) == 2 and skipped == []
    assert all(np.isfinite(row.timing.median) for row in rows)


def test_cuda_on_the_cpu_is_refused_with_a_reason():
    case = Case("softmax_forward", (2, 2), "float32")
    rows, skipped = measure(case, CPU, CEILINGS, implementations=["cuda"], samples=2)
    assert rows == [] and skipped[0].reason == "cuda does not run on cpu"


def test_an_impossible_shape_is_a_reason_not_an_error():
    rows, skipped = measure(Case("matmul", (3,), "float32"), CPU, CEILINGS, samples=2)
    assert rows == [] and "does not suit matmul" in skipped[0].reason


def test_choosing_peers():
    assert "numpy" in peers.choose(None, CPU)
    assert peers.choose(["none"], CPU) == ()
    assert peers.choose(["numpy", "numpy"], CPU) == ("numpy",)
    with pytest.raises(ValueError, match="cupy is no peer on cpu; choose from numpy, torch"):
        peers.choose(["cupy"], CPU)


def test_images_are_checked_on_few_of_a_batch():
    assert peers.small_shape((64, 112, 112, 64)) == (1, 112, 112, 64)
    assert peers.small_shape((65536, 1024)) == (200, 200)
    assert peers.small_shape((128256, 4096, 8192)) == (200, 200, 200)
    assert peers.small_shape((8, 12, 512, 64)) == (6, 12, 200, 64)


def test_the_peer_that_compiles_nothing(monkeypatch):
    there = {("torch", "scale"), ("cupy", "scale"), ("cupy", "cast")}
    monkeypatch.setattr(peers, "has", lambda peer, name: (peer, name) in there)
    assert peers.at_once("scale", ["cupy", "torch", "triton"]) == ("torch",)
    assert peers.at_once("cast", ["cupy", "torch"]) == ("cupy",)
    assert peers.at_once("scale", ["triton"]) == ()


def test_who_has_a_primitive():
    assert peers.has("numpy", "softmax_forward") and not peers.has("numpy", "random_bits")
