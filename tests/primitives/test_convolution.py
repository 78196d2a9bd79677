"""Convolutions of arrays: values, options, errors, and which kernel makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpunn import kernels, set_matmul_precision
from gpunn.bench.launch_host import StandIn
from gpunn.device import probe
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import convolution_plan, convolution_simt
from gpunn.primitives.convolution_pass import INPUT, OUTPUT, WEIGHT, Pass, sizes, structure
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.registry import intercepting, using
from gpunn.primitives.samples import BFLOAT16

forward, input_gradient = kernels.convolution_forward, kernels.convolution_input_gradient
weight_gradient = kernels.convolution_weight_gradient
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# ---- values --------------------------------------------------------------------------------------


def test_a_sum_over_a_window():
    """Ones everywhere: each output counts the places under the kernel."""
    y = forward(ones(1, 4, 5, 2), ones(1, 3, 3, 2), padding=1)
    rows, columns = np.array([2, 3, 3, 2]), np.array([2, 3, 3, 3, 2])
    np.testing.assert_array_equal(y[0, :, :, 0], 2 * rows[:, None] * columns)
    y = forward(ones(1, 7, 1), ones(1, 2, 1), padding=((1, 3),), stride=2, dilation=2)
    np.testing.assert_array_equal(y[0, :, 0], [1, 2, 2, 1, 0][: y.shape[1]])


def test_taps_are_not_turned_around():
    """A cross-correlation: an impulse shows the kernel backwards."""
    x, weight = np.zeros((1, 5, 1)), np.array([1.0, 2, 3]).reshape(1, 3, 1)
    x[0, 2] = 1
    np.testing.assert_array_equal(forward(x, weight, padding=1)[0, :, 0], [0, 3, 2, 1, 0])
    np.testing.assert_array_equal(
        input_gradient(x, weight, input_shape=(1, 5, 1), padding=1)[0, :, 0], [0, 1, 2, 3, 0]
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradients_are_adjoint(groups):
    """<y, conv(x, w)> = <dx, x> = <dw, w>, for any y: what a gradient of a linear function is."""
    options = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2), "groups": groups}
    x, weight = normal(2, 6, 7, 4, dtype=np.float64), normal(8, 3, 2, 4 // groups, dtype=np.float64)
    y = normal(*forward(x, weight, **options).shape, dtype=np.float64, seed=1)
    product = (y * forward(x, weight, **options)).sum()
    dx = input_gradient(y, weight, input_shape=x.shape, **options)
    dw, db = weight_gradient(y, x, kernel_size=(3, 2), keep_bias_gradient=True, **options)
    assert (dx * x).sum() == pytest.approx(product, rel=1e-12)
    assert (dw * weight).sum() == pytest.approx(product, rel=1e-12)
    np.testing.assert_allclose(db, y.sum((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("implementation", ["numpy", pytest.param("emulator", marks=emulated)])
def test_what_becomes_of_a_sum(implementation):
    x, weight, bias = normal(1, 5, 8), normal(8, 3, 8, seed=1), normal(8, seed=2)
    residual = normal(1, 5, 8, seed=3)
    plain = forward(x, weight, bias=bias, padding=1)
    with using(implementation):
        total = residual.copy()
        options = {"bias": bias, "padding": 1, "activation": "relu", "residual": total}
        y, before = forward(x, weight, out=total, keep_preactivation=True, **options)
        turned = input_gradient(x, weight, input_shape=(1, 5, 8), padding=1, bias=bias,
                                activation="tanh")  # fmt: skip
    assert y is total
    np.testing.assert_allclose(before, plain, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(y, np.maximum(plain, 0) + residual, rtol=2e-6, atol=2e-6)
    dx = input_gradient(x, weight, input_shape=(1, 5, 8), padding=1)
    np.testing.assert_allclose(turned, np.tanh(dx + bias), rtol=2e-6, atol=2e-6)


def test_sizes_at_the_edge():
    assert forward(ones(0, 4, 4, 3), ones(2, 3, 3, 3)).shape == (0, 2, 2, 2)
    dw, db = weight_gradient(ones(0, 2, 3), ones(0, 4, 5), kernel_size=3, keep_bias_gradient=True)
    assert dw.shape == (3, 3, 5) and not dw.any() and not db.any()
    assert forward(ones(1, 1, 1, 1, 1), ones(1, 1, 1, 1, 1)) == 1
    assert forward(ones(2, 0, 3), ones(1, 2, 3), padding=1).shape == (2, 1, 1)  # padding alone
    y = forward(ones(1, 4, 3)[:, ::2], ones(2, 1, 3).swapaxes(0, 0))  # a view is copied
    np.testing.assert_array_equal(y, 3 * ones(1, 2, 2))


@pytest.mark.parametrize("implementation", ["numpy", pytest.param("emulator", marks=emulated)])
def test_strides_and_dilations_beyond_every_number(implementation):
    """One output a dimension has no second place, and one tap no distance to another."""
    x, weight = normal(2, 3, 4, 5, 2), normal(3, 1, 2, 5, 2, seed=1)
    far = {"stride": (1 << 40, 1 << 33, 3), "dilation": (1 << 40, 1, 1)}
    with using(implementation):
        y = forward(x, weight, **far)
        dx = input_gradient(y, weight, input_shape=x.shape, **far)
        dw = weight_gradient(y, x, kernel_size=weight.shape[1:-1], **far)
    near = x[:, :1, :2]
    exact = np.einsum("nzyxc,ozyxc->no", near.astype(float), weight.astype(float))
    np.testing.assert_allclose(y[:, 0, 0, 0], exact, 1e-5, 1e-5)
    back = np.einsum("no,ozyxc->nzyxc", exact, weight)
    np.testing.assert_allclose(dx[:, :1, :2], back, 1e-5, 1e-5)
    assert not dx[:, 1:].any() and not dx[:, :, 2:].any()
    np.testing.assert_allclose(dw, np.einsum("no,nzyxc->ozyxc", exact, near), 1e-5, 1e-5)


# ---- which kernel --------------------------------------------------------------------------------


def launched(function, *args, arch="sm_90a", **kwargs) -> list[str]:
    launcher = RecordingLauncher("convolution.cu", arch)
    with intercepting(lambda call, args: call.primitive.run_cuda(launcher, args)):
        function(*args, **kwargs)
    return [f"{source}: {name}" for source, name in launcher.launches]


def test_the_rule():
    """Products, tensor cores, direct kernels and the ordinary units, by shape, dtype and chip."""
    x, weight = ones(8, 56, 56, 64, dtype=BFLOAT16), ones(64, 3, 3, 64, dtype=BFLOAT16)
    point = ones(128, 1, 1, 64, dtype=BFLOAT16)
    assert launched(forward, x, point)[0].startswith("matmul_")
    assert launched(forward, x, point, arch="sm_80")[0].startswith("matmul_mma.cu")
    assert launched(forward, x, point, stride=2, arch="sm_80")[0].startswith("convolution_mma.cu")
    whole = ones(16, 7, 7, 64, dtype=BFLOAT16)
    assert launched(forward, x[:, :7, :7], whole)[0].startswith("matmul_")
    y = ones(8, 56, 56, 128, dtype=BFLOAT16)
    assert launched(input_gradient, y, point, input_shape=x.shape)[0].startswith("matmul_")
    assert launched(weight_gradient, y, x, kernel_size=1)[0].startswith("matmul_")
    for arch, source in (("sm_80", "mma"), ("sm_90a", "wgmma"), ("sm_100a", "mma")):
        for names in (
            launched(forward, x, weight, padding=1, arch=arch),
            launched(input_gradient, x, weight, input_shape=x.shape, padding=1, arch=arch),
            launched(weight_gradient, x, x, kernel_size=3, padding=1, arch=arch),
        ):
            assert names[0].startswith(f"convolution_{source}.cu"), names
    assert launched(forward, x, weight, arch="sm_75")[0].startswith("convolution.cu")
    each = ones(64, 3, 3, 1, dtype=BFLOAT16)
    for arch in ("sm_75", "sm_90a"):
        (name,) = launched(forward, x, each, groups=64, arch=arch)
        assert name == "convolution_depthwise.cu: depthwise<__nv_bfloat16, OUTPUT, 8>"
    (name,) = launched(forward, ones(1, 900, 4), ones(4, 900, 1), padding=1, groups=4)
    assert name.endswith("depthwise<float, OUTPUT, 4>")
    long = ones(4, 9000, 1)  # more weights than shared memory has room for
    assert launched(forward, ones(1, 9000, 4), long, padding=1, groups=4)[0].startswith(
        "convolution.cu"
    )
    wide = ones(64, 56, 56, 64), ones(64, 3, 3, 64)
    assert any("SPLIT" in name for name in launched(forward, *wide))
    try:
        set_matmul_precision("high")
        assert "TF32" in launched(forward, *wide)[0]
    finally:
        set_matmul_precision("highest")
    assert launched(forward, *(a.astype(np.float64) for a in wide))[0].startswith("convolution.cu")


def test_arrays_beyond_32_bits_go_to_the_ordinary_units():
    """Only shapes are looked at: no memory is touched."""

    def huge(*shape):
        return np.broadcast_to(np.zeros((), BFLOAT16), shape)

    chip = RecordingLauncher("convolution.cu", "sm_80")
    for channels, size, kernel in (
        (64, (1, 1 << 14, 1 << 13), "mma"),  # 2^30 packs of 8
        (64, (1, 1 << 14, 1 << 14), "simt"),  # 2^31
        (3, (1, 1 << 14, 1 << 15), "elements"),  # 3 2^29 elements
        (3, (1, 1 << 15, 1 << 15), "simt"),  # 3 2^30
    ):
        shape = geometry(1, size, channels, 64, (1, 3, 3))
        a, b = huge(1, *size, channels), huge(64, 1, 3, 3, channels)
        p = Pass(OUTPUT, a, b, shape, Finish(huge(math.prod(shape.out), 64)))
        names = [option.name for option in convolution_plan.options(p, chip)]
        assert names and all(name.startswith(kernel) for name in names), names


def geometry(batch, size, channels, outputs, kernel, **options):
    from gpunn.primitives.convolution_problem import Geometry

    one, zero = (1,) * len(size), (0,) * len(size)
    out = tuple(n - k + 1 for n, k in zip(size, kernel, strict=True))
    return Geometry(batch, channels, outputs, size, kernel, out, one, zero, zero, one, 1)


def test_phases_cover_every_place_and_pair_once():
    """The closed form that INPUT's kernels use, against all pairs of a place and a tap."""
    for s in range(1, 7):
        for d in range(1, 7):
            g = math.gcd(s, d)
            shape = geometry(1, (1, 1, 30), 1, 1, (1, 1, 5))
            shape = shape.__class__(
                1, 1, 1, (1, 1, 30), (1, 1, 5), (1, 1, 1), (1, 1, s), (0, 0, 2), (0, 0, 0),
                (1, 1, d), 1,
            )  # fmt: skip
            inverse, apart = int(structure(shape)["inverse"][2]), s // g
            for place in range(30):
                meets = place % s + 2
                first = meets // g % apart * inverse % apart
                taps = range(first, 5, apart) if meets % g == 0 else ()
                wanted = [k for k in range(5) if (place + 2 - d * k) % s == 0]
                assert list(taps) == wanted, (s, d, place)
            assert sizes(INPUT, shape)[3] == s
    assert sizes(WEIGHT, shape)[:2] == (1, 5)


