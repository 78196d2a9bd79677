"""Batch norm over all ranks against one process that has the whole batch."""

import copy

import numpy as np

import gpunn
from gpunn import nn, optim
from gpunn.device import to_numpy

RANKS = (2, 4)
SHAPE = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}


def bounds(group, rows, step=0):
    """Parts of unequal length: the first rank has one row, or none; the last of four has none."""
    stops = [1 + (rows - 1) * rank // max(group.size - 2, 1) for rank in range(group.size - 1)]
    stops = [1 - step % 2, *stops[1:], rows]
    return list(zip([0, *stops], stops, strict=False))


def pair(shape, dtype="float64", device="cpu", **options):
    """A layer for the group and the like of it for the whole batch, with random weights."""
    channels = shape[-1 if options.get("channels_last") else 1]
    rng = np.random.default_rng(len(shape))
    whole = getattr(nn, SHAPE[len(shape)])(channels, dtype=dtype, device=device, **options)
    for parameter in whole.parameters():
        parameter.data[...] = gpunn.tensor(rng.normal(size=channels), dtype=dtype, device=device)
    return nn.synchronize_batch_norm(copy.deepcopy(whole), None), whole


def batch(shape, step, dtype="float64"):
    """Input, residual and gradient of the output of a step; the mean is far from 0."""
    rng = np.random.default_rng(step)
    return [(3 * (k == 0) + rng.normal(size=shape)).astype(dtype) for k in range(3)]


def run(layer, arrays, device="cpu", residual=False):
    """One step forward and back; what came of it as arrays: out, gradients of all inputs."""
    x, more, grad = (gpunn.tensor(array, device=device) for array in arrays)
    inputs = [x.requires_grad_()] + [more.requires_grad_()] * residual
    for parameter in layer.parameters():
        parameter.grad = None
    out = layer(*inputs)
    out.backward(grad)
    found = [to_numpy(value._array) for value in (out, *(tensor.grad for tensor in inputs))]
    return found, [to_numpy(parameter.grad._array) for parameter in layer.parameters()]


def compare(group, shape, device="cpu", dtype="float64", rtol=1e-12, residual=False, **options):
    mine, whole = pair(shape, dtype, device, **options)
    nn.synchronize_batch_norm(mine, group)
    for step in range(2):
        start, stop = bounds(group, shape[0], step)[group.rank]
        arrays = batch(shape, step, dtype)
        expected, gradients = run(whole, arrays, device, residual)
        found, local = run(mine, [array[start:stop] for array in arrays], device, residual)
        for one, other in zip(found, expected, strict=True):
            close(one, other[start:stop], rtol)
        for one, other in zip(local, gradients, strict=True):  # each rank's own, summed here
            one = np.ascontiguousarray(one)
            group.all_reduce(one)
            close(one, other, rtol)
        for (name, one), other in zip(mine.named_buffers(), whole.buffers(), strict=True):
            close(to_numpy(one._array), to_numpy(other._array), rtol)
            same = group.exchange(to_numpy(one._array).tolist())
            assert all(value == same[0] for value in same), f"{name} differs among ranks"


def close(found, expected, rtol):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    scale = np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale)


# ---- cases ---------------------------------------------------------------------------------------


def case_every_kind_of_input(group):
    for shape in ((9, 5), (7, 3, 4), (6, 4, 3, 5), (6, 2, 2, 3, 2)):
        compare(group, shape)
        compare(group, shape, channels_last=len(shape) > 2, activation="silu", residual=True)


def case_options(group):
    shape = (8, 3, 5)
    compare(group, shape, momentum=None)
    compare(group, shape, affine=False, residual=True)
    compare(group, shape, bias=False, activation="leaky_relu")
    compare(group, shape, track_running_stats=False, activation="hard_swish", residual=True)
    compare(group, (group.size, 4))  # one sample on each but the last: those in between have none


def case_dtypes(group):
    compare(group, (300, 7), dtype="float32", rtol=2e-6, activation="relu", residual=True)
    compare(group, (12, 3, 40), dtype="float16", rtol=2e-3)


def case_emulator(group):
    options = {"activation": "silu", "residual": True}
    compare(group, (6, 4, 3), "emulator", "float32", 3e-6, momentum=None)
    compare(group, (6, 4, 3), "emulator", "float32", 3e-6, **options)
    compare(group, (6, 3, 5, 4), "emulator", "float32", 3e-6, channels_last=True, **options)


case_emulator.ranks = (2,)


