"""Every differentiable function: its value, and its gradient by finite differences in float64."""

import numpy as np
import pytest

import gpunn.nn.functional as F
from gpunn import autograd as g
from gpunn.autograd import Function, gradcheck
from gpunn.autograd.functions import channel_norm, linalg, loss, moving  # noqa: F401  all families are loaded

rng = np.random.default_rng(7)


def leaf(*shape, low=None):
    """A float64 leaf of normal numbers, or of uniform ones from [low, low + 1)."""
    data = rng.normal(size=shape) if low is None else rng.uniform(low, low + 1, size=shape)
    return g.tensor(data, device="cpu", requires_grad=True)


mask = g.tensor(rng.random((3, 4)) > 0.5, device="cpu")
labels = g.tensor([2, 0, 3], device="cpu")
index = g.tensor([[0, 1, 1], [2, 0, 0], [1, 1, 1]], device="cpu")
class_weight = g.tensor(rng.uniform(0.5, 1.5, 4), device="cpu")
probabilities = g.tensor(rng.dirichlet(np.ones(4), 3), device="cpu")


def written(x, value):
    y = x * 1.0
    y[1] = value
    y[0] += value * 2
    y[:, 1] *= 3.0
    return y


A, B, P, Q = leaf(3, 4), leaf(3, 4), leaf(3, 4, low=0.5), leaf(4, low=0.5)

