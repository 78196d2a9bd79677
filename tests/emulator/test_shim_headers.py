"""Headers that kernels include: each is found, and those of our own do what NVIDIA's do."""

import numpy as np
import pytest

from gpunn import emulator
from gpunn.errors import CompileError

HEADERS = """
cuda_runtime.h cuda_runtime_api.h cuda.h cuda_fp16.h cuda_bf16.h cuda_fp8.h cuComplex.h
math_constants.h vector_types.h vector_functions.h device_launch_parameters.h device_functions.h
math_functions.h sm_60_atomic_functions.h cooperative_groups.h cooperative_groups/reduce.h
cooperative_groups/scan.h cooperative_groups/memcpy_async.h cuda_pipeline.h
cuda_pipeline_primitives.h cuda/atomic cuda/barrier cuda/pipeline cuda/std/atomic
cuda/std/type_traits cuda/std/limits cuda/std/cstdint cuda/std/complex cuda/std/array
cuda/std/tuple cuda/std/utility cuda/std/cassert mma.h nv/target nvfunctional
cupy/complex.cuh cupy/math_constants.h cupy/carray.cuh cupy/float16.cuh
thrust/complex.h cstdint stdint.h
cmath math.h cstdio stdio.h cassert assert.h climits limits type_traits algorithm float.h
""".split()


def launch(source, block, *args, name="kernel", grid=1, shared=0, cluster=None, **options):
    module = emulator.RawModule(source, check=True, **options)
    module.get_function(name)((grid,), (block,), args, shared_mem=shared, cluster=cluster)


def test_all_headers_in_both_orders():
    body = 'extern "C" __global__ void kernel(int* x) { x[threadIdx.x] += 1; }'
    x = np.zeros(4, "i4")
    launch("".join(f"#include <{h}>\n" for h in HEADERS) + body, 4, x)
    launch("".join(f"#include <{h}>\n" for h in reversed(HEADERS)) + body, 4, x)
    assert x.tolist() == [2] * 4


def test_target_macros_and_constants():
    source = """
    #include <nv/target>
    #include <math_constants.h>
    extern "C" __global__ void kernel(float* x) {
        NV_IF_TARGET(NV_IS_HOST, (x[0] = 1;))
        NV_IF_ELSE_TARGET(NV_PROVIDES_SM_90, x[1] = 1;, x[1] = 2;)
        NV_DISPATCH_TARGET(NV_PROVIDES_SM_80, (x[2] = 1;), NV_IS_DEVICE, (x[2] = 2;),
                           NV_IS_HOST, (x[2] = 3;))
        x[3] = CUDART_INF_F;
        x[4] = CUDART_NAN_F;
        x[5] = CUDART_PIO2_F;
        x[6] = __CUDA_ARCH__ >= 800;
    }"""
    x = np.zeros(7, "f4")
    launch(source, 1, x)
    np.testing.assert_array_equal(x, np.float32([1, 2, 3, np.inf, np.nan, np.pi / 2, 1]))


def test_complex_headers():
    source = """
    #include <cuComplex.h>
    #include <cupy/complex.cuh>
    extern "C" __global__ void kernel(cuFloatComplex* x, complex<double>* y) {
        x[0] = cuCaddf(cuCmulf(x[0], x[1]), make_cuFloatComplex(1, cuCabsf(x[1])));
        y[0] = 2 * exp(y[0]) / 4.0f + conj(y[1]) * y[1].imag() + norm(y[1]);
    }"""
    x, y = np.array([1 + 2j, 3 + 4j], "c8"), np.array([0.5j, 1 - 2j])
    expected = x[0] * x[1] + 1 + 5j, np.exp(y[0]) / 2 + np.conj(y[1]) * -2 + 5
    launch(source, 1, x, y)
    np.testing.assert_allclose([x[0], y[0]], expected, rtol=1e-6)


# ---- cooperative groups --------------------------------------------------------------------------

GROUPS = """
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
namespace cg = cooperative_groups;
"""


