"""Workers of the DataLoader: the same batches, in order; errors at their batch; nothing is left."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gpunn.data import DataLoader, RandomAffine, TensorDataset
from gpunn.data import workers as workers_module
from gpunn.errors import WorkerError

SAMPLES = '''
import os, signal, time
import numpy as np
from gpunn.data import Dataset


class Squares(Dataset):
    """Samples (i, i^2); `bad` fails, and `slow` samples take their time."""

    def __init__(self, length=23, bad=None, slow=()):
        self.length, self.bad, self.slow = length, bad, set(slow)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.slow:
            time.sleep(0.02)
        if index == self.bad:
            raise KeyError(f"no file for {index}")
        return np.float32(index), np.int64(index * index)


class Dies(Squares):
    def __getitem__(self, index):
        if index == 1 and os.path.exists(self.while_it_is_there):
            os.unlink(self.while_it_is_there)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def add_noise(fields, rng):
    return fields[0] + rng.normal(size=fields[0].shape), *fields[1:]
'''

# A module that other processes can import, however the tests are collected.
folder = tempfile.TemporaryDirectory()
Path(folder.name, "gpunn_worker_samples.py").write_text(SAMPLES)
sys.path.insert(0, folder.name)
samples = importlib.import_module("gpunn_worker_samples")
Squares = samples.Squares


def bits(loader, epochs=2):
    return [tuple(field.numpy().tobytes() for field in b) for _ in range(epochs) for b in loader]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("gpunn-data")]


def children():
    return multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_the_same_batches_bit_for_bit(kind):
    """Also where later batches are ready sooner, and going on from the middle."""
    arguments = {"shuffle": True, "seed": 3, "transform": samples.add_noise}
    data = Squares(slow=range(0, 23, 5))
    expected = bits(DataLoader(data, 4, **arguments))
    loader = DataLoader(
        data, 4, num_workers=2, worker_kind=kind, persistent_workers=True, **arguments
    )
    assert bits(loader) == expected
    loader.set_epoch(0)
    for number, _ in enumerate(loader):
        if number == 2:
            break
    state = loader.state_dict()
    assert state["batch"] == 3  # given, not made: more of them were under way
    loader.load_state_dict(state)
    assert bits(loader, 1) == expected[3:6]
    loader.close()
    assert not threads() and not children()


def test_threads_work_side_by_side():
    """Four samples that wait for each other can only be made by workers that run together."""
    together = threading.Barrier(4, timeout=20)

    class Waits(Squares):
        def __getitem__(self, index):
            together.wait()
            return super().__getitem__(index)

    loader = DataLoader(Waits(8), 1, num_workers=4, prefetch_factor=1)
    assert [int(y) for _, y in loader] == [i * i for i in range(8)]


def test_no_more_is_made_ahead_than_asked_for():
    made = []

    class Counts(Squares):
        def __getitem__(self, index):
            made.append(index)
            return super().__getitem__(index)

    batches = iter(DataLoader(Counts(40), 1, num_workers=2, prefetch_factor=3))
    next(batches)
    deadline = time.monotonic() + 20
    while len(made) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 6
    batches.close()
    assert not threads()


def test_an_error_comes_at_its_batch_with_its_sample():
    loader = DataLoader(Squares(bad=9), 4, num_workers=3)
    seen = []
    with pytest.raises(WorkerError) as caught:
        for x, _ in loader:
            seen.append(x.numpy().tolist())
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert str(caught.value) == (
        "DataLoader: batch 2 of epoch 0 (samples 8 to 11) failed in a worker at sample 9: "
        "KeyError: 'no file for 9'"
    )
    assert isinstance(caught.value.__cause__, KeyError)
    assert loader.state_dict()["batch"] == 2 and not threads()

    def breaks(fields, rng):
        raise ValueError("too dark")

    shuffled = DataLoader(Squares(), 8, True, seed=0, num_workers=1, transform=breaks)
    numbers = ", ".join(map(str, shuffled.order(0)[:3]))
    with pytest.raises(WorkerError, match=rf"8 samples: {numbers}, … .* ValueError: too dark"):
        next(iter(shuffled))


def test_processes_tell_of_errors_and_of_their_end():
    loader = DataLoader(Squares(bad=5), 4, num_workers=1, worker_kind="process")
    batches = iter(loader)
    next(batches)
    with pytest.raises(WorkerError, match="batch 1 .* at sample 5: KeyError: 'no file") as caught:
        next(batches)
    assert "in __getitem__" in caught.value.__notes__[0]
    assert not children()


def test_a_process_that_dies_is_told_of_and_replaced(tmp_path):
    """Also when it dies while the loop is elsewhere, and the next batch is to be begun."""
    data = samples.Dies(8)
    data.while_it_is_there = tmp_path / "alive"
    killed = DataLoader(data, 1, num_workers=1, worker_kind="process", persistent_workers=True)
    for pause in (0, 1):
        data.while_it_is_there.touch()
        killed.set_epoch(0)
        batches = iter(killed)
        next(batches)
        deadline = time.monotonic() + 20 * pause
        while data.while_it_is_there.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2 * pause)
        with pytest.raises(WorkerError, match="ended before batch 1 .*__main__"):
            next(batches)
        assert not children()
    killed.set_epoch(0)
    assert [int(y) for _, y in killed] == [i * i for i in range(8)]
    killed.close()
    assert not children()


def test_leaving_the_loop_ends_the_workers():
    for _ in range(2):
        batches = iter(DataLoader(Squares(8), 1, num_workers=2))
        next(batches)
        del batches
    made = []

    class Counts(Squares):
        def __getitem__(self, index):
            made.append(index)
            return super().__getitem__(index)

    for _ in DataLoader(Counts(400, slow=range(400)), 40, num_workers=2):
        break
    # One batch is given, another was made beside it; those that were begun then went no further.
    assert not threads() and len(made) < 100


def test_a_worker_that_is_stuck_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(workers_module, "PATIENCE", 0.1)
    free = threading.Event()

    class Stuck(Squares):
        def __getitem__(self, index):
            if index == 1:
                free.wait(30)
            return super().__getitem__(index)

    start = time.monotonic()
    for _ in DataLoader(Stuck(), 1, num_workers=1):
        break
    assert time.monotonic() - start < 5
    free.set()


def test_ctrl_c_ends_everything(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, signal, sys, threading, time
            import numpy as np
            from gpunn.data import DataLoader, Dataset, workers

            class Slow(Dataset):
                def __len__(self):
                    return 1000
                def __getitem__(self, index):
                    if sys.argv[1] == "stuck" and index == 12:
                        time.sleep(600)
                    time.sleep(0.05)
                    return np.float32(index)

            if __name__ == "__main__":
                # A background job ignores it.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                workers.PATIENCE = 0.3
                kind = "process" if sys.argv[1] in ("process", "killed") else "thread"
                loader = DataLoader(Slow(), 4, num_workers=2, worker_kind=kind)
                try:
                    for number, _ in enumerate(loader):
                        if number == 1 and sys.argv[1] == "killed":
                            print("workers", len(multiprocessing.active_children()), flush=True)
                            os.kill(os.getpid(), signal.SIGKILL)
                        if number == 1:
                            os.killpg(os.getpgrp(), signal.SIGINT)
                except KeyboardInterrupt:
                    left = multiprocessing.active_children()
                    print("stopped", len(left), threading.active_count())
            """
        )
    )
    # A thread that is stuck in the dataset keeps nobody: "stuck" would run for ten minutes. And
    # the output ends with the last process that holds it, also when the first was killed.
    expected = {
        "thread": "stopped 0 1\n", "process": "stopped 0 1\n", "stuck": "stopped 0 ",
        "killed": "workers ",
    }  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    begun = [subprocess.Popen([sys.executable, script, k], text=True, **pipes) for k in expected]
    for process, (kind, text) in zip(begun, expected.items(), strict=True):
        out, errors = process.communicate(timeout=60)
        assert out.startswith(text) and "Traceback" not in errors, (kind, out, errors)


