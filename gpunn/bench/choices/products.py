"""Products, and passes of convolutions, as problems that a rule chooses a kernel for."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from gpunn.bench.cases import element
from gpunn.bench.choices.ways import Maker, Way, with_other_cuts
from gpunn.primitives import convolution_plan, matmul_plan
from gpunn.primitives.activation import ACTIVATIONS, DEFAULT_ALPHA
from gpunn.primitives.convolution_pass import INPUT, OUTPUT, WEIGHT, Pass
from gpunn.primitives.convolution_problem import Geometry
from gpunn.primitives.matmul_problem import Finish, batch_dimensions, problem_of
from gpunn.primitives.matmul_problem import Problem as Multiplication


def words_of(finish: Finish) -> tuple[str, ...]:
    """What becomes of the sums, as words: ``("bias", "gelu", "keep")``."""
    has = (
        ("bias", finish.bias), ("keep", finish.preactivation), ("residual", finish.residual),
        ("backward", finish.saved), ("column sums", finish.column_sums),
        ("row sums", finish.row_sums),
    )  # fmt: skip
    activation = () if finish.activation == "identity" else (finish.activation,)
    return (*activation, *(word for word, array in has if array is not None))


def finish_of(words: tuple[str, ...], make: Maker, shape: tuple[int, ...], dtype) -> Finish:
    """Such a `Finish` with arrays for a result of a shape."""
    activation = next((word for word in words if word in ACTIVATIONS), "identity")
    M, N = shape[-2:]
    arrays_of = {
        "bias": ("bias", (N,), True), "keep": ("preactivation", shape, False),
        "residual": ("residual", shape, True), "backward": ("saved", shape, True),
        "column sums": ("column_sums", (N,), False), "row sums": ("row_sums", (M,), False),
    }  # fmt: skip
    found = {}
    for word in words:
        if word in arrays_of:
            name, size, read = arrays_of[word]
            found[name] = make.random(size, dtype) if read else make.empty(size, dtype)
    alpha = DEFAULT_ALPHA.get(activation, 0.0)
    return Finish(make.empty(shape, dtype), activation=activation, alpha=alpha, **found)


@dataclass(frozen=True)
class Product:
    """A product, `batch` times; `dtype` may be "tf32", which is float32 at that precision.

    layout : of both operands, N as they are multiplied, T stored transposed
    words : what becomes of the sums, see `words_of`
    """

    kind: ClassVar[str] = "product"
    primitive: ClassVar[str] = "matmul"
    source: ClassVar[str] = "matmul.cu"

    M: int
    N: int
    K: int
    dtype: str
    layout: str = "NN"
    batch: int = 1
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, p: Multiplication) -> Product:
        """The product of a launch."""
        left, right = p.a_k != 1 and p.a_m == 1, p.b_n != 1 and p.b_k == 1
        layout = "NT"[left] + "NT"[right]
        return cls(p.M, p.N, p.K, p.out.dtype.name, layout, p.batch, words_of(p.finish))

    @property
    def key(self) -> str:
        """As text: ``64 x 512x512x64 NT bfloat16 bias gelu``."""
        many = f"{self.batch} x " if self.batch > 1 else ""
        text = f"{many}{self.M}x{self.N}x{self.K} {self.layout} {self.dtype}"
        return " ".join((text, *self.words))

    @property
    def bytes(self) -> float:
        """Bytes of the operands and the result."""
        sizes = self.M * self.K + self.K * self.N + self.M * self.N
        return float(self.batch * sizes * element(self.dtype).itemsize)

    def inputs(self, make: Maker) -> Multiplication:
        """Arrays as a launch has them."""
        dtype, many = element(self.dtype), (self.batch,) if self.batch > 1 else ()

        def made(height: int, width: int, turned: bool):
            if turned:
                return make.random((*many, width, height), dtype).swapaxes(-1, -2)
            return make.random((*many, height, width), dtype)

        left, right = (letter == "T" for letter in self.layout)
        a, b = made(self.M, self.K, left), made(self.K, self.N, right)
        finish = finish_of(self.words, make, (*many, self.M, self.N), dtype)
        return problem_of(a, b, finish, batch_dimensions(a, b, many))

    def options(self, inputs: Multiplication, launch: Any) -> list[Way]:
        """Those of `matmul_plan`, and other cuts of K."""
        return with_other_cuts(functools.partial(matmul_plan.options, inputs, launch))


@dataclass(frozen=True)
class Convolution:
    """A pass of a convolution: `made` is "OUTPUT", "INPUT" or "WEIGHT"; the other numbers are those
    of `Geometry`, in three dimensions."""

    kind: ClassVar[str] = "convolution"
    primitive: ClassVar[str] = "convolution_forward"
    source: ClassVar[str] = "convolution.cu"

    made: str
    geometry: tuple[Any, ...]
    dtype: str
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, p: Pass) -> Convolution:
        """The pass of a launch."""
        numbers = tuple(getattr(p.shape, name) for name in Geometry.__dataclass_fields__)
        return cls(p.made, numbers, p.out.dtype.name, words_of(p.finish))

    @property
    def shape(self) -> Geometry:
        """The sizes."""
        return Geometry(*self.geometry)

    @property
    def key(self) -> str:
        """As text: ``input 1024x15x15x64 3x3 to 256 bfloat16``."""
        shape = self.shape
        size, kernel = ("x".join(map(str, one[-2:])) for one in (shape.size, shape.kernel))
        text = f"{self.made.lower()} {shape.batch}x{size}x{shape.channels} {kernel} to "
        text += f"{shape.outputs} {self.dtype}"
        text += f" stride {shape.stride[-1]}" if max(shape.stride) > 1 else ""
        text += f" groups {shape.groups}" if shape.groups > 1 else ""
        return " ".join((text, *self.words))

    @property
    def bytes(self) -> float:
        """Bytes of the two operands and the result."""
        shape = self.shape
        shapes = (shape.input_shape, shape.output_shape, shape.weight_shape)
        return float(sum(map(math.prod, shapes)) * element(self.dtype).itemsize)

    def inputs(self, make: Maker) -> Pass:
        """Arrays as a launch has them."""
        shape, dtype = self.shape, element(self.dtype)
        x, y, w = shape.input_shape, shape.output_shape, shape.weight_shape
        first, second, out = {
            OUTPUT: (x, w, (math.prod(y[:-1]), y[-1])),
            INPUT: (y, w, (math.prod(x[:-1]), x[-1])),
            WEIGHT: (y, x, (w[0], math.prod(w[1:]))),
        }[self.made]
        a, b = make.random(first, dtype), make.random(second, dtype)
        return Pass(self.made, a, b, shape, finish_of(self.words, make, out, dtype))

    def options(self, inputs: Pass, launch: Any) -> list[Way]:
        """Those of `convolution_plan`, and other cuts of K."""
        return with_other_cuts(functools.partial(convolution_plan.options, inputs, launch))