class Noting(RecordingLauncher):
    """Keeps every launch, on arrays that only have addresses."""

    def __call__(self, expression, grid, block, args, shared=0):
        self.launches.append((expression, grid, [a if np.isscalar(a) else a and a.data.ptr
                                                 for a in args if not isinstance(a, np.void)]))

    def empty(self, shape, dtype):
        return StandIn(np.empty(shape, dtype))


@pytest.mark.parametrize("shape", [(2, 6, 6, 16), (2, 6, 6, 3)], ids=str)
def test_a_second_call_repeats_the_launches(shape, monkeypatch):
    """On other arrays, through the note of the first call."""
    monkeypatch.setattr(convolution_plan, "_recipes", {})
    launch, weight = Noting("convolution.cu"), (8, 3, 3, shape[-1])
    plain = geometry(2, (6, 6), shape[-1], 8, (3, 3))
    seen = []
    for _ in range(2):
        x, w, bias, y, dw = (
            StandIn(np.zeros(s, np.float32))
            for s in (shape, weight, (8,), (2, 4, 4, 8), weight)
        )
        launch.launches.clear()
        convolution_plan.launch_output(launch, x, w, plain, Finish(y, bias, activation="relu"))
        convolution_plan.launch_input(launch, y, w, plain, Finish(x))
        convolution_plan.launch_weight(launch, y, x, plain, dw, bias)
        names = {a.data.ptr: name for name, a in zip("x w bias y dw".split(), (x, w, bias, y, dw),
                                                     strict=True)}  # fmt: skip
        seen.append([
            (e, g, [names.get(a, "scratch" if type(a) is int else a) for a in args])
            for e, g, args in launch.launches
        ])  # fmt: skip
    assert len(convolution_plan._recipes) == 3 and all(convolution_plan._recipes.values())
    assert seen[0] == seen[1] and {"x", "w", "bias", "y", "dw"} <= {
        a for _, _, args in seen[1] for a in args
    }


