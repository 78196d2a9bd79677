"""The model of cost against closed forms."""

import dataclasses
import math

import pytest

from gpunn.bench import scaling_model
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.results import Results
from gpunn.bench.scaling_model import Fabric, Way, Work

WORK = Work("a", 8, 10e-3, 50_000_000, 1e-3, "measured")


def test_one_gpu_costs_nothing():
    for collective in (scaling_model.ring, scaling_model.tree, scaling_model.hierarchical,
                       scaling_model.all_reduce, scaling_model.reduce_to_one):  # fmt: skip
        assert collective(1e6, 1) == 0
    for way in (Way(), Way(overlap=False), Way(zero=True)):
        assert scaling_model.efficiency(WORK, 1, way) == 1


def test_a_ring_of_two_moves_all_bytes_once():
    assert scaling_model.ring_bytes(100, 2) == 100
    assert scaling_model.ring_bytes(100, 1) == 0
    assert scaling_model.ring_bytes(80, 8) == 140


def test_large_sums_are_a_matter_of_bandwidth_and_small_ones_of_latency():
    fabric = Fabric(nvlink=400e9)
    expected = 8.4e-6 + 14 * 3.4e-6 + 2 * 7 / 8 * 1e10 / 400e9  # base, 2 (p - 1) hops, bytes
    assert scaling_model.ring(1e10, 8, fabric) == pytest.approx(expected)
    assert scaling_model.ring(0, 8, fabric) == pytest.approx(6.6e-6 + 14 * 0.6e-6)
    half = scaling_model.ring(1e10, 8, fabric, passes=1)
    assert half == pytest.approx(8.4e-6 + 7 * 3.4e-6 + 7 / 8 * 1e10 / 400e9)
    up_and_down = 8.4e-6 + 2 * (7 * 4.0e-6 + 3 * 14e-6) + 2 * 1e10 / (0.92 * 400e9)
    assert scaling_model.tree(1e10, 64, fabric) == pytest.approx(up_and_down)


def test_a_network_slower_than_its_nodes_limits_rings_between_them():
    slow = Fabric(network=1e9)
    assert slow.bus(8) == slow.nvlink and slow.bus(16) == 8e9
    assert scaling_model.all_reduce(1e9, 16, slow) > 0.2


def test_more_bytes_and_more_gpus_take_longer():
    counts = [2**power for power in range(1, 11)]
    for size in (1e3, 1e6, 1e9):
        for way in (scaling_model.ring, scaling_model.tree, scaling_model.hierarchical):
            times = [way(size, gpus) for gpus in counts]
            assert times == sorted(times) and all(map(math.isfinite, times))
    for gpus in counts:
        times = [scaling_model.ring(2.0**power, gpus) for power in range(34)]
        assert times == sorted(times)
        for size in (1e4, 1e7):
            best = scaling_model.all_reduce(size, gpus)
            assert best == min(scaling_model.ring(size, gpus), scaling_model.tree(size, gpus))


def test_steps():
    no_overlap = scaling_model.step(WORK, 64, Way(overlap=False))
    buckets = scaling_model.bucket_times(WORK, 64)
    assert len(buckets) == 8 and no_overlap == pytest.approx(WORK.seconds + sum(buckets))
    with_overlap = scaling_model.step(WORK, 64)
    # At the least the last bucket shows, at the most all do.
    assert WORK.seconds + buckets[-1] <= with_overlap < no_overlap
    free = scaling_model.step(WORK, 64, fabric=Fabric(taken=0))
    assert free == pytest.approx(WORK.seconds + buckets[-1])
    assert scaling_model.step(WORK, 64, Way(itemsize=2)) < with_overlap


def test_gradients_that_come_last_are_hidden_by_nothing():
    late = dataclasses.replace(WORK, last=40_000_000)
    times = scaling_model.bucket_times(late, 8)
    assert len(times) == 3 and times[-1] == scaling_model.all_reduce(160e6, 8)
    assert scaling_model.step(late, 8) > scaling_model.step(WORK, 8)
    assert scaling_model.step(late, 8) >= late.seconds + times[-1]


def test_sharded_optimizers_save_updates_and_pay_a_gather():
    update = dataclasses.replace(WORK, update=5e-3)
    gathered = scaling_model.ring(4 * WORK.parameters, 8, passes=1)
    one = scaling_model.reduce_to_one(WORK.parameters * 4 / 8, 8)
    expected = 5e-3 + one + 5e-3 / 8 + gathered  # forward and backward, the last bucket, …
    found = scaling_model.step(update, 8, Way(zero=True), Fabric(taken=0))
    assert found == pytest.approx(expected)


def test_a_step_that_is_all_communication_is_as_long_as_that():
    tiny = dataclasses.replace(WORK, seconds=1e-6, update=0.0)
    total = sum(scaling_model.bucket_times(tiny, 64))
    assert scaling_model.step(tiny, 64) == pytest.approx(total, rel=1e-2)


def test_works_are_measured_ones_and_an_estimate():
    found = Results({}, {}, [Ceilings("cuda:0", 4e12, {"bfloat16": 8e14}, {})])
    row = {"job": "mlp-64-128-128-10", "batch": 128, "contestant": "gpunn compiled",
           "median": 6e-5}  # fmt: skip
    found.training += [row, row | {"contestant": "torch"}, row | {"job": "gone"}]
    mlp, *gpts = scaling_model.works(found)
    assert (mlp.name, mlp.seconds, mlp.source) == ("mlp-64-128-128-10", 6e-5, "measured")
    assert mlp.parameters == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    floor = 6.62e12 / 8e14 + 14.2e9 / 4e12
    assert [work.seconds for work in gpts] == pytest.approx([floor, 2 * floor])
    assert all(work.source.startswith("estimate") for work in gpts)
    headers, cells = scaling_model.table_rows([mlp, *gpts])
    assert len(cells) == 9 and all(len(line) == len(headers) for line in cells)


def test_the_parameters_of_gpt2():
    vocabulary, positions, layers, width = 50257, 1024, 12, 768
    block = 12 * width * width + 13 * width
    count = (vocabulary + positions) * width + layers * block + 2 * width
    assert scaling_model.GPT2_PARAMETERS == count
    assert scaling_model.GPT2_LAST == (vocabulary + positions) * width
