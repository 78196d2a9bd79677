"""What a compiled step takes, what it refuses and how it says so."""

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.compiled import CompiledStep
from gpunn.errors import StepError
from gpunn.optim.lr_scheduler import StepLR

DEVICE = "emulator"


def parts(device=DEVICE):
    gpunn.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).to(device)
    return model, optim.SGD(model.parameters(), lr=0.1)


def data(rows=6, device=DEVICE):
    rng = np.random.default_rng(rows)
    x = gpunn.tensor(rng.standard_normal((rows, 4)).astype(np.float32), device=device)
    return x, gpunn.tensor(rng.integers(0, 3, rows), device=device)


def training_step(model, optimizer, **options):
    @gpunn.compile(**options)
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def run(step, times, *args):
    return [float(step(*args).item()) for _ in range(times)]


def fails(function, *args, device=DEVICE, calls=4):
    """The message with which a step is refused."""
    step = gpunn.compile(function)
    with pytest.raises(StepError) as caught:
        for _ in range(calls):
            step(*(gpunn.tensor(arg, device=device) for arg in args))
    return str(caught.value)


X = np.arange(6, dtype=np.float32)


# ---- what is refused, and how it is said ---------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "emulator"])
@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda x: x.sum().item(), "Tensor.item()"),
        (lambda x: x.tolist(), "Tensor.tolist()"),
        (lambda x: x.numpy(), "Tensor.numpy()"),
        (lambda x: x * 2 if x.sum() > 0 else x, "the truth of a Tensor"),
        (lambda x: float(x.sum()), "Tensor.item()"),
        (lambda x: f"{x}", "the text of a Tensor"),
        (lambda x: [1, 2][x.sum().to(np.int64)], "a Tensor as an index"),
    ],
)
def test_reads_on_the_host_are_named_with_their_line(read, what, device):
    text = fails(read, X, device=device)
    assert what in text and "reads a value on the host (test_step.py, line " in text
    assert text.startswith("compiled step <lambda>: ")


def test_copies_to_and_from_the_host_are_refused():
    assert "a copy to the CPU reads a value" in fails(lambda x: x.cpu(), X)
    constant = np.ones(6, np.float32)
    text = fails(lambda x: x + gpunn.tensor(constant, device=DEVICE), X)
    assert "copies values of the host to the device" in text and "before the step" in text


@pytest.mark.parametrize("mask", [lambda x: x[x > 2], lambda x: gpunn.nonzero(x)])
def test_shapes_that_depend_on_values_are_refused(mask):
    assert "depends on values" in fails(mask, X)


def test_another_generator_is_refused():
    own = gpunn.random.Generator(4)
    step = gpunn.compile(lambda x: x + gpunn.randn(6, device=DEVICE, generator=own))
    x = gpunn.tensor(X, device=DEVICE)
    with pytest.raises(StepError, match="this generator is not the one"):
        for _ in range(4):
            step(x)
    assert "manual_seed() sets the state of the random numbers" in fails(
        lambda x: gpunn.manual_seed(1), X, device="cpu"
    )


def test_steps_do_not_nest():
    inner = gpunn.compile(lambda x: x + 1)
    with pytest.raises(StepError, match="inside the compiled step outer; compile only the outer"):
        CompiledStep(lambda x: inner(x), name="outer")(gpunn.tensor(X))


def test_after_a_refusal_everything_is_as_before():
    x = gpunn.tensor(X, device=DEVICE)
    fails(lambda x: x.sum().item(), X)
    assert x.sum().item() == 15 and gpunn.compile(lambda x: x + 1)(x).tolist()[0] == 1
    # Also where it happens in the middle of a capture.
    calls = []

    def step(x):
        calls.append(1)
        return x * 2 if len(calls) < 3 else x[x > 1]

    compiled = gpunn.compile(step, side_effects="allow")
    compiled(x), compiled(x)
    with pytest.raises(StepError, match="depends on values"):
        compiled(x)
    assert (x + 1).tolist()[0] == 1 and gpunn.randn(2, device=DEVICE).shape == (2,)


