"""RNN, LSTM, GRU, their cells, and packed sequences: shapes, errors, and learning something."""

import copy
import warnings

import numpy as np
import pytest

import gpunn as g
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.device import probe
from gpunn.nn.utils import rnn

LAYERS = (nn.RNN, nn.LSTM, nn.GRU)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")
    g.manual_seed(0)


def states_of(ends):
    return list(ends) if isinstance(ends, tuple) else [ends]


def same(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), atol=1e-6)


# ---- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_shapes_names_and_first_values(kind):
    layer = kind(5, 8, 2, bidirectional=True)
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[kind]
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    assert list(shapes)[:5] == [
        "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l0_reverse"
    ]  # fmt: skip
    assert shapes["weight_ih_l0"] == (8 * gates, 5) and shapes["bias_hh_l1_reverse"] == (8 * gates,)
    assert shapes["weight_ih_l1"] == (8 * gates, 16) and shapes["weight_hh_l1"] == (8 * gates, 8)
    values = np.concatenate([p.detach().numpy().reshape(-1) for p in layer.parameters()])
    assert np.abs(values).max() <= 8**-0.5 and abs(values.std() * 24**0.5 - 1) < 0.05
    assert repr(layer) == f"{kind.__name__}(5, 8, num_layers=2, bidirectional=True)"
    output, ends = layer(g.randn(7, 3, 5))
    assert output.shape == (7, 3, 16)
    for state in states_of(ends):
        assert state.shape == (4, 3, 8)
    same(output[-1, :, :8], states_of(ends)[0][2])  # the last layer's ends
    same(output[0, :, 8:], states_of(ends)[0][3])
    assert len(layer.all_weights) == 4 and layer.flatten_parameters() is None
    assert len(list(kind(5, 8, bias=False).parameters())) == 2
    deep = copy.deepcopy(layer)
    same(deep(g.ones(2, 3, 5))[0], layer(g.ones(2, 3, 5))[0])


@pytest.mark.parametrize("kind", LAYERS)
def test_layouts_give_the_same(kind):
    layer = kind(4, 6, 2, bidirectional=True)
    x = g.randn(5, 3, 4)
    hx = [g.randn(4, 3, 6) for _ in range(1 + (kind is nn.LSTM))]
    expected, ends = layer(x, tuple(hx) if kind is nn.LSTM else hx[0])
    layer.batch_first = True
    found, same_ends = layer(x.transpose(0, 1), tuple(hx) if kind is nn.LSTM else hx[0])
    same(found.transpose(0, 1), expected)
    for batch in range(3):  # a sequence alone
        some = [state[:, batch] for state in hx]
        alone, its = layer(x[:, batch], tuple(some) if kind is nn.LSTM else some[0])
        same(alone, expected[:, batch])
        for state, end, whole in zip(
            states_of(its), states_of(same_ends), states_of(ends), strict=True
        ):
            same(state, whole[:, batch])
            same(end, whole)


@pytest.mark.parametrize("kind", LAYERS)
def test_lengths_are_each_sequence_alone(kind):
    layer = kind(4, 6, 2, bidirectional=True)
    x, lengths = g.randn(7, 5, 4), [3, 7, 1, 5, 7]
    output, ends = layer(x, lengths=lengths)
    packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed_output, packed_ends = layer(packed)
    padded, their_lengths = rnn.pad_packed_sequence(packed_output)
    assert their_lengths.tolist() == lengths
    same(padded, output)
    for batch, length in enumerate(lengths):
        alone, its = layer(x[:length, batch : batch + 1])
        same(output[:length, batch], alone[:, 0])
        assert (output[length:, batch].detach().numpy() == 0).all()
        for mine, whole, other in zip(
            states_of(its), states_of(ends), states_of(packed_ends), strict=True
        ):
            same(mine[:, 0], whole[:, batch])
            same(mine[:, 0], other[:, batch])
    one, _ = layer(x[:, 0], lengths=3)
    same(one, output[:, 0])


def test_lengths_from_anywhere():
    layer, x = nn.GRU(2, 3), g.randn(4, 2, 2)
    expected = layer(x, lengths=[4, 2])[0]
    for given in (np.array([4, 2], np.uint8), g.tensor([4, 2], dtype="int32"), (4, np.int64(2))):
        same(layer(x, lengths=given)[0], expected)
    same(layer(x, lengths=[4, 4])[0], layer(x)[0])


