"""Layers of normalisation: gradients, buffers, fused activations, residuals, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn
from gpunn.autograd.gradcheck import gradcheck

RNG = np.random.default_rng(0)


def random(*shape, needs=True):
    return gpunn.tensor(RNG.normal(size=shape), requires_grad=needs)


def test_gradients_by_finite_differences():
    x, other, w, b = random(3, 4, 2), random(3, 4, 2), random(4), random(4)
    rows, wide, bias = random(3, 5), random(5), random(5)
    more = random(3, 5)
    assert gradcheck(lambda x, w, b: F.layer_norm(x, 5, w, b, 0.1), (rows, wide, bias))
    assert gradcheck(lambda x, w: F.rms_norm(x, (5,), w, 0.1), (rows, wide))
    assert gradcheck(lambda x, r, w: sum(F.add_layer_norm(x, r, 5, w, eps=0.1)), (rows, more, wide))
    assert gradcheck(lambda x, r, w: sum(F.add_rms_norm(x, r, 5, w, 0.1)), (rows, more, wide))
    for activation in ("identity", "silu", "leaky_relu", "hard_swish"):
        how = {"eps": 0.1, "activation": activation}

        def batch(x, w, b, r, how=how):
            return F.batch_norm(x, None, None, w, b, True, residual=r, **how)

        def group(x, w, b, r, how=how):
            return F.group_norm(x, 2, w, b, residual=r, **how)

        assert gradcheck(batch, (x, w, b, other))
        assert gradcheck(group, (x, w, b, other))
    mean, variance = random(4, needs=False), gpunn.tensor(np.full(4, 0.7))
    evaluated = lambda x, w, b: F.batch_norm(x, mean, variance, w, b)  # noqa: E731
    assert gradcheck(evaluated, (x, w, b))
    assert gradcheck(lambda x, w: F.instance_norm(x, weight=w, eps=0.1), (x, w))


def test_parameters_buffers_and_their_first_values():
    layer = nn.BatchNorm2d(3)
    assert list(layer.state_dict()) == [
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
    ]  # fmt: skip
    assert [float(t.sum()) for t in layer.state_dict().values()] == [3, 0, 0, 3, 0]
    assert layer.num_batches_tracked.dtype == np.int64 and layer.num_batches_tracked.shape == ()
    assert list(nn.BatchNorm1d(3, affine=False, track_running_stats=False).state_dict()) == []
    assert list(nn.InstanceNorm2d(3).state_dict()) == []
    assert list(nn.LayerNorm(3, bias=False).state_dict()) == ["weight"]
    assert nn.RMSNorm((2, 3)).weight.shape == (2, 3)
    assert list(nn.GroupNorm(1, 3).state_dict()) == ["weight", "bias"]


def test_training_changes_the_buffers_and_evaluation_does_not():
    layer = nn.BatchNorm1d(4)
    x = gpunn.tensor(RNG.normal(size=(8, 4)).astype(np.float32))
    layer(x)
    assert int(layer.num_batches_tracked) == 1
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * x.numpy().mean(0), rtol=1e-5)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()
    layer(x)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy())
    other = nn.BatchNorm1d(4)
    assert not any(other.load_state_dict(layer.state_dict()))
    assert int(other.num_batches_tracked) == 1
    layer.half()
    assert layer.running_mean.dtype == np.float16
    assert layer.num_batches_tracked.dtype == np.int64


def test_running_statistics_do_not_disturb_a_recorded_step():
    """Two forwards before the backward: training saved none of the buffers."""
    layer = nn.BatchNorm1d(4, dtype=gpunn.float64)
    x = random(8, 4)
    y = layer(x) + layer(x)
    y.sum().backward()
    assert not layer.running_mean.requires_grad and layer.running_mean.grad_fn is None
    layer.eval()
    y = layer(x)
    layer.train()
    layer(x)  # evaluation does need the buffers as they were
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()
    with gpunn.no_grad():
        assert layer(x).grad_fn is None


def test_rms_norm_of_16_bits_has_the_eps_of_float32():
    """As in PyTorch: that of float16 would take the place of small values."""
    x = gpunn.tensor(1e-2 * RNG.normal(size=(3, 64)), dtype=gpunn.float16)
    y, wide = (F.rms_norm(some, 64).float().numpy() for some in (x, x.float()))
    np.testing.assert_allclose(y, wide, rtol=1e-3)


def test_what_is_switched_off_and_left_out():
    """Statistics that are no longer tracked stay, even beside NaN; a layer without a bias."""
    layer = nn.BatchNorm1d(2, bias=False)
    assert layer.bias is None and list(layer.state_dict())[:2] == ["weight", "running_mean"]
    assert nn.GroupNorm(1, 2, bias=False).bias is nn.InstanceNorm1d(2, affine=True, bias=False).bias
    layer.track_running_stats = False
    layer(gpunn.tensor(np.full((3, 2), np.nan, np.float32)))
    assert layer.running_mean.tolist() == [0, 0] and int(layer.num_batches_tracked) == 0


def test_a_stream_that_waits_for_its_norms():
    """What has arrived at the input goes into the kernel: shared arrays, retained, two walks."""
    x, w = random(3, 5), random(5)
    seen = {}

    def net(x, w):
        p, q = x * 3.0, x * 2.0
        s = p + q  # one array goes back to both
        y = s + F.layer_norm(p, 5, w) + F.rms_norm(p, 5, w, 0.1) + F.layer_norm(s, 5, w)
        seen.update(p=p, s=s)
        return y

    assert gradcheck(net, (x, w))
    y, grad = net(x, w), random(3, 5, needs=False)
    before = grad.numpy().copy()
    for name in seen:
        seen[name].retain_grad()
    x.grad = w.grad = None
    y.backward(grad, retain_graph=True)
    once = {name: seen[name].grad.numpy().copy() for name in seen}
    np.testing.assert_allclose(x.grad.numpy(), 3 * once["p"] + 2 * once["s"], rtol=1e-12)
    first = x.grad.numpy().copy()
    y.backward(grad)
    np.testing.assert_allclose(x.grad.numpy(), 2 * first, rtol=1e-12)
    np.testing.assert_array_equal(seen["p"].grad.numpy(), 2 * once["p"])
    np.testing.assert_array_equal(grad.numpy(), before)


def test_sixteen_bits_with_wide_weights():
    x = gpunn.tensor(RNG.normal(size=(64, 32)), dtype=gpunn.bfloat16, requires_grad=True)
    for layer in (nn.LayerNorm(32), nn.RMSNorm(32), nn.BatchNorm1d(32), nn.GroupNorm(4, 32)):
        y = layer(x)
        assert y.dtype == x.dtype
        y.backward(y.detach())
        assert layer.weight.grad.dtype == np.float32
        want = type(layer)(*((4, 32) if isinstance(layer, nn.GroupNorm) else (32,)))
        exact = want(gpunn.tensor(x.detach().to(gpunn.float32).numpy()))
        np.testing.assert_allclose(
            y.detach().to(gpunn.float32).numpy(), exact.detach().numpy(), rtol=8e-3, atol=8e-3
        )


def test_a_network_trains_with_fused_layers():
    """Fused and taken apart: the same loss and the same gradients."""
    x, target = random(6, 3, 4, 4), random(6, 3, 4, 4, needs=False)
    fused = nn.BatchNorm2d(3, activation="relu", dtype=gpunn.float64)
    apart = nn.BatchNorm2d(3, dtype=gpunn.float64)
    one = F.mse_loss(fused(x, x * 0.5), target)
    one.backward()
    gradient, x.grad = x.grad, None
    two = F.mse_loss(F.relu(apart(x) + x * 0.5), target)
    two.backward()
    np.testing.assert_allclose(one.item(), two.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), x.grad.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fused.weight.grad.numpy(), apart.weight.grad.numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda: nn.BatchNorm2d(3)(random(2, 3)), r"BatchNorm2d: .*\(2, 3\).*\(N, 3, H, W\)"),
        (lambda: nn.BatchNorm1d(3)(random(2, 4)), r"BatchNorm1d: .*\(N, 3, L\) or \(N, 3\)"),
        (lambda: nn.BatchNorm1d(3)(random(1, 3)), "batch_norm_forward: .*1 value"),
        (lambda: nn.InstanceNorm1d(3)(random(2, 3, 1)), "more than 1 value"),
        (lambda: nn.InstanceNorm2d(3)(random(3, 4)), r"\(N, 3, H, W\) or \(3, H, W\)"),
        (lambda: nn.LayerNorm(3)(random(2, 4)), r"\(2, 4\).*normalized_shape \(3,\)"),
        (lambda: F.layer_norm(random(2, 4), 4, random(3)), r"weight has shape \(3,\)"),
        (lambda: F.batch_norm(random(2, 4), None, None, random(3), training=True), "4 channels"),
        (lambda: nn.GroupNorm(3, 4), "num_channels 4 must be a multiple of num_groups 3"),
        (lambda: nn.GroupNorm(2, 4)(random(2, 6)), "4 channels in the second dimension"),
        (lambda: nn.BatchNorm1d(0), "num_features is 0"),
        (lambda: F.batch_norm(random(2, 4), None, None), "running_mean is None in evaluation"),
        (lambda: F.add_rms_norm(random(2, 4), random(2, 3), 4), r"residual has shape \(2, 3\)"),
        (lambda: F.local_response_norm(random(2, 4), 2), "three dimensions"),
    ],
)
def test_errors(action, text):
    with pytest.raises(ValueError, match=text):
        action()
