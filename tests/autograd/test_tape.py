"""The tape: accumulation, freed graphs, versions, stale views, writes in place, the arena."""

import threading

import numpy as np
import pytest

import gpunn.autograd as g
import gpunn.nn.functional as F


def leaf(data, **options):
    return g.tensor(data, device="cpu", dtype="float64", requires_grad=True, **options)


def test_gradients_add_up_over_paths_and_calls():
    x = leaf([2.0, 3.0])
    y = x * x + x * 3 + x
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [8, 10])
    (x * 1).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [9, 11])


def test_leaf_as_root_and_gradient_argument():
    x = leaf([2.0, 3.0])
    x.backward(g.tensor([1.0, 5.0], device="cpu"))
    assert x.grad.tolist() == [1, 5]
    x.grad = None
    (x * 2).backward(gradient=g.tensor([1.0, 10.0], device="cpu"))
    assert x.grad.tolist() == [2, 20]


def test_gradients_are_never_shared_between_leaves():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    seed = g.tensor([1.0, 1.0], device="cpu", dtype="float64")
    (x + y).backward(seed)
    x.grad.array[0] = 100
    assert y.grad.tolist() == [1, 1] and seed.tolist() == [1, 1]
    z = leaf([1.0, 2.0])
    (z + z).sum().backward()
    assert z.grad.tolist() == [2, 2] and z.grad.array.flags.writeable


def test_a_deep_graph_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y + 1
    y.backward()
    assert x.grad.item() == 1


def test_second_backward_needs_retain_graph():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 8]
    with pytest.raises(RuntimeError, match="MulBackward: backward was called a second time"):
        y.backward()


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda x: x.backward(), "must have one element"),
        (lambda x: x.detach().sum().backward(), "no grad_fn"),
        (lambda x: x.backward(g.ones(3, device="cpu")), r"shape \(3,\), the tensor \(2,\)"),
    ],
)
def test_backward_refuses(action, text):
    with pytest.raises(RuntimeError, match=text):
        action(leaf([1.0, 2.0]))


def test_no_grad_and_enable_grad():
    x = leaf([1.0])
    with g.no_grad():
        assert not (x * 2).requires_grad and not g.is_grad_enabled()
        with g.enable_grad():
            assert (x * 2).requires_grad
    assert g.is_grad_enabled()

    @g.no_grad()
    def with_call(t):
        return t * 2

    @g.no_grad
    def without_call(t):
        return t * 2

    assert not with_call(x).requires_grad and not without_call(x).requires_grad
    with g.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), g.no_grad():
        raise ZeroDivisionError
    assert g.is_grad_enabled()


