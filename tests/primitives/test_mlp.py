"""`mlp_train`: one closed form, its refusals, its plan, and what it does with bad data on a GPU."""

import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe, to_device, to_numpy
from gpunn.device.emulator_launch import emulated_chip
from gpunn.errors import UnsupportedError
from gpunn.primitives import mlp_plan
from gpunn.primitives.mlp_plan import Layer, Network, choose, why_not
from gpunn.primitives.mlp_samples import arena, chain, hyper_rows

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


def call(widths=(6, 5, 3), batch=4, steps=2, device="cpu", changes=None, **kwargs):
    """A call of the primitive by SGD on random data; `changes` maps a position to a function."""
    rng = np.random.default_rng(0)
    layers, size = chain(widths)
    args = [
        rng.normal(size=(9, widths[0])).astype(np.float32), rng.integers(0, widths[-1], 9),
        rng.integers(0, 9, (steps, batch)), arena(rng, layers, size).astype(np.float32),
        hyper_rows("sgd", steps, lr=0.1),
    ]  # fmt: skip
    for position, change in (changes or {}).items():
        args[position] = change(args[position])
    args = [to_device(value, device) for value in args]
    losses, correct = kernels.mlp_train(*args, **{"layers": layers, **kwargs})
    return to_numpy(losses), to_numpy(correct), to_numpy(args[3])


def test_two_steps_by_hand():
    """One weight, squared error: w becomes w - lr · 2 x (w x - t), with a short second batch."""
    x, target = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [0.0], [2.0]])
    parameters, hyper = np.array([0.5]), hyper_rows("sgd", 2, lr=0.1)
    losses, correct = kernels.mlp_train(
        x, target, np.array([[0, 1], [2, -1]]), parameters, hyper, layers=[(1, 1, 0)], loss="mse"
    )
    first = 0.5 - 0.1 * (2 * 1 * (0.5 - 1) + 2 * 2 * 1.0) / 2
    second = first - 0.09 * 2 * 3 * (3 * first - 2)
    assert losses == pytest.approx([(0.25 + 1) / 2, (3 * first - 2) ** 2])
    assert parameters == pytest.approx([second])
    assert correct.tolist() == [0, 0]


def test_no_steps_change_nothing():
    losses, correct, parameters = call(steps=0, changes={4: lambda h: np.zeros((0, 6))})
    assert losses.shape == correct.shape == (0,)
    assert np.array_equal(parameters, call(steps=0, changes={4: lambda h: np.zeros((0, 6))})[2])


def layers_with(**changes):
    layers, _ = chain((6, 5, 3))
    return {"layers": (layers[0]._replace(**changes), *layers[1:])}


@pytest.mark.parametrize(
    "words, kwargs",
    [
        ("layers is empty", {"layers": ()}),
        (r"layers\[0\] has 7 inputs; expected 6, as many as x has columns", layers_with(inputs=7)),
        (r"layers\[1\] has 5 inputs; expected 4, as many as the one", layers_with(outputs=4)),
        (r"layers\[0\] lies at 2 and 32 of 60 parameters", layers_with(weight=2)),
        (r"layers\[0\] lies at 0 and 58 of 60 parameters", layers_with(bias=58)),
        (r"layers\[0\].activation is 'swish'", layers_with(activation="swish")),
        (r"layers\[0\].dropout is 1.5", layers_with(dropout=1.5)),
        (r"layers\[1\] has activation relu", {"layers": [(6, 3, 0), (3, 3, 20, None, "relu")]}),
        ("rule is 'lion'", {"rule": "lion"}),
        ("first_state is None", {"nesterov": True}),
        ("nesterov is given with adam", {"rule": "adam", "nesterov": True}),
        ("decoupled is given with sgd", {"decoupled": True}),
        ("label_smoothing is given with mse", {"loss": "mse", "label_smoothing": 0.1}),
        ("max_norm is -1", {"max_norm": -1}),
        ("seed is -1", {"seed": -1}),
        ("blocks is 0", {"blocks": 0}),
        ("team is 4; blocks is 2: give as many", {"blocks": 2, "team": 4}),
        ("order holds samples from 9 to 9", {"changes": {2: lambda o: o * 0 + 9}}),
        ("order has a batch without", {"changes": {2: lambda o: o * 0 - 1}}),
        ("target holds labels from -1 to -1", {"changes": {1: lambda t: t * 0 - 1}}),
        ("target has shape", {"changes": {1: lambda t: t[:4]}}),
        (r"expected shape \(2, 6\)", {"changes": {4: lambda h: h[:1]}}),
        ("x has shape .* dtype float16", {"changes": {0: lambda x: x.astype(np.float16)}}),
        ("the batch has 1025 samples", {"batch": 1025}),
        ("layer 0 has 513 outputs", {"widths": (6, 513, 2)}),
    ],
)
def test_refusals(words, kwargs):
    with pytest.raises((TypeError, ValueError), match=f"^mlp_train: .*{words}"):
        call(**kwargs)