# name -> (value by NumPy or None, function, inputs)
CASES = {
    "add": (lambda a, b: a + b, g.add, (A, Q)),
    "sub": (lambda a, b: a - b, g.sub, (Q, A)),
    "mul": (lambda a, b: a * b, g.mul, (A, Q)),
    "div": (lambda a, b: a / b, g.div, (A, P)),
    "rdiv": (lambda a: 2 / a, lambda a: 2 / a, (P,)),
    "pow": (lambda a, b: a**b, g.pow, (P, Q)),
    "square": (lambda a: a**2, lambda a: a**2, (A,)),
    "cube root": (lambda a: a ** (1 / 3), lambda a: a ** (1 / 3), (P,)),
    "rpow": (lambda a: 2.0**a, lambda a: 2**a, (A,)),
    "remainder": (lambda a, b: a % b, g.remainder, (A, P)),
    "neg": (lambda a: -a, g.neg, (A,)),
    "maximum": (np.maximum, g.maximum, (A, B)),
    "minimum": (np.minimum, g.minimum, (A, Q)),
    "where": (lambda a, b: np.where(mask.array, a, b), lambda a, b: g.where(mask, a, b), (A, Q)),
    "masked_fill": (None, lambda a: a.masked_fill(mask, 2.0), (A,)),
    "clamp": (lambda a: a.clip(-0.5, 0.5), lambda a: a.clamp(-0.5, 0.5), (A,)),
    "clamp by tensors": (None, lambda a, b: a.clamp(max=b), (A, Q)),
    "expm1": (np.expm1, g.expm1, (A,)),
    "exp": (np.exp, g.exp, (A,)),
    "log": (np.log, g.log, (P,)),
    "log2": (np.log2, g.log2, (P,)),
    "log10": (np.log10, g.log10, (P,)),
    "log1p": (np.log1p, g.log1p, (P,)),
    "sqrt": (np.sqrt, g.sqrt, (P,)),
    "rsqrt": (lambda a: a**-0.5, g.rsqrt, (P,)),
    "reciprocal": (lambda a: 1 / a, g.reciprocal, (P,)),
    "torch square": (np.square, g.square, (A,)),
    "sin": (np.sin, g.sin, (A,)),
    "cos": (np.cos, g.cos, (A,)),
    "tan": (np.tan, g.tan, (P,)),
    "atan": (np.arctan, g.atan, (A,)),
    "abs": (np.abs, g.abs, (A,)),
    "floor": (np.floor, g.floor, (A,)),
    "sum": (lambda a: a.sum(), g.sum, (A,)),
    "sum dim": (lambda a: a.sum(0), lambda a: a.sum(0), (A,)),
    "sum dims": (lambda a: a.sum((0, 1), keepdims=True), lambda a: a.sum((0, -1), True), (A,)),
    "mean": (lambda a: a.mean(), g.mean, (A,)),
    "mean dim": (lambda a: a.mean(1, keepdims=True), lambda a: a.mean(1, keepdim=True), (A,)),
    "var": (lambda a: a.var(1, ddof=1), lambda a: a.var(1), (A,)),
    "var biased": (lambda a: a.var(), lambda a: a.var(unbiased=False), (A,)),
    "std": (lambda a: a.std(0, ddof=1), lambda a: a.std(0), (A,)),
    "prod": (lambda a: a.prod(0), lambda a: a.prod(0), (A,)),
    "prod all": (lambda a: a.prod(), g.prod, (A,)),
    "max": (lambda a: a.max(), g.max, (A,)),
    "max dim": (lambda a: a.max(1), lambda a: a.max(1).values, (A,)),
    "min dim": (lambda a: a.min(0, keepdims=True), lambda a: a.min(0, keepdim=True)[0], (A,)),
    "amin": (lambda a: a.min((0, 1)), lambda a: a.amin((0, 1)), (A,)),
    "cumsum": (lambda a: a.cumsum(1), lambda a: a.cumsum(1), (A,)),
    "norm": (np.linalg.norm, g.norm, (A,)),
    "norm 3": (None, lambda a: a.norm(3, dim=1), (A,)),
    "norm inf": (lambda a: np.abs(a).max(0), lambda a: a.norm(float("inf"), 0), (A,)),
    "logsumexp": (lambda a: np.log(np.exp(a).sum(1)), lambda a: a.logsumexp(1), (A,)),
    "gather": (None, lambda a: a.gather(1, index), (A,)),
    "reshape": (lambda a: a.reshape(2, 6), lambda a: a.reshape(2, -1), (A,)),
    "view": (lambda a: a.reshape(4, 3), lambda a: a.view(4, 3), (A,)),
    "permute": (lambda a: a.T, lambda a: a.permute(1, 0), (A,)),
    "transpose": (lambda a: a.T, lambda a: a.transpose(0, -1), (A,)),
    "T": (lambda a: a.T, lambda a: a.T, (A,)),
    "moveaxis": (None, lambda a: a.reshape(3, 2, 2).moveaxis(0, -1), (A,)),
    "expand": (None, lambda a: a.expand(3, -1) * A.detach(), (Q,)),
    "repeat": (lambda a: np.tile(a, (2, 1, 3)), lambda a: a.repeat(2, 1, 3), (A,)),
    "squeeze": (lambda a: a, lambda a: a.unsqueeze(1).squeeze(), (A,)),
    "flatten": (lambda a: a.ravel(), lambda a: a.flatten(), (A,)),
    "unflatten": (lambda a: a.reshape(3, 2, 2), lambda a: a.unflatten(1, (2, -1)), (A,)),
    "clone": (lambda a: a, lambda a: a.clone(), (A,)),
    "contiguous": (lambda a: a.T, lambda a: a.T.contiguous(), (A,)),
    "flip": (lambda a: a[::-1], lambda a: a.flip(0), (A,)),
    "tril": (np.tril, lambda a: a.tril(), (A,)),
    "triu": (lambda a: np.triu(a, 1), lambda a: a.triu(1), (A,)),
    "cat": (lambda a, b: np.concatenate([a, b], 1), lambda a, b: g.cat([a, b], 1), (A, P)),
    "stack": (lambda a, b: np.stack([a, b], 2), lambda a, b: g.stack([a, b], -1), (A, P)),
    "split": (None, lambda a: a.split([1, 3], 1)[1] * 2, (A,)),
    "chunk": (None, lambda a: a.chunk(2, 1)[0] * a.chunk(2, 1)[1], (A,)),
    "unbind": (None, lambda a: a.unbind(0)[2] * a.unbind(1)[0].sum(), (A,)),
    "slice": (lambda a: a[1:, ::2], lambda a: a[1:, ::2], (A,)),
    "index": (lambda a: a[[0, 2, 0]], lambda a: a[[0, 2, 0]], (A,)),
    "index pairs": (None, lambda a: a[index[0], index[1]] * 3, (A,)),
    "index mixed": (None, lambda a: a[:, None, [1, 1, 3]], (A,)),
    "mask": (lambda a: a[mask.array], lambda a: a[mask], (A,)),
    "setitem": (None, written, (A, Q)),
    "double": (
        lambda a: a,
        lambda a: a.float().double(),
        (g.ones(2, dtype="float64", requires_grad=True),),
    ),
    "matmul": (np.matmul, g.matmul, (A, leaf(4, 2))),
    "matmul vectors": (np.matmul, g.matmul, (Q, leaf(4))),
    "matmul vector": (np.matmul, g.matmul, (A, Q)),
    "matmul row": (np.matmul, g.matmul, (leaf(3), A)),
    "matmul batch": (np.matmul, g.matmul, (leaf(2, 1, 3, 4), leaf(3, 4, 2))),
    "matmul batch by matrix": (np.matmul, g.matmul, (leaf(2, 3, 4), leaf(4, 5))),
    "matmul transposed": (None, lambda a, b: a @ b.T, (A, B)),
    "outer": (np.outer, g.outer, (Q, leaf(3))),
    "linear": (lambda x, w, b: x @ w.T + b, F.linear, (A, leaf(2, 4), leaf(2))),
    "linear without bias": (lambda x, w: x @ w.T, F.linear, (leaf(2, 3, 4), leaf(5, 4))),
    "softmax": (None, lambda a: F.softmax(a, 1), (A,)),
    "softmax dim 0": (None, lambda a: F.softmax(a, 0), (A,)),
    "log_softmax": (None, lambda a: F.log_softmax(a, -1), (A,)),
    "softplus": (lambda a: np.log1p(np.exp(a)), F.softplus, (A,)),
    "softplus threshold": (None, lambda a: F.softplus(a, 2.0, 1.0), (A,)),
    "logsigmoid": (lambda a: -np.log1p(np.exp(-a)), F.logsigmoid, (A,)),
    "normalize": (None, F.normalize, (A,)),
    "mse": (lambda a, b: np.mean((a - b) ** 2), F.mse_loss, (A, B)),
    "mse sum": (None, lambda a, b: F.mse_loss(a, b, reduction="sum"), (A, B)),
    "l1": (lambda a, b: np.mean(np.abs(a - b)), F.l1_loss, (A, B)),
    "huber": (None, lambda a, b: F.huber_loss(a, b, delta=0.7), (A, B)),
    "huber none": (None, lambda a, b: F.huber_loss(a, b, reduction="none"), (A, B)),
    "smooth l1": (None, lambda a, b: F.smooth_l1_loss(a, b, beta=0.5), (A, B)),
    "bce logits": (
        None,
        lambda a: F.binary_cross_entropy_with_logits(a, P.detach() - 0.5),
        (A,),
    ),
    "bce": (None, lambda p: F.binary_cross_entropy(p - 0.5, mask.double()), (P,)),
    "cross entropy": (None, lambda a: F.cross_entropy(a, labels), (A,)),
    "cross entropy smoothed": (
        None,
        lambda a: F.cross_entropy(a, labels, class_weight, label_smoothing=0.2, ignore_index=0),
        (A,),
    ),
    "cross entropy none": (None, lambda a: F.cross_entropy(a, labels, reduction="none"), (A,)),
    "cross entropy soft": (None, lambda a: F.cross_entropy(a, probabilities), (A,)),
    "cross entropy images": (
        None,
        lambda a: F.cross_entropy(a.reshape(1, 3, 2, 2), labels[:2] * g.ones(1, 2, 2).long() // 2),
        (A,),
    ),
    "linear cross entropy": (
        None,
        lambda x, w, b: F.linear_cross_entropy(x, w, b, labels, class_weight, chunk_rows=2),
        (leaf(3, 5), leaf(4, 5), leaf(4)),
    ),
    "conv2d": (
        None,
        lambda x, w, b: F.conv2d(x, w, b, stride=(1, 2), padding=1, activation="tanh"),
        (leaf(2, 2, 4, 4), leaf(3, 2, 2, 3), leaf(3)),
    ),
    "conv transpose 1d": (
        None,
        lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, padding=1, output_padding=1),
        (leaf(2, 3, 4), leaf(3, 2, 3), leaf(2)),
    ),
    "nll": (None, lambda a: F.nll_loss(F.log_softmax(a, 1), labels, class_weight), (A,)),
}
for name in ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish"):
    CASES[name] = (None, getattr(F, name), (A,))
    CASES[f"linear {name}"] = (
        None,
        lambda x, w, b, name=name: F.linear(x, w, b, activation=name),
        (leaf(2, 3, 4), leaf(2, 4), leaf(2)),
    )
