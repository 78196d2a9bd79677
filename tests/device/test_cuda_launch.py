"""The path of a launch on a GPU, with a driver that only looks at what it is given."""

from __future__ import annotations

import ctypes
import threading
import types

import ml_dtypes
import numpy as np
import pytest

from gpunn.device import arguments, compiler, cuda_launch
from gpunn.device.cuda_launch import CudaLauncher
from gpunn.device.device import Device
from gpunn.errors import LaunchError
from gpunn.primitives import registry

INVALID_VALUE = 1


class Array:
    """What the launcher looks at in an array on a GPU."""

    def __init__(self, address: int):
        self.data = types.SimpleNamespace(ptr=address)


class Map:
    """A tensor map: 128 bytes that depend on the address of its array."""

    def __init__(self, address: int):
        self.array = Array(address)

    def as_argument(self, address: int) -> np.ndarray:
        assert address == self.array.data.ptr
        return np.full(128, address % 251, np.uint8).view([("opaque", np.uint8, (128,))])


class Raw:
    """CuPy's kernel, with 1000 bytes of static shared memory; notes what is asked for."""

    shared_size_bytes = 1000

    def __init__(self, function: int):
        self.kernel = types.SimpleNamespace(ptr=function)
        self.asked: list[int] = []

    def __setattr__(self, name, value):
        if name == "max_dynamic_shared_size_bytes":
            self.asked.append(value)
        else:
            super().__setattr__(name, value)


class Driver:
    """Reads the arguments through the pointers, as the driver does, `sizes` bytes each."""

    class Error(RuntimeError):
        def __init__(self, status: int):
            super().__init__(f"CUDA error {status}")
            self.status = status

    def __init__(self):
        self.sizes: tuple[int, ...] = ()
        self.launches: list[tuple] = []
        self.fail: list[int] = []  # statuses of the launches to come
        self.bound = 0
        self.during = lambda: None

    def launch(self, function, x, y, z, wide, high, deep, shared, stream, pointers, extra):
        if self.fail:
            raise self.Error(self.fail.pop(0))
        addresses = (ctypes.c_uint64 * max(1, len(self.sizes))).from_address(pointers)
        self.during()
        values = [ctypes.string_at(a, n) for a, n in zip(addresses, self.sizes, strict=False)]
        self.launches.append((function, (x, y, z), (wide, high, deep), shared, stream, values))
        self.addresses = list(addresses)

    def stream(self, index):
        return types.SimpleNamespace(ptr=4321 + index)

    def current(self):
        return 0

    def properties(self, index):
        return {"arch": "sm_90a", "multiProcessorCount": 132, "sharedMemPerBlockOptin": 232448}

    def bind(self, device):
        self.bound += 1


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def launcher(driver, monkeypatch):
    """A launcher whose kernels need no compiler; `launcher.raw` are its kernels."""
    made = CudaLauncher("some.cu", Device("cpu"), driver)
    made.raw = {}

    def load(expression):
        made.raw[expression] = Raw(1000 + len(made.raw))
        return cuda_launch._Kernel(made.raw[expression], driver.sizes or None)

    monkeypatch.setattr(made, "_load", load)
    return made


SCALARS = [
    np.bool_(True), np.int8(-3), np.uint8(250), np.int16(-300), np.uint16(60000),
    np.int32(-70000), np.uint32(4_000_000_000), np.int64(-(2**40)), np.uint64(2**63 + 5),
    np.float16(1.5), np.float32(-0.1), np.float64(0.1), np.float32(np.nan), np.float64(-np.inf),
    ml_dtypes.bfloat16(1.25),
]  # fmt: skip


@pytest.mark.parametrize("value", SCALARS, ids=lambda v: f"{type(v).__name__} {v}")
def test_a_scalar_is_its_own_bytes(launcher, driver, value):
    driver.sizes = (8, value.itemsize, 8)
    launcher("k", (1,), (32,), (Array(5), value, Array(6)))
    assert driver.launches[0][-1] == [
        (5).to_bytes(8, "little"), value.tobytes(), (6).to_bytes(8, "little")
    ]  # fmt: skip


def test_pointers_maps_and_structures(launcher, driver):
    structure = np.array([(7, 2.5)], [("n", "<i4"), ("x", "<f8")])
    driver.sizes = (8, 8, 128, 4, 128, 12)
    args = (Array(2**47), None, Map(64), np.int32(9), Map(1024), structure)
    launcher("k", (1,), (32,), args)
    pointer, null, first, number, second, third = driver.launches[0][-1]
    assert pointer == (2**47).to_bytes(8, "little") and null == bytes(8)
    assert first == bytes([64]) * 128 and second == bytes([1024 % 251]) * 128
    assert number == np.int32(9).tobytes() and third == structure.tobytes()
    # A scalar lies at a multiple of 8, what is wider at a multiple of 64, and none overlap.
    spans = sorted(zip(driver.addresses, driver.sizes, strict=True))
    assert all(a + n <= b for (a, n), (b, _) in zip(spans, spans[1:], strict=False))
    assert all(a % (64 if n > 8 else 8) == 0 for a, n in spans)


