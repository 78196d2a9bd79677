"""The process that watches a job: it says in one message who died, failed or hangs, and ends all.

`gpunn.distributed.watch` starts it on the host of rank 0, by the path of this file and with the
standard library alone, in a session of its own, so that a launcher which kills every rank at once
leaves it the time to speak. Each rank keeps a connection; what goes over it are lines of JSON:

from a rank   {"token", "rank", "host", "pid", "memory"} first, then one of {"step": n},
              {"phase": text}, {"advice": text}, {"failed": text, "same": text, "code": n},
              {"signal": n}, {"done": true}, and as an answer to "ask" {"at": {…}}
to a rank     {"welcome": word}, {"ask": n}, {"end": exit code}, {"bye": true}

Ranks on this host write their step into memory instead, which costs them nothing: the word of the
token, then an 8-byte number for each rank (`packed`).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Any

ALIKE = 1.0  # seconds in which ranks that fail in the same way are taken for one
LONELY = 5.0  # seconds without any connection after which there is no job
OBEY = 2.0  # seconds that a rank has to end before it is killed, where it can be
DONE = 2.0  # seconds that ranks may wait for one that has come to its end
STRANGER = 4096  # bytes that a connection may send before it has shown the token
WORD = 32  # bytes of the token
EPOCH = 40  # bits of a packed number below the epoch


def packed(epoch: int, step: int) -> int:
    """Both as one number, larger for later steps; 0 is before the first."""
    return ((epoch << EPOCH) | step) + 1


def unpacked(number: int) -> tuple[int, int]:
    """(epoch, step) of it."""
    return (number - 1) >> EPOCH, (number - 1) & ((1 << EPOCH) - 1)


class Rank:
    """What is known of a rank."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.buffer = b""
        self.since = time.monotonic()  # when it connected
        self.number = -1  # until it has shown the token
        self.host, self.pid, self.here = "", 0, False
        self.step = 0
        self.phase = self.advice = ""
        self.failure: dict[str, Any] | None = None
        self.signal = 0
        self.gone = self.closed = self.done = self.dismissed = False
        self.at: dict[str, Any] | None = None  # its answer to the last question

    def __str__(self) -> str:
        return f"rank {self.number} ({self.host}, pid {self.pid})"

    def send(self, message: dict[str, Any]) -> None:
        """Tell it; what a rank does not take is lost."""
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(message).encode() + b"\n")

    def place(self) -> str:
        """ "after step 37 of epoch 2"."""
        if not self.step:
            return f"in {self.phase}" if self.phase else "before its first step"
        epoch, step = unpacked(self.step)
        after = f"after step {step} of epoch {epoch}"
        return f"in {self.phase}, {after}" if self.phase else after


