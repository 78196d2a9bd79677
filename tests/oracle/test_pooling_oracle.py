"""Pooling, padding and resizing against PyTorch in many random configurations: values, gradients.

Where PyTorch refuses what has a meaning here (more padding than half a kernel that dilation
widens, empty results), the configuration is passed over.
"""

import random

import numpy as np
import pytest

import gpunn
from gpunn import nn
from gpunn.nn import functional as F

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These arrays are small: PyTorch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def moved(array, dimensions, channels_last):
    """(…, C, *spatial) with the channels last, in new memory."""
    return np.moveaxis(array, -dimensions - 1, -1).copy() if channels_last else array.copy()


def back(array, dimensions, channels_last):
    return np.moveaxis(array, -1, -dimensions - 1) if channels_last else array


def check(what, theirs, ours, x, dimensions=0, channels_last=False, tolerance=1e-12):
    """The same values and the same gradient of both functions; False where PyTorch refuses."""
    tensor = torch.tensor(x, requires_grad=True)
    try:
        expected = theirs(tensor)
    except (RuntimeError, ValueError):
        return False
    indices = None
    if isinstance(expected, tuple):
        expected, indices = expected
    if expected.numel() == 0 or not torch.isfinite(expected).all():
        return False
    mine = gpunn.tensor(moved(x, dimensions, channels_last), requires_grad=True)
    found = ours(mine)
    if indices is not None:
        found, places = found
        assert places.dtype == np.int64, what
        places = back(places.array, dimensions, channels_last)
        np.testing.assert_array_equal(places, indices.numpy(), str(what))
    shown = back(found.detach().array, dimensions, channels_last)
    np.testing.assert_allclose(shown, expected.detach().numpy(), 0, tolerance, err_msg=str(what))
    grad = np.random.default_rng(0).normal(size=expected.shape).astype(x.dtype)
    expected.backward(torch.tensor(grad))
    found.backward(gpunn.tensor(moved(grad, dimensions, channels_last)))
    shown = back(mine.grad.array, dimensions, channels_last)
    np.testing.assert_allclose(shown, tensor.grad.numpy(), 0, 10 * tolerance, err_msg=str(what))
    return True


def number(low, high, dimensions):
    """One number, or one for each dimension."""
    if random.random() < 0.5:
        return random.randint(low, high)
    return tuple(random.randint(low, high) for _ in range(dimensions))


def image(rng, dimensions, largest):
    spatial = [random.randint(1, largest if dimensions < 3 else 5) for _ in range(dimensions)]
    batch = [] if random.random() < 0.2 else [random.randint(1, 2)]
    x = rng.normal(size=(*batch, random.randint(1, 3), *spatial))
    return x if random.random() < 0.5 else np.round(x)  # with ties


def pooling_layer(dimensions):
    """The name of a layer and random arguments for it."""
    kind = random.choice(["Max", "Avg", "AdaptiveMax", "AdaptiveAvg"])
    options = {"return_indices": True} if "Max" in kind else {}
    if kind.startswith("Adaptive"):
        return f"{kind}Pool{dimensions}d", (number(1, 6, dimensions),), options
    options |= {
        "stride": random.choice([None, number(1, 3, dimensions)]),
        "padding": number(0, 1, dimensions), "ceil_mode": random.random() < 0.5,
    }  # fmt: skip
    if kind == "Max":
        options["dilation"] = random.choice([1, number(1, 2, dimensions)])
    else:
        options["count_include_pad"] = random.random() < 0.5
        if dimensions > 1 and random.random() < 0.3:
            options["divisor_override"] = random.randint(1, 5)
    return f"{kind}Pool{dimensions}d", (number(1, 3, dimensions),), options


def test_pooling():
    random.seed(0)
    rng, checked = np.random.default_rng(0), 0
    for _ in range(350):
        dimensions, last = random.randint(1, 3), random.random() < 0.3
        name, args, options = pooling_layer(dimensions)
        x = image(rng, dimensions, 7)
        theirs = getattr(torch.nn, name)(*args, **options)
        ours = getattr(nn, name)(*args, **options, channels_last=last)
        checked += check((name, x.shape, args, options), theirs, ours, x, dimensions, last)
    assert checked > 200