# ---- every kernel of the menu --------------------------------------------------------------------

# x, weight, options: packs, with rests in each direction; single elements.
MENU = {
    "packs": ((3, 9, 8, 16), (40, 3, 3, 8), {"stride": (2, 1), "padding": 1, "groups": 2}),
    "elements": ((2, 9, 7, 3), (5, 3, 3, 3), {"stride": 2, "padding": 2, "dilation": 2}),
}
MODES = {"bfloat16": ("native",), "float32": ("tf32", "split")}
BOUNDS = {"native": 4e-3, "tf32": 6e-4, "split": 1e-6, "simt": 1e-6}


def menu_passes(name, dtype):
    """(pass, exact result) of the three passes."""
    x, weight, options = MENU[name]
    x, weight = normal(*x).astype(dtype), normal(*weight, seed=1).astype(dtype)
    wide = x.astype(np.float64), weight.astype(np.float64)
    y = normal(*forward(*wide, **options).shape, seed=2).astype(dtype)
    kept = []
    with intercepting(lambda call, args: kept.append(args)):
        forward(x, weight, **options)
        input_gradient(y, weight, input_shape=x.shape, **options)
        weight_gradient(y, x, kernel_size=weight.shape[1:-1], **options)
    wanted = (
        forward(*wide, **options),
        input_gradient(y.astype(np.float64), wide[1], input_shape=x.shape, **options),
        weight_gradient(
            y.astype(np.float64), wide[0], kernel_size=weight.shape[1:-1], **options
        ),
    )
    for made, (a, b, shape, finish, *_), exact in zip(
        (OUTPUT, INPUT, WEIGHT), kept, wanted, strict=True
    ):
        out = finish.out if isinstance(finish, Finish) else finish
        columns = exact[0].size if made == WEIGHT else exact.shape[-1]
        yield Pass(made, a, b, shape.in_three(), Finish(out.reshape(-1, columns))), exact