class Watcher:
    """The ranks of a job, until all have gone.

    `settings` has "size", "timeout" (seconds without any progress, 0: for ever), the words "token"
    and "welcome", and the descriptors "listen" and "memory".
    """

    def __init__(self, settings: dict[str, Any]):
        self.size, self.timeout = settings["size"], settings["timeout"]
        self.token, self.welcome = settings["token"], settings["welcome"]
        self.listener = socket.socket(fileno=settings["listen"])
        self.listener.setblocking(False)
        self.memory = mmap.mmap(settings["memory"], WORD + 8 * self.size)
        self.connections: dict[int, Rank] = {}  # by descriptor
        self.ranks: dict[int, Rank] = {}  # by number
        self.poll = select.epoll()
        self.poll.register(self.listener, select.EPOLLIN)
        # A second one, which data does not wake, lists those that closed in the order of closing.
        self.closings = select.epoll()
        self.moved = self.inhabited = time.monotonic()
        self.failing: float | None = None  # since when
        self.signalled = 0.0
        self.asked: float | None = None
        self.ask_again = 0.0
        self.ended: float | None = None

    # ---- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Until no rank is left."""
        tick = min(0.5, self.timeout / 5 if self.timeout else 0.5)
        while self.inhabited_still():
            hurry = self.failing is not None or self.asked is not None or self.ended is not None
            events = self.poll.poll(min(tick, 0.05) if hurry else tick)
            closed = [descriptor for descriptor, _ in self.closings.poll(0)] if events else []
            ready = [descriptor for descriptor, _ in events]
            if self.listener.fileno() in ready:
                self.accept()
            ready = [descriptor for descriptor in ready if descriptor in self.connections]
            for descriptor in ready:  # all that was said, before any end is judged
                self.read(self.connections[descriptor])
            for descriptor in dict.fromkeys([*closed, *ready]):
                if self.connections[descriptor].gone:
                    self.close(self.connections[descriptor])
            self.look(time.monotonic())

    def inhabited_still(self) -> bool:
        now = time.monotonic()
        if self.connections:
            self.inhabited = now
            return self.ended is None or now - self.ended < 5 * OBEY
        return len(self.ranks) < self.size and now - self.inhabited < LONELY

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            connection.setblocking(False)
            keep_alive(connection)
            self.connections[connection.fileno()] = Rank(connection)
            self.poll.register(connection, select.EPOLLIN | select.EPOLLRDHUP)
            self.closings.register(connection, select.EPOLLRDHUP)

    def read(self, rank: Rank) -> None:
        """Take what has come from it, and note whether it has gone."""
        while not rank.gone:
            try:
                data = rank.connection.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            rank.buffer += data
            rank.gone = not data or (rank.number < 0 and len(rank.buffer) > STRANGER)
        *lines, rank.buffer = rank.buffer.split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
                known = rank.number >= 0 or self.introduced(rank, message)
            except (ValueError, TypeError, KeyError):
                known = False
            if not known:
                rank.gone = True
                break
            self.heard(rank, message)

    def introduced(self, rank: Rank, hello: dict[str, Any]) -> bool:
        """Whether a new connection is that of a rank."""
        number = int(hello["rank"])
        if hello["token"] != self.token or number in self.ranks or not 0 <= number < self.size:
            return False
        rank.number, rank.host, rank.pid = number, str(hello["host"]), int(hello["pid"])
        rank.here = bool(hello["memory"])
        self.ranks[number] = rank
        rank.send({"welcome": self.welcome})
        return True

    def close(self, rank: Rank) -> None:
        del self.connections[rank.connection.fileno()]
        rank.connection.close()  # which takes it out of both polls
        rank.closed = True
        if rank.number >= 0 and self.ended is None and not rank.dismissed and not rank.failure:
            self.died(rank)

    # ---- what ranks say --------------------------------------------------------------------------

    def heard(self, rank: Rank, message: dict[str, Any]) -> None:
        if "at" in message:
            rank.at = message["at"]
            return
        self.moved = time.monotonic()
        if "step" in message:
            rank.step = message["step"]
        elif "phase" in message:
            rank.phase = message["phase"]
        elif "advice" in message:
            rank.advice = message["advice"]
        elif "signal" in message:
            rank.signal, self.signalled = message["signal"], self.moved
        elif "failed" in message:
            rank.failure = message
            self.failing = self.failing or self.moved
        elif "done" in message:
            rank.done = True
            if len(self.ranks) == self.size and all(one.done for one in self.ranks.values()):
                for one in self.ranks.values():
                    one.dismissed = True
                    one.send({"bye": True})

    def look_at_steps(self) -> None:
        """Take the steps of the ranks on this host."""
        numbers = struct.unpack_from(f"{self.size}q", self.memory, WORD)
        for rank in self.ranks.values():
            if rank.here and numbers[rank.number] != rank.step:
                rank.step, self.moved = numbers[rank.number], time.monotonic()

    # ---- what comes of it ------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Judge what has gone on too long."""
        if self.ended is not None:
            if now - self.ended > OBEY:
                self.kill()
        elif self.failing is not None:
            if now - self.failing > ALIKE or all(rank.failure for rank in self.present()):
                self.failed()
        else:
            self.look_at_steps()
            for rank in list(self.connections.values()):
                if rank.number < 0 and now - rank.since > LONELY:
                    self.close(rank)
            self.look_for_hangs(now)

    def present(self) -> list[Rank]:
        """The ranks that still have something to do."""
        ranks = [rank for _, rank in sorted(self.ranks.items())]
        return [rank for rank in ranks if not rank.closed and not rank.done]

    def died(self, rank: Rank) -> None:
        self.look_at_steps()
        recently = time.monotonic() - self.signalled < 10
        if rank.signal and recently and all(one.signal for one in self.ranks.values()):
            self.end("", 128 + rank.signal)  # that is how someone ended them all
            return
        why = "it was killed, or crashed"
        if rank.signal:
            why = f"it had got {signal_name(rank.signal)}"
        self.end(f"gpunn: {rank} died {rank.place()} ({why}); {self.others([rank])}", 1)

    def failed(self) -> None:
        self.look_at_steps()
        failed = [rank for _, rank in sorted(self.ranks.items()) if rank.failure]
        failures = [rank.failure for rank in failed if rank.failure]
        distinct: dict[str, str] = {}
        for failure in failures:
            distinct.setdefault(failure["same"], failure["failed"].rstrip("\n"))
        text = "\n".join(list(distinct.values())[:4])
        if len(distinct) > 1 or len(failed) < self.size:
            which = "this error" if len(distinct) == 1 else "these errors"
            text += (
                f"\ngpunn: {listed([str(rank) for rank in failed])} failed with {which} "
                f"{failed[0].place()}; {self.others(failed)}"
            )
        self.end(text, failures[0]["code"])

    def others(self, named: list[Rank]) -> str:
        """The end of a message: what became of the others, and how to go on."""
        count = self.size - len(named)
        text = f"the other {count} ranks were ended" if count > 1 else "the other rank was ended"
        return (text if count else "all ranks were ended") + self.advice()

    def advice(self) -> str:
        texts = [rank.advice for _, rank in sorted(self.ranks.items()) if rank.advice]
        return f". Go on with: {texts[0]}" if texts else ""

    def end(self, text: str, code: int) -> None:
        """Say it, and let all ranks end with this exit code."""
        if text:
            self.say(text)
        self.ended = time.monotonic()
        for rank in self.ranks.values():
            if not rank.closed:
                rank.send({"end": code})

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace") + b"\n")

    def kill(self) -> None:
        """End those that do not obey; those of other hosts are the launcher's."""
        for rank in self.ranks.values():
            if rank.here and not rank.closed:
                with contextlib.suppress(OSError):
                    os.kill(rank.pid, signal.SIGKILL)

    # ---- hangs -----------------------------------------------------------------------------------

    def look_for_hangs(self, now: float) -> None:
        """Ask where the ranks are when nothing has moved for long, and judge their answers."""
        present, quiet = self.present(), now - self.moved
        if self.asked is not None:
            wait = min(10.0, self.timeout or 10.0)
            if all(rank.at for rank in present) or now - self.asked > wait:
                self.asked = None
                self.judge(present)
            return
        patience = self.patience([rank for rank in self.ranks.values() if rank.done])
        if present and quiet >= patience and now >= self.ask_again:
            self.asked, self.ask_again = now, now + patience / 2
            for rank in present:
                rank.at = None
                rank.send({"ask": 1})

    def judge(self, present: list[Rank]) -> None:
        """End the job if what the ranks have answered shows that it cannot go on."""
        now = time.monotonic()
        waiting = [rank for rank in present if rank.at and rank.at["waits"]]
        busy = [rank for rank in present if rank.at and not rank.at["waits"]]
        silent = [rank for rank in present if not rank.at]
        done = [rank for rank in self.ranks.values() if rank.done]
        stuck = [rank for rank in waiting if rank.at and rank.at["idle"] >= self.patience(done)]
        if done and stuck:
            self.left_behind(done, stuck)
            return
        idle = min((rank.at["idle"] for rank in present if rank.at), default=now)
        self.moved = max(self.moved, now - idle)
        if not self.timeout or now - self.moved < self.timeout:
            return
        queue = any(rank.at and rank.at["queue"] for rank in present)
        if queue and busy:  # a GPU's queue hides who waits; but who is behind is known
            least = min(progress(rank) for rank in busy)
            waiting += [rank for rank in busy if progress(rank) > least]
            busy = [rank for rank in busy if progress(rank) == least]
        working = any(rank.step for rank in present) and not any(rank.phase for rank in present)
        if waiting or (queue and working and not done):
            self.hangs(silent + busy, waiting)

    def patience(self, done: list[Rank]) -> float:
        """Seconds of rest after which the ranks are asked."""
        limits = [limit for limit in (self.timeout, DONE if done else 0) if limit]
        return min(limits, default=float("inf"))

    def left_behind(self, done: list[Rank], stuck: list[Rank]) -> None:
        """Ranks wait for some that have come to the end of the program, and will not come."""
        if all(rank.signal for rank in stuck):
            self.end("", 128 + stuck[0].signal)
            return
        verb = "have" if len(done) > 1 else "has"
        what = stuck[0].at["waits"] if stuck[0].at else ""
        wait = "wait" if len(stuck) > 1 else "waits"
        why = f" (it had got {signal_name(done[0].signal)})" if done[0].signal else ""
        self.end(
            f"gpunn: {listed([str(rank) for rank in done])} {verb} ended {done[0].place()}{why}, "
            f"while {numbered(stuck)} {wait} for it in {what}; the job is ended. "
            f"All ranks must take part in what they do together{self.advice()}",
            1,
        )

    def hangs(self, guilty: list[Rank], waiting: list[Rank]) -> None:
        """Say who keeps the others, if any does."""
        long = f"for {self.timeout:g} s"
        guilty.sort(key=lambda rank: rank.number)
        if not guilty or not waiting:
            places = [f"{rank} {whereabouts(rank)}" for rank in guilty or waiting]
            text = f"no rank has moved {long}, and none is behind: {'; '.join(places)}; the job"
        else:
            verb = "have" if len(guilty) > 1 else "has"
            came = "moved"
            if any(rank.step for rank in guilty + waiting):
                came = "done its first step"
                if step := max(rank.step for rank in guilty):
                    came = "come beyond step {1} of epoch {0}".format(*unpacked(step))
            places = [f"{rank if len(guilty) > 1 else 'it'} {whereabouts(rank)}" for rank in guilty]
            text = (
                f"{listed([str(rank) for rank in guilty])} {verb} not {came} {long}, and "
                f"{numbered(waiting)} {'wait' if len(waiting) > 1 else 'waits'} for it: "
                f"{'; '.join(places)}; the job"
            )
        longer = " is ended; GPUNN_DISTRIBUTED_TIMEOUT=SECONDS allows longer pauses"
        self.end(f"gpunn: {text}{longer}{self.advice()}", 1)


