"""Public kernels, the second part: physics, graphs, neural networks, corners of the language."""

import sys
from math import erf
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "public_kernels"))
from public_launch import RNG, F, module, run, uniform

from gpunn import emulator
from gpunn.errors import CompileError


def csr(n, edges):
    """Row starts and columns of a graph's adjacency, both directions."""
    both = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    starts = np.searchsorted(both[:, 0], np.arange(n + 1)).astype(np.int32)
    return starts, both[:, 1].astype(np.int32)


# ---- physics.cu ----------------------------------------------------------------------------------


def test_heat_equation_with_a_halo():
    u, v = uniform(37, 50), np.zeros((37, 50), F)
    run("physics.heat2d", (4, 3), (16, 16), u, v, 50, 37, F(0.2))
    expected = u.copy()
    expected[1:-1, 1:-1] += F(0.2) * (
        u[1:-1, :-2] + u[1:-1, 2:] + u[:-2, 1:-1] + u[2:, 1:-1] - 4 * u[1:-1, 1:-1])
    np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-6)


def test_jacobi_in_three_dimensions():
    n = 12
    u, f = uniform(n, n, n, dtype=float), uniform(n, n, n, dtype=float)
    out, residual = u.copy(), np.zeros(1)
    run("physics.jacobi3d", (2, 3, 6), (8, 4, 2), u, f, out, residual, n)
    i = slice(1, -1)
    total = sum(np.roll(u, s, a)[i, i, i] for a in range(3) for s in (-1, 1))
    expected = (total - f[i, i, i]) / 6
    np.testing.assert_allclose(out[i, i, i], expected, rtol=1e-13)
    np.testing.assert_allclose(residual[0], abs(expected - u[i, i, i]).max(), rtol=1e-12)


def test_n_body_forces():
    bodies, force = uniform(128, 4), np.zeros((128, 4), F)
    module("physics").get_global("softeningSquared").set(np.array([0.01], F))
    run("physics.calculate_forces", (4,), (32,), bodies, force, 128, shared=32 * 16)
    r = bodies[None, :, :3].astype(float) - bodies[:, None, :3]
    weight = bodies[None, :, 3] * ((r**2).sum(-1) + 0.01) ** -1.5
    np.testing.assert_allclose(force[:, :3], (r * weight[..., None]).sum(1), rtol=1e-4, atol=1e-3)


def test_black_and_scholes():
    s, x, t = uniform(100, low=5, high=30), uniform(100, low=1, high=100), uniform(100, low=0.25)
    t = abs(t) + F(0.1)
    result = np.zeros((100, 2), F)
    run("physics.black_scholes", (1,), (128,), result, s, x, t, F(0.02), F(0.3), 100)
    s, x, t = (a.astype(float) for a in (s, x, t))
    d1 = (np.log(s / x) + (0.02 + 0.045) * t) / (0.3 * np.sqrt(t))
    normal = np.vectorize(lambda z: (1 + erf(z / 2**0.5)) / 2)
    n1, n2 = normal(d1), normal(d1 - 0.3 * np.sqrt(t))
    call = s * n1 - x * np.exp(-0.02 * t) * n2
    np.testing.assert_allclose(result[:, 0], call, atol=2e-4)
    np.testing.assert_allclose(result[:, 1], call - s + x * np.exp(-0.02 * t), atol=2e-4)


def test_monte_carlo_pi():
    hits = np.zeros(1, np.uint64)
    run("physics.monte_carlo_pi", (4,), (64,), hits, np.uint32(1234), 200)
    assert abs(4 * int(hits[0]) / (256 * 200) - np.pi) < 0.05


def test_fft_in_shared_memory():
    data = uniform(3, 256, 2)
    expected = np.fft.fft(data[..., 0] + 1j * data[..., 1])
    run("physics.fft_radix2", (3,), (128,), data, 8, shared=256 * 8)
    np.testing.assert_allclose(data[..., 0] + 1j * data[..., 1], expected, rtol=1e-4, atol=1e-4)


# ---- graphs.cu -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["in order", "reverse", "random"])
def test_breadth_first_search_by_levels_and_by_frontier(schedule):
    n = 200
    edges = RNG.integers(0, n, (300, 2))
    starts, columns = csr(n, edges)
    expected, front, depth = np.full(n, -1, np.int32), [0], 0
    expected[0] = 0
    while front:
        depth += 1
        found = {int(w) for v in front for w in columns[starts[v] : starts[v + 1]]}
        front = [w for w in found if expected[w] < 0]
        expected[front] = depth

    level = np.full(n, -1, np.int32)
    level[0] = 0
    for depth in range(n):
        changed = np.zeros(1, np.int32)
        run("graphs.bfs_level", (2,), (128,), starts, columns, level, depth, changed, n,
            schedule=schedule)
        if not changed[0]:
            break
    np.testing.assert_array_equal(level, expected)

    with pytest.raises(emulator.RaceError):
        level[1:], changed = -1, np.zeros(1, np.int32)
        run("graphs.bfs_level_plain", (2,), (128,), starts, columns, level, 0, changed, n,
            schedule="in order")

    level = np.full(n, -1, np.int32)
    level[0] = 0
    frontier, size, depth = np.zeros(n, np.int32), 1, 0
    while size:
        depth += 1
        following, count = np.zeros(n, np.int32), np.zeros(1, np.int32)
        run("graphs.bfs_frontier", (2,), (128,), starts, columns, level, frontier, size, following,
            count, depth, schedule=schedule)
        frontier, size = following, int(count[0])
    np.testing.assert_array_equal(level, expected)


