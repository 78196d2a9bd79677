"""Convolutions on the tape: values by hand, differences, layouts, errors that speak."""

import numpy as np
import pytest

import gpunn
import gpunn.autograd as g
import gpunn.nn.functional as F
from gpunn.autograd.functions.layout import in_axes, is_channels_last, memory_order
from gpunn.primitives import cpu_threads

rng = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")


def leaf(*shape, dtype=np.float64):
    return g.tensor(rng.normal(size=shape).astype(dtype), requires_grad=True)


def by_hand(x, weight, bias, stride, padding, dilation):
    """A 2-D convolution as its formula reads, in Python."""
    n, _, height, width = x.shape
    outputs, _, kh, kw = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((n, outputs, rows, columns))
    for i in range(rows):
        for j in range(columns):
            at = (i * sh, j * sw)
            patch = padded[:, :, at[0] : at[0] + dh * kh : dh, at[1] : at[1] + dw * kw : dw]
            out[:, :, i, j] = np.einsum("nchw,ochw->no", patch, weight) + bias
    return out


def test_value_by_its_formula():
    x, weight, bias = leaf(2, 3, 7, 6), leaf(4, 3, 3, 2), leaf(4)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 3)}
    arrays = [t.detach().numpy() for t in (x, weight, bias)]
    out = F.conv2d(x, weight, bias, **options)
    np.testing.assert_allclose(out.detach().numpy(), by_hand(*arrays, **options), rtol=1e-12)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_gradients_by_differences(activation):
    options = {"activation": activation, "groups": 2}
    x, weight, bias = leaf(2, 4, 5, 4), leaf(6, 2, 2, 3), leaf(6)
    assert g.gradcheck(
        lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 2), (2, 1), **options), (x, weight, bias),
        atol=1e-6, rtol=1e-5,
    )  # fmt: skip
    x, weight, bias = leaf(2, 4, 3, 2), leaf(4, 3, 2, 3), leaf(6)
    assert g.gradcheck(
        lambda x, w, b: F.conv_transpose2d(x, w, b, (2, 1), (1, 1), (1, 0), **options),
        (x, weight, bias), atol=1e-6, rtol=1e-5,
    )  # fmt: skip


def test_gradients_only_where_they_are_wanted():
    for function, shape in ((F.conv1d, (4, 3, 3)), (F.conv_transpose1d, (3, 4, 3))):
        for wanted in range(1, 8):
            tensors = leaf(2, 3, 9), leaf(*shape), leaf(4)
            for number, tensor in enumerate(tensors):
                tensor.requires_grad = bool(wanted >> number & 1)
            function(*tensors, activation="tanh").sum().backward()
            assert [t.grad is not None for t in tensors] == [t.requires_grad for t in tensors]


@pytest.mark.parametrize("dtype", [gpunn.float16, gpunn.bfloat16])
def test_16_bits_are_computed_in_float32(dtype):
    shapes = (2, 8, 9, 9), (6, 8, 3, 3), 6
    x, weight, bias = (g.tensor(rng.normal(size=shape)).to(dtype) for shape in shapes)
    for function, w in ((F.conv2d, weight), (F.conv_transpose2d, weight.permute(1, 0, 2, 3))):
        tensors = [t.detach().requires_grad_() for t in (x, w, bias)]
        wide = [t.detach().double().requires_grad_() for t in tensors]
        out, exact = function(*tensors), function(*wide)
        grad = g.tensor(rng.normal(size=out.shape)).to(dtype)
        out.backward(grad)
        exact.backward(grad.double())
        pairs = [(out, exact), *((a.grad, b.grad) for a, b in zip(tensors, wide, strict=True))]
        for low, high in pairs:
            assert low.dtype == dtype
            low, high = low.detach().double().numpy(), high.detach().numpy()
            unit = 2.0**-8 if dtype == gpunn.bfloat16 else 2.0**-11
            np.testing.assert_allclose(low, high, unit * 1.01, 1e-5)


