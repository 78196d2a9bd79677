"""What a Tensor is: making one, its attributes, conversions, printing, errors."""

import copy
import pickle

import numpy as np
import pytest

import gpunn.autograd as g
from gpunn.autograd import Tensor


def cpu(data, **options):
    return g.tensor(data, device="cpu", **options)


def test_python_numbers_become_float32_int64_and_bool():
    assert cpu([1.0, 2]).dtype == np.float32
    assert cpu([1, 2]).dtype == np.int64
    assert cpu([True]).dtype == np.bool_
    assert cpu(np.float64([1.0])).dtype == np.float64
    assert cpu([np.float64(1.0)]).dtype == np.float64
    assert cpu([1, 2], dtype=float).dtype == np.float32
    assert cpu([[1, 2], [3, 4]], dtype="bfloat16").dtype == g.bfloat16
    assert cpu([cpu(1.0), cpu(2.0)]).tolist() == [1.0, 2.0]
    assert Tensor([1, 2]).dtype == np.float32


def test_tensor_copies_and_from_numpy_shares():
    array = np.ones(3, np.float32)
    copied, shared = cpu(array), g.as_tensor(array)
    array[0] = 5
    assert copied.tolist() == [1, 1, 1]
    assert shared.tolist() == [5, 1, 1]
    assert g.as_tensor(shared) is shared
    assert g.from_dlpack(array).tolist() == [5, 1, 1]


def test_shape_attributes():
    x = g.zeros(2, 3, 4, device="cpu")
    assert x.shape == x.size() == (2, 3, 4)
    assert (x.size(-1), x.ndim, x.dim(), x.numel(), len(x)) == (4, 3, 3, 24, 2)
    assert x.stride() == (12, 4, 1)
    assert x.mT.shape == (2, 4, 3) and not x.mT.is_contiguous()
    assert x.T.shape == (4, 3, 2)
    assert str(x.device) == "cpu" and not x.is_cuda
    assert x.is_floating_point() and x.element_size() == 4 and x.nbytes == 96


def test_numbers_in_and_out():
    assert cpu(2.5).item() == 2.5 and type(cpu(2).item()) is int and cpu(True).item() is True
    assert float(cpu([2.5])) == 2.5 and int(cpu(3.9)) == 3 and bool(cpu([1]))
    assert [10, 20, 30][cpu(1)] == 20
    assert f"{cpu(1.5):.2f}" == "1.50"
    assert [t.item() for t in cpu([1, 2])] == [1, 2]
    assert np.asarray(cpu([1, 2])).tolist() == [1, 2]
    assert np.array(cpu([1, 2]), dtype=np.float64).dtype == np.float64
    assert cpu([1.5], dtype="bfloat16").tolist() == [1.5]
    assert np.from_dlpack(cpu([1, 2])).tolist() == [1, 2]
    assert not hasattr(cpu([1]), "__cuda_array_interface__")
    assert isinstance(np.ones(2, np.float32) + cpu([1.0, 2.0]), Tensor)
    assert isinstance(np.float32(2) * cpu([1.0, 2.0]), Tensor)


def test_repr_tells_what_is_not_ordinary():
    assert repr(cpu([1.0, 2.0])) == "tensor([1., 2.])"
    assert repr(cpu([1, 2])) == "tensor([1, 2])"
    x = cpu([1.0], dtype="float64", requires_grad=True)
    assert repr(x) == "tensor([1.], dtype=float64, requires_grad=True)"
    assert repr(x * 2) == "tensor([2.], dtype=float64, grad_fn=<MulBackward>)"
    assert repr(cpu([1.0], dtype="bfloat16")) == "tensor([1.], dtype=bfloat16)"
    assert repr(g.zeros(0, 3, device="cpu")) == "tensor([], size=(0, 3))"


def test_conversions_follow_names_and_gradients_come_back():
    x = cpu([1.5, -2.0], requires_grad=True)
    assert x.to("cpu") is x and x.float() is x and x.cpu() is x
    assert x.to("cpu", g.float64).dtype == np.float64
    assert x.to(cpu([1], dtype="float16")).dtype == np.float16
    assert x.half().dtype == np.float16 and x.bfloat16().dtype == g.bfloat16
    assert x.long().tolist() == [1, -2] and x.bool().tolist() == [True, True]
    assert x.type(g.float64).dtype == np.float64 and x.int().dtype == np.int32
    assert x.to(g.float32, copy=True) is not x
    (x.half() * 2).sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [2, 2]


