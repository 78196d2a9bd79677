"""The recurrent primitives on the CPU against a plain loop, and gradients against differences."""

import numpy as np
import pytest

import gpunn as g
from gpunn.autograd.functions.recurrent import Recurrent, pick_rows, place_rows, recurrent
from gpunn.autograd.gradcheck import gradcheck
from gpunn.primitives import recurrent as kernels

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
T, B, H = 6, 5, 3
LENGTHS = {"whole": None, "falling": [6, 5, 5, 2, 1], "any": [2, 6, 0, 3, 6]}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell(mode, x, p, h, c):
    """One step of one sequence as the formulas stand in the module's docstring."""
    if mode.startswith("rnn"):
        return (np.tanh(x + p) if mode == "rnn_tanh" else np.maximum(x + p, 0)), c
    if mode == "lstm":
        i, f, o = (sigmoid(x + p).reshape(4, -1)[k] for k in (0, 1, 3))
        c = f * c + i * np.tanh(x + p).reshape(4, -1)[2]
        return o * np.tanh(c), c
    (x_r, x_z, x_n), (p_r, p_z, p_n) = x.reshape(3, -1), p.reshape(3, -1)
    z = sigmoid(x_z + p_z)
    return (1 - z) * np.tanh(x_n + sigmoid(x_r + p_r) * p_n) + z * h, c


def plain(gates, weight, bias, h0, c0, lengths, mode, reverse):
    """(output, h_n, c_n) of one sequence after the other in float64."""
    output, h_n, c_n = np.zeros((*gates.shape[:2], H)), h0.copy(), c0.copy()
    for b in range(gates.shape[1]):
        steps = range(gates.shape[0] if lengths is None else lengths[b])
        for t in reversed(steps) if reverse else steps:
            p = weight @ h_n[b] + bias
            h_n[b], c_n[b] = cell(mode, gates[t, b], p, h_n[b], c_n[b])
            output[t, b] = h_n[b]
    return output, h_n, c_n