CASES["hardswish"] = (None, F.hardswish, (A,))
CASES["gelu tanh"] = (None, lambda a: F.gelu(a, approximate="tanh"), (A,))

# Layers, one case for each Function of theirs; their own tests go through the options.
image, weights4 = leaf(2, 4, 4, 3), (leaf(4), leaf(4))
tokens = g.tensor([[1, 0, 1], [2, 1, 1]], device="cpu")
heads = (leaf(1, 2, 3, 4), leaf(1, 2, 5, 4), leaf(1, 2, 5, 4))
turns = [g.tensor(f(rng.normal(size=(3, 2))), device="cpu") for f in (np.cos, np.sin)]
spelled = (g.tensor([[1, 2], [3, 0]], device="cpu"), [4, 3], [2, 1])


def unpooled(x):
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y, places, 2, output_size=x.shape[2:])


def lstm(x, w, r, h, c):
    from gpunn.autograd.functions.recurrent import recurrent

    output, last, cell = recurrent(x, w, r, h0=h, c0=c, mode="lstm")
    return g.cat([output.reshape(-1), (last * 2).reshape(-1), (cell * 3).reshape(-1)])


def rows_moved(x):
    from gpunn.autograd.functions.recurrent import pick_rows, place_rows

    return place_rows(pick_rows(x, np.array([2, 0])), np.array([3, 1]), 5)