def test_states_that_do_not_belong_are_refused():
    layers, size = chain((2, 2))
    arrays = [np.zeros((1, 2)), np.zeros(1, np.int64), np.zeros((1, 1), np.int64), np.zeros(size)]
    hyper, state = hyper_rows("sgd", 1, lr=0.1), np.zeros(size)
    with pytest.raises(ValueError, match="second_state is given with sgd; leave it out"):
        kernels.mlp_train(*arrays, hyper, state, state.copy(), layers=layers)
    with pytest.raises(ValueError, match="second_state is None; give an array of zeros"):
        adam = hyper_rows("adam", 1, lr=0.1)
        kernels.mlp_train(*arrays, adam, state, layers=layers, rule="adam")


# ---- the plan ------------------------------------------------------------------------------------


def network(*widths):
    return Network(tuple(layer.complete() for layer in chain(widths)[0]))


def test_places_do_not_overlap_and_fill_the_scratch_memory():
    net, batch = network(9, 6, 5, 3), 10
    table, size, tiles = mlp_plan._layout(net, batch, True)
    rows, spans = 16, [(0, 32)]
    for i, layer in enumerate(net.layers):
        forward, backward, below, pre, slope = table[i, 10:15].tolist()
        inputs, outputs = -(-layer.inputs // 4) * 4, -(-layer.outputs // 4) * 4
        spans.append((forward, layer.inputs * outputs))
        spans += [(backward, layer.outputs * inputs)] if backward >= 0 else []
        spans += [(below, rows * inputs)] if below >= 0 else []
        spans += [(pre, rows * outputs)] if pre >= 0 else []
        spans.append((slope, rows * outputs))
    assert [row[11] >= 0 for row in table] == [False, True, True]  # 6 and 5 inputs: copies of W
    end = 0
    for start, count in sorted(spans):
        assert start == end and start % 4 == 0
        end = start + -(-count // 4) * 4
    assert (end, tiles) == (size, 3)


def test_blocks_and_teams_go_with_the_work():
    h200 = (False, True, 132, 227 * 1024)
    tiny = choose(network(4, 16, 2), 8, *h200)
    assert (tiny.blocks, tiny.members, tiny.resident) == (1, 1, True)
    assert tiny.table[:, -1].tolist() == [0, 0]
    digits = network(784, 256, 128, 10)
    small, large = (choose(digits, batch, *h200) for batch in (128, 1024))
    assert 64 <= small.blocks <= 132 and not small.resident
    assert small.members > large.members >= 1  # more blocks are left for each row
    assert small.table[:, -1].tolist() == [1, 0, 0]  # the first layer is worth a meeting
    few = choose(digits, 16, *h200)  # 122 tiles for whole teams of 16, and none for a second turn
    assert few.blocks >= few.tiles and few.blocks % few.members == 0
    assert small.shared < 99 * 1024 and small.clocks < large.clocks
    wide = choose(network(1024, 512, 512, 512), 1024, True, True, 6, 99 * 1024)
    assert wide.blocks == 6 and wide.shared <= 99 * 1024 - 1024
    forced = choose(digits, 128, *h200, 9, 2)
    assert (forced.blocks, forced.members) == (8, 2) and forced.clocks > small.clocks
    assert forced.table[:, -1].tolist() == [1, 3, 2]


def test_why_not_names_the_first_thing_that_does_not_fit():
    assert why_not(network(1024, 512, 512), 1024) == ""
    assert "layer 1 has 600 inputs" in why_not(Network((Layer(4, 4, 0), Layer(600, 4, 0))), 8)
    assert "65 layers" in why_not(network(*(2,) * 66), 8)
    assert "0 samples" in why_not(network(2, 2), 0)


# ---- on a device ---------------------------------------------------------------------------------


@emulated
def test_the_bits_do_not_depend_on_the_number_of_blocks():
    found = [call((40, 36, 11), 19, device="emulator", blocks=n) for n in (1, 2, 5)]
    with emulated_chip(arch="sm_80", multiprocessors=3, shared_limit=50 * 1024):
        found.append(call((40, 36, 11), 19, device="emulator"))
    for one in found[1:]:
        assert all(map(np.array_equal, one, found[0]))


@emulated
@pytest.mark.parametrize("position, value", [(1, 3), (1, -1), (2, 9), (2, -2)])
def test_samples_and_labels_that_do_not_exist_become_nan(position, value):
    """Sample 0 comes in the second of three steps only."""
    order = np.array([[1, 2, 3, 4], [5, 0, 6, 7], [8, 1, 2, 3]])
    changes = {2: lambda _: np.where(order == 0, value, order) if position == 2 else order}
    if position == 1:
        changes[1] = lambda labels: np.where(np.arange(9) == 0, value, labels)
    losses, correct, parameters = call(steps=3, device="emulator", changes=changes)
    assert np.isnan(losses).tolist() == [False, True, True]
    layers, _ = chain((6, 5, 3))
    for layer in layers:
        assert np.isnan(parameters[layer.bias : layer.bias + layer.outputs]).all()
    assert correct[0] <= 4


@emulated
def test_float64_is_for_the_cpu():
    wide = {i: lambda a: a.astype(np.float64) for i in (0, 3)}
    assert call(changes=wide)[0].dtype == np.float64
    with pytest.raises(UnsupportedError, match="float32 only; convert x and the parameters"):
        call(device="emulator", changes=wide)