# ---- side effects --------------------------------------------------------------------------------

counter = 0


def test_side_effects_are_named():
    losses, seen = [], {"last": 0}
    model, optimizer = parts()
    schedule = StepLR(optimizer, 1)

    def grows(x):
        losses.append(1)
        seen["last"] = len(losses)
        return x

    def counts(x):
        global counter
        counter += 1
        return x

    def schedules(x):
        optimizer.zero_grad()
        model(x.reshape(1, 6)[:, :4]).sum().backward()
        optimizer.step()
        schedule.step()

    def prints(x):
        print(end="")
        return x

    text = fails(grows, X)
    assert "losses (a list of 1, then a list of 2)" in text and "seen (a dict of 1" in text
    assert "counter (1, then 2)" in fails(counts, X)
    assert "schedule.last_epoch (2, then 3)" in fails(schedules, X)
    assert "print() shows nothing" in fails(prints, X)


def test_an_attribute_of_the_model_that_changes_is_named():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(6, 2), 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

    model = Remembers()
    assert "model.calls (1, then 2) outside itself" in fails(lambda x: model(x), X, device="cpu")


def test_side_effects_may_be_allowed_or_warned_about():
    seen = []
    x = gpunn.tensor(X)
    quiet = gpunn.compile(lambda x: seen.append(1), side_effects="allow")
    quiet(x), quiet(x), quiet(x)
    assert len(seen) == 3  # on the CPU the Python runs each time
    loud = gpunn.compile(lambda x: seen.append(1), side_effects="warn")
    with pytest.warns(UserWarning, match="changes seen") as caught:
        loud(x), loud(x)
    assert caught[0].filename == __file__


# ---- kinds of calls ------------------------------------------------------------------------------


def test_shapes_and_values_make_signatures_up_to_a_bound():
    step = gpunn.compile(lambda x, factor=1.0: x * factor, max_signatures=3)
    tensors = [gpunn.tensor(np.ones(n, np.float32)) for n in (2, 3, 4)]
    assert step(tensors[0]).shape == (2,) and step(tensors[1], factor=2.0).tolist() == [2, 2, 2]
    step(tensors[0], factor=3.0)
    with pytest.raises(StepError) as caught:
        step(tensors[2])
    text = str(caught.value)
    assert "signature number 4, and max_signatures is 3" in text and "(3,), 2.0" in text
    step.reset()
    assert step(tensors[2]).tolist() == [1, 1, 1, 1]


def test_what_is_neither_tensor_nor_value_is_refused():
    step = gpunn.compile(lambda x, y=None: x)
    with pytest.raises(StepError, match=r"argument 0 is ndarray.*give gpunn.tensor\(array\)"):
        step(X)
    with pytest.raises(StepError, match="y is object.*or let the step reach it by its closure"):
        step(gpunn.tensor(X), y=object())
    with pytest.raises(TypeError, match="expected a function, got int"):
        gpunn.compile(3)
    with pytest.raises(ValueError, match="side_effects is 'maybe'"):
        gpunn.compile(lambda x: x, side_effects="maybe")
    with pytest.raises(ValueError, match="max_signatures is 0"):
        gpunn.compile(lambda x: x, max_signatures=0)


def test_modes_are_kinds_of_their_own():
    gpunn.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)).to(DEVICE)
    step = gpunn.compile(lambda x: model(x))
    x = gpunn.tensor(X, device=DEVICE)
    masks = {tuple(np.asarray(step(x).tolist()) == 0) for _ in range(8)}
    assert len(masks) > 3  # a replay draws anew
    model.eval()
    kept = {tuple(step(x).tolist()) for _ in range(5)}
    assert len(kept) == 1 and 0.0 not in kept.pop()
    assert len(step._variants) == 2


