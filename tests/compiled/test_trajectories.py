"""A compiled step does bit for bit what the step itself does, whatever the network."""

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import models, nn, optim
from gpunn.optim.lr_scheduler import OneCycleLR

STEPS = 7


class Reader(nn.Module):
    """An LSTM whose last output is classified."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


def perceptron():
    return nn.Sequential(
        nn.Linear(9, 13), nn.ReLU(), nn.Dropout(0.3), nn.Linear(13, 7), nn.GELU(), nn.Linear(7, 4)
    )


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 9, 4),
    )  # fmt: skip


def transformer():
    config = models.GPTConfig(
        vocab_size=11, block_size=6, n_layer=1, n_head=2, n_embd=8, dropout=0.1
    )
    return models.GPT(config)


def batches(name):
    rng = np.random.default_rng(5)
    shapes = {"perceptron": (STEPS, 6, 9), "convolutional": (STEPS, 3, 2, 6, 6)}
    if name in shapes:
        return rng.standard_normal(shapes[name]).astype(np.float32), rng.integers(
            0, 4, shapes[name][:2]
        )
    tokens = rng.integers(0, 11, (STEPS, 3, 6))
    return tokens, rng.integers(0, 4, (STEPS, 3)) if name == "reader" else np.roll(tokens, -1, 2)


NETWORKS = {
    "perceptron": perceptron,
    "convolutional": convolutional,
    "reader": Reader,
    "transformer": transformer,
}
OPTIMIZERS = {
    "perceptron": lambda p: optim.AdamW(p, lr=1e-2),
    "convolutional": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "reader": lambda p: optim.RMSprop(p, lr=1e-2),
    "transformer": lambda p: optim.Adam(p, lr=1e-2),
}


def train(name, device, compiled):
    """(losses, everything that training has changed, the step)"""
    gpunn.manual_seed(3)
    model = NETWORKS[name]().to(device)
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.03, total_steps=STEPS + 1)

    def step(x, y):
        optimizer.zero_grad()
        scores = model(x)
        if isinstance(scores, tuple):
            scores = scores[0]
        scores = scores.reshape(-1, scores.shape[-1])
        loss = F.cross_entropy(scores, y.reshape(-1)) + 0.01 * (scores * scores).mean()
        loss.backward()
        optim.clip.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss, {"scores": scores}

    run = gpunn.compile(step) if compiled else step
    losses = []
    for x, y in zip(*batches(name), strict=True):
        loss, more = run(gpunn.tensor(x, device=device), gpunn.tensor(y, device=device))
        losses.append((loss.item(), more["scores"].detach().numpy().sum()))
        schedule.step()
    state = [value.numpy().copy() for value in model.state_dict().values()]
    state += [p.grad.numpy() for p in model.parameters()]
    entries = optimizer.state_dict()["state"]
    state += [np.asarray(value) for entry in entries.values() for value in entry.values()]
    return losses, state, run


@pytest.mark.parametrize("device", ["cpu", "emulator"])
@pytest.mark.parametrize("name", NETWORKS)
def test_replays_train_as_the_step_itself_does(name, device):
    losses, state, _ = train(name, device, compiled=False)
    random = gpunn.random.get_rng_state()
    again, state_again, step = train(name, device, compiled=True)
    assert again == losses
    for one, other in zip(state, state_again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert gpunn.random.get_rng_state() == random
    # The first call meets parameters without gradients, which is another kind of call.
    first, variant = step._variants.values()
    assert (first.state, first.calls) == ("warm", 1)
    assert variant.state == ("planned" if device == "cpu" else "captured")
    assert variant.memory.unplanned == (0, 0) or device == "cpu"
    if device == "emulator":
        assert variant.graph.launches > 8
