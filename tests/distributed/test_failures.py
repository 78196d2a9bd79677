"""A rank that dies, fails or hangs: one message, and the end of all.

Real jobs of mpirun, and the watcher alone: its ranks are sockets of the test, which say what ranks
would say.
"""

import json
import os
import re
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from gpunn.cli import ranks
from gpunn.cli.ranks import say_error
from gpunn.distributed import watcher
from gpunn.distributed.group import RemoteError
from gpunn.distributed.watch import Watch, one_line
from gpunn.distributed.watching import timeout

SCRIPT = Path(__file__).with_name("failing.py")
RESUME = "Go on with: gpunn train --resume runs/x"


# ---- jobs of mpirun ------------------------------------------------------------------------------


def said(run):
    """What gpunn and Python said, without mpirun's banner and the numbers of processes."""
    text = re.sub(r"\n=+\n.*", "", run.stderr, flags=re.DOTALL).strip()
    return re.sub(r"\(\S+, pid \d+\)", "(HOST)", text)


def test_a_killed_rank(run_ranks):
    run = run_ranks(2, SCRIPT, "kill", 1, timeout=60)
    assert run.returncode != 0
    assert said(run) == (
        "gpunn: rank 1 (HOST) died after step 3 of epoch 2 (it was killed, or crashed); "
        f"the other rank was ended. {RESUME}"
    )


def test_a_killed_rank_0_of_ranks_on_several_hosts(run_ranks):
    run = run_ranks(2, SCRIPT, "far-kill", 0, timeout=60)
    assert run.returncode != 0
    assert said(run) == (
        "gpunn: rank 0 (HOST) died after step 3 of epoch 2 (it was killed, or crashed); "
        f"the other rank was ended. {RESUME}"
    )


def test_the_same_error_on_all_ranks_is_said_once(run_ranks):
    run = run_ranks(2, SCRIPT, "raise", -1, timeout=60)
    assert run.returncode == 1
    text = said(run)
    assert text.startswith("Traceback") and text.endswith("\nValueError: the loss is bad")
    assert text.count("Traceback") == 1 and "rank" not in text


def test_a_stopped_rank(run_ranks):
    run = run_ranks(2, SCRIPT, "stop", 1, timeout=60, env={"GPUNN_DISTRIBUTED_TIMEOUT": "0.3"})
    assert run.returncode != 0
    assert said(run) == (
        "gpunn: rank 1 (HOST) has not come beyond step 3 of epoch 2 for 0.3 s, and rank 0 waits "
        "for it: it does not answer; the job is ended; GPUNN_DISTRIBUTED_TIMEOUT=SECONDS allows "
        f"longer pauses. {RESUME}"
    )


def test_all_leave_with_an_exit_code(run_ranks):
    run = run_ranks(2, SCRIPT, "exit", -1, timeout=60)
    assert run.returncode == 3
    assert said(run) == "" and run.stdout == ""


# ---- the watcher alone ---------------------------------------------------------------------------


class Job:
    """A `Watcher` in a thread, and the ranks' ends of its connections."""

    def __init__(self, monkeypatch, size, timeout=0.0, alike=0.1):
        self.messages, self.size, self.buffers = [], size, {}
        monkeypatch.setattr(watcher, "ALIKE", alike)
        monkeypatch.setattr(watcher, "LONELY", 0.3)
        monkeypatch.setattr(watcher, "DONE", 0.1)
        monkeypatch.setattr(watcher.Watcher, "say", lambda _, text: self.messages.append(text))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.memory = os.memfd_create("steps")
        os.ftruncate(self.memory, watcher.WORD + 8 * size)
        settings = {"size": size, "timeout": timeout, "token": "secret", "welcome": "you",
                    "listen": os.dup(self.listener.fileno()), "memory": self.memory}  # fmt: skip
        self.gate = threading.Event()  # while it is not set, the watcher does not look
        self.gate.set()
        look = watcher.Watcher.look
        monkeypatch.setattr(
            watcher.Watcher, "look", lambda own, now: self.gate.wait(5) and look(own, now)
        )
        self.watcher = watcher.Watcher(settings)
        self.thread = threading.Thread(target=self.watcher.run)
        self.thread.start()
        self.ranks = [self.connect(rank) for rank in range(size)]
        for rank in range(size):
            assert self.told(rank) == {"welcome": "you"}

    def connect(self, rank, token="secret"):
        connection = socket.create_connection(self.listener.getsockname())
        hello = {"token": token, "rank": rank, "host": "h", "pid": 7, "memory": False}
        connection.sendall(json.dumps(hello).encode() + b"\n")
        return connection

    def tell(self, rank, **message):
        self.ranks[rank].sendall(json.dumps(message).encode() + b"\n")

    def step(self, epoch, step, ranks=None):
        for rank in range(self.size) if ranks is None else ranks:
            self.tell(rank, step=watcher.packed(epoch, step))

    def told(self, rank, seconds=5.0):
        """The next message to a rank."""
        buffer = self.buffers.get(rank, b"")
        while b"\n" not in buffer:
            assert select.select([self.ranks[rank]], [], [], seconds)[0], "nothing was said"
            data = self.ranks[rank].recv(4096)
            assert data, "the watcher has gone"
            buffer += data
        line, _, self.buffers[rank] = buffer.partition(b"\n")
        return json.loads(line)

    def answer(self, rank, waits=None, idle=9.0, moves=1, note="", queue=False):
        """Wait to be asked, and answer."""
        assert self.told(rank) == {"ask": 1}
        self.tell(rank, at={"waits": waits, "idle": idle, "moves": moves, "queue": queue,
                            "line": "train.py:3 (in f)", "note": note})  # fmt: skip

    def end(self):
        """The exit codes that the ranks are given, and the one message, if any."""
        codes = [self.told(rank).get("end") for rank in range(self.size)]
        self.leave()
        assert len(self.messages) <= 1
        return codes, "".join(self.messages)

    def leave_well(self):
        for rank in range(self.size):
            self.tell(rank, done=True)
        for rank in range(self.size):
            assert self.told(rank) == {"bye": True}
        self.leave()

    def leave(self):
        for connection in self.ranks:
            connection.close()
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.listener.close()
        os.close(self.memory)