def test_same_and_valid_and_one_image():
    x, weight = leaf(3, 8, 7), leaf(5, 3, 4, 3)
    same = F.conv2d(x, weight, padding="same", dilation=(1, 2))
    assert same.shape == (5, 8, 7)
    padded = F.pad(x, (2, 2, 1, 2)).unsqueeze(0)
    by_pairs = F.conv2d(padded, weight, dilation=(1, 2), padding="valid")
    np.testing.assert_allclose(same.detach().numpy(), by_pairs.detach().numpy()[0], rtol=1e-12)
    (same * 2).sum().backward()
    assert x.grad.shape == x.shape


def test_results_lie_channels_last_and_stay_so():
    x, weight = leaf(2, 3, 6, 5), leaf(4, 3, 3, 3)
    y = F.conv2d(x, weight)
    places = F.conv2d(x.permute(0, 2, 3, 1), weight, channels_last=True)
    np.testing.assert_array_equal(y.detach().numpy(), places.permute(0, 3, 1, 2).detach().numpy())
    chain = [
        y, F.gelu(y), F.relu(y), F.dropout(y, 0.5), y * 2 + y / 3, y + g.ones(4, 1, 1).double(),
        y.exp().clamp(0, 2), g.where(y > 0, y, -y), -y, y.detach().clone().relu_() + y,
        y.to(gpunn.float32),
    ]  # fmt: skip
    for number, tensor in enumerate(chain[:-2] + chain[-1:]):
        assert is_channels_last(tensor.array), number
    sum(tensor.double().sum() for tensor in chain).backward()
    plain = g.tensor(np.ascontiguousarray(y.detach().numpy()))
    np.testing.assert_array_equal(F.gelu(plain).numpy(), chain[1].detach().numpy())
    for function in (F.gelu, F.relu):  # a gradient of another layout than what is kept
        y = F.conv2d(x, weight).detach().requires_grad_()
        plain = g.tensor(np.ascontiguousarray(y.detach().numpy()), requires_grad=True)
        seed = rng.normal(size=y.shape)
        for tensor in (y, plain):
            function(tensor).flatten(1).backward(g.tensor(seed.reshape(2, -1)))
        np.testing.assert_array_equal(y.grad.numpy(), plain.grad.numpy())


def test_dropout_drops_the_same_on_the_way_back():
    y = F.conv2d(leaf(2, 3, 6, 5), leaf(4, 3, 3, 3)).detach().requires_grad_()
    out = F.dropout(y, 0.5)
    out.backward(g.ones(*out.shape).double())
    np.testing.assert_array_equal(out.detach().numpy() != 0, y.grad.numpy() != 0)


def test_memory_formats():
    x = leaf(2, 3, 4, 5)
    y = x.contiguous(memory_format=gpunn.channels_last)
    assert is_channels_last(y.array) and y.is_contiguous(memory_format=gpunn.channels_last)
    assert not y.is_contiguous() and x.contiguous() is x
    for kept in (gpunn.channels_last, gpunn.preserve_format):
        assert y.to(memory_format=kept) is y
    np.testing.assert_array_equal(y.detach().numpy(), x.detach().numpy())
    (y.contiguous() * g.arange(5)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.broadcast_to(np.arange(5.0), x.shape))
    assert g.zeros(2, 3).to("cpu", memory_format=gpunn.contiguous_format).is_contiguous()
    with pytest.raises(ValueError, match=r"\(2, 3\) has no channels"):
        g.zeros(2, 3).contiguous(memory_format=gpunn.channels_last)
    with pytest.raises(TypeError, match="'last'"):
        x.contiguous(memory_format="last")


def test_memory_order():
    x = np.zeros((2, 3, 4, 5))
    assert memory_order(x) is None and memory_order(x[:, ::2]) is None
    assert memory_order(np.broadcast_to(x[:, :1], x.shape)) is None
    for order in ((0, 2, 3, 1), (3, 1, 0, 2)):
        view = x.transpose(order)
        found = memory_order(view)
        assert view.transpose(found).flags.c_contiguous
        assert in_axes(view.transpose(found), found).strides == view.strides


def test_writing_to_what_is_needed_is_noticed():
    x, weight = leaf(1, 2, 5, 5), leaf(3, 2, 2, 2)
    out = F.conv2d(x, weight, activation="relu")
    with g.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        out.sum().backward()


