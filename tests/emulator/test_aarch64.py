"""The runtime, the shim and a kernel compile for aarch64, where a cross compiler is at hand."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from gpunn.device.sources import kernels_folder
from gpunn.emulator import toolchain

COMPILER = "aarch64-linux-gnu-g++"
pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"needs {COMPILER} (apt install g++-aarch64-linux-gnu)"
)


def compiles(*arguments) -> None:
    command = [COMPILER, "-std=c++17", "-O1", "-fPIC", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


def test_runtime(tmp_path):
    compiles("-Wall", "-shared", toolchain.HOST / "runtime.cpp", "-o", tmp_path / "runtime.so")


@pytest.mark.parametrize("options", [(), ("-fsanitize=thread",)], ids=["fast", "checked"])
def test_kernel(options, tmp_path):
    includes = [f"-I{toolchain.HOST / 'include'}", f"-I{kernels_folder() / 'cuda'}"]
    system = [f"-isystem{folder}" for folder in toolchain.header_folders()]
    source = tmp_path / "kernel.cpp"
    source.write_text(
        f'#include "{kernels_folder() / "cuda" / "softmax.cu"}"\n#include "ptx.cuh"\n'
        "template __global__ void softmax_forward<__half, 4, true>"
        "(const __half*, __half*, int64, int, int, bool);\n"
    )
    shim = ("-include", toolchain.HOST / "shim.h")
    compiles("-w", *options, *shim, *includes, *system, "-c", source, "-o", tmp_path / "kernel.o")
