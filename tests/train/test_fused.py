"""A network trained by one kernel ends where the same steps layer by layer end."""

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.device import probe, to_device, to_numpy
from gpunn.models import MLP
from gpunn.train.fused import FusedNetwork, Refusal, batches_of, fused_plan
from gpunn.train.regularization import Regularization

SAMPLES, BATCH, EPOCHS = 45, 8, 4


def adam_case():
    model = MLP(13, (11, 7), 5, nn.GELU, dropout=0.2)
    return model, nn.CrossEntropyLoss(label_smoothing=0.1), optim.Adam(model.parameters(), 0.01)


def nesterov_case():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))
    optimizer = optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=0.01)
    return model, nn.CrossEntropyLoss(), optimizer


def regression_case():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(6, 10, bias=False), nn.Dropout(0.5)), nn.Identity(),
        nn.Linear(10, 8), nn.LeakyReLU(0.2), nn.Dropout(0.0), nn.Linear(8, 1, bias=False),
    )  # fmt: skip
    optimizer = optim.AdamW(model.parameters(), 0.02, eps=0, weight_decay=0.1)
    return model, nn.MSELoss(), optimizer


def dampened_case():
    model = nn.Sequential(nn.Linear(5, 3))
    return model, nn.MSELoss(), optim.SGD(model.parameters(), momentum=0.5, dampening=0.3)


def plain_case():
    model = MLP(20, (33,), 3)
    return model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), weight_decay=0.1)


CASES = {
    "adam": (adam_case, (13,), 5, 0.5),
    "nesterov": (nesterov_case, (3, 4), 4, None),
    "regression": (regression_case, (6,), 0, None),
    "dampened": (dampened_case, (5,), -3, 10.0),
    "plain": (plain_case, (20,), 3, 0.1),
}


