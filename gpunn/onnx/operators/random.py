"""Random tensors, drawn from gpunn's generator or from a node's own."""

from __future__ import annotations

import numpy as np

import gpunn
from gpunn.onnx.operators.registry import Node, numpy_dtype, operator


def _seeded(node: Node):
    """The generator of a node: of its own where it names a seed, else gpunn's."""
    seed = node.float("seed")
    return None if seed is None else gpunn.Generator(int(seed))


def _random(node: Node, normal: bool):
    generator = _seeded(node)
    first = node.float("mean", 0.0) if normal else node.float("low", 0.0)
    second = node.float("scale", 1.0) if normal else node.float("high", 1.0)

    def draw(sizes, dtype, device):
        options = {"device": device, "generator": generator}
        if normal:
            return gpunn.randn(*sizes, **options).to(dtype) * second + first
        return gpunn.rand(*sizes, **options).to(dtype) * (second - first) + first

    return draw


@operator("RandomNormal RandomUniform", pure=False, context=True)
def random(node: Node):
    draw = _random(node, node.op == "RandomNormal")
    sizes, dtype = node.ints("shape", ()), node.dtype("dtype", np.dtype(np.float32))
    return lambda context: draw(sizes, dtype, context.device)


@operator("RandomNormalLike RandomUniformLike", pure=False)
def random_like(node: Node):
    draw, dtype = _random(node, node.op == "RandomNormalLike"), node.dtype("dtype")
    return lambda x: draw(x.shape, dtype or x.dtype, x.device)


@operator("Bernoulli", 15, pure=False)
def bernoulli(node: Node):
    generator, dtype = _seeded(node), node.dtype("dtype")
    return lambda p: gpunn.bernoulli(p, generator=generator).to(dtype or p.dtype)


@operator("Multinomial", 7, pure=False)
def multinomial(node: Node):
    generator, count = _seeded(node), node.int("sample_size", 1)
    dtype = numpy_dtype(node.int("dtype", 6), node)

    def run(logits):
        drawn = gpunn.multinomial(logits.softmax(-1), count, True, generator=generator)
        return drawn.to(dtype)

    return run
