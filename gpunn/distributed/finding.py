"""What connects processes here, for `gpunn doctor`: MPI and NCCL. Neither is initialised."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

from gpunn.device.probe import Finding
from gpunn.distributed.environment import JoinError
from gpunn.distributed.nccl_driver import import_nccl
from gpunn.errors import DeviceError

# In a process of its own: a library of MPI may end the process that cannot load it, and this one
# may want to initialise it later.
_ASK = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
name, version = MPI.get_vendor()
print(name, ".".join(map(str, version)))
"""
_SECONDS = 20.0


def find_mpi() -> Finding:
    """Is mpi4py there, and which library of MPI does it find?"""
    if importlib.util.find_spec("mpi4py") is None:
        remedy = "Several processes, other than on GPUs by torchrun or srun, need MPI: pip install "
        return Finding("MPI", False, "mpi4py is not installed", remedy + "'gpunn[distributed]'.")
    mpi4py = f"mpi4py {importlib.metadata.version('mpi4py')}"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_SECONDS
        )
        if not asked.returncode:
            return Finding("MPI", True, f"{asked.stdout.strip()}, {mpi4py}")
        said = asked.stderr.strip().splitlines()
        reason = said[-1] if said else f"it ended with code {asked.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"it gave no answer within {_SECONDS:.0f} s"
    return Finding(
        "MPI", False, f"{mpi4py}, and no library of MPI",
        f"mpi4py finds no library of MPI that works ({reason}): pip install 'gpunn[distributed]', "
        "which brings MPICH, or load the MPI of the cluster.",
    )  # fmt: skip


def find_nccl() -> Finding:
    """Is NCCL there, and which version?"""
    try:
        number = import_nccl().get_version()
    except DeviceError:
        return Finding("NCCL", False, "needs CuPy", "Several GPUs need CuPy, and NCCL beside it.")
    except JoinError as error:
        sentence = str(error)
        return Finding("NCCL", False, "not found", sentence[0].upper() + sentence[1:] + ".")
    return Finding("NCCL", True, f"{number // 10000}.{number % 10000 // 100}.{number % 100}")


def findings() -> list[Finding]:
    """Both."""
    return [find_mpi(), find_nccl()]
