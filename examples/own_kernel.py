"""A kernel of one's own as a primitive, from the formula to a trained network, in one file.

Snake (L. Ziyin, T. Hartwig, M. Ueda, "Neural Networks Fail to Learn Periodic Functions and How to
Fix It", 2020, https://arxiv.org/abs/2006.08195) is an activation that goes up and waves:

    snake(x) = x + sin(a x)^2 / a,      its derivative 1 + sin(2 a x)

    python examples/own_kernel.py                                  check it, then train with it
    GPUNN_EXTENSIONS=examples/own_kernel.py gpunn bench snake_forward
    GPUNN_EXTENSIONS=examples/own_kernel.py gpunn kernels snake --compile sm_90a
"""

from __future__ import annotations

import numpy as np

import gpunn
from gpunn import autograd, extend, nn, optim

# ---- the kernels ---------------------------------------------------------------------------------

SOURCE = """
#include "common.cuh"

// T is the type in memory, Accumulator<T> what is computed in: float, or double for double.
// A thread takes elements i, i + threads of the grid, …: neighbours read neighbours. The limit is
// memory: 2 elements moved for each computed forward, 3 backward.

template <typename T>
__global__ void snake_forward(const T* x, T* y, Accumulator<T> a, int64 n) {
    const int64 threads = static_cast<int64>(gridDim.x) * blockDim.x;
    for (int64 i = blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x; i < n; i += threads) {
        const Accumulator<T> v = widen(x[i]), s = sin(a * v);
        y[i] = narrow<T>(v + s * s / a);
    }
}

template <typename T>
__global__ void snake_backward(const T* grad, const T* x, T* out, Accumulator<T> a, int64 n) {
    const int64 threads = static_cast<int64>(gridDim.x) * blockDim.x;
    for (int64 i = blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x; i < n; i += threads) {
        const Accumulator<T> slope = 1 + sin(2 * a * widen(x[i]));
        out[i] = narrow<T>(widen(grad[i]) * slope);
    }
}
"""


# The same for Numba: a module of its own.
NUMBA = """
import math

from numba import cuda

@cuda.jit
def snake_forward(x, y, a):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        s = math.sin(a * x[i])
        y[i] = x[i] + s * s / a

@cuda.jit
def snake_backward(grad, x, out, a):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        out[i] = grad[i] + grad[i] * math.sin((a + a) * x[i])
"""

# ---- the primitives: what they take and give -----------------------------------------------------


@extend.primitive(family="snake", cuda=SOURCE, numba=NUMBA)
def snake_forward(call, x, *, a: float = 1.0, out=None):
    """Snake: ``x + sin(a x)^2 / a``, element by element.

    Parameters
    ----------
    x : array of any shape, float16, bfloat16, float32 or float64
    a : how fast it waves, above 0
    out : array of the shape and dtype of `x` to write
    """
    x = call.array("x", x, dtypes=extend.FLOATING)
    a = call.number("a", a, low=1e-6)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    call.run(x.reshape(-1), out.reshape(-1), a)
    return out


@extend.primitive(family="snake", cuda=SOURCE, numba=NUMBA)
def snake_backward(call, grad, x, *, a: float = 1.0, out=None):
    """The gradient of snake: ``grad * (1 + sin(2 a x))``; arguments as for `snake_forward`."""
    grad = call.array("grad", grad, dtypes=extend.FLOATING)
    x = call.array("x", x, dtypes=(grad.dtype,), shape=grad.shape)
    a = call.number("a", a, low=1e-6)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    call.run(grad.reshape(-1), x.reshape(-1), out.reshape(-1), a)
    return out


# ---- the reference: NumPy, which also runs on the CPU --------------------------------------------


def wide(x):
    """16-bit numbers in float32, in which the kernels compute, too."""
    return x.astype(np.float32) if x.itemsize == 2 else x


@snake_forward.reference
def _(x, out, a):
    v = wide(x)
    out[...] = v + np.sin(v.dtype.type(a) * v) ** 2 / v.dtype.type(a)


@snake_backward.reference
def _(grad, x, out, a):
    v = wide(x)
    out[...] = wide(grad) * (1 + np.sin(v.dtype.type(2 * a) * v))


# ---- the launches --------------------------------------------------------------------------------

THREADS = 256