def test_dropout_acts_between_layers_in_training_only():
    layer, x = nn.LSTM(3, 50, 2, dropout=0.5), g.randn(4, 2, 3)
    first, second = layer(x)[0].detach().numpy(), layer(x)[0].detach().numpy()
    assert not np.allclose(first, second)
    layer.eval()
    same(layer(x)[0], layer(x)[0])
    with pytest.warns(UserWarning, match="GRU: dropout of 0.5 acts between layers"):
        nn.GRU(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.GRU(3, 4, 2, dropout=0.5)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_cell_is_a_step(kind):
    layer = kind(4, 6, nonlinearity="relu") if kind is nn.RNN else kind(4, 6)
    options = {"nonlinearity": "relu"} if kind is nn.RNN else {}
    cell = getattr(nn, f"{kind.__name__}Cell")(4, 6, **options)
    cell.load_state_dict({name[: -len("_l0")]: value for name, value in layer.state_dict().items()})
    x, hx = g.randn(5, 3, 4), None
    output, ends = layer(x)
    for t in range(5):
        hx = cell(x[t], hx)
        same(states_of(hx)[0], output[t])
    for mine, end in zip(states_of(hx), states_of(ends), strict=True):
        same(mine, end[0])
    alone = states_of(cell(x[0, 1]))
    assert alone[0].shape == (6,)
    same(alone[0], output[0, 1])
    assert repr(cell) == f"{kind.__name__}Cell(4, 6)"


def test_half_precision_follows_float32():
    for kind in LAYERS:
        layer, x = kind(4, 6, bidirectional=True), g.randn(5, 3, 4)
        expected = layer(x, lengths=[5, 2, 4])[0].detach().numpy()
        found = layer.half()(x.half(), lengths=[5, 2, 4])[0]
        found.sum().backward()
        assert found.dtype == np.float16 and layer.weight_hh_l0.grad.dtype == np.float16
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=5e-3)


def test_in_a_summary():
    model = Reader(nn.LSTM, 8, 6, 2)
    rows = {row.name: row for row in model.summary((5, 8)).rows}
    assert rows["layer"].output_shape == (2, 5, 6) and rows["layer"].parameters == 4 * 6 * 16


# ---- packing -------------------------------------------------------------------------------------


def test_padding_and_packing():
    a, b, c = (g.tensor(np.arange(n * 2.0).reshape(n, 2) + 10 * n) for n in (3, 1, 2))
    padded = rnn.pad_sequence([a, b, c], padding_value=-1)
    assert padded.shape == (3, 3, 2) and padded[1:, 1].tolist() == [[-1, -1], [-1, -1]]
    left = rnn.pad_sequence([a, b, c], batch_first=True, padding_side="left")
    assert left[1].tolist() == [[0, 0], [0, 0], [10, 11]]
    packed = rnn.pack_sequence([a, c, b])
    assert packed.batch_sizes.tolist() == [3, 2, 1] and packed.sorted_indices is None
    assert packed.data.tolist()[:3] == [[30, 31], [20, 21], [10, 11]]
    free = rnn.pack_padded_sequence(padded, [3, 1, 2], enforce_sorted=False)
    assert free.data.tolist() == packed.data.tolist()
    assert free.sorted_indices.tolist() == free.unsorted_indices.tolist() == [0, 2, 1]
    back, lengths = rnn.pad_packed_sequence(free, padding_value=-1, total_length=4)
    assert lengths.tolist() == [3, 1, 2] and back.shape == (4, 3, 2)
    assert back[:3].tolist() == padded.tolist() and (back[3].numpy() == -1).all()
    for found, expected in zip(rnn.unpack_sequence(free), (a, b, c), strict=True):
        assert found.tolist() == expected.tolist()
    assert [len(s) for s in rnn.unpad_sequence(padded, [1, 1, 2])] == [1, 1, 2]
    assert packed.to("float64").dtype == np.float64 and not packed.cpu().is_cuda


X3 = np.zeros((4, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda x: nn.LSTM(3, 0), ValueError, "LSTM: hidden_size is 0"),
        (lambda x: nn.GRU(3, 4, 1.5), ValueError, "GRU: num_layers is 1.5"),
        (lambda x: nn.RNN(3, 4, dropout=2), ValueError, "RNN: dropout is 2"),
        (lambda x: nn.RNN(3, 4, nonlinearity="elu"), ValueError, "RNN: nonlinearity 'elu'"),
        (lambda x: nn.LSTM(3, 4, proj_size=2), ValueError, r"proj_size is 2.* Linear\(4, 2\)"),
        (lambda x: nn.LSTM(5, 4)(x), ValueError, r"LSTM: input has shape \(4, 2, 3\).*size 5"),
        (lambda x: nn.LSTM(3, 4)(x.double()), TypeError, "float64 and the weights float32"),
        (lambda x: nn.LSTM(3, 4)(x[:0]), ValueError, "sequences without a step"),
        (lambda x: nn.LSTM(3, 4)(x, x), TypeError, "hx is Tensor; expected two Tensors"),
        (lambda x: nn.GRU(3, 4)(x, (x, x)), TypeError, "hx is a tuple"),
        (lambda x: nn.GRU(3, 4)(x, x), ValueError, r"hx has shape .*expected \(1, 2, 4\)"),
        (lambda x: nn.LSTM(3, 4)(x, (g.zeros(1, 2, 4), g.zeros(1, 2, 5))), ValueError,
         r"c_0 has shape \(1, 2, 5\)"),
        (lambda x: nn.GRU(3, 4)(x, g.zeros(1, 2, 4).double()), TypeError, "hx has dtype float64"),
        (lambda x: nn.GRU(3, 4)(x, lengths=[4, 5]), ValueError, r"lengths\[1\] is 5, .* 4 steps"),
        (lambda x: nn.GRU(3, 4)(x, lengths=[0, 4]), ValueError, r"lengths\[0\] is 0"),
        (lambda x: nn.GRU(3, 4)(x, lengths=[1.0, 4.0]), TypeError, "dtype float64; .*whole"),
        (lambda x: nn.GRU(3, 4)(x, lengths=[1]), ValueError, r"\(1,\); expected \(2,\)"),
        (lambda x: nn.GRU(3, 4)(rnn.pack_padded_sequence(x, [4, 2]), lengths=[4, 2]), ValueError,
         "lengths come with a PackedSequence"),
        (lambda x: nn.GRUCell(3, 4)(x), ValueError, "GRUCell: input has shape"),
        (lambda x: nn.LSTMCell(3, 4)(x[0], x[0]), TypeError, "LSTMCell: hx is Tensor"),
        (lambda x: rnn.pack_padded_sequence(x, [2, 4]), ValueError, "enforce_sorted=False"),
        (lambda x: rnn.pad_packed_sequence(rnn.pack_sequence([x[:, 0]]), total_length=3),
         ValueError, "total_length is 3, and the longest sequence has 4"),
        (lambda x: rnn.pad_sequence([]), ValueError, "at least one"),
        (lambda x: rnn.pad_sequence([x], padding_side="up"), ValueError, "padding_side 'up'"),
    ],
)  # fmt: skip
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action(g.tensor(X3))


