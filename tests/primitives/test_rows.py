"""The plan that shares rows out among threads: nobody misses an element, nothing is too large."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import rows

H200 = RecordingLauncher("softmax.cu")
A100 = RecordingLauncher("softmax.cu", "sm_80", 108, 163 * 1024)
CHIPS = (H200, A100, RecordingLauncher("softmax.cu", "sm_86", 28, 99 * 1024))


def packs_touched(cols: int, itemsize: int) -> int:
    """The most packs of 16 bytes that a row of `cols` touches, wherever it starts."""
    width = 16 // itemsize
    return max(-(-(row * cols % width + cols) // width) for row in range(width))


@given(
    cols=st.integers(1, 10**7),
    itemsize=st.sampled_from([2, 4, 8]),
    packs=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=300)
def test_a_group_holds_its_row_wherever_it_starts(cols, itemsize, packs):
    width = 16 // itemsize
    threads = rows.row_group(cols, itemsize, packs * width)
    assert threads & (threads - 1) == 0
    assert packs_touched(cols, itemsize) <= threads * packs
    assert threads == 1 or (threads // 2) * packs * width < cols + width


@pytest.mark.parametrize(("rows_", "threads"), [(1, 1), (129, 1), (5, 32), (7, 256), (2**40, 512)])
def test_the_grid_covers_all_rows(rows_, threads):
    (grid,), (block,) = rows.row_grid(rows_, threads)
    assert block % 32 == 0 and block <= 1024 and 1 <= grid < 2**31
    assert grid * (block // threads) >= min(rows_, 2**31 - 1)


@given(
    chip=st.sampled_from(CHIPS),
    count=st.one_of(st.integers(1, 300), st.integers(1, 2**33)),
    cols=st.one_of(st.integers(1, 3000), st.integers(1, 2_000_000), st.integers(1, 2**33)),
    itemsize=st.sampled_from([2, 4, 8]),
    arrays=st.integers(0, 2),
    registers=st.sampled_from([None, (1, 4), (2, 8)]),
    parts=st.booleans(),
    resident=st.sampled_from([None, 1024]),
)
@settings(max_examples=1000)
def test_every_plan_can_be_launched(
    chip, count, cols, itemsize, arrays, registers, parts, resident
):
    plan = rows.row_plan(
        chip, count, cols, itemsize, arrays=arrays, registers=registers, parts=parts,
        largest_block=512, resident=resident,
    )  # fmt: skip
    assert plan.threads & (plan.threads - 1) == 0 and plan.block % plan.threads == 0
    assert plan.block % 32 == 0 and 64 <= plan.block <= 512
    assert plan.threads <= 32 or plan.threads == plan.block
    assert plan.shared <= chip.shared_limit - 2048
    assert plan.shared == 16 * arrays * plan.block * plan.kept
    if plan.parts:
        assert parts and plan.grid == count * plan.parts and plan.cluster == 1
        assert plan.grid <= max(4 * chip.multiprocessors, count)
        return
    assert plan.cluster in ((1, 2, 4, 8) if chip is H200 else (1,))
    assert 1 <= plan.grid <= rows.MAX_GRID and plan.grid % plan.cluster == 0
    assert plan.cluster == 1 or plan.threads == plan.block
    if resident is not None:
        most = max(chip.multiprocessors * resident, plan.cluster * plan.block)
        assert plan.grid * plan.block <= most
    if plan.packs:
        assert registers and packs_touched(cols, itemsize) <= plan.packs * plan.threads


@given(cols=st.integers(1, 458_000), count=st.integers(1, 3000), arrays=st.integers(1, 2))
def test_an_h200_reads_every_row_of_up_to_1_8_megabytes_once(cols, count, arrays):
    itemsize = 4 // arrays
    plan = rows.row_plan(H200, count, cols, itemsize, arrays=arrays, parts=True)
    team = plan.threads * plan.cluster
    assert not plan.parts and plan.kept * team >= packs_touched(cols, itemsize)


def test_few_rows_are_spread_over_the_chip_and_many_are_not():
    def cluster(count, chip=H200, **what):
        return rows.row_plan(chip, count, 33_000, 4, arrays=0, **what).cluster

    assert [cluster(n) for n in (1, 16, 17, 33, 34, 66, 67)] == [8, 8, 4, 4, 2, 2, 1]
    assert cluster(1, A100) == 1  # there they cannot meet …
    assert cluster(1, A100, meet=False) == 8  # … unless they need not


@given(
    cols=st.integers(1, 60_000),
    itemsize=st.sampled_from([2, 4, 8]),
    arrays=st.integers(1, 2),
    count=st.sampled_from([1, 40, 5000]),
)
def test_no_more_is_kept_than_a_row_touches(cols, itemsize, arrays, count):
    plan = rows.row_plan(H200, count, cols, itemsize, arrays=arrays)
    assert plan.kept == -(-packs_touched(cols, itemsize) // (plan.threads * plan.cluster))


def test_a_row_of_whole_packs_starts_at_one():
    """2048 packs for 256 threads: 8 each, in 32 KB; a ninth would take 36 KB."""
    plan = rows.row_plan(H200, 5000, 8192, 4)
    assert (plan.threads, plan.cluster, plan.kept, plan.shared) == (256, 1, 8, 32 * 1024)
    assert rows.row_plan(H200, 5000, 8191, 4).kept == 9


@pytest.mark.parametrize(
    ("multiprocessors", "largest"), [(1, 1), (3, 1), (4, 2), (7, 2), (8, 4), (15, 4), (16, 8)]
)
def test_no_cluster_takes_more_than_half_of_a_chip(multiprocessors, largest):
    chip = RecordingLauncher("softmax.cu", "sm_90a", multiprocessors)
    assert rows.row_plan(chip, 1, 400_000, 4).cluster == largest


def test_which_architectures_have_clusters():
    known = {"sm_75": False, "sm_80": False, "sm_90": True, "sm_90a": True, "sm_100a": True}
    assert {arch: rows.has_clusters(arch) for arch in known} == known