class Idle:
    """Two ranks, of which the other has no rows."""

    rank, size, counts = 0, 2, True

    def all_gather(self, flat, bounds):
        flat[slice(*bounds[1])] = 0

    def all_reduce(self, array):
        """Nothing is to be added."""


LAYERS = {
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), (A, *weights4)),
    "rms_norm": (lambda x, w: F.rms_norm(x, (4,), w), (A, weights4[0])),
    "add_layer_norm": (
        lambda x, r, w, b: g.cat(F.add_layer_norm(x, r, (4,), w, b), 1), (A, B, *weights4)
    ),
    "sync_batch_norm": (
        lambda x, w, b: channel_norm.batch_norm(
            x, None, None, w, b, training=True, group=Idle()
        ), (image, *weights4)
    ),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (image, *weights4)
    ),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (image, *weights4)),
    "max_pool": (lambda x: F.max_pool2d(x, 2, 1), (image,)),
    "max_unpool": (unpooled, (image,)),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2, 1, 1), (image,)),
    "resize": (lambda x: F.interpolate(x, (5, 2), mode="bilinear"), (image,)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), (image,)),
    "embedding": (lambda w: F.embedding(tokens, w), (A,)),
    "embedding bag": (lambda w: F.embedding_bag(tokens, w, mode="sum"), (A,)),
    "rotary": (lambda x: F.rotary_embedding(x, *turns), (leaf(2, 3, 4),)),
    "ctc": (lambda x: F.ctc_loss(F.log_softmax(x, -1), *spelled), (leaf(4, 2, 4),)),
    "attention": (F.scaled_dot_product_attention, heads),
    "packed attention": (F.packed_attention, (leaf(1, 3, 3, 2, 2),)),
    "lstm": (lstm, (leaf(3, 2, 3), leaf(8, 3), leaf(8, 2), leaf(2, 2), leaf(2, 2))),
    "rows": (rows_moved, (A,)),
}
CASES |= {name: (None, *case) for name, case in LAYERS.items()}

# Slopes do not exist everywhere; these are compared with closed forms elsewhere in this file.
NOT_BY_DIFFERENCES = {"Dropout", "LowCopy", "Move"}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    expected, function, inputs = CASES[name]
    out = function(*inputs)
    if expected is not None:
        np.testing.assert_allclose(
            out.detach().numpy(), expected(*(x.detach().numpy() for x in inputs)), rtol=1e-12
        )
    if name == "double":  # float32 on the way: differences see its rounding
        out.sum().backward()
        np.testing.assert_array_equal(inputs[0].grad.numpy(), 1)
        return
    assert gradcheck(function, inputs, atol=1e-6, rtol=1e-5)