def data(shape, classes, seed=0):
    """Samples with labels, or for 0 and fewer `classes` with numbers to predict."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SAMPLES, *shape)).astype(np.float32)
    if classes > 0:
        return x, rng.integers(0, classes, SAMPLES)
    wide = (SAMPLES, -classes) if classes else (SAMPLES,)
    return x, rng.normal(size=wide).astype(np.float32)


def rates(steps):
    return [0.05 * 0.97**step for step in range(steps)]


def orders():
    rng = np.random.default_rng(3)
    return [batches_of(rng.permutation(SAMPLES), BATCH) for _ in range(EPOCHS)]


def layer_by_layer(model, loss, optimizer, clip, x, y, order, lr):
    """(losses, hits) of the steps as users write them."""
    regularization, losses, correct = Regularization(model, clip_norm=clip), [], []
    for samples, rate in zip(order, lr, strict=True):
        samples = samples[samples >= 0]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        prediction, target = model(gpunn.Tensor(x[samples])), y[samples]
        shape = prediction.shape if y.dtype.kind == "f" else target.shape
        value = loss(prediction, gpunn.Tensor(target.reshape(shape)))
        value.backward()
        regularization.apply()
        optimizer.step()
        losses.append(value.item())
        correct.append((prediction.array.argmax(1) == y[samples]).sum() if y.ndim == 1 else 0)
    return np.array(losses), np.array(correct)


def made(name, device="cpu"):
    build, shape, classes, clip = CASES[name]
    gpunn.manual_seed(5)
    model, loss, optimizer = build()
    model.to(device)
    return model, loss, optimizer, clip, *data(shape, classes)


def assert_same(one, other):
    """Parameters and optimizers agree, but for rounding."""
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        np.testing.assert_allclose(a.array, b.array, rtol=2e-4, atol=2e-5)
    states = [optimizer.state_dict()["state"] for _, _, optimizer, *_ in (one, other)]
    assert states[0].keys() == states[1].keys()
    for number in states[0]:
        assert states[0][number]["step"] == states[1][number]["step"]
        for entry, value in states[0][number].items():
            if entry != "step":
                np.testing.assert_allclose(value, states[1][number][entry], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_it_ends_where_the_steps_one_by_one_end(name):
    one, other = made(name), made(name)
    plan = fused_plan(*other[:3], Regularization(other[0], clip_norm=other[3]), BATCH)
    assert isinstance(plan, FusedNetwork), plan
    x, y = plan.prepare(*other[4:])
    order, lr = np.concatenate(orders()), rates(EPOCHS * 6)
    gpunn.manual_seed(9)
    losses, correct = layer_by_layer(*one, order, lr)
    state = gpunn.get_rng_state()
    gpunn.manual_seed(9)
    parts = [plan.run(x, y, order[some], lr[some]) for some in (slice(0, 7), slice(7, None))]
    assert gpunn.get_rng_state() == state
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), losses, rtol=1e-4)
    if name not in ("regression", "dampened"):
        assert np.abs(np.concatenate([p[1] for p in parts]) - correct).max() <= 1
        assert losses[-6:].mean() < losses[:6].mean()
    assert_same(one, other)
    # Either goes on layer by layer, and then in one kernel again.
    other[2].param_groups[0]["lr"] = lr[-1]
    for case in (one, other):
        gpunn.manual_seed(1)
        layer_by_layer(*case, order[:2], lr[:2])
    assert_same(one, other)
    gpunn.manual_seed(2)
    layer_by_layer(*one, order[2:4], lr[2:4])
    gpunn.manual_seed(2)
    plan.run(x, y, order[2:4], lr[2:4])
    assert_same(one, other)


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
def test_the_kernel_does_the_same_in_the_emulator():
    one, other = made("adam"), made("adam", "emulator")
    plan = fused_plan(*other[:3], Regularization(other[0], clip_norm=0.5), BATCH)
    x, y = plan.prepare(*other[4:])
    order, lr = orders()[0], rates(6)
    gpunn.manual_seed(9)
    losses, correct = layer_by_layer(*one, order, lr)
    gpunn.manual_seed(9)
    found = plan.run(x, y, to_device(order, "emulator"), lr)
    np.testing.assert_allclose(to_numpy(found[0]), losses, rtol=1e-4)
    assert np.array_equal(to_numpy(found[1]), correct)
    other[0].to("cpu")
    assert_same(one, other)


def test_a_loaded_state_goes_on_as_the_saved_one():
    one, other = made("adam"), made("adam")
    plans = [fused_plan(*case[:3], batch_size=BATCH) for case in (one, other)]
    x, y = plans[0].prepare(*one[4:])
    order = orders()
    gpunn.manual_seed(0)
    plans[0].run(x, y, order[0], 0.01)
    other[0].load_state_dict(one[0].state_dict())
    other[2].load_state_dict(one[2].state_dict())
    results = []
    for plan in plans:
        gpunn.manual_seed(4)
        results.append(plan.run(x, y, order[1], 0.01)[0])
    assert np.array_equal(*results)


def refused(build, words, **options):
    gpunn.manual_seed(0)
    found = fused_plan(*build(), **options)
    assert isinstance(found, Refusal) and not found
    assert words in found.reason, found.reason


def with_parts(model=None, loss=None, optimizer=None):
    def build():
        made_model = model() if model else MLP(6, (8,), 3)
        make = optimizer or optim.SGD
        return made_model, loss or nn.CrossEntropyLoss(), make(made_model.parameters(), lr=0.1)

    return build


def sequential(*middle):
    return lambda: nn.Sequential(nn.Linear(6, 8), *middle, nn.Linear(8, 3))


def test_refusals_say_why():
    refused(with_parts(sequential(nn.LayerNorm(8))), "a LayerNorm")
    refused(with_parts(sequential(nn.Softplus())), "a Softplus")
    refused(with_parts(sequential(nn.Dropout(0.1), nn.ReLU())), "the ReLU does not follow")
    refused(with_parts(sequential(nn.Dropout(1.0))), "drops everything")
    refused(with_parts(lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 2))), "the ReLU comes first")
    refused(with_parts(lambda: nn.Linear(2, 2)), "is a Linear, not a Sequential")
    refused(with_parts(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())), "follows the last")
    refused(with_parts(lambda: MLP(1025, (8,), 2)), "layer 0 has 1025 inputs")
    refused(with_parts(lambda: MLP(8, (513,), 2)), "layer 0 has 513 outputs")
    refused(with_parts(loss=nn.L1Loss()), "the loss is L1Loss")
    refused(with_parts(loss=nn.CrossEntropyLoss(reduction="sum")), "reduction 'sum'")
    refused(with_parts(loss=nn.CrossEntropyLoss(gpunn.ones(3))), "class weights")
    refused(with_parts(loss=nn.CrossEntropyLoss(ignore_index=2)), "ignores the label 2")
    refused(with_parts(optimizer=optim.RMSprop), "the optimizer is RMSprop")
    amsgrad = lambda p, lr: optim.Adam(p, lr, amsgrad=True)  # noqa: E731
    refused(with_parts(optimizer=amsgrad), "amsgrad=True")
    groups = lambda p, lr: optim.SGD([{"params": [q]} for q in p], lr)  # noqa: E731
    refused(with_parts(optimizer=groups), "4 parameter groups")
    some = lambda p, lr: optim.SGD(list(p)[:2], lr)  # noqa: E731
    refused(with_parts(optimizer=some), "not just the model's")
    refused(with_parts(lambda: MLP(6, (8,), 3).to(gpunn.float64)), "float64, not float32")
    refused(with_parts(), "the batch has 2000 samples", batch_size=2000)
    refused(with_parts(), "float16 is asked for", dtype=np.float16)
    penalty = Regularization(MLP(2, (2,), 2), l2=0.1)
    refused(with_parts(), "an L1 or L2 penalty", regularization=penalty)
    shared = nn.Linear(4, 4)
    refused(with_parts(lambda: nn.Sequential(shared, nn.ReLU(), shared)), "share a parameter")

    def frozen():
        model = MLP(6, (8,), 3)
        model[0].weight.requires_grad_(False)
        return model

    refused(with_parts(frozen), "frozen")


def test_data_that_do_not_fit_are_refused():
    plan = fused_plan(*with_parts()(), batch_size=4)
    x = np.zeros((5, 6), np.float32)
    for bad_x, bad_y, words in (
        (x[:, :5], [0] * 5, r"samples of shape \(5,\) are not 6"),
        (x.reshape(5, 2, 3), [0] * 5, r"samples of shape \(2, 3\) are not 6"),
        (x, [0, 1, 2, 3, 0], "labels from 0 to 3 are not 0 to 2"),
        (x, [0.5] * 5, "are no labels"),
    ):
        with pytest.raises(ValueError, match=words):
            plan.prepare(bad_x, np.array(bad_y))
    with pytest.raises(ValueError, match="give 2 learning rates"):
        plan.run(x, np.zeros(5, np.int64), np.zeros((2, 4), np.int64), [0.1] * 3)


def test_batches_of():
    assert batches_of(np.arange(5), 2).tolist() == [[0, 1], [2, 3], [4, -1]]
    assert batches_of(np.arange(5), 2, drop_last=True).tolist() == [[0, 1], [2, 3]]
    assert batches_of(np.arange(4), 2).tolist() == [[0, 1], [2, 3]]
    assert batches_of(np.arange(1), 2, drop_last=True).shape == (0, 2)


def test_explain_names_the_parts_and_what_limits_them():
    gpunn.manual_seed(0)
    plan = fused_plan(*with_parts(lambda: MLP(784, (256, 128), 10))(), batch_size=512)
    rows, weights, meetings = plan.explain()
    assert (rows.part, weights.part, meetings.part) == ("rows", "weights", "meetings")
    assert rows.blocks > 1 and rows.limit in ("compute", "memory")
    assert "tiles of the weights' gradients" in weights.what
    assert 1e-6 < rows.seconds + weights.seconds + meetings.seconds < 1e-4
    assert repr(plan) == "FusedNetwork(784-256-128-10, batch 512)"
    tiny = fused_plan(*with_parts(lambda: MLP(4, (8,), 2))(), batch_size=8)
    assert tiny.explain()[0].blocks == 1
