"""Statistics and turns; nothing here depends on how fast the machine is."""

import pytest

from gpunn.bench.timing import (
    Contestant,
    CpuClock,
    Timing,
    interleave,
    one_line,
    repeats_for,
    rotated,
)


class FakeClock:
    """A clock under which a run takes as long as the contestant says."""

    kind = "cpu"

    def __init__(self):
        self.order = []

    def time(self, run, first, inner):
        total = 0.0
        for i in range(first, first + inner):
            name, seconds = run(i)
            total += seconds
        self.order.append((name, inner))
        return total


def contestant(name, seconds, calls=1):
    return Contestant(name, lambda i: (name, seconds), calls)


def test_median_quartiles_and_spread():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert timing.spread == pytest.approx(2 / 3)


def test_one_sample_has_no_spread():
    assert Timing((0.5,)).quartiles == (0.5, 0.5)
    assert Timing((0.5,)).spread == 0.0


def test_each_sample_is_a_mean_over_enough_calls():
    timings, failed = interleave([contestant("a", 1e-3)], FakeClock(), 5, 0.0095)
    assert failed == {}
    assert timings["a"].inner == 10
    assert timings["a"].samples == pytest.approx([1e-3] * 5)


def test_calls_in_one_run_count():
    timings, _ = interleave([contestant("graph", 1e-2, calls=20)], FakeClock(), 3, 1e-9)
    assert timings["graph"].median == pytest.approx(5e-4)
    assert timings["graph"].inner == 20


def test_contestants_take_turns_and_the_first_changes():
    clock = FakeClock()
    interleave([contestant("a", 1.0), contestant("b", 1.0)], clock, 4, 0.5)
    names = [name for name, _ in clock.order[-8:]]
    assert names == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_failing_contestant_is_left_out_and_named():
    def breaks(i):
        raise RuntimeError("no such kernel\nmore")

    timings, failed = interleave(
        [contestant("a", 1.0), Contestant("b", breaks)], FakeClock(), 3, 0.5
    )
    assert set(timings) == {"a"}
    assert failed == {"b": "RuntimeError: no such kernel"}


def test_a_contestant_that_fails_later_has_no_time():
    def tires(i):
        if i > 4:
            raise MemoryError
        return "b", 1.0

    timings, failed = interleave(
        [contestant("a", 1.0), Contestant("b", tires)], FakeClock(), 9, 0.5
    )
    assert len(timings["a"].samples) == 9 and "b" not in timings
    assert failed == {"b": "MemoryError"}


def test_repeats():
    assert repeats_for(1.0, 0.5) == 1
    assert repeats_for(1e-3, 1e-2) == 10
    assert repeats_for(0.0, 1.0) == 10_000


def test_rotation():
    assert rotated([1, 2, 3], 4) == [2, 3, 1]
    assert rotated([], 4) == []


def test_cpu_clock_counts_runs_from_first():
    seen = []
    assert CpuClock().time(seen.append, 5, 3) >= 0
    assert seen == [5, 6, 7]


def test_one_line_cuts():
    assert one_line(ValueError("x" * 500), 20) == "ValueError: xxxxxxx…"