def test_structured_arguments_and_results():
    @gpunn.compile
    def step(pair, options):
        return {"sum": pair[0] + pair[1]["b"], "size": options["n"]}

    a, b = (gpunn.tensor(X + k, device=DEVICE) for k in (0, 1))
    for _ in range(4):
        result = step((a, {"b": b}), options={"n": 3})
    assert result["size"] == 3 and result["sum"].tolist() == (2 * X + 1).tolist()


# ---- what may change between replays -------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_state_may_be_loaded_and_rates_changed_between_replays(device):
    def trajectory(compiled):
        model, optimizer = parts(device)
        optimizer.param_groups[0]["momentum"] = 0.9
        step = training_step(model, optimizer) if compiled else None
        x, y = data(device=device)

        def plain(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        step = step or plain
        found = run(step, 5, x, y)
        kept = {k: v.numpy().copy() for k, v in model.state_dict().items()}, optimizer.state_dict()
        found += run(step, 2, x, y)
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(kept[1])
        found += run(step, 5, x, y)
        optimizer.param_groups[0]["lr"] = 0.01
        found += run(step, 2, x, y)
        optimizer.param_groups[0]["nesterov"] = True  # an argument of the launch
        found += run(step, 4, x, y)
        first = next(model.parameters())
        first.data = first.data * 0.5
        return found + run(step, 4, x, y)

    assert trajectory(True) == trajectory(False)


def test_gradients_may_be_forgotten_outside_and_added_up():
    def trajectory(compiled):
        model, optimizer = parts()

        def backward(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        step = gpunn.compile(backward) if compiled else backward
        found = []
        for _ in range(6):
            optimizer.zero_grad()
            found += [step(*data()).item(), step(*data()).item()]
            found.append(model[0].weight.grad.numpy().sum())
            optimizer.step()
        return found

    assert trajectory(True) == trajectory(False)


def test_tensors_of_the_host_are_copied_to_the_step():
    model, optimizer = parts()
    step = training_step(model, optimizer)
    twin, twin_optimizer = parts()
    other = training_step(twin, twin_optimizer)
    assert run(step, 5, *data(device="cpu")) == run(other, 5, *data())


def test_results_are_copies_unless_asked_otherwise():
    def two(**options):
        step = gpunn.compile(lambda x: x + 1, **options)
        x = gpunn.tensor(X, device=DEVICE)
        for _ in range(3):
            first = step(x)
        second = step(x * 10)
        return first.tolist(), second.tolist()

    assert two() == ((X + 1).tolist(), (10 * X + 1).tolist())
    assert two(copy_outputs=False) == ((10 * X + 1).tolist(), (10 * X + 1).tolist())


def test_layouts_of_arguments_are_kept():
    step = gpunn.compile(lambda x: (x, x * 2))
    x = gpunn.tensor(np.arange(24, dtype=np.float32).reshape(2, 3, 4), device=DEVICE)
    for _ in range(4):
        same, twice = step(x.permute(0, 2, 1))
    assert twice.stride() == (12, 1, 4) and same.tolist() == x.permute(0, 2, 1).tolist()


def test_the_summary_shows_memory_and_kernels():
    model, optimizer = parts()
    step = training_step(model, optimizer)
    assert "not called yet" in step.summary()
    run(step, 5, *data())
    lines = step.summary().splitlines()
    assert lines[0] == "compiled step step on emulator"
    assert lines[-2].startswith("(6, 4), (6,) before any gradient ")
    assert "captured" in lines[-1] and lines[-1].startswith("(6, 4), (6,) ")
    (_, variant) = step._variants.values()
    assert variant.memory.plan.size >= variant.memory.plan.peak > 0
    assert "was replaced" not in step.summary()


# ---- what a GPU could not do in a capture, the emulator refuses ----------------------------------


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (lambda x: x.array[np.array([1, 0])], "an index of the host copies values of the host"),
        (lambda x: x.array[[1, 0]], "an index of the host copies"),
        (lambda x: x.array.__setitem__(x.array > 2, 0), "an assignment through a mask would have"),
        (lambda x: np.bincount(x.array.astype(np.int64)), "the result of bincount depends on"),
        (lambda x: np.allclose(x.array, 1), "allclose() reads a value on the host"),
        (lambda x: x.array @ x.array, "@ of raw arrays would have to wait for the GPU"),
        (lambda x: np.tensordot(x.array, x.array, 1), "tensordot() of raw arrays would have to"),
        (lambda x: np.concatenate([x.array] * 9), "concatenate of 9 arrays copies values"),
        (lambda x: np.add.at(x.array, np.array([1]), 1), "add.at copies values of the host"),
        (lambda x: np.repeat(x.array, x.array.astype(np.int64)), "the result of repeat depends"),
    ],
)
def test_what_cupy_cannot_capture_is_refused_on_the_emulator(work, text):
    def step(x):
        work(x)
        return x

    assert text in fails(step, X)