def test_array_data_and_transforms_in_threads():
    x, y = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32), np.arange(50)
    arguments = {"shuffle": True, "seed": 1, "transform": RandomAffine((6, 5))}
    expected = bits(DataLoader((x, y), 8, **arguments))
    assert bits(DataLoader((x, y), 8, num_workers=3, **arguments)) == expected


def test_processes_map_the_file_that_the_data_are_in(tmp_path):
    """And get no copy of it; a slice is the same part there, whatever it is a slice of."""
    values = np.arange(1 << 20, dtype=np.float32).reshape(-1, 4)
    path = tmp_path / "x"
    path.write_bytes(b"h" * 5004 + values.tobytes())
    whole = np.memmap(path, np.float32, "r", 5004, values.shape)
    for part, expected in (
        (whole, values), (whole[7:][3:9], values[10:16]), (whole[::2], values[::2]),
    ):  # fmt: skip
        pickled = workers_module._pickled(workers_module.Job(TensorDataset(part)))
        (got,) = pickle.loads(pickled).dataset.arrays
        np.testing.assert_array_equal(got, expected)
        assert (len(pickled) < 2000) == part.flags.c_contiguous
    private = np.memmap(path, np.float32, "c", 5004, values.shape)
    private[0, 0] = 7  # in this process only
    (got,) = pickle.loads(workers_module._pickled(workers_module.Job(TensorDataset(private[:2])))
                          ).dataset.arrays  # fmt: skip
    assert got[0, 0] == 7


def test_refusals():
    with pytest.raises(TypeError, match="need a copy of transform, .*pickled.*'thread'"):
        next(
            iter(
                DataLoader(
                    Squares(), 2, num_workers=1, worker_kind="process", transform=lambda f, r: f
                )
            )
        )
    lock = Squares()
    lock.lock = threading.Lock()
    with pytest.raises(TypeError, match="need a copy of dataset"):
        next(iter(DataLoader(lock, 2, num_workers=1, worker_kind="process")))
    for name, value in (("num_workers", -1), ("num_workers", 1.5), ("prefetch_factor", -2)):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            DataLoader(np.arange(3), **{name: value})
    with pytest.raises(ValueError, match="worker_kind is 'fork'; expected 'thread' or 'process'"):
        DataLoader(np.arange(3), num_workers=1, worker_kind="fork")


def test_what_was_chosen_is_said():
    data = TensorDataset(np.zeros((1000, 4), np.float32))
    assert DataLoader(data).plan == "1,000 samples (15.62 KiB) are kept on cpu"
    assert DataLoader(Squares(), num_workers=1, worker_kind="process").plan == (
        "23 samples are kept on the host; 1 worker process makes up to 2 batches ahead"
    )
    assert DataLoader(data, num_workers=3, prefetch_factor=4).plan == (
        "1,000 samples (15.62 KiB) are kept on cpu; 3 worker threads make up to 12 batches ahead"
    )