def test_max_pooling_of_nan_and_unpooling():
    """Of several NaN the last one; and what is put back where it was."""
    rng = np.random.default_rng(1)
    x = np.round(rng.normal(size=(2, 3, 8, 6)))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[rng.random(x.shape) < 0.3] = -np.inf
    expected, places = torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1, return_indices=True)
    found, indices = F.max_pool2d(gpunn.tensor(x), 3, 2, 1, return_indices=True)
    np.testing.assert_array_equal(found.array, expected.numpy())
    np.testing.assert_array_equal(indices.array, places.numpy())
    x = rng.normal(size=(2, 3, 9, 6))
    tensor = torch.tensor(x)
    for size in (None, (9, 7)):

        def theirs(x, size=size):
            y, places = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
            return torch.nn.functional.max_unpool2d(y, places, 2, output_size=size)

        def ours(x, size=size):
            y, places = F.max_pool2d(x, 2, return_indices=True)
            return F.max_unpool2d(y, places, 2, output_size=size)

        assert check(("unpool", size), theirs, ours, tensor.numpy())


def pad_arguments():
    """A shape, and a mode with sizes that suit it."""
    mode = random.choice(["constant", "reflect", "replicate", "circular"])
    ndim = random.randint(1, 5) if mode == "constant" else random.randint(2, 5)
    shape = [random.randint(1, 5) for _ in range(ndim)]
    counts = [k for k in range(1, 4) if ndim - k in (1, 2)]
    count = random.randint(0, ndim) if mode == "constant" else random.choice(counts)
    sizes = []
    for size in shape[::-1][:count]:
        high = {"constant": 3, "replicate": 4, "reflect": size - 1, "circular": size}[mode]
        low = -2 if mode != "circular" and random.random() < 0.4 else 0
        sizes += [random.randint(min(low, high), high) for _ in range(2)]
    return shape, sizes, mode


def test_padding():
    random.seed(2)
    rng, checked = np.random.default_rng(2), 0
    for _ in range(250):
        shape, sizes, mode = pad_arguments()
        x = rng.normal(size=shape)
        value = 1.5 if mode == "constant" else None
        theirs = lambda t: torch.nn.functional.pad(t, sizes, mode, value)  # noqa: B023, E731
        ours = lambda t: F.pad(t, sizes, mode, value)  # noqa: B023, E731
        checked += check((shape, sizes, mode), theirs, ours, x)
    assert checked > 150
    for kind in ("Constant", "Zero", "Reflection", "Replication", "Circular"):
        for dimensions in (1, 2, 3):
            name, x = f"{kind}Pad{dimensions}d", rng.normal(size=(1, 2, 3, 4, 5)[: dimensions + 2])
            args = (tuple(random.randint(0, 1) for _ in range(2 * dimensions)),)
            args += (0.5,) * (kind == "Constant")
            ours = getattr(nn, name)(*args, channels_last=True)
            assert check(name, getattr(torch.nn, name)(*args), ours, x, dimensions, True)


def test_interpolation():
    """Nearest pixels in float32, whose places PyTorch computes so, and the very same values."""
    random.seed(3)
    rng, checked = np.random.default_rng(3), 0
    factors = (0.3, 0.5, 0.7, 1, 1.5, 1.7, 2, 2.3, 3)
    for _ in range(250):
        dimensions, last = random.randint(1, 3), random.random() < 0.3
        linear = ("linear", "bilinear", "trilinear")[dimensions - 1]
        options = {"mode": random.choice(["nearest", "nearest-exact", "area", linear])}
        exact = "nearest" in options["mode"]
        spatial = [random.randint(1, 8 if dimensions < 3 else 4) for _ in range(dimensions)]
        x = rng.normal(size=(random.randint(1, 2), 2, *spatial))
        x = x.astype(np.float32 if exact else np.float64)
        if options["mode"] == linear:
            options["align_corners"] = random.choice([None, True, False])
        if random.random() < 0.5:
            options["size"] = number(1, 9, dimensions)
        else:
            options["scale_factor"] = factor = random.choice(factors)
            options["recompute_scale_factor"] = random.choice([None, True, False])
            sizes = [int(n * factor) for n in spatial]
            # PyTorch halves the place where an image doubles, in some layouts and not in others.
            doubled = any(b == 2 * a for a, b in zip(spatial, sizes, strict=True))
            if min(sizes) < 1 or (exact and doubled):
                continue
        theirs = lambda t: torch.nn.functional.interpolate(t, **options)  # noqa: B023, E731
        ours = lambda t: F.interpolate(t, **options, channels_last=last)  # noqa: B023, E731
        tolerance = 1e-6 if exact else 1e-12
        checked += check((x.shape, options), theirs, ours, x, dimensions, last, tolerance)
    assert checked > 150