def nodes(out) -> set[str]:
    """The class names of all nodes on the tape of `out`."""
    from gpunn.autograd.function import _ordered

    return {type(node).__name__ for node in _ordered(out.grad_fn)[0]} if out.grad_fn else set()


def test_every_function_was_differentiated():
    """A new Function without a case above is found here."""
    visited = set().union(*(nodes(function(*inputs)) for _, function, inputs in CASES.values()))

    def below(kind):
        subclasses = kind.__subclasses__()
        return {kind} if not subclasses else set().union(*(below(sub) for sub in subclasses))

    # Those that only imported ONNX graphs need are differentiated by tests/onnx.
    places = ("gpunn.autograd.", "gpunn.nn.")
    ours = {kind.__name__ for kind in below(Function) if kind.__module__.startswith(places)}
    assert ours - visited - NOT_BY_DIFFERENCES == set()


def test_dropout_keeps_the_mask_for_the_way_back():
    g.manual_seed(3)
    x = g.randn(50, 40, device="cpu", requires_grad=True)
    y = F.dropout(x, 0.25)
    y.sum().backward()
    kept = y.detach().numpy() != 0
    np.testing.assert_array_equal(x.grad.numpy(), np.where(kept, np.float32(1 / 0.75), 0))
    np.testing.assert_allclose(y.detach().numpy()[kept], x.detach().numpy()[kept] / 0.75, rtol=1e-6)
    assert 0.70 < kept.mean() < 0.80
    assert F.dropout(x, 0.25, training=False) is x
    assert (F.dropout(x, 1.0) == 0).all()
    with pytest.raises(ValueError, match="dropout: p is 1.5"):
        F.dropout(x, 1.5)


def test_gradients_at_kinks_follow_pytorch():
    x = g.tensor([-1.0, 0.0, 1.0], device="cpu", requires_grad=True)
    x.abs().sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [-1, 0, 1])
    x.grad = None
    F.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 1])
    x.grad = None
    x.clamp(0.0, 1.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 1, 1])
    x.grad = None
    g.maximum(x, g.zeros(3, device="cpu")).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0.5, 1])
    x.grad = None
    (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 0])
    ties = g.tensor([2.0, 2.0, 1.0], device="cpu", requires_grad=True)
    ties.max().backward()
    np.testing.assert_array_equal(ties.grad.numpy(), [0.5, 0.5, 0])
    zero = g.zeros(3, device="cpu", requires_grad=True)
    zero.norm().backward()
    np.testing.assert_array_equal(zero.grad.numpy(), [0, 0, 0])


def test_gradcheck_finds_a_wrong_gradient():
    class Wrong(Function):
        """x^2 with the slope of x^3"""

        def forward(self, x):
            self.save(x)
            return x * x

        def backward(self, grad):
            return grad * 3 * self.saved[0] ** 2

    x = leaf(3)
    with pytest.raises(AssertionError, match="gradcheck: input 0, element"):
        gradcheck(Wrong.apply, x)
    assert not gradcheck(Wrong.apply, x, raise_exception=False)
    with pytest.raises(TypeError, match="float64"):
        gradcheck(g.exp, g.ones(2, device="cpu", requires_grad=True))


def test_first_layer_computes_no_gradient_for_its_input():
    x, w = g.ones(2, 3, device="cpu"), g.ones(4, 3, device="cpu", requires_grad=True)
    assert F.linear(x, w).grad_fn.needs[0] is False


def test_the_largest_along_a_dimension_that_is_not_the_empty_one():
    x = g.tensor(np.ones((0, 3), np.float32), device="cpu")
    values, indices = x.max(1)
    assert values.shape == indices.shape == (0,) and x.argmin(1, keepdim=True).shape == (0, 1)
    with pytest.raises(ValueError, match=r"max: input has no elements along dim 0 \(shape \(0, 3"):
        x.max(0)
    with pytest.raises(ValueError, match=r"argmax: input has no elements \(shape"):
        x.argmax()