@pytest.fixture
def job(monkeypatch):
    return lambda *arguments, **options: Job(monkeypatch, *arguments, **options)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_first_that_closed_is_named(job, order):
    made = job(3)
    made.gate.clear()
    made.step(1, 4)
    time.sleep(0.02)  # it has woken, and waits at the gate
    made.step(1, 5, ranks=order[1:])
    for rank in order:
        made.ranks[rank].close()
    made.gate.set()
    made.leave()
    (text,) = made.messages
    assert text.startswith(f"gpunn: rank {order[0]} (h, pid 7) died after step 4 of epoch 1 (")


def test_a_rank_that_dies_in_a_phase(job):
    made = job(2)
    made.tell(1, phase="the validation")
    made.ranks[1].close()
    assert made.told(0) == {"end": 1}
    made.leave()
    assert made.messages[0].startswith("gpunn: rank 1 (h, pid 7) died in the validation (it was")


def test_an_error_of_one_rank(job):
    made = job(3)
    made.step(1, 9)
    made.tell(1, failed="Traceback …\nValueError: x\n", same="ValueError: x", code=4)
    assert made.end() == (
        [4, 4, 4],
        "Traceback …\nValueError: x\ngpunn: rank 1 (h, pid 7) failed with this error after step 9 "
        "of epoch 1; the other 2 ranks were ended",
    )


def test_errors_that_differ(job):
    made = job(2)
    made.tell(1, failed="gpunn: b", same="b", code=2)
    made.tell(0, failed="gpunn: a", same="a", code=2)
    assert made.end() == (
        [2, 2],
        "gpunn: a\ngpunn: b\ngpunn: rank 0 (h, pid 7) and rank 1 (h, pid 7) failed with these "
        "errors before its first step; all ranks were ended",
    )


def test_the_error_of_rank_0_that_the_others_raise_too(job):
    made, there = job(2), RemoteError("OSError", "disk full")
    made.tell(1, failed="(its traceback)", same=one_line(there), code=1)
    made.tell(0, failed="(rank 0's)", same=one_line(OSError("disk full")), code=1)
    assert made.end() == ([1, 1], "(rank 0's)")


def test_a_rank_that_others_wait_for(job):
    made = job(6, timeout=0.2)
    made.step(2, 1, ranks=[0, 2, 3, 4, 5])
    for rank in (0, 2, 3, 4, 5):
        made.answer(rank, waits="a reduction")
    made.answer(1, note="its thread t failed: OSError: gone")
    codes, text = made.end()
    assert codes == [1] * 6
    assert text == (
        "gpunn: rank 1 (h, pid 7) has not done its first step for 0.2 s, and ranks 0, 2, 3, 4 and "
        "5 wait for it: it is at train.py:3 (in f), and its thread t failed: OSError: gone; the "
        "job is ended; GPUNN_DISTRIBUTED_TIMEOUT=SECONDS allows longer pauses"
    )


def test_ranks_that_wait_for_each_other(job):
    made = job(2, timeout=0.1)
    made.answer(0, waits="a broadcast", moves=8)
    made.answer(1, waits="a reduction", moves=9)
    assert (
        "no rank has moved for 0.1 s, and none is behind: rank 0 (h, pid 7) waits in a broadcast "
        "(number 8 of what it did together), at train.py:3 (in f); rank 1 (h, pid 7) waits in a "
        "reduction (number 9 "
    ) in made.end()[1]


