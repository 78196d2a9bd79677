"""Launches noted once and repeated with other arrays."""

import numpy as np
import pytest

from gpunn.bench.launch_host import StandIn
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import matmul_launch
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.samples import BFLOAT16


class Noting(RecordingLauncher):
    """Keeps every launch, on arrays that only have addresses."""

    launches_nothing = False  # as far as recipes can tell

    def __init__(self, **chip):
        super().__init__("matmul.cu", **chip)
        self.calls = []

    def __call__(self, expression, grid, block, args, shared=0):
        self.calls.append((self.source, expression, grid, block, shared, [_what(a) for a in args]))

    def empty(self, shape, dtype):
        return StandIn(np.empty(shape, dtype))


def _what(value):
    """An argument as a test compares it: addresses and maps by where they point."""
    if hasattr(value, "as_argument"):
        return ("map", value.array.data.ptr, value.array.shape, value.box)
    if value is None or isinstance(value, np.generic):
        return value
    return ("address", value.data.ptr)


def some(*shape, dtype=np.float32):
    return StandIn(np.zeros(shape, dtype))


@pytest.fixture(autouse=True)
def no_recipes(monkeypatch):
    monkeypatch.setattr(matmul_launch, "_recipes", {})


def run(launch, a, b, finish):
    launch.calls.clear()
    matmul_launch.multiply(launch, a, b, finish)
    return list(launch.calls)


def addresses(args):
    return [value[1] for value in args if isinstance(value, tuple)]


def moved(calls, places):
    """The calls with each address replaced by the name of its array; scratch by its order."""
    names, scratch = {p: n for n, p in places.items()}, {}

    def name(address):
        return names.get(address) or scratch.setdefault(address, f"scratch {len(scratch)}")

    return [
        (*call[:5], [(v[0], name(v[1]), *v[2:]) if isinstance(v, tuple) else v for v in call[5]])
        for call in calls
    ]


PROBLEMS = {
    "simt": ((40, 24), (24, 56), np.float32, {}),
    "parts of K": ((64, 4096), (4096, 64), np.float32, {"bias": (64,)}),
    "wgmma": ((2048, 1024), (1024, 2048), BFLOAT16, {"bias": (2048,)}),
    "planes": ((2048, 1024), (1024, 2048), np.float32, {"residual": (2048, 2048)}),
    "backward": ((512, 256), (256, 768), BFLOAT16, {"saved": (512, 768), "column_sums": (768,)}),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_second_call_launches_the_same_on_other_arrays(name):
    of_a, of_b, dtype, others = PROBLEMS[name]
    launch, seen = Noting(), []
    for _ in range(3):
        a, b = some(*of_a, dtype=dtype), some(*of_b, dtype=dtype)
        more = {key: some(*shape, dtype=dtype) for key, shape in others.items()}
        out = some(of_a[0], of_b[1], dtype=dtype)
        calls = run(launch, a, b, Finish(out, activation="relu", **more))
        arrays = {"a": a, "b": b, "out": out, **more}
        places = {key: array.data.ptr for key, array in arrays.items()}
        seen.append(moved(calls, places))
        used = {v[1] for call in seen[-1] for v in call[5] if isinstance(v, tuple)}
        assert used >= set(arrays) - {"preactivation"}
    assert len(matmul_launch._recipes) == 1 and all(matmul_launch._recipes.values())
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("name", PROBLEMS)
def test_asking_which_kernels_would_run_needs_no_address_of_scratch(name):
    """As the benchmark of products asks on a GPU: scratch is then memory of the host."""
    of_a, of_b, dtype, others = PROBLEMS[name]
    a, b = some(*of_a, dtype=dtype), some(*of_b, dtype=dtype)
    more = {key: some(*shape, dtype=dtype) for key, shape in others.items()}
    launch, real = RecordingLauncher("matmul.cu"), Noting()
    for one in (launch, real):
        out = some(of_a[0], of_b[1], dtype=dtype)
        matmul_launch.multiply(one, a, b, Finish(out, **more))
    assert launch.launches == [(source, expression) for source, expression, *_ in real.calls]
    assert {key[0] for key in matmul_launch._recipes} == {real}


def test_equal_arrays_are_a_kind_of_their_own():
    launch, square = Noting(), some(32, 32)
    run(launch, square, square, Finish(some(32, 32)))
    one, two, out = some(32, 32), some(32, 32), some(32, 32)
    ((*_, args),) = run(launch, one, two, Finish(out))
    assert addresses(args)[:2] == [one.data.ptr, two.data.ptr]
    ((*_, args),) = run(launch, one, two, Finish(out, residual=out))
    assert addresses(args).count(out.data.ptr) == 2
    other = some(32, 32)
    ((*_, args),) = run(launch, one, two, Finish(out, residual=other))
    assert other.data.ptr in addresses(args)
    assert len(matmul_launch._recipes) == 4


def test_what_is_more_than_launches_is_not_repeated():
    launch = Noting()
    for _ in range(2):  # three batch dimensions are products of views, one after the other
        a, b = some(2, 1, 3, 4, 5), some(1, 2, 1, 5, 3)
        assert len(run(launch, a, b, Finish(some(2, 2, 3, 4, 3)))) == 2
    assert list(matmul_launch._recipes.values()) == [None]


def test_every_array_has_an_alignment_of_its_own():
    """The sums of the result look at `out` alone, whatever is true of the other arrays."""
    seen = []
    for shifted in ("saved", "out"):
        launch = Noting()
        arrays = {"saved": some(2048, 2048), "out": some(2048, 2048)}
        arrays[shifted].data.ptr += 8
        finish = Finish(arrays["out"], saved=arrays["saved"], column_sums=some(2048),
                        activation="relu")  # fmt: skip
        calls = run(launch, some(2048, 1024), some(1024, 2048), finish)
        seen.append([call[1] for call in calls if call[1].startswith("column_sum")][0])
    assert seen == ["column_sum<float, float, 4>", "column_sum<float, float, 1>"]


def test_kinds_differ_by_alignment_and_precision():
    launch = Noting()
    whole = some(33, 32)
    run(launch, some(32, 32), some(32, 32), Finish(some(32, 32)))
    shifted = whole[1:]
    shifted.data.ptr += 4
    (call,) = run(launch, shifted, some(32, 32), Finish(some(32, 32)))
    assert "STRIDED" in call[1] and len(matmul_launch._recipes) == 2
