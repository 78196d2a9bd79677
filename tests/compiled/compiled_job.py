"""A small network, its batches and the step that trains it, for tests of compiled steps."""

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim

DEVICE = "emulator"
STEPS, CHANGE = 10, 5

rng = np.random.default_rng(0)
X = rng.standard_normal((STEPS, 6, 4)).astype(np.float32)
Y = rng.integers(0, 3, (STEPS, 6))


def batch(i):
    return gpunn.tensor(X[i], device=DEVICE), gpunn.tensor(Y[i], device=DEVICE)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        self.scale, self.drop = 1.0, nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.body(x)) * self.scale


class Job:
    """A network, its optimizer and the step that trains it; `weight` is in the step's closure."""

    def __init__(self, compiled, make=lambda p: optim.SGD(p, lr=0.1)):
        gpunn.manual_seed(1)
        self.model = Net().to(DEVICE)
        self.optimizer = make(self.model.parameters())
        self.factors = {"loss": 1.0}
        job, weight, factors = self, 1.0, self.factors

        def step(x, y):
            job.optimizer.zero_grad()
            loss = F.cross_entropy(job.model(x), y) * weight * factors["loss"]
            loss.backward()
            job.optimizer.step()
            return loss

        def set_weight(value):
            nonlocal weight
            weight = value

        self.set_weight = set_weight
        self.step = gpunn.compile(step) if compiled else step
