"""Normalisation against PyTorch: values, all gradients and running statistics, many shapes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpunn  # noqa: E402
import gpunn.nn.functional as F  # noqa: E402
from gpunn import kernels, nn  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch on such small arrays, on a busy machine, mostly waits for its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(ours, theirs, bound=1e-10):
    ours, theirs = (t.detach().numpy().astype(np.float64) for t in (ours, theirs))
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max(initial=1e-3)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=bound)


def pair(array, needs=True):
    return (
        gpunn.tensor(array, requires_grad=needs),
        torch.tensor(array, requires_grad=needs),
    )


def weights_of(rng, layer, reference):
    """Give both the same random parameters."""
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            value = rng.normal(size=tuple(parameter.shape))
            parameter.copy_(torch.tensor(value))
            dict(layer.named_parameters())[name].detach()[...] = gpunn.tensor(value)


def same_state(layer, reference):
    ours, theirs = layer.state_dict(), reference.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        close(ours[name], value)


def random_layer(rng):
    """(our layer, PyTorch's, a shape of input, whether the input may have its channels last)."""
    kind = rng.choice(["batch", "instance", "group"])
    n, dimensions = int(rng.integers(2, 5)), int(rng.integers(0 if kind == "batch" else 1, 4))
    c = int(rng.choice([1, 2, 3, 6, 8]))
    shape = (n, c, *rng.integers(2, 6, size=dimensions))
    eps = float(rng.choice([1e-5, 1e-2]))
    if kind == "group":
        groups = int(rng.choice([g for g in (1, 2, 3, c) if c % g == 0]))
        how = {"eps": eps, "affine": bool(rng.integers(2))}
        return nn.GroupNorm, torch.nn.GroupNorm, (groups, c), how, shape
    name = f"{kind.title()}Norm{max(dimensions, 1)}d"
    how = {
        "eps": eps,
        "momentum": [0.1, 0.7, None][rng.integers(3)],
        "affine": bool(rng.integers(2)),
        "track_running_stats": bool(rng.integers(2)),
    }
    return getattr(nn, name), getattr(torch.nn, name), (c,), how, shape


def step(layer, reference, x, grad, layout, residual=None):
    """Forward and backward of both, compared; `layout` lays our input out."""
    ours, theirs = pair(x)
    with_residual = residual is not None
    extra, other = pair(residual) if with_residual else (None, None)
    y = layer(layout(ours), layout(extra)) if with_residual else layer(layout(ours))
    want = reference(theirs)
    if with_residual:
        want = want + other
    if getattr(layer, "activation", "identity") == "relu":
        want = torch.relu(want)
    if getattr(layer, "activation", "identity") == "silu":
        want = torch.nn.functional.silu(want)
    y = y.movedim(-1, 1) if layer.channels_last else y
    close(y, want)
    y.backward(gpunn.tensor(grad))
    want.backward(torch.tensor(grad))
    close(ours.grad, theirs.grad)
    if with_residual:
        close(extra.grad, other.grad)
    mine = dict(layer.named_parameters())
    for name, parameter in reference.named_parameters():
        close(mine[name].grad, parameter.grad)
    layer.zero_grad()
    reference.zero_grad()
    same_state(layer, reference)


def test_image_norms():
    """120 layers: each two steps of training and one of evaluation, in one of three layouts."""
    rng = np.random.default_rng(0)
    for number in range(120):
        made, theirs, args, how, shape = random_layer(rng)
        last = number % 3 == 2
        fused = {"channels_last": last, "activation": ["identity", "relu", "silu"][number % 5 % 3]}
        layer = made(*args, **how, **fused, dtype=gpunn.float64)
        reference = theirs(*args, **how, dtype=torch.float64)
        weights_of(rng, layer, reference)
        same_state(layer, reference)

        def layout(t, way=number % 3):
            if way == 0 or t.ndim == 2:
                return t
            t = t.movedim(1, -1)
            return t if way == 2 else t.contiguous().movedim(-1, 1)

        if len(shape) == 2:
            layer.channels_last = False
        for training in (True, True, False):
            layer.train(training)
            reference.train(training)
            x, grad = rng.normal(size=(2, *shape))
            residual = rng.normal(size=shape) if number % 2 else None
            step(layer, reference, 2 + x, grad, layout, residual)


def test_a_result_lies_as_its_input():
    x = gpunn.tensor(np.random.default_rng(0).normal(size=(2, 5, 4, 8)).astype(np.float32))
    view = x.movedim(-1, 1)  # (N, C, H, W) on channels-last memory
    for layer in (nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)):
        out = layer(view)
        assert out.shape == view.shape and out._array.strides == view._array.strides
        close(out, torch.tensor(layer(view.contiguous()).detach().numpy()), 1e-5)