def progress(rank: Rank) -> tuple[int, int]:
    """How far it has come, to compare."""
    return rank.step, rank.at["moves"] if rank.at else 0


def whereabouts(rank: Rank) -> str:
    """What a rank is at, as it says itself."""
    if not rank.at:
        return "does not answer"
    does = "is"
    if rank.at["waits"]:
        does = f"waits in {rank.at['waits']} (number {rank.at['moves']} of what it did together),"
    elif rank.phase:
        does = f"is in {rank.phase},"
    return f"{does} at {rank.at['line']}" + (f", and {rank.at['note']}" if rank.at["note"] else "")


def listed(texts: list[str]) -> str:
    """ "a, b and c"; of many the first four."""
    if len(texts) > 5:
        texts = [*texts[:4], f"{len(texts) - 4} more"]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def numbered(ranks: Iterable[Rank]) -> str:
    """ "rank 0" or "ranks 0, 2 and 3"."""
    numbers = [str(number) for number in sorted(rank.number for rank in ranks)]
    return f"rank{'s' if len(numbers) > 1 else ''} {listed(numbers)}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def keep_alive(connection: socket.socket) -> None:
    """Let the connection to a host that is gone break within about a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


if __name__ == "__main__":
    Watcher(json.loads(sys.stdin.readline())).run()