@pytest.mark.parametrize("size", [4, 16, 32])
def test_tiles(size):
    source = GROUPS + """
    extern "C" __global__ void kernel(const int* in, int* out) {
        auto block = cg::this_thread_block();
        auto tile = cg::tiled_partition<SIZE>(block);
        const int t = block.thread_rank(), v = in[t], n = block.size();
        int* o = out + t;
        o[0 * n] = tile.thread_rank() + 100 * tile.meta_group_rank() + 10000 * tile.size();
        o[1 * n] = tile.shfl(v, 1);
        o[2 * n] = tile.shfl_down(v, 1);
        o[3 * n] = tile.shfl_up(v, 2);
        o[4 * n] = tile.shfl_xor(v, 3);
        o[5 * n] = tile.ballot(v > 0);
        o[6 * n] = tile.any(v > 7) + 2 * tile.all(v > -8);
        o[7 * n] = tile.match_any(v);
        o[8 * n] = cg::reduce(tile, v, cg::plus<int>());
        o[9 * n] = cg::reduce(tile, v, cg::greater<int>()) - cg::reduce(tile, v, cg::less<int>());
        o[10 * n] = cg::inclusive_scan(tile, v);
        o[11 * n] = cg::exclusive_scan(tile, v, cg::plus<int>());
        auto group = cg::tiled_partition(block, SIZE);
        group.sync();
        o[12 * n] = group.size() * 100 + group.thread_rank();
        auto part = cg::binary_partition(tile, v > 0);
        o[13 * n] = cg::reduce(part, v, cg::plus<int>()) * 100 + part.size();
        auto same = cg::labeled_partition(tile, v & 3);
        o[14 * n] = same.shfl(t, 0) * 100 + same.thread_rank();
    }"""
    v = np.random.default_rng(1).integers(-9, 10, 96).astype("i4")
    out = np.zeros((15, 96), "i4")
    launch(source, 96, v, out, options=(f"-DSIZE={size}",))
    t, rank = np.arange(96), np.arange(96) % size
    tiles = v.reshape(-1, size).astype(int)
    wide = lambda x: np.repeat(x, size)  # noqa: E731
    bits = lambda x: np.int64(x) @ (1 << np.arange(size, dtype=np.int64))  # noqa: E731
    scan = tiles.cumsum(1)
    positive = (tiles[:, None] > 0) == (tiles[..., None] > 0)
    label = (tiles[:, None] & 3) == (tiles[..., None] & 3)
    expected = [
        rank + 100 * (t // size) + 10000 * size,
        wide(tiles[:, 1]),
        np.where(rank + 1 < size, np.roll(v, -1), v),
        np.where(rank >= 2, np.roll(v, 2), v),
        v[t ^ 3],
        wide(bits(tiles > 0)),
        wide((tiles > 7).any(1) + 2 * (tiles > -8).all(1)),
        bits(tiles[:, None] == tiles[..., None]).reshape(-1),
        wide(tiles.sum(1)),
        wide(tiles.max(1) - tiles.min(1)),
        scan.reshape(-1),
        (scan - tiles).reshape(-1),
        size * 100 + rank,
        ((positive * tiles[:, None]).sum(2) * 100 + positive.sum(2)).reshape(-1),
        ((label.argmax(2) + wide(np.arange(96 // size) * size).reshape(-1, size)) * 100
         + (label & np.tri(size, k=-1, dtype=bool)).sum(2)).reshape(-1),
    ]
    for number, (got, wanted) in enumerate(zip(out, expected, strict=True)):
        np.testing.assert_array_equal(got, np.int64(wanted).astype("i4"), err_msg=str(number))


def test_block_grid_and_conversion_to_a_plain_group():
    source = GROUPS + """
    __device__ int sum(cg::thread_group g, int* scratch, int v) {
        const int lane = g.thread_rank();
        for (int i = g.size() / 2; i > 0; i /= 2) {
            scratch[lane] = v;
            g.sync();
            if (lane < i) v += scratch[lane + i];
            g.sync();
        }
        return v;
    }
    extern "C" __global__ void kernel(int* out) {
        extern __shared__ int scratch[];
        cg::thread_block block = cg::this_thread_block();
        cg::grid_group grid = cg::this_grid();
        int total = sum(block, scratch, block.thread_rank());
        int warp = sum(cg::tiled_partition<32>(block), scratch + threadIdx.x / 32 * 32, 1);
        cg::invoke_one(block, [&] { out[blockIdx.x] = total + 1000 * warp; });
        if (grid.thread_rank() == grid.size() - 1)
            out[2] = grid.num_blocks() * 100 + block.group_index().x * 10 + block.dim_threads().x;
    }"""
    out = np.zeros(3, "i4")
    launch(source, 64, out, grid=2, shared=256)
    assert out.tolist() == [32000 + 2016] * 2 + [200 + 10 + 64]


def test_cluster():
    source = GROUPS + """
    extern "C" __global__ void __cluster_dims__(4, 1, 1) kernel(int* out) {
        __shared__ int mine;
        cg::cluster_group cluster = cg::this_cluster();
        if (threadIdx.x == 0) mine = 10 * cluster.block_rank();
        cluster.sync();
        int next = (cluster.block_rank() + 1) % cluster.num_blocks();
        if (threadIdx.x == 0) out[blockIdx.x] = *cluster.map_shared_rank(&mine, next);
        cluster.sync();
    }"""
    out = np.zeros(8, "i4")
    launch(source, 32, out, grid=8)
    assert out.tolist() == [10, 20, 30, 0] * 2


# ---- asynchronous copies -------------------------------------------------------------------------

COPIES = {
    "groups": """
        cg::memcpy_async(block, tile, in + at, sizeof(int) * 64);
        cg::wait(block);""",
    "elements": """
        cg::memcpy_async(block, tile, 64, in + at, 64);
        cg::wait_prior<0>(block);""",
    "primitives": """
        __pipeline_memcpy_async(&tile[threadIdx.x], &in[at + threadIdx.x], 4);
        __pipeline_commit();
        __pipeline_wait_prior(0);
        __syncthreads();""",
    "pipeline": """
        auto pipe = cuda::make_pipeline();
        pipe.producer_acquire();
        cuda::memcpy_async(&tile[threadIdx.x], &in[at + threadIdx.x], sizeof(int), pipe);
        pipe.producer_commit();
        cuda::pipeline_consumer_wait_prior<0>(pipe);
        __syncthreads();
        pipe.consumer_release();""",
    "barrier": """
        cuda::memcpy_async(block, tile, in + at, cuda::aligned_size_t<16>(256), bar);
        bar.arrive_and_wait();""",
}


@pytest.mark.parametrize("way", COPIES)
def test_asynchronous_copies(way):
    source = GROUPS + f"""
    #include <cooperative_groups/memcpy_async.h>
    #include <cuda_pipeline.h>
    #include <cuda/barrier>
    #include <cuda/pipeline>
    extern "C" __global__ void kernel(const int* in, int* out) {{
        __shared__ alignas(16) int tile[64];
        #pragma nv_diag_suppress static_var_with_dynamic_init
        __shared__ cuda::barrier<cuda::thread_scope_block> bar;
        auto block = cg::this_thread_block();
        if (block.thread_rank() == 0) init(&bar, block.size());
        block.sync();
        for (int at = 0; at < 192; at += 64) {{
            {COPIES[way]}
            out[at + threadIdx.x] = 2 * tile[63 - threadIdx.x];
            block.sync();
        }}
    }}"""
    data, out = np.arange(192, dtype="i4"), np.zeros(192, "i4")
    launch(source, 64, data, out)
    np.testing.assert_array_equal(out, 2 * data.reshape(3, 64)[:, ::-1].reshape(-1))


def test_atomics_of_libcu():
    source = """
    #include <cuda/atomic>
    __device__ cuda::atomic<int, cuda::thread_scope_device> ticket;
    extern "C" __global__ void kernel(int* sum, unsigned* flag, int* data, int* seen) {
        cuda::atomic_ref<int, cuda::thread_scope_device> total(*sum);
        total.fetch_add(threadIdx.x, cuda::memory_order_relaxed);
        cuda::atomic_ref<unsigned, cuda::thread_scope_device> ready(*flag);
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            *data = 42;
            ready.store(1, cuda::memory_order_release);
        }
        if (blockIdx.x == 1 && threadIdx.x == 0) {
            while (ready.load(cuda::memory_order_acquire) == 0) __nanosleep(20);
            *seen = *data;
        }
        ticket++;
        int expected = total.load();
        while (!total.compare_exchange_weak(expected, expected + 1000)) {}
    }"""
    sum, data, seen = (np.zeros(1, "i4") for _ in range(3))
    # Cooperative: a block that waits for another needs both to be there.
    launch(source, 32, sum, np.zeros(1, "u4"), data, seen, grid=2, enable_cooperative_groups=True)
    assert sum[0] == 2 * 496 + 64000 and seen[0] == 42


WMMA = """
#include <mma.h>
using namespace nvcuda;
extern "C" __global__ void kernel(const A* a, const A* b, D* d) {
    wmma::fragment<wmma::matrix_a, M, N, K, IN, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, IN, wmma::row_major> fb;
    wmma::fragment<wmma::accumulator, M, N, K, D> fd;
    wmma::fill_fragment(fd, D(1));
    wmma::load_matrix_sync(fa, a, K);
    wmma::load_matrix_sync(fb, b, N);
    wmma::mma_sync(fd, fa, fb, fd);
    wmma::store_matrix_sync(d, fd, M, wmma::mem_col_major);
}"""


@pytest.mark.parametrize(
    ("a", "fragment", "d", "dtype", "result", "shape"),
    [("half", "half", "float", "f2", "f4", (16, 16, 16)),
     ("half", "half", "half", "f2", "f2", (32, 8, 16)),
     ("signed char", "signed char", "int", "i1", "i4", (8, 32, 16)),
     ("float", "wmma::precision::tf32", "float", "f4", "f4", (16, 16, 8)),
     ("double", "double", "double", "f8", "f8", (8, 8, 4))],
)
def test_wmma(a, fragment, d, dtype, result, shape):
    m, n, k = shape
    rng = np.random.default_rng(5)
    left, right = (rng.integers(-8, 9, s).astype(dtype) for s in ((m, k), (k, n)))
    out = np.zeros((n, m), result)
    source = f"#define A {a}\n#define IN {fragment}\n#define D {d}\n" + WMMA
    launch(source, 32, left, right, out, options=(f"-DM={m}", f"-DN={n}", f"-DK={k}"))
    np.testing.assert_array_equal(out.T, left.astype(float) @ right.astype(float) + 1)


def test_textures_are_refused_in_words():
    source = """
    extern "C" __global__ void kernel(cudaTextureObject_t t, float* out) {
        out[0] = tex2D<float>(t, 0.5f, 0.5f);
    }"""
    with pytest.raises(CompileError, match="the emulator has no textures"):
        launch(source, 1, np.uint64(0), np.zeros(1, "f4"))
