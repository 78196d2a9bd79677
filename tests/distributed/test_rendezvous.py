"""Where the processes of a job without MPI meet, and how they get its id there."""

import json
import re
import socket
import threading
import time

import pytest

from gpunn.distributed import Launch, rendezvous
from gpunn.distributed.environment import JoinError
from gpunn.distributed.rendezvous import first_host, hand_over, meeting_place

TORCHRUN, SLURM = Launch("torchrun", 1, 4), Launch("slurm", 1, 4)
ID = bytes(range(128))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("a,b", "a"),
        ("node[01-04,7]", "node01"),
        ("node[7,01-04],x", "node7"),
        ("rack[2-4]n[01-16,20],login", "rack2n01"),
        ("n[08]-ib,m", "n08-ib"),
        ("", ""),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


def test_meeting_places():
    torchrun = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    assert meeting_place(TORCHRUN, torchrun) == ("n1", 29501)
    assert meeting_place(TORCHRUN, torchrun | {"MASTER_PORT": "65535"}) == ("n1", 65534)
    slurm = {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2", "SLURM_JOB_NODELIST": "a[1-9]",
             "SLURM_STEP_NODELIST": "a[3-4]"}  # fmt: skip
    host, port = meeting_place(SLURM, slurm)
    assert host == "a3" and 20_000 <= port < 32_000
    assert meeting_place(SLURM, slurm | {"SLURM_STEP_ID": "3"})[1] == port + 1
    assert meeting_place(SLURM, slurm | torchrun) == ("n1", 29501)
    assert meeting_place(SLURM, slurm | {"MASTER_ADDR": "n1"}) == ("n1", port)


@pytest.mark.parametrize(
    ("launch", "known", "error"),
    [
        (TORCHRUN, {}, "process 1 of 4 by the variables of torchrun, and MASTER_ADDR is not set:"),
        (TORCHRUN, {"MASTER_ADDR": "a"}, "MASTER_PORT is not set: set it, the same for all"),
        (TORCHRUN, {"MASTER_ADDR": "a", "MASTER_PORT": "x"}, "MASTER_PORT='x' is no port"),
        (TORCHRUN, {"MASTER_ADDR": "a", "MASTER_PORT": "0"}, "MASTER_PORT='0' is no port"),
        (SLURM, {"SLURM_JOB_ID": "1"}, "and neither is SLURM_STEP_NODELIST: set it"),
        (SLURM, {"SLURM_NODELIST": "a"}, "MASTER_PORT is not set"),
    ],
)
def test_what_is_missing(launch, known, error):
    with pytest.raises(JoinError, match=re.escape(error)):
        meeting_place(launch, known)


@pytest.fixture
def place():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1", probe.getsockname()[1]


def others(function, *ranks):
    """The outcomes of ``function(rank)`` in threads; a function that waits for them."""
    found = {}

    def run(rank):
        try:
            found[rank] = function(rank)
        except JoinError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()

    def all_of_them():
        for thread in threads:
            thread.join(20)
        return found

    return all_of_them


def talk(place, words):
    """Say something to rank 0; what it answers."""
    for _ in range(100):
        try:
            with socket.create_connection(place, timeout=5) as connection:
                connection.sendall(words)
                return connection.makefile("rb").readline()
        except OSError:
            time.sleep(0.02)


def test_the_id_comes_to_all_and_others_are_let_go(place, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    end = others(lambda rank: hand_over(Launch("torchrun", rank, 3), place, ID, 20), 0)
    for words in (b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b'["a", 3, [1]]\n', b"\xff\n"):
        assert talk(place, words) == b""
    told = json.loads(talk(place, b'["other...", 3, 1]\n'))
    assert told["error"].startswith("rank 0 there is of job 'run...' with 3 processes, and this")
    ids = others(lambda rank: hand_over(Launch("torchrun", rank, 3), place, b"", 20), 1, 2)()
    assert ids == {1: ID, 2: ID} and end() == {0: ID}


def test_ranks_that_do_not_come(place):
    with pytest.raises(JoinError, match=r"rank 0 of 12 waited 0 s at port \d+ and these ranks "
                       r"did not come: 1, 2, 3, 4, 5, 6, 7, 8, …\."):  # fmt: skip
        hand_over(Launch("torchrun", 0, 12), place, ID, 0.05)


def test_rank_0_that_does_not_come(place):
    with pytest.raises(JoinError, match=r"rank 1 of 2 could not get .* within 0 s \(.*refused"):
        hand_over(Launch("torchrun", 1, 2), place, b"", 0.1)


def test_something_else_at_the_port(place, monkeypatch):
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.05)
    with socket.create_server(("", place[1])):
        with pytest.raises(JoinError, match="cannot listen on port .* MASTER_PORT to one whose"):
            hand_over(Launch("torchrun", 0, 2), place, ID, 1)
        with pytest.raises(JoinError, match="timed out"):
            hand_over(Launch("torchrun", 1, 2), place, b"", 0.2)
    end = others(lambda rank: _echo(place[1]), 0)
    with pytest.raises(JoinError, match="what answers there is no process of gpunn"):
        hand_over(Launch("torchrun", 1, 2), place, b"", 0.3)
    end()


def _echo(port):
    with socket.create_server(("", port)) as server:
        server.settimeout(0.5)
        try:
            while True:
                with server.accept()[0] as connection:
                    connection.sendall(b"220 mail\r\n")
        except TimeoutError:
            pass
