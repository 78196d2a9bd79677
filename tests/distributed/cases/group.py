"""Collectives of a Group on the host and on the emulator, against sums done by hand."""

import ml_dtypes
import numpy as np

from gpunn.device import to_device, to_numpy
from gpunn.distributed import RemoteError

RANKS = (2, 4)


def bounds(group):
    """Parts of unequal length: rank r has r + 1 elements; the first none."""
    stops = np.cumsum(np.arange(group.size)).tolist()
    return list(zip([0, *stops], stops, strict=False))


def case_sums(group):
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64):
        for size in (0, 1, 7, 100_003):
            array = (np.arange(size) % 50 + group.rank).astype(dtype)
            group.all_reduce(array)
            expected = (np.arange(size) % 50) * group.size + sum(range(group.size))
            np.testing.assert_array_equal(array.astype(np.float64), expected)


def case_sum_on_one_rank(group):
    for dtype in (np.float32, ml_dtypes.bfloat16):
        for root in range(group.size):
            array = np.full(33, group.rank + 1).astype(dtype)
            group.begin_reduce(array, root).wait()
            if group.rank == root:
                assert (array == sum(range(group.size + 1))).all()


def case_several_under_way(group):
    arrays = [np.full(1000 + k, k + group.rank, np.float32) for k in range(8)]
    pending = [group.begin_reduce(array) for array in arrays]
    for one in pending:
        one.poke()
    for one in reversed(pending):
        one.wait()
    for k, array in enumerate(arrays):
        assert (array == k * group.size + sum(range(group.size))).all()


def case_parts_of_one_array(group):
    parts = bounds(group)
    for place in ("cpu", "emulator"):
        mine, flat = slice(*parts[group.rank]), np.full(parts[-1][1], -1.0, np.float32)
        flat[mine] = group.rank
        flat = to_device(flat, place)
        group.all_gather(flat, parts)
        whole = to_numpy(flat)
        for rank, (start, stop) in enumerate(parts):
            assert (whole[start:stop] == rank).all()


def case_broadcast(group):
    for dtype in (np.float32, ml_dtypes.bfloat16, np.bool_):
        array = np.full((3, 5), group.rank == 1).astype(dtype)
        group.broadcast(array, root=1)
        assert array.astype(np.float32).sum() == 15


def case_emulator(group):
    array = to_device(np.full(9, group.rank + 1.0, np.float32), "emulator")
    group.all_reduce(array)
    assert (to_numpy(array) == sum(range(group.size + 1))).all()


def case_values(group):
    value = {"rank": group.rank, "text": "é" * group.rank, "list": [1.5, None, True]}
    found = group.exchange(value)
    assert [one["rank"] for one in found] == list(range(group.size))
    assert found[-1]["text"] == "é" * (group.size - 1) and found[0]["list"] == [1.5, None, True]
    assert np.isnan(group.exchange(float("nan"))).all()
    assert group.share(["of rank", group.rank]) == ["of rank", 0]
    assert group.exchange_bytes(b"x" * group.rank) == [b"x" * rank for rank in range(group.size)]
    group.barrier()


def case_what_rank_0_does_for_all(group):
    calls = []

    def found():
        calls.append(1)
        return {"number": 3}

    assert group.on_main(found) == {"number": 3} and len(calls) == group.main

    def lost():
        raise FileNotFoundError(2, "No such file", "run/config.toml")

    try:
        group.on_main(lost)
    except FileNotFoundError:
        assert group.main
    except RemoteError as error:
        assert not group.main and error.kind == "FileNotFoundError"
        assert str(error) == "run/config.toml: No such file"
    else:
        raise AssertionError("nothing was raised")
