"""The device "emulator": its arrays keep their place, and Tensors treat it like any device."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import gpunn
from gpunn import emulator, kernels
from gpunn.device import array_module, arrays, device_of, probe, to_device, to_numpy
from gpunn.device import device as device_module
from gpunn.device.device import Device
from gpunn.device.emulated import EmulatorArray, emulator_numpy, plain
from gpunn.device.emulator_launch import (
    EmulatedSource,
    EmulatorLauncher,
    emulated_chip,
    emulated_source,
    emulator_launcher,
    prepare,
)
from gpunn.errors import CompileError, DeviceError, GpunnError, UnsupportedError
from gpunn.primitives import registry

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)


def on_emulator(value, dtype=np.float32):
    return to_device(np.asarray(value, dtype), "emulator")


X = np.arange(1, 7, dtype=np.float32).reshape(2, 3)


# ---- the device ----------------------------------------------------------------------------------


def test_the_emulator_is_a_value():
    device = gpunn.device("emulator")
    assert device is Device("EMULATOR") and device == "emulator:0" and device != "cpu"
    assert (device.type, device.index, str(device)) == ("emulator", 0, "emulator")
    assert repr(device) == "device('emulator')"
    assert pickle.loads(pickle.dumps(device)) is device and copy.deepcopy(device) is device


def test_what_is_missing_is_said_when_the_device_is_made(monkeypatch):
    from gpunn.emulator import toolchain

    def refuse():
        raise DeviceError("there is no host compiler: apt install g++")

    monkeypatch.setattr(device_module, "_made", {})
    monkeypatch.setattr(toolchain, "require", refuse)
    with pytest.raises(DeviceError, match=r"apt install g\+\+"):
        Device("emulator")
    found = probe.find_emulator()
    assert not found.passed and "g++" in found.remedy


def test_import_gpunn_does_not_touch_the_emulator():
    code = "import sys, gpunn; print([m for m in sys.modules if m.startswith('gpunn.emulator')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_emulator_by_default(monkeypatch):
    monkeypatch.setattr(device_module, "_default", None)
    monkeypatch.setenv("GPUNN_DEVICE", "emulator")
    assert gpunn.zeros(2).device == "emulator" and gpunn.arange(3).device == "emulator"


# ---- arrays --------------------------------------------------------------------------------------


def test_moving_copies():
    x = X.copy()
    there = to_device(x, "emulator")
    assert type(there) is EmulatorArray and device_of(there) == "emulator"
    assert to_device(there, "emulator") is there
    x[0, 0] = 99
    assert there[0, 0] == 1
    back = to_numpy(there)
    assert type(back) is np.ndarray and device_of(back) == "cpu" and (back == X).all()
    back[0, 0] = 99
    assert there[0, 0] == 1 and there.get()[0, 0] == 1
    view = to_device(X.T, "emulator")
    assert (view == to_device(X.T.copy(), "emulator")).all()


def test_new_memory_is_not_a_number():
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        array = arrays.empty((2, 3), dtype, "emulator")
        assert type(array) is EmulatorArray and np.isnan(array.astype(np.float64)).all()
    assert arrays.empty((), np.float32, "emulator").shape == ()
    assert arrays.empty((0, 3), np.float32, "emulator").shape == (0, 3)


KEEPS = {
    "arithmetic": lambda x: 2 * x + x / 3 - x**2,
    "in place": lambda x: x.__iadd__(1),
    "comparison": lambda x: (x > 2) & (x == x),
    "a NumPy number": lambda x: np.float32(2) * x,
    "a single number of the CPU": lambda x: np.array(2.0, np.float32) * x,
    "matrix product": lambda x: x @ x.T,
    "divmod": lambda x: divmod(x, 2)[1],
    "sum of all": lambda x: x.sum(),
    "mean of all": lambda x: x.mean(),
    "mean of 16 bits": lambda x: x.astype(np.float16).mean(),
    "standard deviation": lambda x: x.std(),
    "all": lambda x: (x > 0).all(),
    "argmax": lambda x: x.argmax(),
    "max of rows": lambda x: x.max(axis=1),
    "an element": lambda x: x[1, 2],
    "an element of a vector": lambda x: x.ravel()[3],
    "an element of none": lambda x: x.sum()[()],
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16)[0, 0],
    "a row": lambda x: x[0],
    "by mask": lambda x: x[x > 2],
    "by array": lambda x: x[np.array([1, 0])],
    "transpose": lambda x: x.T.reshape(-1),
    "iteration": lambda x: next(iter(x)),
    "where": lambda x: np.where(x > 2, x, 0),
    "concatenate": lambda x: np.concatenate([x, x]),
    "stack": lambda x: np.stack([x, x]),
    "sort": lambda x: np.sort(x),
    "unique": lambda x: np.unique(x),
    "outer": lambda x: np.multiply.outer(x, x),
    "nonzero": lambda x: x.nonzero()[0],
    "qr": lambda x: np.linalg.qr(x).R,
    "zeros_like": lambda x: np.zeros_like(x),
    "copy": lambda x: copy.copy(x),
    "deepcopy": lambda x: copy.deepcopy(x),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


@pytest.mark.parametrize("name", KEEPS)
def test_results_stay_on_the_emulator(name):
    found = KEEPS[name](on_emulator(X))
    expected = np.asarray(KEEPS[name](X.copy()))
    assert type(found) is EmulatorArray and device_of(found) == "emulator"
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(plain(found), expected)


def test_outputs_are_written_and_returned():
    x, out = on_emulator(X), on_emulator(np.zeros((2, 3)))
    assert np.add(x, 1, out=out) is out and (out == x + 1).all()
    total = on_emulator(0.0)
    assert x.sum(out=total) is total and float(total) == 21
    assert np.concatenate([x, x], out=(both := on_emulator(np.zeros((4, 3))))) is both
    x[0], x[:, 1] = 7, X[:, 1]
    assert x[0].tolist() == [7, 2, 7]
    x.set(X)
    assert (x.get() == X).all()


def test_numbers_come_out_as_pythons():
    total = on_emulator(X).sum()
    assert float(total) == 21.0 and int(total) == 21 and bool(total) and total.item() == 21.0
    assert f"{total:.1f}" == "21.0" and repr(total).startswith("EmulatorArray(21.")


def test_arrays_of_two_devices_do_not_meet():
    x = on_emulator(X)
    for compute in (lambda: x + X, lambda: X * x, lambda: np.maximum(x, X), lambda: x @ X.T):
        with pytest.raises(TypeError, match="one array is on the emulator, another of shape"):
            compute()
    with pytest.raises(ValueError, match="b is on cpu but a is on emulator; move both"):
        kernels.matmul(x, X.T)
    with pytest.raises(ValueError, match="out is on emulator but x is on cpu"):
        kernels.softmax_forward(X, out=x)
    here, there = gpunn.tensor(X, device="cpu"), gpunn.tensor(x, device="emulator")
    with pytest.raises(ValueError, match="different devices: emulator .shape .2, 3.*cpu"):
        there + here
    with pytest.raises(ValueError, match="different devices"):
        gpunn.nn.functional.linear(here, there)


def test_its_array_module_is_numpy_with_results_that_stay():
    xp = array_module("emulator")
    assert xp is emulator_numpy and xp.float32 is np.float32 and xp.pi == np.pi
    for array in (xp.zeros((2, 2)), xp.arange(3), xp.asarray([1, 2]), xp.full((2,), 7.0),
                  xp.empty(3), xp.array(X), xp.where(xp.ones(2) > 0, 1, 0)):  # fmt: skip
        assert type(array) is EmulatorArray
    x = on_emulator(X)
    assert xp.asarray(x) is x and xp.ascontiguousarray(x) is x
    assert xp.asarray(x, np.float64).dtype == np.float64
    turned = xp.ascontiguousarray(x.T)
    assert turned.flags.c_contiguous and not np.shares_memory(turned, x)
    assert not np.shares_memory(xp.asarray(X), X)  # from the CPU: a copy, as to a GPU
    assert xp.may_share_memory(x, x[0]) is True
    assert all(type(part) is EmulatorArray for part in xp.split(x, 3, axis=1))


# ---- primitives ----------------------------------------------------------------------------------


def test_primitives_run_the_cuda_kernels():
    x = on_emulator(X)
    y = kernels.softmax_forward(x)
    assert type(y) is EmulatorArray
    np.testing.assert_allclose(to_numpy(y), kernels.softmax_forward(X), rtol=1e-6)
    turned = kernels.activation_forward(x.T, activation="relu")  # made contiguous where it lies
    assert type(turned) is EmulatorArray and (to_numpy(turned) == X.T).all()
    tensor = gpunn.tensor(X, device="emulator")
    assert type(kernels.softmax_forward(tensor)) is EmulatorArray
    assert arrays.as_array(tensor) is tensor.array


def test_on_the_cpu_the_emulator_runs_when_asked(monkeypatch):
    ran = []

    def launcher(source):
        ran.append(source)
        return emulator_launcher(source)

    monkeypatch.setattr(registry, "emulator_launcher", launcher)
    with kernels.using("emulator"):
        y = kernels.softmax_forward(X)
    assert type(y) is np.ndarray and ran == ["softmax.cu"]
    np.testing.assert_allclose(y, kernels.softmax_forward(X), rtol=1e-6)
    monkeypatch.setattr(registry, "_FORCED_BY_ENVIRONMENT", True)
    monkeypatch.setenv("GPUNN_KERNELS", "emulator")
    kernels.softmax_forward(X)
    assert len(ran) == 2


def test_what_does_not_run_on_the_emulators_arrays():
    for name in ("numpy", "cuda", "numba"):
        with (
            kernels.using(name),
            pytest.raises(UnsupportedError, match=f"{name} does not run on arrays of the emulator"),
        ):
            kernels.softmax_forward(on_emulator(X))


def test_debug_names_the_emulator(monkeypatch, capsys):
    monkeypatch.setattr(registry, "_DEBUG", 1)
    kernels.softmax_forward(on_emulator(X))
    line = capsys.readouterr().out
    assert line.startswith("softmax_forward ") and " emulator " in line and "float32[2, 3]" in line


def test_the_launcher():
    launch = emulator_launcher("softmax.cu")
    assert launch is emulator_launcher("softmax.cu")
    assert (launch.arch, launch.multiprocessors, launch.shared_limit) == ("sm_90a", 132, 232448)
    scratch = launch.empty((2, 3), np.float32)
    assert type(scratch) is np.ndarray and np.isnan(scratch).all()
    with pytest.raises(TypeError, match="argument 0 is a Python int"):
        launch("softmax_forward<float, 2, false>", (1,), (32,), (3,))
    with emulated_chip(arch="sm_80", multiprocessors=6, shared_limit=99 * 1024):
        small = emulator_launcher("softmax.cu")
        assert (small.arch, small.multiprocessors, small.shared_limit) == ("sm_80", 6, 101376)
    assert emulator_launcher("softmax.cu") is launch


@pytest.mark.parametrize("asked", ["settings", "environment"])
def test_checks_find_what_a_kernel_does_wrong(monkeypatch, asked):
    run = EmulatorLauncher.__call__

    def run_on_less(self, expression, grid, block, args, shared=0):
        x, *rest = args  # the kernel is told a length that this array does not have
        run(self, expression, grid, block, (x[:-100], *rest), shared)

    monkeypatch.setattr(EmulatorLauncher, "__call__", run_on_less)
    changes = {"check": True} if asked == "settings" else {}
    if asked == "environment":
        monkeypatch.setenv("GPUNN_EMULATOR_CHECK", "1")
    x = on_emulator(np.ones(1000))
    with emulator.settings(**changes), pytest.raises(emulator.OutOfBoundsError) as caught:
        kernels.activation_forward(x, activation="relu")
    assert isinstance(caught.value, GpunnError)
    assert "activation" in str(caught.value)


def test_kernels_are_compiled_together():
    wanted = {"clip.cu": registry.reachable_kernels()["clip.cu"]}
    prepare(wanted)
    prepare(wanted)  # nothing is left to do
    source = emulated_source("clip.cu")
    batches = source.plan(wanted["clip.cu"])
    assert len(wanted["clip.cu"]) > len(batches) > 1
    assert {name for batch in batches for name in batch} >= set(wanted["clip.cu"])
    name = wanted["clip.cu"][0]
    with pytest.raises(CompileError, match="no_such_kernel"):
        prepare({"clip.cu": [name, "no_such_kernel<float>"]})
    assert source.kernel(name) is source.kernel(name)


def test_a_kernel_compiles_beside_one_that_does_not():
    source = EmulatedSource("clip.cu")
    name = registry.reachable_kernels()["clip.cu"][0]
    assert len(source.plan([name, "no_such_kernel<float>"])) == 1
    assert source.kernel(name).name == name
    with pytest.raises(CompileError, match="no_such_kernel"):
        source.kernel("no_such_kernel<float>")


# ---- Tensors -------------------------------------------------------------------------------------

TENSOR_WORK = {
    "arithmetic": lambda x: (2 * x + x / 3 - x**2).sum(),
    "activations": lambda x: x.sigmoid() * x.tanh() + gpunn.nn.functional.gelu(x),
    "softmax": lambda x: x.softmax(-1) + x.log_softmax(-1),
    "matrix products": lambda x: (x @ x.T) @ x,
    "reductions": lambda x: x.mean(0) + x.var(0) + x.max(0).values + x.prod(0) + x.norm(),
    "logsumexp": lambda x: x.logsumexp(1) + x.cumsum(1)[:, -1],
    "a number": lambda x: x[1, 2] * 3,
    "indices": lambda x: x[gpunn.tensor([1, 0, 1], device=x.device)] ** 2,
    "mask": lambda x: x[x > 2] * 2,
    "slices": lambda x: x[:, 1:].flip(0).repeat(2, 1),
    "shapes": lambda x: x.reshape(3, 2).T.unsqueeze(0).expand(2, 2, 3).flatten(),
    "concatenate": lambda x: gpunn.cat([x, x.exp()]) + gpunn.stack([x, x]).sum(),
    "where": lambda x: gpunn.where(x > 3, x, x.new_zeros(2, 3)) + x.clamp(2, 5),
    "sort": lambda x: x.flatten().sort(descending=True).values * x.flatten(),
    "top": lambda x: x.topk(2, dim=1).values,
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "type": lambda x: x.half().float() + x.bfloat16().float() + x.double().float(),
    "loss": lambda x: gpunn.nn.functional.mse_loss(x, gpunn.ones_like(x)),
}


@pytest.mark.parametrize("name", TENSOR_WORK)
def test_operations_and_gradients_stay_on_the_emulator(name):
    found = {}
    for device in ("cpu", "emulator"):
        x = gpunn.tensor(X, device=device, requires_grad=True)
        y = TENSOR_WORK[name](x)
        y.sum().backward()
        assert y.device == device and x.grad.device == device
        found[device] = y.detach().cpu().numpy(), x.grad.cpu().numpy()
    for there, here in zip(found["emulator"], found["cpu"], strict=True):
        np.testing.assert_allclose(there, here, rtol=2e-6, atol=1e-6)


def test_without_gradients():
    x = gpunn.tensor(X, device="emulator")
    place, whole = {"device": "emulator"}, x.long()
    made = [
        x > 2, x.argmax(), x.argsort(), x.unique(), x.nonzero(), whole @ whole.T,
        whole.flatten().bincount(), gpunn.nn.functional.one_hot(whole), gpunn.bernoulli(x / 6),
        gpunn.multinomial(x, 2), gpunn.randperm(4, **place), gpunn.eye(2, **place),
        gpunn.linspace(0, 1, 3, **place), gpunn.randint(5, (3,), **place),
    ]  # fmt: skip
    assert [y.device.type for y in made] == ["emulator"] * len(made)
    assert x.isfinite().all().item() is True and x.is_cuda is False


def test_writing_in_place():
    x = gpunn.tensor(X, device="emulator")
    before = x.data_ptr()
    x += 1
    x.mul_(x).clamp_(0, 30)
    x[0] = 5.0
    x[1, 1:] = gpunn.tensor([1.0, 2.0], device="emulator")
    x[:, 0].fill_(-1.0)
    assert x.tolist() == [[-1, 5, 5], [-1, 1, 2]]
    x.copy_(gpunn.tensor(X, device="cpu"))
    assert x.data_ptr() == before and x.device == "emulator" and (x.cpu().numpy() == X).all()
    host = gpunn.zeros(2, 3, device="cpu").copy_(x)
    assert host.device == "cpu" and type(host.array) is np.ndarray and (host.numpy() == X).all()


def test_conversions_out():
    x = gpunn.tensor(X, device="emulator")
    assert type(x.numpy()) is np.ndarray and type(np.asarray(x)) is np.ndarray
    x.numpy()[...] = 0
    assert x[0, 0].item() == 1.0 and x.tolist() == X.tolist()
    assert repr(x[0]) == "tensor([1., 2., 3.], device='emulator')"
    assert x.to("cpu").to(x).device == "emulator" and x.to("emulator") is x
    assert pickle.loads(pickle.dumps(x)).device == "cpu"  # as from a GPU
    assert copy.deepcopy(x).device == "emulator" and x.clone().device == "emulator"
    with pytest.raises(AttributeError):
        _ = x.__cuda_array_interface__


def test_random_numbers_are_those_of_the_cpu():
    def draw(device):
        gpunn.manual_seed(3)
        return (
            gpunn.rand(1000, device=device),
            gpunn.randn(1000, device=device),
            gpunn.randint(10**6, (100,), device=device),
            gpunn.nn.functional.dropout(gpunn.ones(1000, device=device), 0.3),
        )

    there, here = draw("emulator"), draw("cpu")
    for one, two, tolerance in zip(there, here, (0, 1e-6, 0, 0), strict=True):
        assert one.device == "emulator"
        np.testing.assert_allclose(one.cpu().numpy(), two.numpy(), rtol=tolerance, atol=tolerance)