@pytest.mark.parametrize("sizes", [
    ((4, 2, 6, 6), (4, 2, 3, 3), 1, 1), ((3, 8, 9, 7), (8, 1, 3, 3), 8, 1),
    ((2, 4, 6, 5), (6, 2, 2, 2), 2, 2), ((1, 16, 12, 12), (32, 16, 3, 3), 1, 2),
])  # fmt: skip
def test_any_number_of_threads_gives_the_same_bits(sizes, monkeypatch):
    shape, kernel, groups, stride = sizes
    x, weight = leaf(*shape, dtype=np.float32), leaf(*kernel, dtype=np.float32)
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(cpu_threads, "thread_count", lambda count=count: count)
        x.grad = weight.grad = None
        out = F.conv2d(x, weight, stride=stride, padding=1, groups=groups)
        (out * out).sum().backward()
        found.append([t.numpy().tobytes() for t in (out.detach(), x.grad, weight.grad)])
    assert found[0] == found[1] == found[2]


def test_an_error_in_a_thread_arrives(monkeypatch):
    monkeypatch.setattr(cpu_threads, "thread_count", lambda: 3)
    done = []

    def work(piece):
        if piece == 2:
            raise KeyError("two")
        done.append(piece)

    with pytest.raises(KeyError, match="two"):
        cpu_threads.for_each(work, range(6))
    cpu_threads.for_each(done.append, range(10, 20))
    assert set(range(10, 20)) <= set(done)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.conv2d(leaf(1, 5, 8, 8), leaf(4, 3, 3, 3)), ValueError, "5 channels.*needs 3"),
        (lambda: F.conv2d(leaf(1, 6, 8, 8), leaf(4, 2, 3, 3), groups=3), ValueError,
         "groups=3.*divide its first dimension, 4"),
        (lambda: F.conv2d(leaf(1, 3, 4, 8), leaf(4, 3, 7, 3), padding=1), ValueError,
         "7 places.*only 6"),
        (lambda: F.conv2d(leaf(3, 8), leaf(4, 3, 3, 3)), ValueError, r"\(3, 8\).*2 spatial"),
        (lambda: F.conv1d(leaf(1, 3, 8), leaf(4, 3, 3, 3)), ValueError, "1 spatial"),
        (lambda: F.conv1d(leaf(1, 3, 8), leaf(4, 3, 3), leaf(5)), ValueError, r"\(5,\).*\(4,\)"),
        (lambda: F.conv1d(leaf(1, 3, 8), leaf(4, 3, 3), stride=0), ValueError, "stride is 0"),
        (lambda: F.conv1d(leaf(1, 3, 8), leaf(4, 3, 3), padding="full"), ValueError, "'full'"),
        (lambda: F.conv1d(leaf(1, 3, 8), leaf(4, 3, 3), stride=2, padding="same"), ValueError,
         "'same' with stride"),
        (lambda: F.conv1d(leaf(1, 3, 8), leaf(4, 3, 3).float()), TypeError, "float64.*float32"),
        (lambda: F.conv1d(leaf(1, 3, 8), leaf(4, 3, 3), activation="soft"), ValueError, "'soft'"),
        (lambda: F.conv_transpose1d(leaf(1, 3, 8), leaf(4, 3, 3)), ValueError, "3 channels.*4"),
        (lambda: F.conv_transpose1d(leaf(1, 3, 8), leaf(3, 4, 3), output_padding=1), ValueError,
         "output_padding 1.*stride"),
        (lambda: F.conv_transpose1d(leaf(1, 3, 1), leaf(3, 4, 3), padding=2), ValueError,
         "size -1"),
    ],
)  # fmt: skip
def test_errors_have_the_numbers(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_empty_batch():
    x, weight, bias = leaf(0, 3, 5, 5), leaf(4, 3, 3, 3), leaf(4)
    out = F.conv2d(x, weight, bias)
    assert out.shape == (0, 4, 3, 3)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert not weight.grad.numpy().any() and not bias.grad.numpy().any()