def test_no_arguments(launcher, driver):
    launcher("k", (1,), (32,), ())
    assert driver.launches[0][-1] == []


def test_grid_block_stream_and_function(launcher, driver):
    for grid, block in (((3,), (32,)), ((3, 4), (32, 2)), ((3, 4, 5), (8, 4, 2))):
        launcher("k", grid, block, (None,))
        function, got, threads, shared, stream, _ = driver.launches[-1]
        assert got == (*grid, 1, 1)[:3] and threads == (*block, 1, 1)[:3]
        assert (function, shared, stream) == (1000, 0, 4321)
    launcher("other", (1,), (1,), (None,))
    assert driver.launches[-1][0] == 1001 and list(launcher.raw) == ["k", "other"]


@pytest.mark.parametrize("grid", [(0,), (3, 0), (3, 4, 0)])
def test_a_grid_without_blocks_launches_nothing(launcher, driver, grid):
    launcher("k", grid, (32,), (None,))
    assert driver.launches == []


def test_more_shared_memory_is_asked_for_once(launcher, driver):
    """A block has 48 KB before it asks, its kernel's static shared memory included."""
    at_first = 48 * 1024 - 1000
    for shared in (0, at_first, at_first + 1, 90_000, 60_000, 90_000):
        launcher("k", (1,), (32,), (None,), shared)
    assert launcher.raw["k"].asked == [at_first + 1, 90_000]
    assert [one[3] for one in driver.launches] == [
        0, at_first, at_first + 1, 90_000, 60_000, 90_000
    ]  # fmt: skip


def test_the_memory_of_a_launch_is_used_again(launcher, driver):
    seen = set()
    for n in range(5):
        launcher("k", (1,), (32,), (np.int64(n), np.float64(0.5), None))
        seen.add(driver.addresses[0])
    assert len(seen) == 1


def test_null_pointers_may_come_and_go(launcher, driver):
    driver.sizes = (8, 8)
    for args in ((None, None), (Array(3), None), (None, Array(4))):
        launcher("k", (1,), (32,), args)
    values = [[int.from_bytes(v, "little") for v in one[-1]] for one in driver.launches]
    assert values == [[0, 0], [3, 0], [0, 4]]


def test_another_kind_of_argument_makes_another_layout(launcher, driver):
    driver.sizes = (128, 8)
    launcher("k", (1,), (32,), (Map(64), None))
    launcher.raw.clear()
    structure = np.frombuffer(bytes(range(128)), [("opaque", np.uint8, (128,))])
    launcher("k", (1,), (32,), (structure, None))
    assert driver.launches[-1][-1][0] == bytes(range(128))
    assert launcher.raw == {}  # nothing was loaded again


def test_threads_do_not_share_memory(launcher, driver):
    """While the driver reads, without Python's lock, other launches must not write there."""
    driver.sizes = (8, 8)
    inside = threading.Barrier(4)
    driver.during = lambda: inside.wait(20)

    def run(number):
        launcher("k", (number,), (32,), (np.int64(number), Array(10 * number)))

    run_first = threading.Thread(target=run, args=(1,))
    others = [threading.Thread(target=run, args=(n,)) for n in (2, 3, 4)]
    for thread in (run_first, *others):
        thread.start()
    for thread in (run_first, *others):
        thread.join()
    found = {one[1][0]: [int.from_bytes(v, "little") for v in one[-1]] for one in driver.launches}
    assert found == {n: [n, 10 * n] for n in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    "args, why",
    [
        ((3,), "argument 0 is a Python int; pass a NumPy scalar"),
        ((None, True), "argument 1 is a Python bool"),
        ((np.zeros(4, np.float32),), "argument 0 is a NumPy array of shape .4,., .*move it"),
        (("text",), "argument 0 is a str, which no kernel takes"),
    ],
)
def test_what_cannot_be_passed_is_named(launcher, driver, args, why):
    with pytest.raises(LaunchError, match=f"some.cu: k could not run on cpu .*{why}"):
        launcher("k", (1,), (32,), args)
    launcher("fine", (1,), (32,), (None,) * len(args))
    with pytest.raises(LaunchError, match=f"fine could not run .*{why}"):
        launcher("fine", (1,), (32,), args)
    assert len(driver.launches) == 1


def test_a_value_that_does_not_fit_its_bytes_is_a_launch_error(launcher):
    """struct.error is a kind of its own, no ValueError."""
    with pytest.raises(LaunchError, match="some.cu: k could not run on cpu .*"):
        launcher("k", (1,), (32,), (Array(2**64),))


