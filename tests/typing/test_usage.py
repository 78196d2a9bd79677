"""What a user's type checker sees: `make typecheck` reads this file, pytest runs it.

``# type: ignore[...]`` marks mistakes that must be found: mypy complains where there is none.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, assert_type

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn import Tensor, nn, optim
from gpunn.data import DataLoader, TensorDataset
from gpunn.train import EarlyStopping, History, Trainer


def test_tensors() -> None:
    x = gpunn.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert_type(x, Tensor)
    for y in (x + 1, 1 - x, x * x, x / np.float32(2), x**2, x @ x, -x, abs(x), x[0], x == 1, x > 0):
        assert_type(y, Tensor)
    assert_type(gpunn.zeros(2, 3, dtype=gpunn.float32, device="cpu").sum(dim=0), Tensor)
    assert_type(x.max(), Tensor)
    assert_type(x.max(0).indices, Tensor)
    assert_type(x.size(), tuple[int, ...])
    assert_type(x.size(0), int)
    assert_type(x.shape, tuple[int, ...])
    assert_type(gpunn.where(x > 0, x, 0.0), Tensor)
    assert_type(gpunn.where(x > 0), tuple[Tensor, ...])
    assert_type(x.split(1), tuple[Tensor, ...])
    assert_type(x.detach().reshape(4).float().clamp(min=0), Tensor)
    x.sum().backward()
    assert_type(x.grad, Tensor | None)
    assert x.grad is not None and x.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert bool((x == 1)[0, 0]) and x.T.shape == (2, 2)


def test_modules() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = Net()
    x = gpunn.ones(3, 2)
    assert_type(model(x), Tensor)
    assert_type(F.relu(x), Tensor)
    assert_type(F.cross_entropy(x, gpunn.tensor([0, 1, 1])), Tensor)
    assert_type(model.head.weight, nn.Parameter)
    assert_type(model.to("cpu").eval(), Net)
    output, (h, _) = nn.LSTM(2, 5)(x.unsqueeze(1))
    assert output.shape == (3, 1, 5) and h.shape == (1, 1, 5) and model(x).shape == (3, 1)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    schedule = optim.lr_scheduler.StepLR(optimizer, 10)
    assert_type(schedule.get_last_lr(), list[float])


def test_training() -> None:
    x, y = np.zeros((8, 2), np.float32), np.zeros((8, 1), np.float32)
    trainer = Trainer(
        nn.Linear(2, 1),
        nn.MSELoss(),
        lambda parameters: optim.SGD(parameters, lr=0.1),
        callbacks=[EarlyStopping("loss", patience=2)],
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, seed=0)
    history = trainer.fit(loader, epochs=2, verbose=False)
    assert_type(history, History)
    assert trainer.evaluate((x, y))["loss"] >= 0.0
    assert len(history["loss"]) == 2 and len(trainer.predict(x)) == 8


def test_functions_and_decorators() -> None:
    @gpunn.no_grad()
    def half(x: Tensor, times: int = 1) -> Tensor:
        return x / 2**times

    assert_type(half(gpunn.ones(1), 2), Tensor)
    with gpunn.no_grad(), gpunn.autocast("bfloat16"):
        assert not half(gpunn.ones(1)).requires_grad
    assert gpunn.kernels.softmax_forward(np.zeros((1, 2), np.float32))[0, 0] == 0.5
    assert_type(gpunn.kernels.table()["softmax_forward"].name, str)


def test_what_is_loaded_later_is_known() -> None:
    assert_type(gpunn.nn.Linear(1, 2)(gpunn.ones(1)), Tensor)
    assert callable(gpunn.compile) and callable(gpunn.save) and callable(gpunn.load)
    assert "gpunn.models" not in sys.modules or gpunn.models is sys.modules["gpunn.models"]


if TYPE_CHECKING:
    # Each of these lines is wrong.
    some: Any = None
    gpunn.ones(1) + "a"  # type: ignore[operator]
    gpunn.ones(1).sum(dim="rows")  # type: ignore[arg-type]
    gpunn.zeros("2")  # type: ignore[arg-type]
    gpunn.ones(1).reshape(None)  # type: ignore[arg-type]
    gpunn.nosuchname()  # type: ignore[attr-defined]
    nn.Linear("a", 2)  # type: ignore[arg-type]
    nn.Dropout(probability=0.5)  # type: ignore[call-arg]
    nn.Conv2d(3, 8, 3, padding_mode=1)  # type: ignore[arg-type]
    optim.SGD(some, learning_rate=0.1)  # type: ignore[call-arg]
    DataLoader(some, batch_size="all")  # type: ignore[arg-type]
