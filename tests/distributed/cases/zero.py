"""Optimizers whose states are sharded, against whole ones that got the same gradients.

A sharded one gets them as a reduction to their owners leaves them: NaN in the other ranks' parts.
"""

import copy
import pickle

import ml_dtypes
import numpy as np

import gpunn
from gpunn import nn, optim
from gpunn.amp import GradScaler
from gpunn.autograd.tensor import wrap
from gpunn.device import to_device, to_numpy
from gpunn.distributed import GradientSync
from gpunn.optim.clip import clip_grad_norm_, clip_grad_value_

ALL = {
    "SGD": {"lr": 0.1},
    "SGD momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "Adam amsgrad": {"lr": 0.1, "amsgrad": True},
    "AdamW eps": {"lr": 0.1, "eps": 0.0},
    "RMSprop": {"lr": 0.1, "momentum": 0.9, "centered": True},
    "Adagrad": {"lr": 0.1, "initial_accumulator_value": 0.5},
    "Lion": {"lr": 0.1, "weight_decay": 0.1},
}
SHAPES = ((3, 5), (), (7,), (0,), (40,), (2, 3, 1, 2))


def made(name, shapes=SHAPES, dtype=np.float32, device="cpu", seed=0):
    """Parameters and an optimizer of them; alike for alike arguments."""
    rng = np.random.default_rng(seed)
    params = [
        nn.Parameter(to_device(np.asarray(rng.normal(size=shape)).astype(dtype), device))
        for shape in shapes
    ]
    return params, getattr(optim, name.split()[0])(params, **ALL[name])


def give(params, optimizer, seed, without=(), scale=1.0):
    """Gradients for all but some parameters; NaN in what a sharded optimizer must not read."""
    rng = np.random.default_rng(seed)
    optimizer.zero_grad()
    optimizer.follow_parameters()
    for i, parameter in enumerate(params):
        values = scale * np.asarray(rng.normal(size=parameter.shape))
        if i not in without:
            slot = parameter._grad_slot
            slot[...] = to_device(values.astype(parameter.dtype), parameter.device)
            parameter.grad = wrap(slot)
    for arena in optimizer.arenas:
        arena.gradients[: arena.own.start] = np.nan
        arena.gradients[arena.own.stop :] = np.nan


def same(one, other):
    """Whether two lists of parameters, or two state_dicts, are the same to the last bit."""
    if isinstance(one, list):
        for left, right in zip(one, other, strict=True):
            left, right = to_numpy(left.array), to_numpy(right.array)
            assert left.tobytes() == right.tobytes() and left.dtype == right.dtype
        return
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for number, entries in one["state"].items():
        assert entries.keys() == other["state"][number].keys()
        for name, value in entries.items():
            assert np.array_equal(value, other["state"][number][name]), (number, name)
            assert np.shape(value) == np.shape(other["state"][number][name])


def pair(group, name, **kwargs):
    """(parameters, optimizer) whole, and sharded."""
    whole, sharded = made(name, **kwargs), made(name, **kwargs)
    sharded[1].shard(group)
    return whole, sharded


def train(both, seeds, without=()):
    for params, optimizer in both:
        for seed in seeds:
            give(params, optimizer, seed, without)
            optimizer.step()