# ---- learning ------------------------------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self, kind, inputs, hidden, classes):
        super().__init__()
        self.layer, self.head = kind(inputs, hidden), nn.Linear(hidden, classes)

    def forward(self, x, lengths=None):
        ends = self.layer(x, lengths=lengths)[1]
        return self.head(states_of(ends)[0][-1])


def test_a_gru_keeps_the_first_symbol_to_the_end_of_each_sequence():
    """The label is the first symbol; up to 8 others follow it, and then padding."""
    rng = np.random.default_rng(0)
    model = Reader(nn.GRU, 5, 32, 4)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)

    def batch():
        symbols, lengths = rng.integers(0, 4, (9, 48)), rng.integers(1, 10, 48)
        x = np.eye(5, dtype=np.float32)[symbols]
        x[0, :, 4] = 1  # marks the beginning
        return g.tensor(x), lengths, symbols[0]

    for _ in range(70):
        x, lengths, label = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x, lengths), g.tensor(label)).backward()
        optimizer.step()
    x, lengths, label = batch()
    assert (model(x, lengths).detach().numpy().argmax(1) == label).mean() > 0.95


# ---- devices -------------------------------------------------------------------------------------


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_kernels_give_the_same_layer(kind):
    """Both directions, lengths, initial states: what the tape puts around the CUDA kernels."""
    rng, found = np.random.default_rng(0), []
    x, h, state = rng.normal(size=(5, 3, 3)), rng.normal(size=(4, 3, 4)), None
    for device in ("cpu", "emulator"):
        layer = kind(3, 4, 2, bidirectional=True)
        state = layer.state_dict() if state is None else state
        layer.load_state_dict(state)
        layer.to(device)
        leaves = [
            g.tensor(array, dtype="float32", device=device, requires_grad=True) for array in (x, h)
        ]
        hx = (leaves[1], leaves[1]) if kind is nn.LSTM else leaves[1]
        output, ends = layer(leaves[0], hx, [3, 5, 1])
        results = [output, *states_of(ends)]
        sum((result * result).sum() for result in results).backward()
        results += [tensor.grad for tensor in (*leaves, *layer.parameters())]
        found.append([result.detach().cpu().numpy() for result in results])
    for mine, expected in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
def test_lengths_on_the_device_are_not_looked_at():
    """So nothing waits for them, and a step with them can be compiled."""
    layer, x, h0 = nn.GRU(3, 4, bidirectional=True), g.randn(5, 3, 3), g.randn(2, 3, 4)
    found = []
    for device, counts in (("cpu", [3, 5, 1]), ("emulator", [3, 9, 1])):  # 9 counts as 5
        layer.to(device)
        layer.zero_grad()
        lengths = g.tensor(counts, device=device)
        output, h = layer(x.to(device), h0.to(device), lengths=lengths)
        (output.sum() + h.square().sum()).backward()
        results = (output, h, *(parameter.grad for parameter in layer.parameters()))
        found.append([result.detach().cpu().numpy() for result in results])
    for expected, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    lengths = g.tensor([3, -1, 1], device="emulator")  # -1 counts as 0
    output, h = layer(x.to("emulator"), h0.to("emulator"), lengths=lengths)
    assert not output[:, 1].detach().cpu().numpy().any()
    np.testing.assert_array_equal(h[:, 1].detach().cpu().numpy(), h0[:, 1].numpy())
    with pytest.raises(ValueError, match="lengths"):
        layer(x.to("emulator"), lengths=lengths[:2])
    with pytest.raises(ValueError, match=r"lengths\[1\] is 9"):
        layer(x.to("emulator"), lengths=[3, 9, 1])
