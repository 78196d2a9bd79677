"""A benchmark of scaling from its start to its numbers; no time is asserted."""

import dataclasses

import numpy as np

from gpunn.bench import scaling, scaling_ours, scaling_rank

PLAN = scaling.Plan(
    jobs=("mlp-784-256-128-10",), batches=(("mlp-784-256-128-10", 8),), bytes=(1024,), rounds=2,
    blocks=2, seconds=1e-3, kinds=("strong",),
)  # fmt: skip


def test_a_whole_run_on_two_ranks():
    two, total = scaling.start("gpunn", 2, PLAN)
    told = dataclasses.asdict(PLAN) | {"batches": dict(PLAN.batches)}
    with scaling_ours.join(told) as ranks:
        (one,) = scaling_rank.rows(told, ranks)
    assert (one["ranks"], two["ranks"], total["bytes"]) == (1, 2, 1024)
    assert one["batch"] == two["batch"] == 8
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)  # the same training
    assert set(one["times"]) == {"step"} and set(two["times"]) == {"step", "without", "alone"}
    assert all(len(times) == 2 and min(times) > 0 for times in two["times"].values())