def test_no_grad_is_of_one_thread():
    seen = []
    with g.no_grad():
        thread = threading.Thread(target=lambda: seen.append(g.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_requires_grad_of_results_and_leaves():
    x = leaf([1.0])
    y = x * 2
    assert y.requires_grad and not y.is_leaf and x.is_leaf
    with pytest.raises(RuntimeError, match="only be switched off on a leaf"):
        y.requires_grad = False
    y.detach_()
    assert y.is_leaf and not y.requires_grad
    y = x * 2
    y.retain_grad()
    (y * 3).sum().backward()
    assert y.grad.tolist() == [3] and x.grad.tolist() == [6]


def test_saved_input_modified_in_place_is_found():
    x = leaf([1.0, 2.0])
    w = g.ones(2, device="cpu", dtype="float64")
    y = (x * w).sum()
    w += 1
    with pytest.raises(RuntimeError, match="modified in place"):
        y.backward()
    z = x.exp()
    total = z.sum()
    z[0] = 0
    with pytest.raises(RuntimeError, match=r"ExpBackward.*modified in place"):
        total.backward()
    view = w[:1]
    y = (x * w).sum()
    view.zero_()  # a write through a view counts as well
    with pytest.raises(RuntimeError, match="modified in place"):
        y.backward()


def test_writing_what_was_not_saved_is_fine():
    x = leaf([1.0, 2.0])
    y = x * 2
    z = y + 1  # keeps nothing
    y.detach().zero_()
    z.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_failed_backward_leaves_nothing_behind():
    x = leaf([1.0])
    saved = g.ones(1, device="cpu", dtype="float64")
    shared = x * 2
    bad = shared * saved
    saved.add_(1)
    with pytest.raises(RuntimeError):
        (bad + shared * 3).sum().backward()
    shared.sum().backward()
    assert x.grad.tolist() == [2]


def test_writes_in_place_with_gradients():
    x = leaf([1.0, 2.0, 3.0])
    y = x * 1
    y += 10
    y *= 2
    y[0] = 0
    y[1:] -= x[1:] * 3
    y.sum().backward()
    assert x.grad.tolist() == [0, -1, -1]
    total = g.zeros(1, device="cpu", dtype="float64")
    total += x.detach().sum() * 0
    total += (x * x).sum()
    x.grad = None
    total.backward()
    assert x.grad.tolist() == [2, 4, 6]


def test_writes_in_place_keep_the_memory():
    x = g.zeros(3, device="cpu")
    memory = x.array
    x += 1
    x.mul_(4).sub_(1).div_(3)
    assert x.array is memory and x.tolist() == [1, 1, 1]
    assert x.fill_(2).zero_().add_(g.ones(3, device="cpu"), alpha=2).tolist() == [2, 2, 2]
    assert x.copy_(g.tensor([1, 2, 3], device="cpu")).tolist() == [1, 2, 3]
    assert x.clamp_(max=2).tolist() == [1, 2, 2]
    assert x.masked_fill_(x > 1, -1.0).relu_().tolist() == [1, 0, 0]


def test_refused_writes():
    x = leaf([1.0, 2.0])
    with pytest.raises(RuntimeError, match="add_: a leaf that requires a gradient"):
        x += 1
    with pytest.raises(RuntimeError, match="setitem: a leaf"):
        x[0] = 1
    with g.no_grad():
        x += 1
        x[0] = 5
    assert x.tolist() == [5, 3]
    with pytest.raises(ValueError, match="cannot change the shape"):
        g.ones(2, device="cpu").add_(g.ones(3, 2, device="cpu"))
    with pytest.raises(TypeError, match="fraction"):
        g.ones(2, device="cpu", dtype="int64").add_(0.5)
    with pytest.raises(ValueError, match="read-only"):
        g.ones(1, device="cpu").expand(3)[0] = 1
    with pytest.raises(TypeError, match="dtype int64"):
        g.zeros(2, device="cpu", dtype="int64")[0] = x[0]


def test_stale_views_are_errors_not_wrong_gradients():
    x = leaf([1.0, 2.0, 3.0])
    y = x * 1
    view = y[:2]
    y[0] = 5.0
    with pytest.raises(RuntimeError, match="history is out of date"):
        view * 2
    y[:2].sum().backward()
    assert x.grad.tolist() == [0, 1, 0]
    buffer = g.zeros(2, device="cpu", dtype="float64")
    part = buffer[0]
    buffer[0] = x.sum()
    with pytest.raises(RuntimeError, match="history is out of date"):
        part * 2
    with g.no_grad():
        assert (part * 2).item() == 12


def test_first_gradient_goes_into_the_arena_slot():
    arena = np.zeros(14, np.float32)
    w = g.tensor(np.ones((4, 3), np.float32), device="cpu", requires_grad=True)
    b = g.zeros(2, device="cpu", requires_grad=True)
    w._grad_slot, b._grad_slot = arena[:12].reshape(4, 3), arena[12:]
    x = g.tensor([[1.0, 2.0, 3.0]], device="cpu")
    F.linear(x, w).sum().backward()
    b.sum().backward()
    assert w.grad.array is w._grad_slot and np.shares_memory(b.grad.array, arena)
    np.testing.assert_array_equal(arena, [1, 2, 3] * 4 + [1, 1])
    F.linear(x, w).sum().backward()  # the second one is added in place
    np.testing.assert_array_equal(arena, [2, 4, 6] * 4 + [1, 1])
    w.grad = None
    (F.linear(x, w) + F.linear(2 * x, w)).sum().backward()  # one weight in two places
    np.testing.assert_array_equal(arena[:12], [3, 6, 9] * 4)
    square = g.eye(3, device="cpu", requires_grad=True)
    square._grad_slot = np.full((3, 3), 7, np.float32)
    F.linear(square, square).sum().backward()  # input and weight at once
    np.testing.assert_array_equal(square.grad.numpy(), np.full((3, 3), 2))
    assert square.grad.array is square._grad_slot


def test_custom_function():
    class Cube(g.Function):
        """x^3"""

        def forward(self, x):
            self.save(x)
            return x**3

        def backward(self, grad):
            return grad * 3 * self.saved[0] ** 2

    x = leaf([2.0])
    y = Cube.apply(x)
    assert repr(y.grad_fn) == "<CubeBackward>"
    y.backward()
    assert x.grad.tolist() == [12]


def test_set_grad_enabled_as_statement_context_and_decorator():
    try:
        g.set_grad_enabled(False)
        assert not g.is_grad_enabled()
        with g.set_grad_enabled(True):
            assert g.is_grad_enabled()
        assert not g.is_grad_enabled()
        recording = g.set_grad_enabled(True)(g.is_grad_enabled)
        assert not g.is_grad_enabled() and recording() and not g.is_grad_enabled()
    finally:
        g.set_grad_enabled(True)
    with g.set_grad_enabled(False):
        assert not g.is_grad_enabled()
    assert g.is_grad_enabled()


def test_nothing_of_a_walk_stays_on_its_nodes(monkeypatch):
    from gpunn.autograd import function

    x = g.randn(3, 4, device="cpu", requires_grad=True)
    middle = F.linear(x, g.randn(5, 4, device="cpu", requires_grad=True))
    loss = F.cross_entropy(F.relu(middle), g.tensor([0, 1, 2], device="cpu"))

    def nodes():
        return [loss.grad_fn, *function._ordered(loss.grad_fn)[0]]

    loss.backward(retain_graph=True)
    assert all(node.walk is None and node.grad is None for node in nodes())

    def broken(*args):
        raise MemoryError

    for name in ("_ordered", "_step_back", "accumulate"):
        with monkeypatch.context() as patch:
            patch.setattr(function, name, broken)
            with pytest.raises(MemoryError):
                loss.backward(retain_graph=True)
        assert all(node.walk is None and node.grad is None for node in nodes())
    before = x.grad.numpy().copy()
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * before)
