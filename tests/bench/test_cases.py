"""Cases: shapes, dtypes, inputs, floors."""

import numpy as np
import pytest

from gpunn import kernels
from gpunn.bench import cases
from gpunn.bench.cases import Case
from gpunn.bench.ceilings import Ceilings, Sizes, measure_ceilings
from gpunn.bench.measure import graph_calls
from gpunn.device import Device
from gpunn.primitives.registry import Cost

CPU = Device("cpu")


def test_shapes_round_trip():
    assert cases.parse_shape("4096x1024") == (4096, 1024)
    assert cases.parse_shape("7") == (7,)
    assert cases.shape_text((3, 4, 5)) == "3x4x5"


@pytest.mark.parametrize("text", ["", "4x", "axb", "-1x3", "0x4", "1.5"])
def test_bad_shapes_are_named(text):
    with pytest.raises(ValueError, match="not understood; write for example 4096x1024"):
        cases.parse_shape(text)


def test_select_by_name_family_and_all():
    assert [p.name for p in cases.select(["softmax_forward"])] == ["softmax_forward"]
    assert {p.family for p in cases.select(["softmax"])} == {"softmax"}
    assert len(cases.select(["all"])) == len(kernels.table())
    with pytest.raises(KeyError, match="sofmax is no primitive; did you mean softmax"):
        cases.select(["sofmax"])


def test_a_name_that_is_also_a_familys_is_the_primitive():
    assert [made.name for made in cases.select(["matmul"])] == ["matmul"]


def test_cpu_shapes_are_cut_down():
    assert cases.cut_down((65536, 1024)) == (4096, 1024)
    assert cases.cut_down((4096, 4096, 4096)) == (64, 4096, 4096)
    assert cases.cut_down((100,)) == (100,)


def test_every_primitive_has_inputs_in_every_dtype():
    for made in kernels.table().values():
        assert made.bench_shapes, f"{made.name} has no benchmark shapes"
        shape = tuple(min(n, 6) for n in made.bench_shapes[0])
        for dtype in cases.DTYPES if cases.depends_on_dtype(made) else (cases.FIXED,):
            cases.workload(Case(made.name, shape, dtype), CPU)


def test_state_stays_in_float32_beside_16_bits():
    made = kernels.table()["adam_update"]
    inputs = cases.host_inputs(made, (8,), "bfloat16")
    names = [a.dtype.name for a in inputs.args]
    assert names == ["bfloat16", "bfloat16", "float32", "float32", "float64"]


def test_a_wrong_shape_is_explained():
    made = kernels.table()["matmul"]
    with pytest.raises(ValueError, match="shape 3x3 does not suit matmul; it takes for example"):
        cases.host_inputs(made, (3, 3), "float32")


def test_integer_primitives_have_no_dtype():
    made = kernels.table()["random_bits"]
    found = cases.cases_of(made, [(8,)], ["float32", "float16"], CPU)
    assert [case.dtype for case in found] == ["-"]


def test_workload_allocates_the_output_once():
    work = cases.workload(Case("softmax_forward", (3, 5), "float32"), CPU, copies=2)
    assert len(work.sets) == 2
    first, second = work.sets
    assert first.out.shape == (3, 5)
    assert not np.shares_memory(first.args[0], second.args[0])
    assert (first.args[0] == second.args[0]).all() and first.args[0].any()


def test_copies_overflow_the_cache_twice_within_memory():
    assert cases.copies_for(10, 100, 1e9) == 20
    assert cases.copies_for(10, 100, 55) == 5
    assert cases.copies_for(1000, 100, 1e9) == 1
    assert cases.copies_for(1, 10**9, 1e12) == cases.MAX_COPIES


def test_what_is_changed_in_place_lies_in_memory_once(monkeypatch):
    monkeypatch.setattr(cases, "last_level_cache", lambda device: 8000)
    case = Case("clip_by_value", (1000,), "float32")  # 4000 bytes, read and written
    assert cases.workload(case, CPU).cost.bytes >= 8000
    assert [cases.workload(case, CPU, n).cache for n in (2, 3, 4)] == ["warm", "warm", "cold"]


def test_graphs_go_through_all_sets_of_inputs():
    assert [graph_calls(sets) for sets in (1, 7, 13, 20, 64)] == [20, 21, 26, 20, 64]


CEILINGS = Ceilings("cpu", 1e9, {"float32": 1e12, "bfloat16": 8e12}, {})


def test_the_floor_is_the_larger_of_both():
    assert CEILINGS.floor(Cost(0, 5e8, 5e8), "float32") == (1.0, "memory")
    assert CEILINGS.floor(Cost(4e12, 1, 1), "float32") == (4.0, "compute")
    assert CEILINGS.floor(Cost(4e12, 1, 1), "bfloat16") == (0.5, "compute")


def test_a_dtype_without_a_rate_takes_the_nearest():
    assert CEILINGS.rate("float16") == 8e12
    assert CEILINGS.rate("float64") == 1e12
    assert CEILINGS.rate("-") == 1e12


def test_ceilings_are_measured_and_round_trip():
    found = measure_ceilings("cpu", Sizes(1 << 16, {"float32": 16, "float64": 16}, 2))
    assert found.copy > 0 and set(found.rates) == {"float32", "float64"}
    assert "16x16x16" in found.how["float32"]
    assert Ceilings.from_json(found.to_json()) == found


def test_large_random_inputs_are_repeated_and_nothing_else_changes():
    quick = cases.QuickRandom(np.random.PCG64(3))
    plain = np.random.Generator(np.random.PCG64(3))
    np.testing.assert_array_equal(
        quick.standard_normal((4, 5), dtype=np.float32),
        plain.standard_normal((4, 5), dtype=np.float32),
    )
    large = quick.random((2, quick.BLOCK), dtype=np.float32)
    assert large.shape == (2, quick.BLOCK) and large.dtype == np.float32
    np.testing.assert_array_equal(large[0], large[1])
    assert len(np.unique(large[0])) > 1_000_000
    assert set(quick.integers(0, 3, 100)) == {0, 1, 2}


def test_large_arrays_are_views_of_one_block_from_different_places():
    quick = cases.QuickRandom(np.random.PCG64(0))
    size = quick.BLOCK + 10
    one, two = quick.standard_normal((2, size // 2 + 1), np.float32), quick.standard_normal(size)
    three = quick.standard_normal(size, dtype=np.float32)
    assert np.shares_memory(one, three) and not one.flags.writeable
    assert two.dtype == np.float64 and abs(np.corrcoef(one.ravel()[:size], three)[0, 1]) < 0.01
    again = cases.QuickRandom(np.random.PCG64(0), own=True).standard_normal(one.shape, np.float32)
    assert np.array_equal(one, again) and again.flags.writeable


def test_primitives_that_change_what_they_drew_get_copies():
    made = kernels.table()["softmax_backward"]
    shape = (2, cases.QuickRandom.BLOCK)
    inputs = cases.host_inputs(made, shape, "float32")
    probabilities = inputs.args[1]
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-3)
    assert np.array_equal(cases.host_inputs(made, shape, "float32").args[1], probabilities)
