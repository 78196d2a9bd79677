"""ResNet-18 against the same network in PyTorch, float64, with one state for both."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import models

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


class Block(torch.nn.Module):
    def __init__(self, before, channels, stride=1):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(before, channels, 1, stride, bias=False),
                torch.nn.BatchNorm2d(channels),
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        for stage, (before, channels) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)]):
            first = Block(before, channels, 1 + (stage > 0))
            both = torch.nn.Sequential(first, Block(channels, channels))
            setattr(self, f"layer{stage + 1}", both)
        self.fc = torch.nn.Linear(512, 5)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


def test_resnet18():
    theirs = ResNet().double()
    ours = models.ResNet18(5).double()
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).normal(size=(3, 3, 40, 32))
    labels = np.array([0, 4, 2])
    loss = F.cross_entropy(ours(gpunn.tensor(x)), gpunn.tensor(labels))
    expected = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(labels))
    loss.backward()
    expected.backward()
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        want = parameter.grad.numpy()
        got = own[name].grad.numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max(), err_msg=name)
    for name, buffer in theirs.named_buffers():
        got = ours.state_dict()[name].numpy()
        np.testing.assert_allclose(got, buffer.numpy(), rtol=1e-12, atol=1e-15, err_msg=name)