def test_who_is_behind_where_a_queue_hides_who_waits(job):
    made = job(3, timeout=0.1)
    made.step(0, 6)
    made.step(0, 7, ranks=[0, 2])
    for rank in range(3):
        made.answer(rank, queue=True)
    assert made.end()[1].startswith(
        "gpunn: rank 1 (h, pid 7) has not come beyond step 6 of epoch 0 for 0.1 s, and ranks 0 and "
        "2 wait for it: it is at train.py:3"
    )


def test_gpus_of_which_none_moves(job):
    made = job(2, timeout=0.1)
    made.step(0, 6)
    made.answer(0, queue=True)
    made.answer(1, queue=True)
    assert "no rank has moved for 0.1 s, and none is behind: rank 0 (h, " in made.end()[1]


def test_what_is_no_hang(job):
    made = job(2, timeout=0.1)
    for _ in range(2):  # they did something together a moment ago
        made.answer(0, waits="a reduction", idle=0.0)
        made.answer(1, idle=0.0)
    for _ in range(2):  # nobody waits, and the training has not begun
        made.answer(0, queue=True)
        made.answer(1, queue=True)
    made.step(0, 1)
    made.answer(0)  # nobody waits, and no queue hides it
    made.answer(1)
    made.tell(0, phase="the validation")
    for _ in range(2):
        made.answer(0, queue=True)
        made.answer(1, queue=True)
    made.leave_well()
    assert made.messages == []


def test_ranks_that_wait_for_one_that_has_ended(job):
    made = job(3)
    made.step(0, 2)
    made.tell(1, done=True)
    made.answer(0, idle=0.0, waits="a barrier")  # perhaps it only just came
    made.answer(2)
    made.answer(0, waits="a barrier")
    made.answer(2)
    codes, text = made.end()
    assert codes == [1, 1, 1]
    assert text == (
        "gpunn: rank 1 (h, pid 7) has ended after step 2 of epoch 0, while rank 0 waits for it in "
        "a barrier; the job is ended. All ranks must take part in what they do together"
    )


def test_signals_end_a_job_in_silence(job):
    made = job(2)
    for rank in range(2):
        made.tell(rank, signal=15)
    made.tell(1, done=True)
    made.answer(0, waits="a reduction")  # within MPI, where Python cannot see the signal
    assert made.end() == ([143, 143], "")
    made = job(2)
    for rank in range(2):
        made.tell(rank, signal=2)
    made.ranks[0].close()
    assert made.told(1) == {"end": 130}
    made.leave()
    assert made.messages == []
    made = job(2)
    made.tell(1, signal=15)
    made.ranks[1].close()
    assert made.told(0) == {"end": 1}
    made.leave()
    assert "died before its first step (it had got SIGTERM); " in made.messages[0]


def turned_away(connection):
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:  # it had not read all
        return True


def test_strangers_are_turned_away(job):
    made = job(1)
    strange = (b'{"token": "guess", "rank": 0}\n', b"GET / HTTP/1.1\n", b"x" * 9_000, b"[]\n", b"")
    for data in strange:
        with socket.create_connection(made.listener.getsockname()) as stranger:
            stranger.sendall(data)
            assert turned_away(stranger)  # the silent one after a while
    with made.connect(0) as twin:  # there is a rank 0 already
        assert turned_away(twin)
    made.leave_well()
    assert made.messages == []


# ---- small parts ---------------------------------------------------------------------------------


def test_packed_steps_are_in_order():
    numbers = [watcher.packed(*each) for each in ((0, 0), (0, 1), (1, 0), (1, 10**9), (70_000, 3))]
    assert numbers == sorted(set(numbers)) and numbers[0] > 0 and numbers[-1] < 2**63
    assert watcher.unpacked(numbers[-2]) == (1, 10**9)


def test_the_timeout(monkeypatch):
    for text, seconds in (("", 600), ("0.5", 0.5), ("0", 0), ("inf", 0)):
        monkeypatch.setenv("GPUNN_DISTRIBUTED_TIMEOUT", text)
        assert timeout() == seconds
    for text in ("soon", "-1", "nan"):
        monkeypatch.setenv("GPUNN_DISTRIBUTED_TIMEOUT", text)
        with pytest.raises(ValueError, match="is no number of seconds"):
            timeout()


def test_a_watch_of_nobody():
    watch = Watch()
    watch.step(1, 2), watch.phase("x"), watch.advise("y"), watch.close()
    assert not watch.watched


def test_which_rank_says_an_error_of_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(ranks, "WAIT", 0.0)

    def printed(rank, local_rank, error):
        names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
        for name, value in zip(names, (rank, 4, local_rank, 2), strict=True):
            monkeypatch.setenv(name, str(value))
        assert say_error("gpunn train: no", error, 2) == 2
        return capsys.readouterr().err

    assert printed(0, 0, ValueError()) == "gpunn train: no\n"
    assert printed(1, 1, ValueError()) == printed(2, 0, ValueError()) == ""
    assert printed(1, 1, OSError()) == ""
    assert printed(2, 0, OSError()) == f"rank 2 ({socket.gethostname()}): gpunn train: no\n"
