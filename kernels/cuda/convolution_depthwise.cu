// convolution_depthwise.cu - convolutions in which every output sees one channel (groups = channels), each with
// `multiplier` outputs: no product of matrices, since nothing is shared between channels.
#include "convolution.cuh"
#include "matmul_epilogue.cuh"

constexpr int THREADS = 256;
constexpr int STRIP = 4;  // neighbours along x that a thread makes
constexpr int RUN = 3;    // neighbouring taps along x whose gradients a thread sums

// OUTPUT   y[n, i, o]  = f(sum over k of x[n, s i + d k - p, o / multiplier] w[o, k] + bias[o]) + residual
// INPUT    dx[n, j, c] = f(sum over k, o of c of dy[n, (j + p - d k) / s, o] w[o, k] + bias[c])
//
// Who does what: a block has `lanes` neighbouring packs of WIDTH channels, whose weights it keeps in shared memory as
// accumulators, [output of a channel][tap][lane], and walks over strips of 4 places along x; a thread makes the WIDTH
// channels of one strip. Blocks of one blockIdx.y have the same channels.
//
// The limit: x (or dy) is read and the result written once: memory. A 3 x 3 kernel reads 9 packs for each it writes,
// 8 of them from the first-level cache: for 256 results in 16 bits that is 36 of its cycles, 18 for the
// multiply-adds, about as many to widen, while memory takes about 70 to bring and take them (H100, by its published
// rates). A strip shares the loads of weights and has 4 packs under way at once.
// Shared memory: multiplier x taps x lanes x WIDTH accumulators (dynamic), at most 32 KiB: see the launch code.
// Assumes: WIDTH > 1 only with a multiplier of 1, channels in whole packs, and pointers of packs.
template <typename T, Made MADE, int WIDTH>
__global__ void __launch_bounds__(THREADS, 2)
depthwise(const T* source, const T* weight, const Convolution c, int lanes, const T* bias, const T* residual, T* out,
          T* preactivation, int activation, Accumulator<T> alpha) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, weights);
    const int taps = c.kernel[0] * c.kernel[1] * c.kernel[2], multiplier = c.group_outputs;
    const int made = MADE == OUTPUT ? c.outputs : c.channels;  // channels of the result
    const int each = MADE == OUTPUT ? 1 : multiplier;          // outputs that one of them sees
    const int (&size)[3] = MADE == OUTPUT ? c.out : c.size;    // of the result
    const int (&from)[3] = MADE == OUTPUT ? c.size : c.out;    // of the source
    const int pitch = MADE == OUTPUT ? c.channels : c.outputs;
    const int lane = threadIdx.x % lanes, wide = lanes * WIDTH, first = blockIdx.y * wide;
    const int channel = first + lane * WIDTH;

    // The block's weights lie in memory in the order [channel][output of it][tap].
    const int present = (made - first < wide ? made - first : wide) * each * taps;
    for (int i = threadIdx.x; i < present; i += THREADS) {
        const int tap = i % taps, rest = i / taps;
        weights[(rest % each * taps + tap) * wide + rest / each] =
            widen(weight[static_cast<int64>(first) * each * taps + i]);
    }
    __syncthreads();
    if (channel >= made) return;

    const Epilogue<T, false> epilogue = {bias, nullptr, residual, out, preactivation, activation, alpha, A(1)};
    const int strips = (size[2] + STRIP - 1) / STRIP, high = THREADS / lanes;
    const int64 count = static_cast<int64>(c.batch) * size[0] * size[1] * strips;
    int64 strip = static_cast<int64>(blockIdx.x) * high + threadIdx.x / lanes;
    Counter at(strip, static_cast<int>(gridDim.x) * high, strips, size[1], size[0]);
    for (; strip < count; strip += static_cast<int64>(gridDim.x) * high, at.advance()) {
        const int x = at.digit[0] * STRIP, y = at.digit[1], z = at.digit[2];
        const int64 n = at.digit[3];
        A sum[STRIP][WIDTH];
#pragma unroll
        for (int r = 0; r < STRIP; r++)
#pragma unroll
            for (int e = 0; e < WIDTH; e++) sum[r][e] = A(0);
        // The place in the source for a place of the result and a tap, or -1.
        const auto place = [&](int d, int here, int tap) {
            int p = MADE == OUTPUT ? here * c.stride[d] + tap * c.dilation[d] - c.low[d]
                                   : here + c.low[d] - tap * c.dilation[d];
            if (MADE == INPUT && c.stride[d] > 1) {
                if (p < 0 || p % c.stride[d] != 0) return -1;
                p /= c.stride[d];
            }
            return p >= 0 && p < from[d] ? p : -1;
        };
        for (int j = 0; j < each; j++) {
            const A* w = weights + j * taps * wide + lane * WIDTH;
            for (int kz = 0; kz < c.kernel[0]; kz++) {
                const int sz = place(0, z, kz);
                for (int ky = 0; ky < c.kernel[1]; ky++) {
                    const int sy = place(1, y, ky);
                    if (sz < 0 || sy < 0) {
                        w += c.kernel[2] * wide;
                        continue;
                    }
                    const T* row = source + ((n * from[0] + sz) * from[1] + sy) * from[2] * pitch +
                                   (MADE == OUTPUT ? channel / multiplier : channel * each + j);
                    for (int kx = 0; kx < c.kernel[2]; kx++, w += wide) {
                        Pack<T, WIDTH> pack[STRIP];
#pragma unroll
                        for (int r = 0; r < STRIP; r++) {
                            const int sx = place(2, x + r, kx);
#pragma unroll
                            for (int e = 0; e < WIDTH; e++) pack[r].item[e] = narrow<T>(A(0));
                            if (sx >= 0) pack[r] = load_pack<T, WIDTH>(row + static_cast<int64>(sx) * pitch);
                        }
#pragma unroll
                        for (int e = 0; e < WIDTH; e++) {
                            const A factor = w[e];
#pragma unroll
                            for (int r = 0; r < STRIP; r++) sum[r][e] += widen(pack[r].item[e]) * factor;
                        }
                    }
                }
            }
        }
        const int64 corner = (((n * size[0] + z) * size[1] + y) * size[2] + x) * made + channel;
#pragma unroll 1
        for (int r = 0; r < STRIP && x + r < size[2]; r++) {
            A value[WIDTH];
#pragma unroll
            for (int k = 0; k < STRIP; k++)
#pragma unroll
                for (int e = 0; e < WIDTH; e++)
                    if (k == r) value[e] = sum[k][e];
            epilogue.template finish<WIDTH>(value, corner + static_cast<int64>(r) * made, channel, WIDTH, WIDTH > 1);
        }
    }
}