def operands(mode, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    rows = GATES[mode] * H
    shapes = ((T, B, rows), (rows, H), (rows,), (B, H), (B, H))
    return [(0.7 * rng.normal(size=shape)).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("reverse", [False, True])
def test_forward_is_the_formulas(mode, reverse):
    for dtype, bound in ((np.float64, 1e-13), (np.float32, 1e-6), (np.float16, 4e-3)):
        for lengths in LENGTHS.values():
            gates, weight, bias, h0, c0 = operands(mode, dtype)
            given = None if lengths is None else np.array(lengths, np.int32)
            wide = [array.astype(np.float64) for array in (gates, weight, bias, h0, c0)]
            want = plain(*wide, lengths, mode, reverse)
            args = (weight, bias, h0, c0 if mode == "lstm" else None, given)
            how = {"mode": mode, "reverse": reverse}
            short = kernels.recurrent_forward(gates, *args, **how, keep=False)
            assert short[3] is None and short[4] is None
            into = gates if GATES[mode] > 1 else None  # what is kept takes the gates' memory
            found = kernels.recurrent_forward(gates, *args, **how, activated=into)
            assert found[3] is into
            states = 2 + (mode == "lstm")
            for value, brief, exact in zip(found[:states], short, want, strict=False):
                assert value.dtype == dtype
                np.testing.assert_array_equal(value, brief)
                np.testing.assert_allclose(value, exact, rtol=bound, atol=bound)


@pytest.mark.parametrize("mode", ["lstm", "gru"])
def test_what_is_kept_past_the_end(mode):
    gates, weight, bias, h0, c0 = operands(mode)
    c0, lengths = c0 if mode == "lstm" else None, np.array([2, 6, 0, 3, 6])
    gates[2:, 0] = np.nan  # not looked at
    for reverse in (False, True):
        output, _, c_n, activated, inner = kernels.recurrent_forward(
            gates, weight, bias, h0, c0, lengths, mode=mode, reverse=reverse
        )
        assert (output[2:, 0] == 0).all() and (activated[2:, 0] == 0).all()
        stays = 0 if c0 is None else c0[0] if reverse else c_n[0]
        np.testing.assert_array_equal(inner[2:, 0], np.broadcast_to(stays, (T - 2, H)))
        grad = np.full((T, B, H), np.nan)
        grad[np.arange(T)[:, None] < lengths] = 1
        back = kernels.recurrent_backward(
            grad, None, None, output, activated, inner, weight, h0, c0, lengths, mode=mode,
            reverse=reverse,
        )  # fmt: skip
        for array in back:
            assert array is None or np.isfinite(array).all()
        assert (back[0][2:, 0] == 0).all() and (back[2][2] == 0).all()


@pytest.mark.parametrize("mode", GATES)
def test_a_batch_cut_into_pieces_is_its_parts(mode):
    """A large batch goes through its steps in pieces, side by side; small ones do not."""
    rng, batch = np.random.default_rng(0), 70
    rows = GATES[mode] * H
    gates, weight, bias = (rng.normal(size=s) for s in ((T, batch, rows), (rows, H), (rows,)))
    h0, grad = rng.normal(size=(batch, H)), rng.normal(size=(T, batch, H))
    c0, lengths = h0[::-1] if mode == "lstm" else None, rng.integers(0, T + 1, batch)

    def run(some, lengths):
        part = None if lengths is None else lengths[some]
        states = (h0[some], None if c0 is None else c0[some], part)
        made = kernels.recurrent_forward(gates[:, some], weight, bias, *states, mode=mode)
        back = kernels.recurrent_backward(
            grad[:, some], h0[some], None, made[0], *made[3:], weight, *states, mode=mode
        )
        return [array for array in (*made, *back) if array is not None]

    for given in (None, np.sort(lengths)[::-1].copy(), lengths):
        parts = [run(slice(start, start + 10), given) for start in range(0, batch, 10)]
        for whole, *pieces in zip(run(slice(None), given), *parts, strict=True):
            expected = np.concatenate(pieces, whole.ndim - 2)
            np.testing.assert_allclose(whole, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", GATES)
def test_no_steps_and_no_sequences(mode):
    gates, weight, bias, h0, c0 = operands(mode, np.float32)
    c0 = c0 if mode == "lstm" else None
    output, h_n, c_n, *kept = kernels.recurrent_forward(gates[:0], weight, bias, h0, c0, mode=mode)
    np.testing.assert_array_equal(h_n, h0)
    assert output.shape == (0, B, H) and (c_n is None or (c_n == c0).all())
    back = kernels.recurrent_backward(None, h_n, None, output, *kept, weight, h0, c0, mode=mode)
    np.testing.assert_array_equal(back[2], h_n)
    made = kernels.recurrent_forward(gates[:, :0], weight, mode=mode)
    assert made[0].shape == (T, 0, H) and made[1].shape == (0, H)


@pytest.mark.parametrize("mode", GATES)
def test_not_a_number_travels_as_in_numpy(mode):
    gates, weight, bias, h0, c0 = operands(mode, np.float32)
    gates[2, 1] = np.nan
    gates[0, 0], gates[0, 2] = 1e30, -np.inf
    output = kernels.recurrent_forward(gates, weight, bias, h0, mode=mode)[0]
    assert np.isfinite(output[:2, 1]).all() and np.isnan(output[2:, 1]).all()
    if mode != "rnn_relu":
        assert np.isfinite(output[:, [0, 2]]).all()


# ---- gradients -----------------------------------------------------------------------------------


def leaves(mode, inputs=2, seed=0):
    rng, rows = np.random.default_rng(seed), GATES[mode] * H
    shapes = [(4, B, inputs), (rows, inputs), (rows, H), (rows,), (rows,), (B, H)]
    shapes += [(B, H)] * (mode == "lstm")
    return [
        g.tensor(0.6 * rng.normal(size=shape), device="cpu", dtype="float64", requires_grad=True)
        for shape in shapes
    ]


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("lengths", [None, [1, 4, 2, 4, 3]], ids=["whole", "lengths"])
def test_gradients_against_differences(mode, lengths):
    lengths = None if lengths is None else np.array(lengths)
    for reverse, which in ((False, "all"), (True, "all"), (True, "output"), (False, "states")):

        def run(*tensors, which=which, reverse=reverse):
            output, *ends = recurrent(
                *tensors, *[None] * (7 - len(tensors)), lengths, mode=mode, reverse=reverse
            )
            ends = [end.reshape(1, B, H) for end in ends if end is not None]
            parts = {"output": [output], "states": ends, "all": [output, *ends]}[which]
            return g.cat([part * (k + 1) for k, part in enumerate(parts)])

        assert gradcheck(run, leaves(mode))


def test_one_state_alone_and_the_output_summed():
    """The gradient of a sum is a stretched number, which is not the sign for no gradient."""
    tensors = leaves("lstm")
    for pick, position in ((lambda out, h, c: c, 2), (lambda out, h, c: out, 0)):
        for tensor in tensors:
            tensor.grad = None
        pick(*recurrent(*tensors, mode="lstm")).sum().backward()
        found = tensors[0].grad.numpy().copy()
        for tensor in tensors:
            tensor.grad = None
        parts = recurrent(*tensors, mode="lstm")
        total = sum((part.sum() * (1.0 if k == position else 0.0) for k, part in enumerate(parts)))
        total.backward()
        np.testing.assert_allclose(found, tensors[0].grad.numpy(), atol=1e-14)
        assert np.abs(found).max() > 1e-3


def test_a_kept_graph_gives_the_same_twice():
    """The memory of the gates is taken for their gradients only where the graph is not kept."""
    for mode in GATES:
        tensors = leaves(mode)
        output, h_n, _ = recurrent(*tensors, *[None] * (7 - len(tensors)), mode=mode)
        loss = (output * output).sum() + h_n.sum()
        loss.backward(retain_graph=True)
        first = [tensor.grad.numpy().copy() for tensor in tensors]
        for tensor in tensors:
            tensor.grad = None
        loss.backward()
        for tensor, expected in zip(tensors, first, strict=True):
            np.testing.assert_array_equal(tensor.grad.numpy(), expected)
        with pytest.raises(RuntimeError, match="backward was called a second time"):
            loss.backward()


def test_only_what_needs_a_gradient_gets_one():
    for mode in ("gru", "lstm"):
        whole = leaves(mode)
        recurrent(*whole, *[None] * (7 - len(whole)), mode=mode)[0].sum().backward()
        for kept in range(len(whole)):
            some = leaves(mode)
            for position, tensor in enumerate(some):
                tensor.requires_grad = position == kept
            recurrent(*some, *[None] * (7 - len(some)), mode=mode)[0].sum().backward()
            np.testing.assert_allclose(
                some[kept].grad.numpy(), whole[kept].grad.numpy(), rtol=1e-12, atol=1e-14
            )
            assert all(tensor.grad is None for k, tensor in enumerate(some) if k != kept)


def test_a_walk_that_breaks_off_leaves_nothing_behind(monkeypatch):
    tensors = leaves("gru")
    output, h_n, _ = recurrent(*tensors, None, mode="gru")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Recurrent, "take_saved", lambda self: 1 / 0)
        h_n.sum().backward(retain_graph=True)
    assert output.grad_fn.ahead is None
    output.sum().backward(retain_graph=True)
    expected = leaves("gru")
    recurrent(*expected, None, mode="gru")[0].sum().backward()
    np.testing.assert_array_equal(tensors[0].grad.numpy(), expected[0].grad.numpy())


def test_a_written_input_is_noticed():
    tensors = leaves("lstm")
    output = recurrent(*tensors, mode="lstm")[0]
    with g.no_grad():
        tensors[2] *= 2.0
    with pytest.raises(RuntimeError, match="modified in place"):
        output.sum().backward()


def test_rows_picked_and_placed():
    x = g.tensor(np.arange(10.0).reshape(5, 2), device="cpu", dtype="float64", requires_grad=True)
    index = np.array([3, 0, 4])
    np.testing.assert_array_equal(pick_rows(x, index).detach().numpy(), [[6, 7], [0, 1], [8, 9]])
    placed = place_rows(pick_rows(x, index), np.array([1, 2, 0]), 4, -1.0)
    np.testing.assert_array_equal(placed.detach().numpy()[3], [-1, -1])
    assert gradcheck(lambda x: place_rows(pick_rows(x, index), np.array([1, 2, 0]), 4) * 3.0, x)


# ---- errors --------------------------------------------------------------------------------------

GATED = np.zeros((T, B, 4 * H), np.float32)
WEIGHT, STATE = np.zeros((4 * H, H), np.float32), np.zeros((B, H), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"mode": "elman"}, ValueError, "mode is 'elman'; expected one of 'rnn_tanh'"),
        ({"gates": GATED[..., :7]}, ValueError, "gates has shape .*7.* 4 gates"),
        ({"gates": GATED.astype(int)}, TypeError, "gates has"),
        ({"weight_hh": WEIGHT.T}, ValueError, r"weight_hh has shape \(3, 12\).*\(12, 3\)"),
        ({"weight_hh": WEIGHT.astype(float)}, TypeError, "weight_hh .*float32"),
        ({"bias_hh": WEIGHT[:, 0][:5]}, ValueError, r"bias_hh .*\(12,\)"),
        ({"h0": STATE[:2]}, ValueError, r"h0 has shape \(2, 3\).*\(5, 3\)"),
        ({"mode": "gru", "c0": STATE, "weight_hh": WEIGHT[:9], "gates": GATED[..., :9].copy()},
         ValueError, "c0 is given for mode 'gru'"),
        ({"lengths": np.ones(B)}, TypeError, "lengths has"),
        ({"lengths": np.array([1, 2, 7, 1, 1])}, ValueError, "lengths goes from 1 to 7 .* 6 steps"),
        ({"lengths": np.array([1, 2])}, ValueError, r"lengths has shape \(2,\)"),
        ({"activated": GATED[:1]}, ValueError, "activated has shape"),
    ],
)  # fmt: skip
def test_errors_of_the_forward(change, error, text):
    given = {"gates": GATED, "weight_hh": WEIGHT, "mode": "lstm"} | change
    with pytest.raises(error, match=f"recurrent_forward: {text}"):
        kernels.recurrent_forward(**given)


def test_errors_of_the_backward():
    output, *_, activated, inner = kernels.recurrent_forward(GATED, WEIGHT, mode="lstm")
    for grad, text in ((STATE, "grad_output has"), (output.astype(float), "grad_output .*float32")):
        with pytest.raises((ValueError, TypeError), match=text):
            kernels.recurrent_backward(
                grad, None, None, output, activated, inner, WEIGHT, mode="lstm"
            )
    with pytest.raises(TypeError, match="activated is None"):
        kernels.recurrent_backward(output, None, None, output, None, None, WEIGHT, mode="lstm")
    with pytest.raises(ValueError, match="grad_c_n is given"):
        kernels.recurrent_backward(
            output, None, STATE, output, None, None, WEIGHT[:H], mode="rnn_tanh"
        )