def test_connected_components():
    n = 150
    edges = RNG.integers(0, n, (120, 2)).astype(np.int32)
    parent = np.arange(n, dtype=np.int32)
    changed = np.ones(1, np.int32)
    while changed[0]:
        changed[0] = 0
        run("graphs.components_hook", (1,), (128,), edges, parent, changed, 120)
        run("graphs.components_jump", (2,), (128,), parent, n)
    label = np.arange(n)
    while True:
        before = label.copy()
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
        if (label == before).all():
            break
    np.testing.assert_array_equal(parent, label)


def test_longest_common_subsequence_by_wavefront():
    a, b = RNG.integers(0, 4, 50).astype(np.int8), RNG.integers(0, 4, 70).astype(np.int8)
    length = np.zeros(1, np.int32)
    run("graphs.lcs_wavefront", (1,), (32,), a, 50, b, 70, length, shared=3 * 51 * 4)
    table = np.zeros((51, 71), int)
    for i in range(50):
        for j in range(70):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if a[i] == b[j] else max(table[i, j + 1], table[i + 1, j]))
    assert length[0] == table[50, 70]


def test_smith_waterman_in_a_warp():
    query = RNG.integers(0, 4, (3, 32)).astype(np.int8)
    target = RNG.integers(0, 4, (3, 45)).astype(np.int8)
    best = np.zeros(3, np.int32)
    run("graphs.smith_waterman_warp", (3,), (32,), query, target, 45, 3, -2, -2, best)
    for which in range(3):
        h = np.zeros((33, 46), int)
        for i in range(32):
            for j in range(45):
                s = 3 if query[which, i] == target[which, j] else -2
                h[i + 1, j + 1] = max(0, h[i, j] + s, h[i, j + 1] - 2, h[i + 1, j] - 2)
        assert best[which] == h.max()


def test_k_means():
    points = np.concatenate([uniform(60, 3) + 4 * i for i in range(3)])
    centers = points[[0, 70, 130]].copy()
    for _ in range(3):
        distance = ((points[:, None] - centers[None]) ** 2).sum(-1)
        labels, sums, counts = np.zeros(180, "i4"), np.zeros((3, 3), F), np.zeros(3, "i4")
        run("graphs.kmeans_assign", (2,), (128,), points, centers, labels, 180, 3, 3, shared=36)
        np.testing.assert_array_equal(labels, distance.argmin(1))
        run("graphs.kmeans_accumulate", (2,), (128,), points, labels, sums, counts, 180, 3)
        run("graphs.kmeans_divide", (3,), (32,), sums, counts, centers, 3)
        expected = [points[labels == c].mean(0) for c in range(3)]
        np.testing.assert_allclose(centers, expected, rtol=1e-5)


# ---- neural.cu -----------------------------------------------------------------------------------


def test_half2_multiply_add_is_rounded_once():
    x, y, a = uniform(301, dtype=np.float16), uniform(301, dtype=np.float16), np.float16(0.3)
    expected = (float(a) * x.astype(float) + y.astype(float)).astype(np.float16)
    run("neural.haxpy", (2,), (64,), 301, a, x, y)
    np.testing.assert_array_equal(y, expected)


def test_online_softmax():
    x, y = uniform(5, 333, high=9), np.zeros((5, 333), F)
    run("neural.online_softmax<128>", (5,), (128,), x, y, 333)
    e = np.exp(x.astype(float) - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5)


def test_layer_normalization_in_bfloat16():
    x, gamma = (uniform(*shape).astype(ml_dtypes.bfloat16) for shape in ((7, 100), (100,)))
    y = np.zeros((7, 100), ml_dtypes.bfloat16)
    run("neural.layernorm_bf16", (2,), (128,), x, gamma, y, 7, 100, F(1e-5))
    v = x.astype(float)
    expected = (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.astype(float), expected * gamma.astype(float), rtol=0.01,
                               atol=1e-3)


def test_atomics_on_half2():
    grad = RNG.integers(-4, 5, (90, 8)).astype(np.float16)
    index = RNG.integers(0, 6, 90).astype("i4")
    table, largest = np.zeros((6, 8), np.float16), np.zeros(1, F)
    run("neural.embedding_backward", (3,), (128,), grad, index, table, largest, 90, 4)
    expected = np.zeros((6, 8), np.float16)
    np.add.at(expected, index, grad)
    np.testing.assert_array_equal(table, expected)
    assert largest[0] == abs(grad).max()