def test_copies_and_pickles():
    x = cpu([1.0, 2.0], requires_grad=True)
    x.sum().backward()
    again = copy.deepcopy(x)
    assert again.requires_grad and again.grad.tolist() == [1, 1]
    again.data[0] = 9
    assert x.tolist() == [1, 2]
    loaded = pickle.loads(pickle.dumps(x))
    assert loaded.requires_grad and loaded.tolist() == [1, 2]
    assert copy.copy(x).array is x.array
    with pytest.raises(RuntimeError, match="only leaves"):
        copy.deepcopy(x * 2)


def test_views_share_memory_and_copies_do_not():
    x = g.zeros(2, 3, device="cpu")
    x.view(6)[0] = 1
    x.T[1, 0] = 2
    x.detach()[1, 2] = 3
    assert x.tolist() == [[1, 2, 0], [0, 0, 3]]
    x.clone()[0] = 7
    assert x.tolist() == [[1, 2, 0], [0, 0, 3]]
    with pytest.raises(RuntimeError, match=r"view: a tensor of shape \(3, 2\)"):
        x.T.view(6)
    assert x.T.reshape(6).tolist() == [1, 0, 2, 0, 0, 3]


def test_data_takes_another_array():
    x = cpu([1.0], requires_grad=True)
    x.data = np.array([2.0, 3.0], np.float32)
    assert x.tolist() == [2, 3]
    x.data = cpu([4.0])
    assert x.tolist() == [4]
    with pytest.raises(TypeError, match="requires a gradient"):
        x.data = np.array([1])


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: cpu([[1, 2], [3]]), ValueError, "rectangular"),
        (lambda: cpu("abc"), TypeError, "cannot make a tensor from str"),
        (lambda: cpu([1], requires_grad=True), TypeError, "only floating tensors"),
        (lambda: cpu([1.0, 2.0]).item(), ValueError, r"shape \(2,\)"),
        (lambda: bool(cpu([1, 2])), ValueError, "ambiguous"),
        (lambda: len(cpu(1)), TypeError, "without dimensions"),
        (lambda: iter(cpu(1)), TypeError, "without dimensions"),
        (lambda: [1][cpu(1.0)], TypeError, "integer tensor"),
        (lambda: cpu([1.0], requires_grad=True).numpy(), RuntimeError, "detach"),
        (lambda: cpu([1.0, 2.0]) + cpu([1.0, 2.0, 3.0]), ValueError, r"add: shapes \(2,\) and"),
        (lambda: cpu([1.0]) + "a", TypeError, "add: cannot combine"),
        (lambda: cpu([1.0]) @ cpu([1.0, 2.0]), ValueError, "matmul: shapes"),
        (lambda: cpu([1.0]) @ 2, TypeError, r"Use \* for a number"),
        (lambda: g.cat([]), ValueError, "cat: expected at least one"),
        (lambda: g.cat([cpu([[1]]), cpu([1])]), ValueError, r"cat: tensors\[1\]"),
        (lambda: g.stack([cpu([1]), cpu([1, 2])]), ValueError, "stack"),
        (lambda: cpu([1, 2, 3]).reshape(2, 2), ValueError, "reshape: a tensor of shape"),
        (lambda: cpu([1, 2, 3]).reshape(-1, -1), ValueError, "at most one -1"),
        (lambda: cpu([1, 2]).sum(1), IndexError, "sum: dim 1 is out of range"),
        (lambda: cpu([[1]]).sum((0, -2)), ValueError, "twice"),
        (lambda: cpu([1, 2]).expand(3), ValueError, "expand"),
        (lambda: cpu([1, 2]).mean(), TypeError, "mean: input has dtype int64"),
        (lambda: g.zeros(0, device="cpu").max(), ValueError, "max: input has no elements"),
        (lambda: cpu([1, 2])[2], IndexError, r"tensor of shape \(2,\)"),
        (lambda: cpu([1, 2])[cpu([0.5])], TypeError, "cannot be an index"),
        (lambda: cpu([1, 2])["a"], TypeError, "str cannot be an index"),
        (lambda: g.where(cpu([1.0]), 1, 2), TypeError, "where: condition has dtype float32"),
        (lambda: g.one_hot(cpu([3]), 3), ValueError, "from 3 to 3; expected 0 to 2"),
        (lambda: cpu([1.0]).to("floaty"), TypeError, "neither a device"),
        (lambda: g.randint(3, 3, (2,)), ValueError, "empty"),
        (lambda: cpu([1.0]).permute(0, 0), (ValueError, IndexError), "permute|out of range"),
        (lambda: cpu([1.0]).clamp(), ValueError, "clamp"),
    ],
)
def test_errors_say_what_came_and_what_to_do(action, error, text):
    with pytest.raises(error, match=text):
        action()