def case_every_optimizer(group):
    for name in ALL:
        both = (whole, optimizer), (params, sharded) = pair(group, name)
        train(both, (1,))
        train(both, (2,), without=(0, 4))
        for group_of in (optimizer.param_groups[0], sharded.param_groups[0]):
            group_of["lr"] = 0.01
        train(both, (3, 4))
        same(params, whole)
        same(sharded.state_dict(), optimizer.state_dict())
        (arena,) = sharded.arenas
        for own in arena.state.values():
            assert own.shape == (arena.size // group.size,)
        here, all_ = sharded.state_bytes
        assert here * group.size == all_ == group.size * sum(a.nbytes for a in arena.state.values())


case_every_optimizer.ranks = (2, 4)


def case_bounds(group):
    for dtype, step in ((np.float32, 8), (np.float64, 4), (ml_dtypes.bfloat16, 16)):
        for shapes in (((),), ((0,),), ((3,), (2,)), ((100,), (9, 9))):
            both = (whole, _), (params, sharded) = pair(group, "Adam amsgrad", shapes=shapes,
                                                        dtype=dtype)  # fmt: skip
            (arena,) = sharded.arenas
            starts, stops = zip(*arena.bounds, strict=True)
            assert (*starts, arena.size) == (0, *stops)
            assert {stop - start for start, stop in arena.bounds} == {arena.size // group.size}
            assert all(stop % step == 0 for stop in stops)
            train(both, (1, 2))
            same(params, whole)


case_bounds.ranks = (2, 4)


def case_states_go_to_any_number_of_ranks(group):
    """Whole to sharded and back, in the middle of a training; copies are whole."""
    for name in ("Adam amsgrad", "Adagrad", "SGD momentum"):
        whole, optimizer = made(name)
        train([(whole, optimizer)], (1,))
        train([(whole, optimizer)], (2,), without=(1,))
        later, sharded = made(name)
        train([(later, sharded)], (1,))
        train([(later, sharded)], (2,), without=(1,))
        sharded.shard(group)  # with states
        sharded.shard(group)
        sharded.shard(None)
        saved = sharded.state_dict()
        same(saved, optimizer.state_dict())
        loaded, into = made(name)
        into.shard(group)
        into.load_state_dict(saved)
        for parameter, like in zip(loaded, whole, strict=True):
            parameter.detach()[...] = like.detach()
        alone, copied = copy.deepcopy((later, sharded))
        unpickled = pickle.loads(pickle.dumps((later, sharded)))
        assert copied.arenas[0].bounds is None and unpickled[1].arenas[0].bounds is None
        runs = [(whole, optimizer), (later, sharded), (loaded, into), (alone, copied), unpickled]
        train(runs, (3,))
        for params, other in runs[1:]:
            same(params, whole)
            same(other.state_dict(), optimizer.state_dict())


def case_groups_and_moves(group):
    """Groups that are added, another dtype, replaced data, and memory that is channels-last."""
    both = (whole, optimizer), (params, sharded) = pair(group, "Adam amsgrad")
    train(both, (1,))
    for k, (own, other) in enumerate(both):
        image = np.random.default_rng(9).normal(size=(4, 3, 3, 5)).astype(np.float32)
        own.append(nn.Parameter(image.transpose(0, 3, 1, 2)))
        other.add_param_group({"params": [own[-1]], "lr": 0.5})
        assert (other.arenas[1].bounds is None) == (k == 0)
        assert other.arenas[1].orders != [None]
    train(both, (2,))
    same(sharded.state_dict(), optimizer.state_dict())
    sharded.load_state_dict(optimizer.state_dict())
    for own, other in both:
        for parameter in own:
            parameter.data = wrap(parameter.array.astype(np.float64))
        give(own, other, 3)
        assert other.arenas[0].parameters.dtype == np.float64
        other.step()
        own[0].data = wrap(np.full((3, 5), 2.0))
    train(both, (4,))
    same(params, whole)
    same(sharded.state_dict(), optimizer.state_dict())


def case_clipping(group):
    for device in ("cpu", "emulator"):
        for norm_type in (2.0, np.inf, 1.0, 3) if device == "cpu" else (2.0,):
            both = (whole, _), (params, _) = pair(group, "SGD", device=device)
            norms = []
            for own, optimizer in both:
                give(own, optimizer, 1, without=(2,))
                norms.append(to_numpy(clip_grad_norm_(own, 0.5, norm_type).array))
                optimizer.step()
            np.testing.assert_allclose(norms[1], norms[0], rtol=1e-6)
            assert norms[0].shape == norms[1].shape == () and norms[0].dtype == norms[1].dtype
            assert len({float(norm) for norm in group.exchange(float(norms[1]))}) == 1
            for one, other in zip(params, whole, strict=True):
                one, other = to_numpy(one.array), to_numpy(other.array)
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def case_clipping_of_some(group):
    """Few parameters, in the part of one rank; with others that no sharded optimizer has."""
    (whole, optimizer), (params, sharded) = pair(group, "SGD")
    other = nn.Parameter(np.zeros(2, np.float64))
    other.grad = wrap(np.array([3.0, 4.0]))
    for own, each in ((whole, optimizer), (params, sharded)):
        give(own, each, 1)
    elsewhere = wrap(params[1].grad.array.copy() if group.main else np.full((), 7.0, np.float32))
    params[1].grad = elsewhere  # a gradient that somebody assigned: rank 0's part has it
    expected = clip_grad_norm_([*whole[:2], other], 1e9).item()
    assert abs(clip_grad_norm_([other, *params[1::-1]], 1e9).item() / expected - 1) < 1e-6
    assert clip_grad_norm_([params[4]], 1e9, error_if_nonfinite=True).item() > 0
    for own, each in ((whole, optimizer), (params, sharded)):
        clip_grad_value_(own, 0.1)
        each.step()
    same(params, whole)


def case_overflow_on_one_rank(group):
    """All ranks skip the step, and none later has another scale."""
    (whole, optimizer), (params, sharded) = pair(group, "Adam amsgrad")
    scaler = GradScaler("cpu", init_scale=4.0)
    before = [copy.deepcopy(parameter) for parameter in params]
    give(params, sharded, 1)
    (arena,) = sharded.arenas
    if group.rank == 1:
        arena.gradients[arena.own.start] = np.inf
    scaler.step(sharded)
    scaler.update()
    same(params, before)
    assert sharded.state_dict()["state"] == {} and scaler.skipped == 1
    assert scaler.get_scale() == 2.0
    give(params, sharded, 2, scale=2.0)
    scaler.step(sharded)
    scaler.update()
    train([(whole, optimizer)], (2,))
    same(params, whole)
    assert scaler.skipped == 1


def case_copies_in_16_bits(group):
    """What autocast computes with after a step is what the other ranks have updated, too."""
    results = []
    for sharding in (None, group):
        gpunn.manual_seed(3)
        model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 2))
        optimizer = optim.SGD(model.parameters(), lr=0.5)
        optimizer.prepare_low(np.dtype(ml_dtypes.bfloat16))
        optimizer.shard(sharding)
        assert optimizer.arenas[0].lows
        x = wrap(np.random.default_rng(1).normal(size=(6, 9)).astype(np.float32))
        for _ in range(2):
            optimizer.zero_grad()
            with gpunn.autocast("bfloat16"):
                loss = model(x).square().mean()
            loss.backward()
            results.append(loss.item())
            optimizer.step()
    assert results[:2] == results[2:] and results[0] != results[1]