def test_sizes_are_compared_with_what_the_kernel_declares(launcher, driver):
    driver.sizes = (8, 4)
    message = r"the arguments have \(8, 8\) bytes, but the kernel declares \(8, 4\)"
    for args in ((None, np.int64(1)), (None, np.int64(1))):
        with pytest.raises(LaunchError, match=message):
            launcher("k", (1,), (32,), args)
    launcher("k", (1,), (32,), (None, np.int32(1)))
    with pytest.raises(LaunchError, match=r"have \(8,\) bytes"):
        launcher("k", (1,), (32,), (None,))


def test_what_the_driver_refuses_is_said(launcher, driver):
    driver.fail = [INVALID_VALUE]
    message = (
        r"some.cu: k could not run on cpu with grid \(7,\), block \(32,\) and 5 bytes of shared "
        "memory: CUDA error 1"
    )
    with pytest.raises(LaunchError, match=message):
        launcher("k", (7,), (32,), (None,), 5)
    launcher("k", (7,), (32,), (None,), 5)
    assert len(driver.launches) == 1


def test_a_thread_without_a_context_gets_one(launcher, driver):
    driver.fail = [cuda_launch.INVALID_CONTEXT]
    launcher("k", (1,), (32,), (None,))
    assert driver.bound == 1 and len(driver.launches) == 1
    driver.fail = [cuda_launch.INVALID_CONTEXT] * 9
    with pytest.raises(LaunchError, match="CUDA error 201"):
        launcher("k", (1,), (32,), (None,))


def test_siblings(monkeypatch, launcher):
    monkeypatch.setattr(cuda_launch, "CupyDriver", Driver)
    cuda_launch.cuda_launcher.cache_clear()
    other = launcher.sibling("other.cu")
    assert (other.source, other.device, other.arch) == ("other.cu", launcher.device, "sm_90a")
    assert launcher.sibling("other.cu") is other
    cuda_launch.cuda_launcher.cache_clear()


def test_siblings_of_notes_write_into_one_list():
    from gpunn.device.launch import RecordingLauncher

    notes = RecordingLauncher("a.cu", "sm_80", 108)
    other = notes.sibling("b.cu")
    other("k", (1,), (1,), ())
    notes("l", (1,), (1,), ())
    assert notes.launches == [("b.cu", "k"), ("a.cu", "l")] and other.arch == "sm_80"


# ---- what the machine code says of its parameters ------------------------------------------------

SOURCE = """
struct Wide { unsigned char bytes[128]; };
extern "C" __global__ void taken(float* a, int b, bool c, double d, const Wide w,
                                 short e, float f) {
    a[0] = b + c + d + e + f + w.bytes[3];
}
extern "C" __global__ void nothing() {}
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_parameter_sizes_are_read_from_machine_code(arch, tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "cuda"
    folder.mkdir(parents=True)
    (folder / "mine.cu").write_text(SOURCE)
    monkeypatch.setattr(compiler.sources, "kernels_folder", lambda: folder.parent)
    monkeypatch.setenv("GPUNN_CACHE", str(tmp_path))
    compiler.sources.source_digest.cache_clear()
    made = compiler.build("mine.cu", ["taken", "nothing"], arch)
    compiler.sources.source_digest.cache_clear()
    sizes = arguments.parameter_sizes(made.cubin, made.symbols["taken"])
    assert sizes == (8, 4, 1, 8, 128, 2, 4)
    assert arguments.parameter_sizes(made.cubin, made.symbols["nothing"]) is None
    assert arguments.parameter_sizes(made.cubin, "no such kernel") is None


class Checking(registry.RecordingLauncher):
    """Compares the arguments of every first launch with what the compiled kernel declares."""

    checked: set[str] = set()

    def __call__(self, expression, grid, block, args, shared=0):
        super().__call__(expression, grid, block, args, shared)
        if (self.source, expression) in self.checked:
            return
        self.checked.add((self.source, expression))
        made = compiler.build(self.source, (expression,), self.arch)
        declared = arguments.parameter_sizes(made.cubin, made.symbols[expression])
        passed = arguments.layout_of([Array(0) if isinstance(a, np.ndarray) else a for a in args])
        assert passed.sizes == declared, f"{self.source}: {expression}"


@pytest.mark.parametrize("name", ["activation_forward", "adam_update", "dropout", "reduce_sum"])
def test_launch_code_passes_what_the_kernels_declare(name):
    def check(call, args):
        call.primitive.run_cuda(Checking(call.primitive.cuda_source), args)

    made = registry.TABLE[name]
    samples = made.sample_list()
    with registry.intercepting(check):
        for sample in samples[:: max(1, len(samples) // 6)]:
            args, kwargs = sample.cast(sample.dtypes[0])
            made(*args, **kwargs)
    assert Checking.checked