def test_creation_functions():
    assert g.zeros(2, 3, device="cpu").dtype == np.float32
    assert g.ones((2, 3), device="cpu", dtype=g.int64).tolist() == [[1, 1, 1]] * 2
    assert g.full((2,), 7, device="cpu").dtype == np.int64
    assert g.full((2,), 0.5, device="cpu").tolist() == [0.5, 0.5]
    assert g.full((2,), True, device="cpu").dtype == np.bool_
    assert g.arange(5, device="cpu").tolist() == [0, 1, 2, 3, 4]
    assert g.arange(1, 2, 0.5, device="cpu").dtype == np.float32
    assert g.linspace(0, 1, 3, device="cpu").tolist() == [0, 0.5, 1]
    assert g.eye(2, device="cpu").tolist() == [[1, 0], [0, 1]]
    x = g.ones(2, 3, device="cpu", dtype="float64")
    assert g.zeros_like(x).dtype == np.float64 and g.ones_like(x, dtype=g.int32).sum().item() == 6
    assert g.empty_like(x).shape == g.full_like(x, 2.0).shape == (2, 3)
    assert g.zeros((), device="cpu").shape == ()
    assert g.zeros(2, device="cpu", requires_grad=True).requires_grad


def test_comparisons_and_logic():
    x = cpu([1.0, 2.0, 3.0])
    assert (x == 2).tolist() == [False, True, False]
    assert (x != x).any().item() is False and (x >= 1).all().item() is True
    assert ((x > 1) & ~(x > 2)).tolist() == [False, True, False]
    assert (2 > x).tolist() == [True, False, False]
    assert g.allclose(x, x + 1e-7) and not g.equal(x, x + 1)
    assert g.isnan(cpu([1.0, float("nan")])).tolist() == [False, True]
    assert g.isfinite(cpu([1, 2])).tolist() == [True, True]
    assert len({x, x}) == 1


def test_reductions_of_integers_and_positions():
    x = cpu([[1, 5, 3], [5, 2, 5]])
    assert x.sum().dtype == np.int64 and cpu([True, True]).sum().item() == 2
    assert cpu([200, 100], dtype="uint8").sum().item() == 300
    assert x.argmax().item() == 1 and x.argmax(1).tolist() == [1, 0]
    assert x.argmin(0, keepdim=True).tolist() == [[0, 1, 0]]
    values, indices = x.max(dim=1)
    assert values.tolist() == [5, 5] and indices.tolist() == [1, 0]
    assert x.max(0, keepdim=True).values.shape == (1, 3)
    assert np.isnan(g.zeros(0, device="cpu").mean().item())
    assert np.isnan(cpu([1.0]).var().item())
    assert g.nonzero(x == 5).tolist() == [[0, 1], [1, 0], [1, 2]]
    assert g.one_hot(cpu([1, 0])).tolist() == [[0, 1], [1, 0]]


def test_data_is_a_tensor_on_the_same_memory_that_the_tape_does_not_see():
    x = cpu([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    x.data.mul_(3).add_(1)
    x.data[0] = 9
    assert x.tolist() == [9, 7] and not x.data.requires_grad
    assert x.data.array is x.array
    y.backward()
    assert x.grad.tolist() == [18, 14]
    x.data -= 0.5 * x.grad.data
    assert x.tolist() == [0, 0] and x.requires_grad


def test_nothing_else_equals_a_tensor():
    x = cpu([1.0])
    assert not (x == None) and (x != None)  # noqa: E711  scripts do write it so
    assert x != "a" and x not in [None, "a"]


def test_new_tensors_take_dtype_and_device():
    x = cpu([1.0], dtype=g.float64)
    assert x.new_zeros(2, 3).shape == (2, 3) and x.new_ones((2,)).dtype == g.float64
    assert x.new_full((2,), 7).tolist() == [7, 7] and x.new_empty(3).dtype == g.float64
    assert x.new_tensor([1], dtype=g.int64).dtype == g.int64 and x.new_tensor([1]).tolist() == [1]
    assert g.numel(x) == 1 and g.is_floating_point(x)