def test_functions_that_once_waited_or_copied_can_be_captured():
    rows = np.arange(12, dtype=np.float32).reshape(3, 4) / 5 - 1
    labels = np.array([2, 0, 2])

    def losses(s, y):
        shifted = s * 1.0
        shifted[shifted > 0.5] = 0.25
        return [
            (s**2).sum(), gpunn.where(s > 0, s, 0.0).sum(), s.masked_fill(s < 0, 2.0).prod(),
            F.nll_loss(F.log_softmax(s, -1), y), (s.sigmoid() * F.one_hot(y, 4)).sum(),
            (s[y] ** 3).sum(), (s.gather(1, y.reshape(-1, 1)) ** 2).sum(), shifted.sum(),
            s.topk(2, 1).values.sum(), F.embedding_bag(y.reshape(1, 3), s, mode="mean").sum(),
            F.binary_cross_entropy(s.sigmoid(), (s > 0).float()), (s * F.sequence_mask(y, 4)).sum(),
            gpunn.cat([s] * 10, 1).sum(),
        ]  # fmt: skip

    weight = gpunn.tensor(rows, device=DEVICE, requires_grad=True)

    def step(x, y):
        weight.grad = None
        found = losses(weight * x, y)
        total = sum(found[1:], found[0])
        total.backward()
        return total, *found

    compiled, results = gpunn.compile(step), []
    for i in range(6):
        x = gpunn.tensor(rows * (i + 1), device=DEVICE)
        y = gpunn.tensor((labels + i) % 3, device=DEVICE)
        expected = [float(value.item()) for value in step(x, y)], weight.grad.numpy().copy()
        found = [float(value.item()) for value in compiled(x, y)]
        results.append(found)
        assert found == expected[0]
        np.testing.assert_array_equal(weight.grad.numpy(), expected[1])
    assert any(variant.state == "captured" for variant in compiled._variants.values())
    assert len({result[0] for result in results}) == 6


def test_a_table_that_is_made_once_may_be_made_in_the_first_step():
    rotary, layer = nn.RotaryEmbedding(4), nn.Linear(4, 3).to(DEVICE)
    step = gpunn.compile(lambda x: layer(rotary(x)))
    x = gpunn.tensor(np.ones((1, 1, 5, 4), np.float32), device=DEVICE)
    found = [step(x).tolist() for _ in range(5)]
    assert all(one == found[0] for one in found)


def test_gradients_that_are_views_are_written_again_in_every_replay():
    # The kernel for the gradient of a bias wants whole rows: a broadcast gradient is copied for it.
    model, optimizer = parts()

    def plain(x):
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    step = gpunn.compile(plain)
    found = [step(data()[0]).item() for _ in range(6)]
    model, optimizer = parts()
    assert found == [plain(data()[0]).item() for _ in range(6)]