def test_rows():
    """Layer and RMS norm over one, two and three dimensions, with and without weights."""
    rng = np.random.default_rng(1)
    for number in range(40):
        dims = int(rng.integers(1, 4))
        shape = tuple(rng.integers(1, 7, size=dims + rng.integers(0, 3)))
        normalized, eps = shape[len(shape) - dims :], float(rng.choice([1e-5, 0.1]))
        kind, affine = number % 2, bool(rng.integers(2))
        if kind:
            layer = nn.LayerNorm(normalized, eps, affine, number % 3 > 0, dtype=gpunn.float64)
            reference = torch.nn.LayerNorm(
                normalized, eps, affine, number % 3 > 0, dtype=torch.float64
            )
        else:
            layer = nn.RMSNorm(normalized, eps, affine, dtype=gpunn.float64)
            reference = torch.nn.RMSNorm(normalized, eps, affine, dtype=torch.float64)
        weights_of(rng, layer, reference)
        layer.channels_last = False
        x, grad, other = rng.normal(size=(3, *shape))
        step(layer, reference, x, grad, lambda t: t)
        # A residual step: both results are used, and so is the sum.
        ours, theirs = pair(x)
        more, residual = pair(other)
        y, total = layer(ours, more)
        want_total = theirs + residual
        want = reference(want_total)
        close(y, want)
        close(total, want_total)
        (y * gpunn.tensor(grad) + total * total).sum().backward()
        (want * torch.tensor(grad) + want_total * want_total).sum().backward()
        for mine, their in ((ours, theirs), (more, residual)):
            close(mine.grad, their.grad)
        # The stream of a residual network: its gradient is added in the kernel.
        ours, theirs = pair(x)
        stream, want_stream = ours * 2, theirs * 2
        (stream * stream + layer(stream)).sum().backward()
        (want_stream * want_stream + reference(want_stream)).sum().backward()
        close(ours.grad, theirs.grad)


def test_default_eps_and_float32():
    x = np.random.default_rng(2).normal(size=(64, 100)).astype(np.float32)
    ours, theirs = pair(x)
    close(nn.RMSNorm(100)(ours), torch.nn.RMSNorm(100)(theirs), 1e-6)
    close(nn.LayerNorm(100)(ours), torch.nn.LayerNorm(100)(theirs), 1e-6)
    close(nn.BatchNorm1d(100)(ours), torch.nn.BatchNorm1d(100)(theirs), 1e-6)


def test_local_response_norm():
    rng = np.random.default_rng(3)
    for size in (1, 2, 5):
        x, grad = rng.normal(size=(2, 2, 6, 3, 4))
        ours, theirs = pair(3 * x)
        y = nn.LocalResponseNorm(size, 0.3, 0.6, 1.5)(ours)
        want = torch.nn.LocalResponseNorm(size, 0.3, 0.6, 1.5)(theirs)
        close(y, want)
        y.backward(gpunn.tensor(grad))
        want.backward(torch.tensor(grad))
        close(ours.grad, theirs.grad)
        close(F.local_response_norm(ours, size, 0.3, 0.6, 1.5), want)


def by_ranks(parts, grads, weight, bias, running):
    """What `sync_batch_norm_*` make of the parts of a batch; sends by lists."""
    moments = np.stack([kernels.sync_batch_norm_moments(part) for part in parts])
    how = {"activation": "silu", "eps": 1e-3}
    made = []
    for part in parts:
        mine = {name: value.copy() for name, value in running.items()}
        result = kernels.sync_batch_norm_forward(part, moments, weight, bias, **mine, **how)
        made.append((*result, *mine.values()))
    mean, variance, count, *moved = made[0][1:]
    sums = [
        kernels.sync_batch_norm_sums(grad, part, mean, variance, count, weight, bias, **how)
        for grad, part in zip(grads, parts, strict=True)
    ]
    means, dweight, dbias = (sum(each[k] for each in sums) for k in range(3))
    dx = [
        kernels.sync_batch_norm_backward(grad, part, mean, variance, means, weight, bias, **how)
        for grad, part in zip(grads, parts, strict=True)
    ]
    return np.concatenate([one[0] for one in made]), np.concatenate(dx), dweight, dbias, *moved


def test_batch_norm_by_the_parts_of_a_batch():
    """Of ranks with none, one and several of the samples, as PyTorch's of the whole batch."""
    rng = np.random.default_rng(0)
    for shape in ((9, 4), (9, 5, 3), (9, 2, 3, 4)):
        x, grad = rng.normal(size=(2, *shape))
        weight, bias = rng.normal(size=(2, shape[-1]))
        running = {"running_mean": rng.normal(size=shape[-1]), "running_var": 1 + bias**2}
        stops = [1, 1, 6]
        ours = by_ranks(np.split(x, stops), np.split(grad, stops), weight, bias, running)
        inputs = [torch.tensor(array, requires_grad=True) for array in (x, weight, bias)]
        moved = [torch.tensor(value) for value in running.values()]
        first = inputs[0].movedim(-1, 1)
        z = torch.nn.functional.batch_norm(first, *moved, *inputs[1:], True, 0.1, 1e-3)
        want = torch.nn.functional.silu(z).movedim(1, -1)
        want.backward(torch.tensor(grad))
        theirs = (want, *(tensor.grad for tensor in inputs), *moved)
        for one, other in zip(ours, theirs, strict=True):
            close(torch.tensor(one), other, 1e-12)
