"""Optimizers: arenas, groups, missing gradients, moved and replaced parameters, state."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from gpunn import manual_seed, nn, optim, tensor
from gpunn.autograd.tensor import wrap
from gpunn.optim.arena import ALIGNMENT, Arena
from gpunn.primitives.optimizer import hyper_array

ALL = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.1},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "Lion": {"lr": 0.01, "weight_decay": 0.1},
}


def parameters(*shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.normal(size=shape).astype(dtype)) for shape in shapes]


def give_gradients(params, seed, which=None):
    """New random gradients by way of backward; None for those not in `which`."""
    rng = np.random.default_rng(seed)
    for i, parameter in enumerate(params):
        weights = tensor(rng.normal(size=parameter.shape).astype(parameter.dtype))
        parameter.grad = None
        if which is None or i in which:
            (parameter * weights).sum().backward()


def values(params):
    return [np.array(parameter.array) for parameter in params]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- arenas ------------------------------------------------------------------------------------


def test_parameters_become_aligned_views_that_keep_their_values():
    params = parameters((3, 5), (), (7,), (0,), (1,))
    before = values(params)
    optimizer = optim.AdamW(params)
    assert_same(values(params), before)
    (arena,) = optimizer._arenas[0]
    for parameter, slot in zip(params, arena.slots, strict=True):
        assert parameter.array.base is arena.parameters
        assert parameter._grad_slot is slot
        if parameter.array.size:
            offset = parameter.array.ctypes.data - arena.parameters.ctypes.data
            assert offset % ALIGNMENT == 0


def test_gradients_are_written_into_the_arena():
    params = parameters((3, 5), (7,))
    optimizer = optim.SGD(params, lr=0.1)
    give_gradients(params, 0)
    for parameter in params:
        assert parameter.grad.array is parameter._grad_slot
    assert optimizer._arenas[0][0].gradients.any()
    optimizer.zero_grad(set_to_none=False)
    assert not optimizer._arenas[0][0].gradients.any()
    assert all(parameter.grad is not None for parameter in params)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in params)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("which", [None, {0, 1, 2}, {1, 3}])
def test_one_launch_for_neighbours_and_gaps_stay_zero(name, which, monkeypatch):
    params = parameters((3,), (5,), (7,), (2, 3))
    optimizer = getattr(optim, name)(params, **ALL[name])
    launches = []
    update = type(optimizer).update

    def counted(self, group, flat, *rest):
        launches.append(flat.size)
        update(self, group, flat, *rest)

    monkeypatch.setattr(type(optimizer), "update", counted)
    for step in range(3):
        give_gradients(params, step, which)
        optimizer.step()
    assert len(launches) == 3 * (2 if which == {1, 3} else 1)
    (arena,) = optimizer._arenas[0]
    inside = np.zeros(arena.size, bool)
    for offset, size in zip(arena.offsets, arena.sizes, strict=True):
        inside[offset : offset + size] = True
    assert not arena.parameters[~inside].any() and not arena.gradients[~inside].any()


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad"])
def test_an_eps_of_zero_leaves_the_gaps_alone(name):
    """0 / 0 would put NaN behind the parameters, and from there into their norm."""
    params = parameters((3,), (8,), (8,), (5,))
    optimizer = getattr(optim, name)(params, eps=0)
    give_gradients(params, 0)
    optimizer.step()
    (arena,) = optimizer._arenas[0]
    assert np.isfinite(arena.parameters).all()
    assert arena.runs([0, 1, 2, 3], tight=True) == [(0, 3), (8, 29)]


def test_an_arena_for_each_dtype():
    params = parameters((3,)) + parameters((4,), dtype=np.float64) + parameters((5,))
    params += parameters((6,), dtype=np.float16)
    optimizer = optim.Adam(params, lr=0.1)
    assert [arena.indices for arena in optimizer._arenas[0]] == [[0, 2], [1], [3]]
    before = values(params)
    give_gradients(params, 0)
    optimizer.step()
    for parameter, old in zip(params, before, strict=True):
        moved = np.abs(parameter.array.astype(float) - old.astype(float))
        np.testing.assert_allclose(moved, 0.1, rtol=0.02)
        assert parameter.dtype == old.dtype
    assert optimizer.state[params[3]]["exp_avg"].dtype == np.float32


def test_runs_and_cohorts():
    tensors = parameters((8,), (3,), (16,), (0,), (1,))
    arena = Arena(tensors, list(range(5)), hyper_array("adam"))
    assert arena.runs([0, 1, 2, 3, 4]) == [(0, 33)]
    assert arena.runs([0, 2, 3]) == [(0, 8), (16, 32)]
    assert arena.runs([3]) == []
    assert len(arena.active_cohorts([0, 1, 2, 3, 4])) == 1
    (first,) = arena.active_cohorts([0, 1])
    assert first.members == [0, 1] and len(arena.cohorts) == 2
    assert [cohort.members for cohort in arena.active_cohorts([1, 2, 3, 4])] == [[1], [2, 3, 4]]
    assert sorted(i for cohort in arena.cohorts for i in cohort.members) == [0, 1, 2, 3, 4]


# ---- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_it_learns(name):
    manual_seed(0)
    rng = np.random.default_rng(0)
    x = tensor(rng.normal(size=(64, 4)).astype(np.float32))
    y = x @ tensor(np.array([[1.0], [-2.0], [3.0], [0.5]], np.float32))
    model = nn.Linear(4, 1)
    options = {"Lion": {"lr": 0.03}, "Adagrad": {"lr": 0.5}, "SGD": {"lr": 0.1}}
    optimizer = getattr(optim, name)(model.parameters(), **options.get(name, {"lr": 0.05}))
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_lion_against_its_definition():
    """Algorithm 2 of Chen et al. 2023 in float64; PyTorch has none to compare with."""
    (parameter,) = parameters((20,), dtype=np.float64)
    optimizer = optim.Lion([parameter], lr=0.1, betas=(0.8, 0.95), weight_decay=0.1)
    w, m = np.array(parameter.array), np.zeros(20)
    for step in range(20):
        give_gradients([parameter], step)
        g = np.array(parameter.grad.array)
        optimizer.step()
        w -= 0.1 * (np.sign(0.8 * m + 0.2 * g) + 0.1 * w)
        m = 0.95 * m + 0.05 * g
        np.testing.assert_allclose(parameter.array, w, rtol=1e-12)


def test_a_gradient_that_lies_elsewhere_is_copied_in():
    (parameter,) = parameters((4,))
    give_gradients([parameter], 0)  # before there is an arena
    gradient = np.array(parameter.grad.array)
    before = np.array(parameter.array)
    optimizer = optim.SGD([parameter], lr=1.0)
    optimizer.step()
    np.testing.assert_allclose(parameter.array, before - gradient, rtol=1e-6)
    parameter.grad = wrap(np.ones(4, np.float64))  # by hand, of another dtype
    optimizer.step()
    np.testing.assert_allclose(parameter.array, before - gradient - 1, rtol=1e-5)
    parameter.grad = wrap(np.ones(5, np.float32))
    with pytest.raises(ValueError, match=r"gradient of parameter 0 .* shape \(5,\)"):
        optimizer.step()


def test_frozen_parameters_and_none_gradients_stay():
    params = parameters((4,), (5,))
    params[1].requires_grad = False
    before = values(params)
    optimizer = optim.AdamW(params, lr=0.1)
    optimizer.step()
    assert_same(values(params), before)
    (params[0] * 2.0).sum().backward()
    optimizer.step()
    assert_same(values(params)[1:], before[1:])
    assert not np.array_equal(params[0].array, before[0])
    assert list(optimizer.state) == [params[0]] and optimizer.state[params[0]]["step"] == 1


def test_closure():
    (parameter,) = parameters((3,))
    optimizer = optim.SGD([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure).item() < first.item()
    assert optimizer.step() is None


def test_hyperparameters_take_effect_at_the_next_step_and_only_then_are_written():
    (parameter,) = parameters((3,))
    optimizer = optim.SGD([parameter], lr=0.1)
    give_gradients([parameter], 0)
    optimizer.step()
    cohort = optimizer._arenas[0][0].cohorts[0]
    cohort.hyper[0] = 123.0  # as a captured schedule might
    optimizer.step()
    assert cohort.hyper[0] == 123.0
    optimizer.param_groups[0]["lr"] = 0.5
    assert cohort.hyper[0] == 123.0
    optimizer.step()
    assert cohort.hyper[0] == 0.5


def test_a_graph_from_before_the_step_is_refused():
    """As in PyTorch: the weights it saved were changed in place."""
    params = parameters((3, 3), (3, 3))
    optimizer = optim.SGD(params, lr=0.1)
    loss = (params[0] @ params[1]).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


# ---- parameters that change under the optimizer ------------------------------------------------


def test_replaced_data_is_copied_back_in():
    params = parameters((3,), (4,))
    optimizer = optim.SGD(params, lr=1.0)
    params[0].data = np.zeros(3, np.float32)
    give_gradients(params, 0)
    optimizer.step()
    gradients = [np.array(parameter.grad.array) for parameter in params]
    np.testing.assert_array_equal(params[0].array, -gradients[0])
    assert params[0].array is optimizer._arenas[0][0].views[0]


@pytest.mark.parametrize("name", ALL)
def test_another_dtype_takes_the_state_along(name):
    """model.double() in the middle of training goes on where it was."""
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    other.double()
    pairs = [(m, getattr(optim, name)(m.parameters(), **ALL[name])) for m in (model, other)]
    for step in range(6):
        if step == 3:
            model.double()
        for m, optimizer in pairs:
            optimizer.zero_grad()
            give_gradients(list(m.parameters()), step)
            optimizer.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.dtype == np.float64
        np.testing.assert_allclose(p.array, q.array, rtol=2e-5)


def test_a_changed_shape_is_an_error():
    (parameter,) = parameters((3,))
    optimizer = optim.SGD([parameter], lr=0.1)
    parameter.data = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"parameter 0 .* from \(3,\) to \(4,\)"):
        optimizer.step()


def test_loading_into_the_model_reaches_the_arena():
    model = nn.Linear(3, 2)
    saved = {name: np.array(value.array) for name, value in model.state_dict().items()}
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    for step in range(3):
        give_gradients(list(model.parameters()), step)
        optimizer.step()
    model.load_state_dict(saved)
    (arena,) = optimizer._arenas[0]
    assert_same(arena.views, [saved["weight"], saved["bias"]])


def test_two_optimizers_share_a_parameter():
    """It works, by copying to and fro; both see all updates."""
    (parameter,) = parameters((5,))
    start = np.array(parameter.array)
    both = [optim.SGD([parameter], lr=1.0), optim.SGD([parameter], lr=10.0)]
    for _ in range(2):
        for optimizer in both:
            optimizer.zero_grad()
            parameter.sum().backward()
            optimizer.step()
    np.testing.assert_allclose(parameter.array, start - 22, rtol=1e-5)
    parameter.sum().backward()
    for optimizer in both:
        optimizer.step()
    np.testing.assert_allclose(parameter.array, start - 22 - 22, rtol=1e-5)


def test_a_copied_model_is_independent():
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    before = values(twin.parameters())
    give_gradients(list(model.parameters()), 0)
    optimizer.step()
    assert_same(values(twin.parameters()), before)
    assert all(parameter._grad_slot is None for parameter in twin.parameters())


@pytest.mark.parametrize("twice", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("name", ALL)
def test_a_model_and_its_optimizer_are_copied_together(name, twice):
    """The copy of the optimizer trains the copy of the model, and goes on as the first would."""
    model = nn.Linear(3, 2)
    optimizer = getattr(optim, name)(model.parameters(), **ALL[name])
    for step in range(2):
        give_gradients(list(model.parameters()), step)
        optimizer.step()
    twin, own = twice((model, optimizer))
    assert own.param_groups[0]["params"][0] is twin.weight and own.rule == optimizer.rule
    kept = values(model.parameters())
    for m, o in ((twin, own), (model, optimizer)):
        if m is model:
            assert_same(values(model.parameters()), kept)
        give_gradients(list(m.parameters()), 5, which=(0,))
        o.step()
        give_gradients(list(m.parameters()), 6)
        o.step()
    assert not np.array_equal(kept[0], model.weight.array)
    assert_same(values(twin.parameters()), values(model.parameters()))


# ---- groups ------------------------------------------------------------------------------------


def test_groups_have_their_own_hyperparameters():
    first, second = parameters((4,), (4,))
    optimizer = optim.SGD([{"params": first, "lr": 1.0}, {"params": [second]}], lr=0.1)
    before = values([first, second])
    for parameter in (first, second):
        parameter.sum().backward()
    optimizer.step()
    np.testing.assert_allclose(before[0] - first.data, 1.0, rtol=1e-5)
    np.testing.assert_allclose(before[1] - second.array, 0.1, rtol=1e-5)
    assert "lr: 1.0" in repr(optimizer) and "Parameter Group 1" in repr(optimizer)


def test_add_param_group():
    first, second = parameters((4,), (4,))
    optimizer = optim.SGD([first], lr=1.0)
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"parameter 0 of group 2 \(shape \(4,\)\) is given twice"):
        optimizer.add_param_group({"params": first})
    optimizer.param_groups[0]["params"].append(parameters((2,))[0])
    with pytest.raises(ValueError, match="group 0 were changed by hand"):
        optimizer.step()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda: [], ValueError, "got no parameters"),
        (lambda: parameters((2,))[0], TypeError, "params is one Tensor"),
        (lambda: [np.zeros(3)], TypeError, "parameter 0 of group 0 is ndarray"),
        (lambda: 2 * parameters((2,)), ValueError, "parameter 1 of group 0 .* given twice"),
        (lambda: [parameters((2,))[0] * 2], ValueError, r"shape \(2,\)\) is the result of an op"),
        (lambda: [tensor([1, 2])], TypeError, "parameter 0 of group 0 has dtype int64"),
        (lambda: [{"lr": 0.1}], TypeError, "a dict with 'params'"),
        (lambda: [{"params": set(parameters((2,)))}], TypeError, "params is a set"),
    ],
)
def test_wrong_parameters(params, error, message):
    with pytest.raises(error, match=f"SGD: .*{message}"):
        optim.SGD(params(), lr=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SGD", {"lr": -0.1}, "lr is -0.1; expected a number 0 or more"),
        ("SGD", {"lr": float("nan")}, "lr is nan"),
        ("SGD", {"momentum": -1}, "momentum is -1"),
        ("SGD", {"weight_decay": -1}, "weight_decay is -1"),
        ("SGD", {"nesterov": True}, "nesterov needs momentum above 0"),
        (
            "SGD",
            {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
            "nesterov needs .*no dampening",
        ),
        ("Adam", {"lr": -1}, "lr is -1"),
        ("Adam", {"betas": (1.0, 0.9)}, r"betas is \(1.0, 0.9\); expected two numbers"),
        ("AdamW", {"betas": (0.9, -0.1)}, "betas is"),
        ("AdamW", {"eps": -1e-8}, "eps is -1e-08"),
        ("AdamW", {"weight_decay": -0.1}, "weight_decay is -0.1"),
        ("RMSprop", {"alpha": -0.1}, "alpha is -0.1"),
        ("RMSprop", {"momentum": -0.1}, "momentum is -0.1"),
        ("Adagrad", {"lr_decay": -0.1}, "lr_decay is -0.1"),
        ("Adagrad", {"initial_accumulator_value": -0.1}, "initial_accumulator_value is -0.1"),
        ("Lion", {"betas": (0.9, 1.0)}, "betas is"),
    ],
)
def test_wrong_hyperparameters(name, options, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        getattr(optim, name)(parameters((2,)), **options)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        getattr(optim, name)([{"params": parameters((2,)), **options}])


# ---- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_training_resumes_bit_by_bit(name):
    """Also when some parameters have made fewer steps, and through a pickle."""
    shapes = ((3, 2), (5,), (4,))

    def run(params, optimizer, steps):
        for step in steps:
            give_gradients(params, step, {0, 1} if step % 3 == 0 else None)
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.step()

    params = parameters(*shapes)
    optimizer = getattr(optim, name)(params, **ALL[name])
    run(params, optimizer, range(5))
    saved, weights = pickle.loads(pickle.dumps(optimizer.state_dict())), values(params)
    run(params, optimizer, range(5, 10))

    again = parameters(*shapes, seed=9)
    resumed = getattr(optim, name)(again)
    for parameter, value in zip(again, weights, strict=True):
        parameter.array[...] = value
    resumed.load_state_dict(saved)
    run(again, resumed, range(5, 10))
    assert_same(values(again), values(params))
    steps = [entries["step"] for entries in resumed.state_dict()["state"].values()]
    assert steps == [10, 10, 6]


def test_state_dict_is_a_copy():
    params = parameters((3,))
    optimizer = optim.Adam(params, lr=0.1)
    assert optimizer.state_dict()["state"] == {} and optimizer.state == {}
    give_gradients(params, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    before = saved["state"][0]["exp_avg"].copy()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 7.0
    np.testing.assert_array_equal(saved["state"][0]["exp_avg"], before)
    assert saved["param_groups"][0]["lr"] == 0.1 and saved["param_groups"][0]["params"] == [0]


def test_plain_sgd_has_no_state():
    params = parameters((3,))
    optimizer = optim.SGD(params, lr=0.1)
    give_gradients(params, 0)
    optimizer.step()
    assert optimizer.state_dict()["state"] == {} and not optimizer._arenas[0][0].state


def test_a_state_that_does_not_fit_changes_nothing():
    params = parameters((3,), (4,))
    optimizer = optim.Adam(params, lr=0.1)
    give_gradients(params, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, this SGD has \[1\]"):
        optim.SGD(parameters((3,)), lr=0.1).load_state_dict(saved)
    other = optim.Adam(parameters((3,), (5,)), lr=0.7)
    with pytest.raises(ValueError, match=r"parameter 1 has shape \(4,\), the parameter has \(5,\)"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.7 and other.state_dict()["state"] == {}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_gives_what_the_cpu_gives(name):
    """Moved there in the middle of training, and loaded from a state of the CPU."""
    model, other = nn.Linear(33, 7, device="cpu"), nn.Linear(33, 7, device="cpu")
    other.load_state_dict(model.state_dict())
    pairs = [(m, getattr(optim, name)(m.parameters(), **ALL[name])) for m in (model, other)]
    for step in range(8):
        if step == 3:
            other.to("cuda")
        if step == 6:
            pairs[1][1].load_state_dict(pairs[0][1].state_dict())
        for m, optimizer in pairs:
            optimizer.zero_grad()
            rng = np.random.default_rng(step)
            for p in m.parameters():
                g = tensor(rng.normal(size=p.shape).astype(np.float32), device=p.device)
                (p * g).sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert q.device.type == "cuda"
        np.testing.assert_allclose(q.detach().cpu().numpy(), p.array, rtol=1e-5, atol=1e-6)
