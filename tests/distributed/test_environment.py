"""Who started a process, by the variables that launchers leave: the innermost one counts."""

import os
import re

import pytest

from gpunn.distributed import JoinError, Launch, environment, init, launched, start


def variables(text):
    return dict(pair.split("=") for pair in text.split())


HYDRA = "PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2"
OPEN_MPI = ("OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "
            "OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_RANK=3")  # fmt: skip
TORCHRUN = ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=29500 "
            "TORCHELASTIC_RUN_ID=none")  # fmt: skip
BY_HAND = "RANK=3 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=29500"
SRUN = ("SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NODEID=1 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4 "
        "SLURM_STEP_ID=0 SLURM_STEP_TASKS_PER_NODE=2(x2)")  # fmt: skip
# A step of one task, in an allocation of four: a shell by srun --pty, or one torchrun a node.
ONE_TASK = ("SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4 "
            "SLURM_STEP_ID=0 SLURM_STEP_TASKS_PER_NODE=1")  # fmt: skip
BATCH = "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=4 SLURM_JOB_ID=7"


@pytest.mark.parametrize(
    ("by", "text"),
    [
        ("mpi", HYDRA),
        ("mpi", OPEN_MPI),
        ("torchrun", TORCHRUN),
        ("slurm", SRUN),
        ("mpi", f"{SRUN} PMI_RANK=3 PMI_SIZE=4"),  # --mpi=pmi2
        ("mpi", f"{SRUN} PMIX_RANK=3"),  # --mpi=pmix
        # in a shell by srun, with and without plugins
        *(("mpi", f"{inner} {ONE_TASK} {plugin}") for inner in (HYDRA, OPEN_MPI)
          for plugin in ("", "PMIX_RANK=0")),
        ("mpi", f"{ONE_TASK} PMI_RANK=0 PMI_SIZE=1 {OPEN_MPI}"),
        *(("torchrun", f"{TORCHRUN} {ONE_TASK} {plugin}")
          for plugin in ("", "PMI_RANK=0 PMI_SIZE=1", "PMIX_RANK=0")),
        ("mpi", f"PMI_RANK=0 PMI_SIZE=1 {SRUN} PMIX_RANK=3"),  # from a shell by --mpi=pmi2
        ("torchrun", f"{TORCHRUN} PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1"),
        ("mpi", f"{HYDRA} RANK=0 WORLD_SIZE=2 MASTER_ADDR=a"),  # in a pod of Kubeflow's PyTorchJob
    ],
)  # fmt: skip
def test_launchers(by, text):
    assert launched(variables(text)) == Launch(by, 3, 4, 1, 2)


def test_what_is_known_of_the_host():
    assert launched(variables("PMI_RANK=1 PMI_SIZE=3")) == Launch("mpi", 1, 3)
    assert launched(variables(BY_HAND)) == Launch("torchrun", 3, 4)
    assert launched(variables(f"{BY_HAND} {SRUN}")) == Launch("torchrun", 3, 4, 1, 2)
    assert launched(variables("RANK=0 WORLD_SIZE=2 NCCL_COMM_ID=a:1")).size == 2
    uneven = variables(SRUN) | {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_NODEID": "0"}
    assert launched(uneven).local_size == 3
    first = variables(SRUN) | {"SLURM_PROCID": "0", "PMI_RANK": "0", "PMI_SIZE": "1"}
    assert launched(first).by == "slurm"  # srun --mpi=none, from a shell by --mpi=pmi2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RANK=1 WORLD_SIZE=2",  # left over: nobody could meet
        "RANK=captain WORLD_SIZE=",
        "MASTER_ADDR=a MASTER_PORT=1 WORLD_SIZE=2",
        BATCH,  # the script of sbatch; a notebook or pytest in it
        "SLURM_NTASKS=4 SLURM_JOB_ID=7",  # the shell of salloc
        ONE_TASK,
        f"{ONE_TASK} PMI_RANK=0 PMI_SIZE=1",
        f"{ONE_TASK} PMIX_RANK=0",
        "PMI_RANK=0 PMI_SIZE=1 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1",
        # each task of a step starts a job of its own
        f"{SRUN} PMI_RANK=0 PMI_SIZE=1 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1",
        f"{SRUN} PMIX_RANK=3 RANK=0 WORLD_SIZE=1 MASTER_ADDR=a TORCHELASTIC_RUN_ID=x",
    ],
)
def test_processes_that_are_alone(text, monkeypatch):
    assert launched(variables(text)).size == 1
    monkeypatch.setattr(environment.os, "environ", variables(text))
    assert init() is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("PMI_RANK=2 PMI_SIZE=2", "PMI_RANK=2 and PMI_SIZE=2: that is no rank of it"),
        (f"{BY_HAND} LOCAL_RANK=x", "LOCAL_RANK='x' is no whole number"),
    ],
)
def test_variables_that_make_no_sense(text, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        launched(variables(text))


def test_mpi_that_cannot_be_used(monkeypatch):
    """Without mpi4py; without a library of MPI; with the wheel's where another MPI started it."""
    launch = Launch("mpi", 1, 2)
    monkeypatch.setitem(os.environ, "PMIX_RANK", "1")
    for name in ("PMI_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)

    def said(**modules):
        for name, module in modules.items():
            monkeypatch.setitem(start.sys.modules, name.replace("__", "."), module)
        with pytest.raises(JoinError) as error:
            start._mpi_link(launch)
        return str(error.value)

    assert "process 1 of 2 of an MPI job, and mpi4py cannot be used" in (text := said(mpi4py=None))
    assert text.endswith("where another MPI has started it")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert said(mpi4py=None).endswith("do without MPI: srun --mpi=none")

    class Library:
        rc = type("rc", (), {"initialize": True, "finalize": None})

        class MPI:
            get_vendor = staticmethod(lambda: ("MPICH", (5, 0, 2)))

    monkeypatch.setattr("importlib.metadata.distributions", lambda name: [name])
    monkeypatch.delitem(start.sys.modules, "mpi4py.MPI", raising=False)
    text = said(mpi4py=Library)
    assert "this process 1 of 2, and mpi4py finds another MPI, the package mpich: use" in text
    assert (Library.rc.initialize, Library.rc.finalize) == (True, None)


def test_a_forked_child_is_alone(monkeypatch):
    monkeypatch.setattr(start, "_group", parents := object())
    monkeypatch.setattr(start, "_inherited", [])
    monkeypatch.setattr(start, "launched", lambda: Launch("mpi", 0, 2))
    assert init() is start.current() is parents
    start._forget()  # as os.fork calls it
    assert init() is start.current() is None


def test_processes_of_a_host_share_its_cores(monkeypatch):
    limits = []
    threadpoolctl = pytest.importorskip("threadpoolctl")
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", lambda n, user_api: limits.append(n))
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for cores, processes in ((8, 3), (8, 20), (2, 2)):  # the last: bound by the launcher
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n))
        start._share_cores(processes)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    start._share_cores(1)
    assert limits == [2, 1]