def blocks(launch, size: int) -> tuple[int]:
    """Enough for every element, at most 16 for each multiprocessor."""
    return (min(-(-size // THREADS), 16 * launch.multiprocessors),)


@snake_forward.cuda
def _(launch, x, out, a):
    if x.size:
        number = np.float64 if x.dtype == np.float64 else np.float32  # as Accumulator<T>
        args = (x, out, number(a), np.int64(x.size))
        name = f"snake_forward<{launch.ctype(x.dtype)}>"
        launch(name, blocks(launch, x.size), (THREADS,), args)


@snake_backward.cuda
def _(launch, grad, x, out, a):
    if x.size:
        number = np.float64 if x.dtype == np.float64 else np.float32
        args = (grad, x, out, number(a), np.int64(x.size))
        name = f"snake_backward<{launch.ctype(x.dtype)}>"
        launch(name, blocks(launch, x.size), (THREADS,), args)


@snake_forward.numba
def _(launch, x, out, a):
    if x.size:
        grid = (min(-(-x.size // THREADS), 2048),)
        launch("snake_forward", grid, (THREADS,), (x, out, x.dtype.type(a)))


@snake_backward.numba
def _(launch, grad, x, out, a):
    if x.size:
        grid = (min(-(-x.size // THREADS), 2048),)
        launch("snake_backward", grid, (THREADS,), (grad, x, out, x.dtype.type(a)))


# ---- samples for parity, cost and inputs for benchmarks ------------------------------------------


def arrays(rng):
    """Of one element, of odd lengths, of none, views, and where numbers end."""
    yield "1", rng.normal(size=1)
    yield "7x13", rng.normal(size=(7, 13))
    yield "70001", rng.normal(size=70001)
    yield "nothing", np.zeros((0, 3))
    yield "a view", rng.normal(size=(9, 22))[:, ::2]
    yield "edges", np.array([0.0, -0.0, 30.0, -30.0, np.nan, 1e-30])


@snake_forward.samples
def _(rng):
    for name, x in arrays(rng):
        yield extend.Sample(name, (x,), {"a": 0.7}, extend.FLOATING, numba=x.size < 100)


@snake_backward.samples
def _(rng):
    for name, x in arrays(rng):
        args = (rng.normal(size=x.shape), x)
        yield extend.Sample(name, args, {"a": 0.7}, extend.FLOATING, numba=x.size < 100)


@snake_forward.cost
def _(x, out, a):
    return extend.Cost(flops=5 * x.size, read=x.nbytes, written=out.nbytes)


@snake_backward.cost
def _(grad, x, out, a):
    return extend.Cost(flops=5 * x.size, read=grad.nbytes + x.nbytes, written=out.nbytes)


snake_forward.inputs(lambda rng, shape: ((rng.standard_normal(shape, np.float32),), {}))
snake_backward.inputs(lambda rng, shape: ((*rng.standard_normal((2, *shape), np.float32),), {}))
snake_forward.bench_shapes = snake_backward.bench_shapes = extend.ELEMENTWISE_SHAPES


@snake_forward.peer("numpy")
def _(xp, x, *, out=None):
    return xp.add(x, xp.sin(x) ** 2, out=out)


@snake_backward.peer("torch")
def _(grad, x, *, out=None):
    import torch

    return torch.mul(grad, 1 + torch.sin(2 * x), out=out)


# ---- a differentiable function, and a layer ------------------------------------------------------


class SnakeFunction(autograd.Function):
    """snake(x), with its way back."""

    def forward(self, x, a):
        self.save(x)
        self.a = a
        return snake_forward(x, a=a)

    def backward(self, grad):
        (x,) = self.saved
        return snake_backward(grad, x, a=self.a)


def snake(x, a: float = 1.0):
    """Snake of a Tensor."""
    return SnakeFunction.apply(x, a)


class Snake(nn.Module):
    """Snake as a layer."""

    def __init__(self, a: float = 1.0):
        super().__init__()
        self.a = a

    def forward(self, x):
        return snake(x, self.a)


# ---- used ----------------------------------------------------------------------------------------


def train(activation, steps: int = 400) -> float:
    """Learn a wave on [-6, 6] and measure the mean squared error on [6, 9], which was not shown."""
    gpunn.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 1)
    )
    optimizer = optim.AdamW(model.parameters(), lr=5e-3)

    def wave(low, high):
        x = np.linspace(low, high, 256, dtype=np.float32)[:, None]
        return gpunn.tensor(x), gpunn.tensor(np.sin(2 * x) + x / 2)

    x, y = wave(-6, 6)
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with gpunn.no_grad():
        x, y = wave(6, 9)
        return nn.functional.mse_loss(model(x), y).item()


def main() -> None:
    """Check both kernels and the derivative, then train."""
    for made in (snake_forward, snake_backward):
        print(f"{made.name}\n  " + extend.check(made).replace("\n", "\n  "))
    x = gpunn.tensor(np.linspace(-2, 2, 9), requires_grad=True)
    autograd.gradcheck(snake, (x,))
    print("the derivative agrees with finite differences")
    for activation in (nn.ReLU, Snake):
        print(f"{activation.__name__}: mean squared error beyond the data {train(activation):.2f}")


if __name__ == "__main__":
    main()
