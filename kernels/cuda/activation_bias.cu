// activation_bias.cu - the gradient through act(x + b) over the rows of an (rows, cols) array, one pass.
//
//   out[r, c] = grad[r, c] f'(x[r, c])        sums[c] = sum over r of out[r, c], before out is rounded
//
// What a Linear layer's backward needs of its activation and of its bias: taken apart, out would be written and
// read again. Two launches:
//
//   activation_bias_backward   a block owns `across` packs of neighbouring columns and one of gridDim.y runs of
//                              `each` rows. Its threads lie `across` x `down`: thread (i, j) goes over rows
//                              j, j + down, … of the run with one pack of columns and keeps their sums in
//                              registers. The sums of a column are joined in shared memory
//                              (BLOCK * WIDTH accumulators: 8 KB for 16-bit types) and written to
//                              partial[run, column], or with one run to `sums` itself.
//   activation_bias_sums       adds the partials of each column; a block has 32 columns x 8 threads.
//
// A pack is 16 bytes if every pointer and row is a multiple of 16 (VECTOR), else one element.
// The limit: 3 elements are moved for each gradient (12 bytes of float), and the partials are a
// thousandth of that: memory. AHEAD rows of both inputs are under way in every thread.
// Deterministic: every sum is taken in an order that depends on nothing but the launch; no atomics. A sum of
// rows is taken in AHEAD-row pieces, down * runs of them side by side.
// Assumes: contiguous arrays; across a power of two up to BLOCK, which is blockDim.x. out may be grad.
#include "activation.cuh"
#include "quick.cuh"

constexpr int BLOCK = 256;
// Rows in flight a thread. Two for double: its slow functions need the registers.
template <typename T> constexpr int AHEAD = sizeof(T) == 8 ? 2 : 4;

// Two blocks a multiprocessor, 128 registers a thread: with more blocks in mind the compiler spills.
template <typename T, typename Activation, bool VECTOR>
__global__ void __launch_bounds__(BLOCK, 2)
activation_bias_backward(const T* grad, const T* x, T* out, Accumulator<T>* partial, T* sums, int64 rows, int64 cols,
                         int64 each, int across, Accumulator<T> alpha) {
    typedef Accumulator<T> A;
    typedef Functional<T> F;
    constexpr int WIDTH = VECTOR ? PACK<T> : 1;
    typedef Pack<T, WIDTH> Item;
    __shared__ A shared[WIDTH * BLOCK];
    const int shift = __ffs(across) - 1;
    const int i = threadIdx.x & (across - 1), j = threadIdx.x >> shift, down = BLOCK >> shift;
    const int64 column = (static_cast<int64>(blockIdx.x) * across + i) * WIDTH;
    const int64 from = blockIdx.y * each, to = from + each < rows ? from + each : rows;

    A total[WIDTH];
#pragma unroll
    for (int e = 0; e < WIDTH; e++) total[e] = A(0);
    for (int64 r = from + j; column < cols && r < to; r += AHEAD<T> * down) {
        Item item[AHEAD<T>][2];
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) {
            const int64 at = (r + u * down) * cols + column;
            if (r + u * down < to) {
                item[u][0] = load_pack<T, WIDTH>(grad + at);
                item[u][1] = load_pack<T, WIDTH>(x + at);
            }
        }
        A piece[WIDTH];
#pragma unroll
        for (int e = 0; e < WIDTH; e++) piece[e] = A(0);
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) {
            if (r + u * down >= to) break;
            Item result;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                const F slope = Activation::derivative(F(widen(item[u][1].item[e])), F(alpha));
                const A value = widen(item[u][0].item[e]) * static_cast<A>(slope);
                piece[e] += value;
                result.item[e] = narrow<T>(value);
            }
            store_pack(out + (r + u * down) * cols + column, result);
        }
#pragma unroll
        for (int e = 0; e < WIDTH; e++) total[e] += piece[e];
    }

    for (int half = down / 2; half > 0; half /= 2) {  // a fixed tree over j
        if (j >= half && j < 2 * half)
#pragma unroll
            for (int e = 0; e < WIDTH; e++) shared[e * BLOCK + threadIdx.x] = total[e];
        __syncthreads();
        if (j < half)
#pragma unroll
            for (int e = 0; e < WIDTH; e++) total[e] += shared[e * BLOCK + threadIdx.x + half * across];
    }
    if (j > 0 || column >= cols) return;
#pragma unroll
    for (int e = 0; e < WIDTH; e++) {
        if (partial != nullptr) partial[blockIdx.y * cols + column + e] = total[e];
        else sums[column + e] = narrow<T>(total[e]);
    }
}

template <typename T>
__global__ void __launch_bounds__(BLOCK)
activation_bias_sums(const Accumulator<T>* partial, T* sums, int runs, int64 cols) {
    typedef Accumulator<T> A;
    __shared__ A shared[BLOCK];
    const int i = threadIdx.x % WARP, j = threadIdx.x / WARP;
    const int64 column = static_cast<int64>(blockIdx.x) * WARP + i;
    A total = A(0);
    for (int run = j; column < cols && run < runs; run += BLOCK / WARP) total += partial[run * cols + column];
    shared[threadIdx.x] = total;
    __syncthreads();
    if (j > 0 || column >= cols) return;
    for (int k = 1; k < BLOCK / WARP; k++) total += shared[k * WARP + i];
    sums[column] = narrow<T>(total);
}
