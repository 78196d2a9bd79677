"""Convolutions on the tensor cores of sm_90a: every tile and pass, and what they can make."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest

from gpunn import emulator, kernels
from gpunn.bench.launch_host import StandIn
from gpunn.device import probe
from gpunn.device.emulator_launch import emulated_chip, emulator_launcher
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import convolution_plan
from gpunn.primitives import convolution_wgmma as wgmma
from gpunn.primitives.activation import activation_forward
from gpunn.primitives.convolution_pass import INPUT, OUTPUT, WEIGHT, Pass
from gpunn.primitives.convolution_problem import Geometry
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.registry import intercepting
from gpunn.primitives.samples import BFLOAT16

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)

# x, weight, options, passes: what tensor copies must get right.
SHAPES = {
    "whole lines": ((2, 9, 8, 64), (72, 3, 3, 64), {"padding": 1}, 3),
    "rests of channels": ((1, 7, 9, 72), (136, 2, 3, 72), {"padding": ((0, 2), (1, 0))}, 2),
    "strides, odd outputs": ((3, 11, 9, 8), (37, 3, 5, 8), {"stride": (2, 3), "padding": 2}, 1),
    "dilation": ((2, 9, 9, 64), (8, 3, 2, 64), {"dilation": (2, 3), "padding": (3, 1)}, 3),
    "more padding than kernel": ((2, 3, 5, 16), (8, 2, 1, 16), {"padding": (4, 3)}, 2),
    "one dimension, strided": ((2, 90, 64), (16, 5, 64), {"padding": 2, "stride": 2}, 2),
    "volume": ((2, 3, 5, 4, 64), (8, 2, 3, 3, 64), {"padding": 1}, 3),
}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def passes(x, weight, options):
    """(pass, exact result) of the three passes of normal numbers in bfloat16."""
    dtype = BFLOAT16
    x, weight = normal(0, *x).astype(dtype), normal(1, *weight).astype(dtype)
    wide = x.astype(float), weight.astype(float)
    exact = kernels.convolution_forward(*wide, **options)
    y = normal(2, *exact.shape).astype(dtype)
    more = {"kernel_size": weight.shape[1:-1]}
    kept = []
    with intercepting(lambda call, args: kept.append(args)):
        kernels.convolution_forward(x, weight, **options)
        kernels.convolution_input_gradient(y, weight, input_shape=x.shape, **options)
        kernels.convolution_weight_gradient(y, x, **more, **options)
    y = y.astype(float)
    wanted = (
        exact,
        kernels.convolution_input_gradient(y, wide[1], input_shape=x.shape, **options),
        kernels.convolution_weight_gradient(y, wide[0], **more, **options),
    )
    for made, (a, b, shape, *_), result in zip((OUTPUT, INPUT, WEIGHT), kept, wanted, strict=True):
        columns = result[0].size if made == WEIGHT else result.shape[-1]
        out = np.empty(result.shape, dtype).reshape(-1, columns)
        yield Pass(made, a, b, shape.in_three(), Finish(out)), result


def run_and_check(run, p: Pass, exact) -> None:
    p.out[...] = np.nan
    run(emulator_launcher("convolution.cu"), p)
    wrong = p.out.astype(float).reshape(exact.shape) - exact
    assert np.linalg.norm(wrong) < 4e-3 * np.linalg.norm(exact)  # one rounding


@emulated
@pytest.mark.parametrize("name", SHAPES)
def test_every_tile_makes_every_pass(name):
    """With parts of K and without, and nothing is found in checked mode."""
    x, weight, options, count = SHAPES[name]
    launch = emulator_launcher("convolution.cu")
    with emulator.settings(check=True):
        made = 0
        for p, exact in passes(x, weight, options):
            found = wgmma.options(p, launch)
            made += bool(found)
            for option in found:
                run_and_check(option.run, p, exact)
        assert made == count


@emulated
def test_blocks_walk_over_many_tiles():
    """More tiles than blocks: the ring and the places go on from tile to tile."""
    with emulated_chip(multiprocessors=3):
        for p, exact in passes((3, 20, 17, 64), (136, 3, 3, 64), {"padding": 1}):
            for tile in wgmma.TILES[p.made]:
                blocks = 4 if p.made == WEIGHT else 9
                parts = -(-wgmma.product(p.made, p.shape)[2] // (64 * blocks))
                run = functools.partial(wgmma.run, tile=tile, parts=parts, blocks=blocks)
                run_and_check(run, p, exact)


@emulated
@pytest.mark.parametrize("outputs", [40, 37])
def test_what_becomes_of_a_sum(outputs):
    """Through shared memory, in packs and element by element."""
    p, exact = next(passes((2, 6, 7, 16), (outputs, 3, 3, 16), {"padding": 1}))
    bias = normal(3, outputs).astype(BFLOAT16)
    residual = normal(4, *p.out.shape).astype(BFLOAT16)
    before = exact.reshape(p.out.shape) + bias.astype(float)
    wanted = activation_forward(before, activation="silu") + residual.astype(float)
    for parts in (1, 3):
        finish = Finish(p.out, bias, np.empty_like(p.out), "silu", 0.0, residual=residual)
        again = replace(p, finish=finish)
        with emulator.settings(check=parts == 1):
            launch = emulator_launcher("convolution.cu")
            for tile in wgmma.TILES[OUTPUT]:
                p.out[...] = finish.preactivation[...] = np.nan
                wgmma.run(launch, again, tile=tile, parts=parts, blocks=9 // parts)
                for got, right in ((p.out, wanted), (finish.preactivation, before)):
                    np.testing.assert_allclose(got.astype(float), right, rtol=8e-3, atol=8e-3)


class Noting(RecordingLauncher):
    """Keeps every launch, on arrays that only have addresses."""

    def __call__(self, expression, grid, block, args, shared=0):
        self.launches.append((expression, grid, [self.what(value) for value in args]))

    def empty(self, shape, dtype):
        return StandIn(np.empty(shape, dtype))

    @staticmethod
    def what(value):
        """An argument as a test compares it: addresses and maps by where they point."""
        if hasattr(value, "as_argument"):
            box = value.lower, value.upper, value.pixels, value.element_strides, value.box
            return (value.array.data.ptr, value.array.shape, box)
        if value is None or isinstance(value, np.generic):
            return value
        return (value.data.ptr,)


def test_a_second_call_repeats_the_launches(monkeypatch):
    """On other arrays: maps of the same kind are made for their addresses."""
    monkeypatch.setattr(convolution_plan, "_recipes", {})
    shape = geometry((56, 56), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), batch=8)
    launch, seen = Noting("convolution.cu"), []
    for _ in range(2):
        x, w, y, bias = (
            StandIn(np.broadcast_to(np.zeros((), BFLOAT16), s))
            for s in (shape.input_shape, shape.weight_shape, shape.output_shape, (64,))
        )
        launch.launches.clear()
        convolution_plan.launch_output(launch, x, w, shape, Finish(y, bias, activation="relu"))
        convolution_plan.launch_input(launch, y, w, shape, Finish(x))
        convolution_plan.launch_weight(launch, y, x, shape, w, None)
        names = {value.data.ptr: name for name, value in
                 {"x": x, "w": w, "y": y, "bias": bias}.items()}  # fmt: skip
        seen.append([
            (expression, grid, [
                (names.get(a[0], "scratch"), *a[1:]) if isinstance(a, tuple) else a for a in args
            ])
            for expression, grid, args in launch.launches
        ])  # fmt: skip
    made = [call for call in seen[0] if call[0].startswith("convolution_wgmma")]
    assert [[value[0] for value in args[:2]] for _, _, args in made] == [
        ["x", "w"], ["y", "w"], ["x", "y"]
    ]  # fmt: skip
    assert all(convolution_plan._recipes.values()) and seen[0] == seen[1]


def geometry(size, kernel, stride, low, high, dilation, **more) -> Geometry | None:
    out = tuple(
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, k, s, a, b, d in zip(size, kernel, stride, low, high, dilation, strict=True)
    )
    sizes = {"batch": 1, "channels": 64, "outputs": 64, "groups": 1} | more
    made = Geometry(
        size=size, kernel=kernel, out=out, stride=stride, low=low, high=high, dilation=dilation,
        **sizes,
    )  # fmt: skip
    return made if min(out) > 0 else None


def test_the_box_of_a_map_holds_every_place_of_the_result():
    """Walked as the hardware does, it has as many places as the result in each dimension."""
    for n, k, s, low, high, d in itertools.product(
        (1, 2, 5, 8), (1, 2, 4), (1, 2, 3, 5), (0, 1, 3), (0, 2), (1, 2)
    ):
        shape = geometry((1, 9, n), (1, 1, k), (1, 1, s), (0, 0, low), (0, 0, high), (1, 1, d))
        if shape is None:
            continue
        box = wgmma.places_of(OUTPUT, shape)
        walk = range(box.lower[1], n + box.upper[1], box.stride[1])
        assert len(walk) == shape.out[2] and walk[0] == -low
        if s == 1:
            box = wgmma.places_of(INPUT, shape)
            walk = range(box.lower[1], shape.out[2] + box.upper[1])
            assert len(walk) == n and walk[0] == low - d * (k - 1)


def test_what_no_map_can_hold():
    def box(*sizes):
        return wgmma.places_of(OUTPUT, geometry(*sizes))

    one, zero = (1, 1, 1), (0, 0, 0)
    assert box((1, 300, 300), (1, 3, 3), (1, 8, 1), (0, 128, 0), zero, (1, 64, 1))
    for stride, low, dilation in (
        ((1, 9, 1), zero, one),
        (one, (0, 129, 0), one),
        (one, zero, (1, 65, 1)),  # 130 from the last place of the first tap to the end
    ):
        assert box((1, 300, 300), (1, 3, 3), stride, low, zero, dilation) is None
    assert box((40, 40, 40), (3, 3, 3), one, (16, 0, 0), zero, (8, 1, 1))
    assert box((40, 40, 40), (3, 3, 3), one, (17, 0, 0), zero, one) is None
    assert box((40, 40, 40), (3, 3, 3), one, zero, zero, (16, 1, 1)) is None


def test_what_is_left_to_other_kernels():
    def found(made=OUTPUT, arch="sm_90a", dtype=BFLOAT16, size=(1, 9, 9), stride=(1, 1, 1), **more):
        shape = geometry(size, (1, 3, 3), stride, (0, 1, 1), (0, 1, 1), (1, 1, 1), **more)
        x, w, y = (
            np.broadcast_to(np.zeros((), dtype), s)
            for s in (shape.input_shape, shape.weight_shape, shape.output_shape)
        )
        a, b, out = {OUTPUT: (x, w, y), INPUT: (y, w, x), WEIGHT: (y, x, w)}[made]
        columns = w[0].size if made == WEIGHT else out.shape[-1]
        out = np.broadcast_to(np.zeros((), dtype), (out.size // columns, columns))
        p = Pass(made, a, b, shape, Finish(out))
        return wgmma.options(p, RecordingLauncher("convolution.cu", arch))

    assert found() and found(channels=8, outputs=3) and found(stride=(1, 2, 2))
    assert found(size=(1, 1 << 14, 1 << 16))
    assert not found(size=(1, 1 << 15, 1 << 16))  # 2^31 places
    assert not found(arch="sm_80") and not found(arch="sm_100a") and not found(dtype=np.float32)
    assert not found(channels=12) and not found(groups=2) and not found(batch=0)
    assert found(INPUT) and found(INPUT, channels=24, outputs=40)
    assert not found(INPUT, stride=(1, 2, 1)) and not found(INPUT, outputs=12)
    assert found(WEIGHT) and found(WEIGHT, stride=(1, 2, 2), outputs=40)
    assert not found(WEIGHT, channels=72) and not found(WEIGHT, outputs=4)
