"""`GradScaler` and `autocast` against PyTorch's on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import optim

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


def scalers(rng):
    how = {
        "init_scale": float(2.0 ** rng.integers(0, 8)),
        "growth_factor": float(rng.choice([2.0, 1.5])),
        "backoff_factor": float(rng.choice([0.5, 0.25])),
        "growth_interval": int(rng.integers(1, 4)),
    }
    return gpunn.amp.GradScaler("cpu", **how), torch.amp.GradScaler("cpu", **how)


def test_a_sequence_with_infinities():
    """Scales, weights, momenta and step counts stay PyTorch's, whatever overflows when."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        start = rng.normal(size=(2, 5)).astype(np.float32)
        ours = gpunn.tensor(start.copy(), requires_grad=True)
        theirs = torch.tensor(start, requires_grad=True)
        optimizers = optim.Adam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
        both = scalers(rng)
        for step in range(12):
            factor = rng.normal(size=start.shape).astype(np.float32)
            if rng.random() < 0.3:
                factor[0, 0] = rng.choice([np.inf, -np.inf, np.nan])
            unscale, new = rng.random() < 0.5, 16.0 if rng.random() < 0.1 else None
            for scaler, optimizer, weight, module in zip(
                both, optimizers, (ours, theirs), (gpunn, torch), strict=True
            ):
                optimizer.zero_grad()
                scaler.scale((weight * module.tensor(factor)).sum()).backward()
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update(new)
            assert both[0].get_scale() == both[1].get_scale(), step
            saved = both[0].state_dict()
            assert saved.pop("skipped") >= 0
            assert saved == both[1].state_dict()
            np.testing.assert_allclose(
                ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-6
            )
        steps = [state["step"] for state in optimizers[0].state.values()]
        assert steps == [float(state["step"]) for state in optimizers[1].state.values()]
        other = scalers(rng)[0]
        other.load_state_dict(both[1].state_dict())
        assert other.state_dict() == {**both[1].state_dict(), "skipped": 0}


def test_a_network_in_bfloat16():
    """Loss and gradients are as near to PyTorch's as its own are to float32."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        batch, inputs, hidden, classes = rng.integers(2, 24, 4)
        arrays = [
            rng.normal(size=shape).astype(np.float32)
            for shape in ((batch, inputs), (hidden, inputs), (hidden,), (classes, hidden))
        ]
        labels = rng.integers(0, classes, batch)
        found = []
        for module, low in ((gpunn, True), (torch, True), (torch, False)):
            x, *weights = (module.tensor(array) for array in arrays)
            for weight in weights:
                weight.requires_grad_()
            functional = F if module is gpunn else torch.nn.functional
            with module.autocast("cpu", dtype=module.bfloat16, enabled=low):
                z = functional.relu(functional.linear(x, *weights[:2]))
                y = functional.linear(functional.layer_norm(z, (int(hidden),)), weights[2])
                loss = functional.cross_entropy(y, module.tensor(labels))
            assert str(loss.dtype).endswith("float32") and str(y.dtype).endswith(
                "bfloat16" if low else "float32"
            )
            loss.backward()
            found.append([loss.detach().numpy(), *(weight.grad.numpy() for weight in weights)])
        for ours, theirs, exact in zip(*found, strict=True):
            distance = np.abs(theirs - exact).max() + 0.002 * np.abs(exact).max()
            assert np.abs(ours - exact).max() < 3 * distance
