"""What changes between replays of a compiled step: followed, or seen and traced anew."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.errors import StepError

sys.path.insert(0, str(Path(__file__).parent))
from compiled_job import CHANGE, DEVICE, STEPS, Job, Net, X, Y, batch


def run(job, change, steps=STEPS):
    found = []
    for i in range(steps):
        if i == CHANGE:
            change(job)
        found.append(job.step(*batch(i)).item())
    return found


def other_model(job):
    gpunn.manual_seed(7)
    job.model = Net().to(DEVICE)
    job.optimizer = optim.SGD(job.model.parameters(), lr=0.2)


def more_layers(job):
    gpunn.manual_seed(7)
    job.model.body.append(nn.Linear(3, 3).to(DEVICE))
    job.optimizer.add_param_group({"params": list(job.model.body[3].parameters())})


def hook(job):
    job.model.body[0].register_forward_hook(lambda module, args, output: output * 2)


def momentum(value):
    return lambda job: job.optimizer.param_groups[0].update(momentum=value)


CHANGES = {
    "frozen": lambda job: job.model.body[0].requires_grad_(False),
    "hook": hook,
    "layer exchanged": lambda job: job.model.body.__setitem__(1, nn.Tanh()),
    "layer added": more_layers,
    "attribute": lambda job: setattr(job.model, "scale", 3.0),
    "dropout": lambda job: setattr(job.model.drop, "p", 0.5),
    "weights doubled": lambda job: job.model.double() and job.model.float(),
    "closure": lambda job: job.set_weight(2.0),
    "container": lambda job: job.factors.update(loss=3.0),
    "model": other_model,
    "momentum": momentum(0.9),
    "eval": lambda job: job.model.eval(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_others_change_is_seen(name):
    plain = run(Job(False), CHANGES[name])
    job = Job(True)
    assert run(job, CHANGES[name]) == plain
    assert any(variant.state == "captured" for variant in job.step._variants.values())


def test_momentum_may_end_and_a_seed_be_set():
    def make(parameters):
        return optim.SGD(parameters, lr=0.1, momentum=0.9)

    def change(job):
        momentum(0)(job)
        gpunn.manual_seed(3)
        job.model.drop.p = 0.3

    assert run(Job(True, make), change) == run(Job(False, make), change)


def test_what_changes_at_every_call_is_named():
    plain, job = Job(False), Job(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(STEPS):
            for one in (plain, job):
                one.set_weight(1.0 + i)
            assert plain.step(*batch(i)).item() == job.step(*batch(i)).item()
    (warning,) = caught
    text = "compiled step step: it was traced anew 8 times, because weight changed between calls"
    assert text in str(warning.message) and warning.filename == __file__
    assert "traced anew (9 times) because weight changed" in job.step.summary()


@pytest.mark.parametrize("inside", [False, True])
def test_gradients_that_others_assign_are_added_to(inside):
    def trajectory(compiled):
        gpunn.manual_seed(2)
        model = nn.Linear(4, 3).to(DEVICE)

        def step(x, y):
            if inside:
                for parameter in model.parameters():
                    parameter.grad = None
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss + model.weight.grad.sum()

        step = gpunn.compile(step) if compiled else step
        found = []
        for i in range(STEPS):
            for parameter in model.parameters():
                value = np.full(parameter.shape, i, np.float32)
                parameter.grad = gpunn.tensor(value, device=DEVICE)
            found += [step(*batch(i)).item(), model.weight.grad.numpy().sum()]
        return found

    assert trajectory(True) == trajectory(False)


def test_a_step_without_an_optimizer_and_one_with_two():
    def trajectory(compiled, step):
        gpunn.manual_seed(2)
        model = Net().to(DEVICE)
        first = optim.Adam(model.body[0].parameters(), lr=0.01)
        second = optim.SGD(model.body[2].parameters(), lr=0.1, momentum=0.9)

        def by_hand(x, y):
            for parameter in model.parameters():
                parameter.grad = None
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            with gpunn.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            return loss

        def by_two(x, y):
            first.zero_grad(set_to_none=False)
            second.zero_grad()

            def closure():
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            loss = first.step(closure)
            second.step()
            return loss

        function = {"hand": by_hand, "two": by_two}[step]
        function = gpunn.compile(function) if compiled else function
        return [function(*batch(i)).item() for i in range(STEPS)]

    for step in ("hand", "two"):
        assert trajectory(True, step) == trajectory(False, step)


def test_parts_that_get_gradients_in_some_steps_only():
    def trajectory(compiled):
        gpunn.manual_seed(2)
        model, head = Net().to(DEVICE), nn.Linear(4, 3).to(DEVICE)
        optimizer = optim.Adam([*model.parameters(), *head.parameters()], lr=0.01)

        def step(x, y, both):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x) + head(x) if both else model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        step = gpunn.compile(step) if compiled else step
        return [step(*batch(i % STEPS), both=i % 3 == 0).item() for i in range(15)]

    assert trajectory(True) == trajectory(False)


def test_a_loss_scale_and_its_rule():
    def trajectory(compiled):
        job = Job(False)
        scaler = gpunn.amp.GradScaler(growth_interval=1)  # makes its state in the first step

        def step(x, y):
            job.optimizer.zero_grad()
            with gpunn.autocast("float16"):
                loss = F.cross_entropy(job.model(x), y)
            scaler.scale(loss).backward()
            scaler.step(job.optimizer)
            scaler.update()
            return loss

        step = gpunn.compile(step) if compiled else step
        found = []
        for i in range(8):
            if i == 6:
                scaler.set_growth_factor(4.0)
            found += [step(*batch(i)).item(), scaler.get_scale()]
        return found

    assert trajectory(True) == trajectory(False)


def test_autocast_around_a_step_keeps_no_copy_from_inside():
    def trajectory(compiled):
        job = Job(compiled)
        found = []
        with gpunn.autocast("bfloat16"):
            for i in range(8):
                found += [job.step(*batch(i)).item(), job.model(batch(0)[0]).float().sum().item()]
        return found

    assert trajectory(True) == trajectory(False)


def test_the_model_may_move_to_another_device():
    def trajectory(compiled):
        job = Job(compiled)
        job.model.to("cpu")
        found = []
        for i in range(9):
            if i == 4:
                job.model.to(DEVICE)
            device = "cpu" if i < 4 else DEVICE
            x, y = gpunn.tensor(X[i], device=device), gpunn.tensor(Y[i], device=device)
            found.append(job.step(x, y).item())
        return found, job

    found, job = trajectory(True)
    np.testing.assert_array_equal(found, trajectory(False)[0])
    assert job.step.device == DEVICE
    assert "because the device of its tensors changed" in job.step.summary()


# ---- what a replay could not follow --------------------------------------------------------------


def refused(step, calls=4):
    compiled = gpunn.compile(step)
    with pytest.raises(StepError) as caught:
        for i in range(calls):
            compiled(batch(i)[0])
    return str(caught.value)


def test_replaced_parameters_and_buffers_are_refused():
    model = Net().to(DEVICE)
    model.register_buffer("mean", gpunn.zeros(3, device=DEVICE))

    def parameter(x):
        model.body[0].bias.data = model.body[0].bias.data * 0.5

    def buffer(x):
        model.mean = model.mean * 0.9 + model(x).detach().mean(0)

    assert "in the place of model.body.0.bias, and a replay would" in refused(parameter)
    assert "in the place of model.mean" in refused(buffer)


def test_results_and_arguments_that_a_replay_could_not_give_or_take():
    def writes(x):
        x += 1
        return x

    assert "it returns EmulatorArray" in refused(lambda x: {"x": [x.array]})
    assert "it returns object" in refused(lambda x: object())
    assert "writes into its argument Tensor 0, of shape (6, 4)" in refused(writes)
    step = gpunn.compile(lambda x: x * 2)
    with pytest.raises(StepError, match=r"argument 0 requires a gradient.*pass x.detach\(\)"):
        step(batch(0)[0].requires_grad_())
    with gpunn.no_grad():
        assert step(batch(0)[0].requires_grad_()).shape == (6, 4)


def test_numbers_are_compared_by_their_bits_and_named_tuples_are_kept():
    from collections import namedtuple

    Pair = namedtuple("Pair", "x factor")
    step = gpunn.compile(lambda pair: Pair(1 / (pair.x[0] * pair.factor), 3))
    one = gpunn.tensor(np.ones(2, np.float32), device=DEVICE)
    found = [step(Pair(one, factor)).x.item() for factor in (0.0, 0.0, 0.0, 0.0, -0.0)]
    assert found == [np.inf] * 4 + [-np.inf]
    for _ in range(4):
        step(Pair(one, float("nan")))
    assert len(step._variants) == 3


def test_what_cupy_refuses_in_a_capture_is_told_with_its_line():
    from gpunn.compiled.variant import Variant

    def capture(run):
        raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")

    variant = Variant(gpunn.device("cpu"))
    variant.device = SimpleNamespace(type="cuda")  # of which only the graph is asked
    variant.graph = SimpleNamespace(capture=capture)
    with pytest.raises(StepError) as caught:
        variant._captured(SimpleNamespace(name="mine"), None)
    text = str(caught.value)
    assert text.startswith("compiled step mine: it cannot be captured: the current stream is")
    assert "disallowed (test_changes.py, line " in text and "do that outside the step" in text