def case_a_row_that_does_not_count(group):
    """The first rank has no row of the batch, and one in its place that counts for nothing."""
    shape = (2 * group.size - 2, 3, 4)
    mine, whole = pair(shape, activation="silu")
    nn.synchronize_batch_norm(mine, group)
    arrays = batch(shape, 0)
    (expected, changes, _), gradients = run(whole, arrays, residual=True)
    counts = not group.main
    start = max(2 * group.rank - 2, 0)
    stop = start + 1 + counts
    if not counts:
        arrays = [arrays[0], arrays[1], 0 * arrays[2]]
    with group.counting((stop - start if counts else 0, len(expected))):
        own = [array[start:stop] for array in arrays]
        (out, change, _), local = run(mine, own, residual=True)
    close(out, expected[start:stop], 1e-12)
    close(change, changes[start:stop] * counts, 1e-12)
    for one, other in zip(local, gradients, strict=True):
        one = np.ascontiguousarray(one)
        group.all_reduce(one)
        close(one, other, 1e-12)
    for one, other in zip(mine.buffers(), whole.buffers(), strict=True):
        close(one._array, other._array, 1e-12)


def case_autocast(group):
    mine, whole = pair((8, 6), "float32")
    nn.synchronize_batch_norm(mine, group)
    weight = gpunn.tensor(np.eye(6, dtype="float32"))
    start, stop = bounds(group, 8)[group.rank]
    x = batch((8, 6), 0, "float32")[0]
    with gpunn.amp.autocast(dtype="bfloat16"):
        expected = whole(gpunn.tensor(x) @ weight)
        found = mine(gpunn.tensor(x[start:stop]) @ weight)
    assert found.dtype == expected.dtype == gpunn.bfloat16
    close(found._array, expected._array[start:stop], 1e-2)
    close(mine.running_var._array, whole.running_var._array, 1e-6)


def case_large_mean(group):
    """The variance is of differences; 2^-11 is how far the float32 nearest to 10^4 is away."""
    x = (1e4 + np.random.default_rng(0).normal(size=(400, 3))).astype(np.float32)
    layer = nn.synchronize_batch_norm(nn.BatchNorm1d(3, momentum=1.0), group)
    start, stop = bounds(group, len(x))[group.rank]
    layer(gpunn.tensor(x[start:stop]))
    exact = x.astype(np.float64)
    close(layer.running_var._array, exact.var(0, ddof=1), 2**-11)
    close(layer.running_mean._array, exact.mean(0), 1e-7)


def case_too_few(group):
    layer = nn.synchronize_batch_norm(nn.BatchNorm1d(3), group)
    try:
        layer(gpunn.zeros(1 if group.main else 0, 3))
    except ValueError as error:
        assert f"the {group.size} ranks together have 1 value(s) per channel" in str(error)
    else:
        raise AssertionError("one value was taken")


def case_evaluation_is_alone(group):
    layer = nn.synchronize_batch_norm(nn.BatchNorm1d(3), group).eval()
    if group.main:  # the others send nothing
        x = gpunn.tensor(batch((4, 3), 0, "float32")[0])
        np.testing.assert_array_equal(layer(x)._array, nn.BatchNorm1d(3).eval()(x)._array)


def case_compiled_step(group):
    """Losses and weights of a captured step, which sends again in each replay."""
    whole = training(None)
    mine = training(group)
    np.testing.assert_allclose(mine, whole, rtol=2e-5, atol=2e-6)


case_compiled_step.ranks = (2,)


def training(group):
    """Weights after steps on the emulator: of one process with all rows, or of a captured step."""
    gpunn.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, activation="relu"), nn.Linear(6, 1))
    model = nn.synchronize_batch_norm(model.to("emulator"), group)
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(x, y):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum() / 12
        loss.backward()
        if group is not None:
            for parameter in model.parameters():
                group.all_reduce(parameter.grad._array)
        optimizer.step()

    start, stop = (0, 12) if group is None else bounds(group, 12)[group.rank]
    if group is not None:
        step = gpunn.compile(step)
    for number in range(5):
        x = np.random.default_rng(number).normal(size=(12, 4)).astype(np.float32)[start:stop]
        step(gpunn.tensor(x, device="emulator"), gpunn.tensor(x[:, :1], device="emulator"))
    assert group is None or "captured" in step.summary()
    tensors = [*model.parameters(), *model.buffers()]
    return np.concatenate([to_numpy(tensor._array).reshape(-1) for tensor in tensors])
