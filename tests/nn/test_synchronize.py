"""`synchronize_batch_norm` in one process; with real ranks it is in tests/distributed/cases."""

import copy
import pickle

import numpy as np
import pytest

import gpunn
from gpunn import kernels, nn
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.registry import intercepting

RNG = np.random.default_rng(0)


class Ranks:
    """Stands in for a group: rank 1 of three, of which the others have nothing."""

    rank, size, counts = 1, 3, True

    def __init__(self, size=3):
        self.size, self.sent = size, []

    def all_gather(self, flat, bounds):
        for rank, (start, stop) in enumerate(bounds):
            if rank != self.rank:
                flat[start:stop] = 0
        self.sent.append(("all_gather", len(flat)))

    def all_reduce(self, array):
        self.sent.append(("all_reduce", array.shape))

    def __reduce__(self):
        raise TypeError("a group is of this process")


def run(layer, x, residual=None):
    """out and the gradients of a step."""
    x = gpunn.tensor(x, requires_grad=True)
    more = () if residual is None else (gpunn.tensor(residual, requires_grad=True),)
    out = layer(x, *more)
    (out * out).sum().backward()
    gradients = [tensor.grad for tensor in (x, *more, *layer.parameters())]
    return [np.array(tensor._array) for tensor in (out, *gradients, *layer.buffers())]


@pytest.mark.parametrize("last", [False, True])
def test_alone_among_ranks_is_batch_norm(last):
    """Also where the compiled loops of the CPU do it: a hundred thousand elements."""
    options = {"channels_last": last, "activation": "relu", "dtype": "float64"}
    plain, group = nn.BatchNorm2d(16, **options), Ranks()
    layer = nn.synchronize_batch_norm(copy.deepcopy(plain), group)
    x = RNG.normal(size=(20, 20, 20, 16) if last else (20, 16, 20, 20))
    for residual in (None, RNG.normal(size=x.shape)):
        for one, other in zip(run(layer, x, residual), run(plain, x, residual), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)
    assert group.sent == 2 * [("all_gather", 3 * 16 * 3), ("all_reduce", (16, 2))]


def test_one_process_and_evaluation_are_as_before():
    x = RNG.normal(size=(6, 4)).astype(np.float32)
    for group in (None, Ranks(size=1)):
        plain, layer = nn.BatchNorm1d(4), nn.synchronize_batch_norm(nn.BatchNorm1d(4), group)
        for one, other in zip(run(layer, x), run(plain, x), strict=True):
            np.testing.assert_array_equal(one, other)
    for track in (True, False):
        layer = nn.BatchNorm1d(4, track_running_stats=track).eval()
        expected, group = layer(gpunn.tensor(x)), Ranks()
        found = nn.synchronize_batch_norm(layer, group)(gpunn.tensor(x))
        np.testing.assert_array_equal(found._array, expected._array)
        assert not group.sent


def test_layers_stay_what_they_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4, bias=False)))
    model[1][0].weight.requires_grad = False
    names, text, group = list(model.state_dict()), repr(model), Ranks()
    assert nn.synchronize_batch_norm(model, group) is model
    assert list(model.state_dict()) == names and not model[1][0].weight.requires_grad
    assert "track_running_stats=True, over 3 ranks)" in repr(model)
    assert copy.deepcopy(model)[1][0].shared.group is group
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded[1][0].shared is None and repr(loaded) == text
    assert repr(nn.synchronize_batch_norm(model, None)) == text


def test_moments_and_launches():
    x = (np.arange(8.0).reshape(2, 4) + [[0], [96]]).astype(np.float32)
    expected = [[2, 50 + c, 2 * 50.0**2] for c in range(4)]
    np.testing.assert_array_equal(kernels.sync_batch_norm_moments(x), expected)
    assert (kernels.sync_batch_norm_moments(x[:0]) == 0).all()
    with pytest.raises(ValueError, match=r"moments has shape \(1, 3, 3\).*shape \(ranks, 4, 3\)"):
        kernels.sync_batch_norm_forward(x, np.zeros((1, 3, 3), np.float32))

    image, c = np.zeros((4, 10, 10, 32), np.float16), np.zeros((3, 32), np.float32)
    moments, means = np.zeros((8, 32, 3), np.float32), np.zeros((32, 2), np.float32)
    assert launched(kernels.sync_batch_norm_moments, image[:1]) == ["channel_moments_columns"]
    assert launched(kernels.sync_batch_norm_moments, image) == [
        "channel_moments_columns", "sync_moments"
    ]  # fmt: skip
    assert launched(kernels.sync_batch_norm_forward, image, moments) == [
        "sync_statistics", "channel_apply_columns"
    ]  # fmt: skip
    assert launched(kernels.sync_batch_norm_sums, image, image, *c) == [
        "channel_sums_columns", "sync_totals"
    ]  # fmt: skip
    assert launched(kernels.sync_batch_norm_backward, image, image, *c[:2], means) == [
        "channel_backward_columns"
    ]  # fmt: skip


def launched(made, *args):
    """The kernels that a call launches on an H200, without their types."""
    launcher = RecordingLauncher(made.cuda_source)
    with intercepting(lambda call, args: call.primitive.run_cuda(launcher, args)):
        made(*args)
    return [name.split("<")[0] for _, name in launcher.launches]
