"""What stands between this machine and a usable GPU, found step by step and said in sentences.

Each finding has a name, a state and, if it fails, the remedy. `gpunn doctor` prints them all;
`Device("cuda")` raises the first that fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpunn.errors import DeviceError

INSTALL = (
    "install gpunn with the extra for your driver: pip install 'gpunn[cuda12]' (drivers from 525) "
    "or 'gpunn[cuda13]' (drivers from 580)"
)


@dataclass(frozen=True)
class Finding:
    """One step of the way to a GPU: its name, whether it holds, what was found, what to do."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""


def import_cupy():
    """The module cupy, or a DeviceError that says how to get it."""
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise DeviceError(f"CuPy is not installed: {INSTALL}.") from error
        raise DeviceError(
            f"CuPy is installed but does not import ({error}): reinstall it, and only one of "
            "cupy-cuda12x and cupy-cuda13x."
        ) from error
    return cupy


def find_cupy() -> Finding:
    """Is CuPy there, and for which CUDA release was it built?"""
    try:
        cupy = import_cupy()
    except DeviceError as error:
        return Finding("CuPy", False, "not usable", str(error))
    build = cupy.cuda.driver.get_build_version()
    return Finding("CuPy", True, f"{cupy.__version__}, built for CUDA {release(build)}")


def release(number: int) -> str:
    """CUDA's own 12090 as '12.9'."""
    return f"{number // 1000}.{number % 1000 // 10}"


def find_driver() -> Finding:
    """Does the NVIDIA driver answer, and is it new enough for this CuPy?"""
    cupy = import_cupy()
    try:
        driver = cupy.cuda.runtime.driverGetVersion()
    except Exception:
        driver = 0
    if driver == 0:
        return Finding(
            "NVIDIA driver",
            False,
            "none found",
            "No NVIDIA driver answers on this machine: install one (nvidia-smi must list your GPU; "
            "in a container start it with --gpus all), or use device 'cpu'.",
        )
    build = cupy.cuda.driver.get_build_version()
    if driver // 1000 < build // 1000:
        return Finding(
            "NVIDIA driver",
            False,
            f"for CUDA {release(driver)}",
            f"The NVIDIA driver supports CUDA {release(driver)} but this CuPy was built for CUDA "
            f"{release(build)}: update the driver, or replace cupy-cuda{build // 1000}x by "
            f"cupy-cuda{driver // 1000}x.",
        )
    return Finding("NVIDIA driver", True, f"for CUDA {release(driver)}")


def find_gpus() -> Finding:
    """Does the driver list a GPU?"""
    cupy = import_cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return Finding(
            "GPU",
            False,
            str(error),
            f"The NVIDIA driver answers but gives no GPU ({error}): check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use device 'cpu'.",
        )
    if count == 0:
        return Finding(
            "GPU",
            False,
            "none visible",
            "No GPU is visible: check CUDA_VISIBLE_DEVICES and nvidia-smi, or use device 'cpu'.",
        )
    names = [gpu_name(i) for i in range(count)]
    return Finding("GPU", True, ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names)))


def gpu_name(index: int) -> str:
    """The marketing name and compute capability of GPU `index`."""
    properties = import_cupy().cuda.runtime.getDeviceProperties(index)
    name = properties["name"]
    name = name.decode() if isinstance(name, bytes) else name
    return f"{name} (sm_{properties['major']}{properties['minor']})"


def find_nvrtc() -> Finding:
    """Is NVRTC, the compiler of our kernels, there?"""
    import_cupy()
    try:
        from cupy.cuda import nvrtc

        major, minor = nvrtc.getVersion()
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(
            "NVRTC",
            False,
            "not found",
            f"NVRTC, which compiles the kernels, was not found ({text}): {INSTALL}, or install "
            "nvidia-cuda-nvrtc-cu12 (cupy-cuda12x) or nvidia-cuda-nvrtc (cupy-cuda13x).",
        )
    return Finding("NVRTC", True, f"{major}.{minor}")


def find_headers() -> Finding:
    """Are CUDA's headers for 16-bit numbers there?"""
    folders = cuda_include_folders()
    if not folders:
        return Finding(
            "CUDA headers",
            False,
            "not found",
            "CUDA's headers (cuda_fp16.h, cuda_bf16.h) were not found: install "
            "nvidia-cuda-runtime-cu12 (cupy-cuda12x) or nvidia-cuda-runtime, nvidia-cuda-crt and "
            "nvidia-cuda-cccl (cupy-cuda13x), or set CUDA_PATH to a CUDA toolkit.",
        )
    return Finding("CUDA headers", True, folders[0])