def test_wmma():
    a, b, c = uniform(32, 48, dtype=np.float16), uniform(64, 48, dtype=np.float16), uniform(32, 64)
    expected = 2 * (a.astype(F) @ b.T.astype(F)) + F(0.5) * c
    run("neural.wmma_gemm", (1, 2), (64, 2), a, b, c, 32, 64, 48, F(2), F(0.5))
    np.testing.assert_allclose(c, expected, rtol=1e-4, atol=1e-4)


def test_attention_with_a_running_softmax():
    q, k, v = uniform(3, 16, high=2), uniform(100, 16), uniform(100, 16)
    out = np.zeros((3, 16), F)
    run("neural.attention_row", (3,), (32,), q, k, v, out, 100, 16, F(0.25), shared=4 * (16 + 32))
    s = np.exp(q.astype(float) @ k.T * 0.25)
    np.testing.assert_allclose(out, s / s.sum(1, keepdims=True) @ v, rtol=1e-5, atol=1e-6)


# ---- language.cu ---------------------------------------------------------------------------------

CAMERA = np.dtype(
    [("position", F, 3), ("focal", F), ("width", "i4"), ("height", "i4"), ("flags", "u1", 4)])


def test_a_structure_by_value():
    camera = np.zeros((), CAMERA)
    camera["position"], camera["focal"], camera["flags"] = (0, 0, -5), 20, (0, 0, 0, 7)
    camera["width"], camera["height"] = 30, 20
    depth = np.zeros((20, 30), F)
    run("language.ray_sphere", (2, 3), (16, 8), camera[()], F(2), depth)
    x, y = np.arange(30) - 15.0, np.arange(20)[:, None] - 10.0
    dz = 20 / np.sqrt(x**2 + y**2 + 400)
    d = (5 * dz) ** 2 - 21
    expected = np.where(d < 0, -1, 5 * dz - np.sqrt(abs(d)))
    np.testing.assert_allclose(depth, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "dtype", "function"),
    [("transform<float, Square>", F, np.square), ("transform<int, Square>", "i4", np.square),
     ("transform<double, Shift<double>>", float, lambda x: x + 3),
     ("transform<unsigned char, Shift<unsigned char>>", "u1", lambda x: x + 3)],
)
def test_templates(kernel, dtype, function):
    x = RNG.integers(0, 50, 100).astype(dtype)
    out = np.zeros_like(x)
    run(f"language.{kernel}", (2,), (64,), x, out, 100)
    np.testing.assert_array_equal(out, function(x))


def test_printf(capfd):
    run("language.hello", (2,), (32,), 2)
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines[1] == "block 0 thread 1 says hi 0.500 1099511627776" and len(lines) == 4


def test_complex_numbers():
    z0 = (uniform(300, low=-2, high=2) + 1j * uniform(300)).astype(np.complex64)
    steps, c = np.zeros(300, "i4"), np.complex64(-0.8 + 0.156j)
    run("language.julia", (3,), (128,), z0, c, steps, 300)
    z, expected = z0.astype(complex), np.zeros(300, int)
    for _ in range(50):
        inside = abs(z) < 2
        expected += inside
        z = np.where(inside, z * z + c, 99)
    assert (steps == expected).mean() > 0.98


def test_oddities():
    n = 40
    mask, kind = RNG.integers(0, 2, n).astype(bool), RNG.integers(0, 4, n).astype(np.uint8)
    values, wide = uniform(n), np.zeros(n, np.int64)
    with np.errstate(all="ignore"):
        expected = np.select(
            [kind == 0, kind == 1, kind == 2], [2 * values, values + 1, values**3], np.nan)
    expected = np.where(mask, expected, -expected)
    run("language.oddities", (2,), (32,), mask, kind, values, wide, 1 << 40, n)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    fibonacci = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    table = [-1, 0, 5, 100]
    assert wide.tolist() == [(i + 1 << 40) + fibonacci[i % 10] + table[i % 4] for i in range(n)]


def test_variables_of_the_device():
    data, out = RNG.integers(0, 2**32, 64).astype(np.uint32), np.zeros((64, 4), "i4")
    launches = module("language").get_global("launches")
    before = launches.get("i4")[0]
    run("language.bits", (2,), (32,), data, out, 64)
    assert launches.get("i4")[0] == before + 1
    assert out[:, 0].tolist() == [int(v).bit_count() for v in data]
    assert out[:, 1].tolist() == [32 - int(v).bit_length() for v in data]


def test_the_classic_write_past_the_end():
    with pytest.raises(emulator.OutOfBoundsError, match="x"):
        run("language.no_bounds_check", (2,), (64,), uniform(100))


def test_inline_ptx_says_that_it_is_not_emulated():
    source = r"""
    extern "C" __global__ void lane(unsigned* out) {
        unsigned id;
        asm volatile("mov.u32 %0, %%laneid;" : "=r"(id));
        out[threadIdx.x] = id;
    }"""
    with pytest.raises(CompileError, match="(?i)ptx|asm"):
        emulator.RawKernel(source, "lane")((1,), (32,), (np.zeros(32, np.uint32),))