// dw[o, k] = sum over n, i of dy[n, i, o] x[n, s i + d k - p, o / multiplier], over one part of the positions.
//
// Who does what: a block has `lanes` packs of WIDTH outputs, `groups` runs of 3 neighbouring taps along x, and one
// part of the positions (blockIdx.y, of which each has `part`). A thread owns a lane and a run and takes every
// `rows`-th position; then the rows' sums are added in shared memory, one after the other.
//
// The limit: dy and x read once from memory; each run reads them again from the first-level cache, where the threads
// of one position find them together.
// Shared memory: 256 x 3 x WIDTH accumulators (24 KiB in 16 bits), static.
// Splits: parts go to `partial` (parts, outputs, taps), and matmul_combine adds them; with one part there is none, and
// the sums go to the result.
// Assumes: as `depthwise`; lanes x groups <= 256.
template <typename T, int WIDTH>
__global__ void __launch_bounds__(THREADS)
depthwise_weight(const T* grad, const T* source, const Convolution c, int lanes, int groups, int64 part, T* out,
                 Accumulator<T>* partial) {
    typedef Accumulator<T> A;
    __shared__ A shared[THREADS * RUN * WIDTH];
    const int runs = (c.kernel[2] + RUN - 1) / RUN, all = c.kernel[0] * c.kernel[1] * runs;
    const int rows = THREADS / (lanes * groups);
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes % groups, row = threadIdx.x / (lanes * groups);
    const int chunks = (c.outputs + lanes * WIDTH - 1) / (lanes * WIDTH);
    const int output = (static_cast<int>(blockIdx.x) % chunks * lanes + lane) * WIDTH;
    const int run = static_cast<int>(blockIdx.x) / chunks * groups + group;
    const bool exists = row < rows && output < c.outputs && run < all;
    const int kx = run % runs * RUN, ky = run / runs % c.kernel[1], kz = run / runs / c.kernel[1];

    const int64 positions = static_cast<int64>(c.batch) * c.out[0] * c.out[1] * c.out[2];
    const int64 begin = blockIdx.y * part, end = positions - begin < part ? positions : begin + part;
    A sum[RUN][WIDTH];
#pragma unroll
    for (int t = 0; t < RUN; t++)
#pragma unroll
        for (int e = 0; e < WIDTH; e++) sum[t][e] = A(0);
    if (exists) {
        Counter at(begin + row, rows, c.out[2], c.out[1], c.out[0]);
        const T* x = source + output / c.group_outputs;
        for (int64 i = begin + row; i < end; i += rows) {
            const int z = at.digit[2] * c.stride[0] + kz * c.dilation[0] - c.low[0];
            const int y = at.digit[1] * c.stride[1] + ky * c.dilation[1] - c.low[1];
            const int first = at.digit[0] * c.stride[2] + kx * c.dilation[2] - c.low[2];
            if (static_cast<uint32>(z) < static_cast<uint32>(c.size[0]) &&
                static_cast<uint32>(y) < static_cast<uint32>(c.size[1])) {
                const Pack<T, WIDTH> g = load_pack<T, WIDTH>(grad + i * c.outputs + output);
                const int64 line = (static_cast<int64>(at.digit[3]) * c.size[0] + z) * c.size[1] + y;
                Pack<T, WIDTH> pack[RUN];
#pragma unroll
                for (int t = 0; t < RUN; t++) {
                    const int p = first + t * c.dilation[2];
#pragma unroll
                    for (int e = 0; e < WIDTH; e++) pack[t].item[e] = narrow<T>(A(0));
                    if (kx + t < c.kernel[2] && static_cast<uint32>(p) < static_cast<uint32>(c.size[2]))
                        pack[t] = load_pack<T, WIDTH>(x + (line * c.size[2] + p) * c.channels);
                }
#pragma unroll
                for (int t = 0; t < RUN; t++)
#pragma unroll
                    for (int e = 0; e < WIDTH; e++) sum[t][e] += widen(g.item[e]) * widen(pack[t].item[e]);
            }
            at.advance();
        }
    }
#pragma unroll
    for (int t = 0; t < RUN; t++)
#pragma unroll
        for (int e = 0; e < WIDTH; e++) shared[(t * WIDTH + e) * THREADS + threadIdx.x] = sum[t][e];
    __syncthreads();
    if (!exists || row != 0) return;
    const int taps = c.kernel[0] * c.kernel[1] * c.kernel[2];
    const int64 corner = (static_cast<int64>(blockIdx.y) * c.outputs + output) * taps +
                         (kz * c.kernel[1] + ky) * c.kernel[2] + kx;
#pragma unroll
    for (int t = 0; t < RUN; t++)
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            A total = sum[t][e];
            const A* others = shared + (t * WIDTH + e) * THREADS + threadIdx.x;
            for (int r = 1; r < rows; r++) total += others[r * lanes * groups];
            if (kx + t >= c.kernel[2]) continue;
            const int64 place = corner + static_cast<int64>(e) * taps + t;
            if (partial != nullptr)
                partial[place] = total;
            else
                out[place] = narrow<T>(total);
        }
}