@functools.cache
def cuda_include_folders() -> tuple[str, ...]:
    """Folders to search for CUDA's headers: this CuPy's release from pip first, then toolkits."""
    try:
        major = import_cupy().cuda.driver.get_build_version() // 1000
    except DeviceError:
        major = 0
    candidates: list[Path] = []
    spec = importlib.util.find_spec("nvidia")
    for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        candidates.append(root / f"cu{major}" / "include")
        if major == 12:
            candidates.append(root / "cuda_runtime" / "include")
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            candidates.append(Path(os.environ[variable]) / "include")
    candidates += [Path(f"/usr/local/cuda-{major}/include"), Path("/usr/local/cuda/include")]
    for folder in candidates:
        if (folder / "cuda_fp16.h").is_file() and (folder / "cuda_bf16.h").is_file():
            return tuple(str(f) for f in (folder, folder / "cccl") if f.is_dir())
    return ()


def require_compiler() -> None:
    """Raise a DeviceError unless kernels can be compiled here (no GPU needed)."""
    for finding in (find_cupy, find_nvrtc, find_headers):
        _demand(finding())


def require_cuda(index: int) -> None:
    """Raise a DeviceError unless GPU `index` can compile and run kernels."""
    for finding in (find_cupy, find_driver, find_gpus, find_nvrtc, find_headers):
        _demand(finding())
    cupy = import_cupy()
    count = cupy.cuda.runtime.getDeviceCount()
    if index >= count:
        raise DeviceError(
            f"cuda:{index} does not exist: this machine shows {count} GPU{'s' * (count != 1)} "
            f"(cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}); check CUDA_VISIBLE_DEVICES."
        )
    try:
        with cupy.cuda.Device(index):
            cupy.cuda.runtime.free(0)  # makes the context: the first real use of the GPU
    except Exception as error:
        raise DeviceError(
            f"cuda:{index} is listed but cannot be used ({error}): another process may hold it "
            "exclusively or its memory is full; check nvidia-smi."
        ) from error


def _demand(finding: Finding) -> None:
    if not finding.passed:
        raise DeviceError(finding.remedy)


@functools.cache
def cuda_usable() -> bool:
    """Whether the first GPU can be used. Asks CuPy only when an NVIDIA driver seems to be there."""
    if not _driver_in_sight() or importlib.util.find_spec("cupy") is None:
        return False
    try:
        require_cuda(0)
    except DeviceError:
        return False
    return True


def gpus_in_sight() -> bool:
    """Whether the driver lists GPUs. None is touched, so this process takes no memory of one."""
    if not _driver_in_sight() or importlib.util.find_spec("cupy") is None:
        return False
    return find_driver().passed and find_gpus().passed


def _driver_in_sight() -> bool:
    """A cheap look that spares machines without a GPU the import of CuPy."""
    if os.name != "posix":
        return True
    if os.environ.get("CUDA_VISIBLE_DEVICES", None) in ("", "-1"):
        return False
    nodes = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-gpu")
    if any(Path(node).exists() for node in nodes):
        return True
    try:  # some sandboxes show no device files but have the driver's library
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def import_numba_cuda():
    """The module numba.cuda, or an ImportError."""
    # With the protocol's default, each launch on a CuPy array would wait for the whole stream.
    os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")
    # Small arrays make small grids: that is no mistake to warn of.
    os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
    from numba import config, cuda

    if not hasattr(np, "row_stack") and not config.ENABLE_CUDASIM:
        # numba-cuda 0.30 asks for it while it loads; NumPy 2.5 has dropped it.
        np.row_stack = np.vstack
        try:
            with contextlib.suppress(ImportError):
                importlib.import_module("numba.cuda.np.arrayobj")
        finally:
            del np.row_stack
    return cuda


@functools.cache
def find_numba() -> Finding:
    """Does Numba compile CUDA kernels here? No GPU is needed."""
    if importlib.util.find_spec("numba") is None:
        remedy = "The Numba kernels, an alternative to ours, need pip install 'gpunn[numba]'."
        return Finding("Numba", False, "not installed", remedy)
    try:
        cuda = import_numba_cuda()
        import numba

        cuda.compile_ptx(lambda x: None, (numba.float32[::1],), cc=(8, 0))
    except Exception as error:
        text = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        remedy = (
            f"Numba is installed but compiles no CUDA kernels ({detail}): its version, NumPy's and "
            "the CUDA toolkit's do not fit together. Only the Numba kernels need it."
        )
        return Finding("Numba", False, detail, remedy)
    return Finding("Numba", True, numba.__version__)


def find_emulator() -> Finding:
    """Can the kernels be compiled for the host and run there?"""
    from gpunn.emulator import toolchain

    try:
        found = toolchain.require()
    except DeviceError as error:
        return Finding("emulator", False, "not usable", str(error))
    return Finding("emulator", True, str(found or "usable"))


def findings() -> list[Finding]:
    """Every step to a GPU in order; later ones are left out where an earlier one makes them
    pointless."""
    result = [find_cupy()]
    if result[0].passed:
        driver = find_driver()
        result.append(driver)
        if driver.passed:
            result.append(find_gpus())
        result += [find_nvrtc(), find_headers()]
    return result