@emulated
@pytest.mark.parametrize("dtype", MODES)
@pytest.mark.parametrize("name", MENU)
def test_every_kernel_of_the_menu(name, dtype):
    """Tiles that the estimates choose for large layers alone, and the ordinary units in parts."""
    from gpunn.device.emulator_launch import emulator_launcher
    from gpunn.primitives import convolution_mma

    launch, element = emulator_launcher("convolution.cu"), np.dtype(dtype)
    for p, exact in menu_passes(name, element):
        found = [("simt", option) for option in convolution_simt.options(p, launch)]
        for mode in MODES[dtype]:
            found += [(mode, option) for option in convolution_mma.options(p, launch, mode)]
        if dtype == "bfloat16":
            found = found[1:]  # 16 bits on the ordinary units: for older chips
        for mode, option in found:
            p.out[...] = np.nan
            option.run(launch, p)
            wrong = p.out.astype(np.float64).reshape(exact.shape) - exact
            error = np.linalg.norm(wrong) / np.linalg.norm(exact)
            assert error < BOUNDS[mode], (p.made, option.name, error)


# ---- errors --------------------------------------------------------------------------------------

X, W = ones(2, 8, 8, 6), ones(4, 3, 3, 6)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: forward(ones(2, 6), W), ValueError, "x has .*1 to 3 spatial"),
        (lambda: forward(X, ones(4, 3, 6)), ValueError, "weight has .*4 dimensions"),
        (lambda: forward(X, ones(4, 3, 3, 5)), ValueError, "5 channels .*has 6.*6 / 1 = 6"),
        (lambda: forward(X, ones(4, 3, 3, 6), groups=4), ValueError, "4, which does not divide"),
        (lambda: forward(X, ones(4, 3, 3, 6), groups=2), ValueError, "6 / 2 = 3"),
        (lambda: forward(X, ones(4, 9, 3, 6)), ValueError, "over 9 places .*only 8"),
        (lambda: forward(X, W, dilation=4), ValueError, "over 9 .*kernel 3, dilation 4"),
        (lambda: forward(X, W, stride=0), ValueError, "stride is 0.*at least 1"),
        (lambda: forward(X, W, stride=(1, 1, 1)), ValueError, "stride .*2 of them"),
        (lambda: forward(X, W, padding=-1), ValueError, "padding is -1"),
        (lambda: forward(X, W, padding=((1, 1), 2)), ValueError, "padding .*2 pairs"),
        (lambda: forward(X, W, padding=1.5), TypeError, "padding is 1.5"),
        (lambda: forward(X, W.astype(np.float64)), TypeError, "weight .*float32"),
        (lambda: forward(X, W, bias=ones(6)), ValueError, r"bias .*\(4,\)"),
        (lambda: forward(X, W, activation="softmax"), ValueError, "activation is 'softmax'"),
        (lambda: forward(X, W, out=ones(2, 6, 6, 5)), ValueError, r"out .*\(2, 6, 6, 4\)"),
        (lambda: forward(X, ones(6, 3, 3, 6), padding=1, out=X), ValueError, "overlaps x"),
        (lambda: forward(X, ones(0, 3, 3, 6)), ValueError, "is empty"),
        (lambda: input_gradient(ones(2, 6, 6, 4), W, input_shape=(2, 9, 8, 6)), ValueError,
         r"grad_output .*\(2, 7, 6, 4\)"),
        (lambda: input_gradient(ones(2, 6, 6, 4), W, input_shape=(2, 8, 6)), ValueError,
         "input_shape .*4 sizes"),
        (lambda: weight_gradient(ones(2, 6, 6, 4), X, kernel_size=4), ValueError,
         r"grad_output .*\(2, 5, 5, 4\)"),
        (lambda: weight_gradient(ones(2, 6, 6, 4), X, kernel_size=3, groups=4), ValueError,
         "4, which does not divide the 6"),
    ],
)  # fmt: skip
def test_errors(action, error, text):
    with pytest.raises(error, match=f"^convolution_.*{text}"):
        action()