def case_gradients_summed_where_they_are_needed(group):
    """`GradientSync` in front of it; what one rank has no gradient for is updated all the same."""
    results = []
    for sharding in (None, group):
        gpunn.manual_seed(4)
        model = nn.ModuleList([nn.Linear(5, 9), nn.Linear(9, 7), nn.Linear(9, 7)])
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        optimizer.shard(sharding)
        sync = GradientSync(optimizer, group, bucket_bytes=128)
        rng = np.random.default_rng(group.rank)
        for step in range(4):
            x = wrap(rng.normal(size=(3, 5)).astype(np.float32))
            optimizer.zero_grad()
            with sync.backward():
                # Each rank goes through another last layer, and in the end all through one.
                last = model[1 + (group.rank + step) % 2] if step < 2 else model[1]
                last(model[0](x)).square().mean().backward()
            clip_grad_norm_(model.parameters(), 1e3)
            optimizer.step()
        results.append((list(model.parameters()), optimizer.state_dict()))
    (params, state), (whole, expected) = results
    same(params, whole)
    same(state, expected)


def _compiled(group, sharding, device):
    """Losses and parameters of a compiled step that clips, on gradients that all ranks share."""
    gpunn.manual_seed(5)
    model = nn.Linear(6, 3).to(device)
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    optimizer.shard(sharding)
    target = wrap(to_device(np.ones((4, 3), np.float32), device))

    @gpunn.compile
    def step(x):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1e3)
        optimizer.step()
        return loss

    rng, losses = np.random.default_rng(7), []
    for k in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
        x = to_device(rng.normal(size=(4, 6)).astype(np.float32), device)
        losses.append(step(wrap(x)).item())
    return losses, list(model.parameters()), optimizer, step


def case_compiled(group):
    expected, whole, optimizer, _ = _compiled(group, None, "emulator")
    losses, params, sharded, step = _compiled(group, group, "emulator")
    assert losses == expected and "captured" in step.summary()
    same(params, whole)
    same(sharded.state_dict(), optimizer.state_dict())


def _message(function):
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return str(error)
    raise AssertionError("nothing was raised")


def case_what_is_refused(group):
    _, (_, sharded) = pair(group, "Lion")
    assert "state_dict()" in _message(lambda: sharded.state)
    shapes = ((3,), (4,)) if group.rank == 1 else ((4,), (4,))
    _, other = made("Lion", shapes=shapes)
    assert "the shapes of the parameters of rank 1" in _message(lambda: other.shard(group))
    params, ahead = made("Lion")
    if group.rank == 1:
        train([(params, ahead)], (1,))
    assert "rank 1" in _message(lambda: ahead.shard(group))
    assert ahead.arenas[0].bounds is None
