// mlp_weights.cuh - the second phase of a step of mlp_train.cu: gradients of the weights by tiles, and their update.
//
// A tile is 32 outputs by 64 inputs of one layer: dW = dZ^T X over all rows of the batch. The block takes 32 rows
// at a time into shared memory, twice, and has the next 64 under way in registers, 24 KB, because they come from
// afar; half of the threads take the first 16 rows, half the others, each 4 x 4 sums: 16 multiply-adds for two
// 16-byte loads. The halves are then added, in this order, and 8 elements a thread are updated, which were loaded
// before the products: coalesced along the inputs, and the copy W^T coalesced along the outputs, through shared
// memory. The block with a layer's first inputs also sums dZ for its bias.
// Shared memory: 24.6 KB of rows; then in their place 17.4 KB of the tile's halves and 8.3 KB of its new weights.
// It is that of the products' sums.
// The limit of a tile: 2048 B multiply-adds, 16 B cycles; it reads 384 B bytes of X and dZ.
#pragma once
#include "mlp.cuh"

constexpr int CHUNK = 32, HALF = THREADS / 2;    // rows of the batch at a time; threads for each half of them
constexpr int SUM_PITCH = TILE_K + 4;            // of the halves' sums, which are stored by 16 bytes
constexpr int PITCH = TILE_K + 1;                // of the new weights; odd: a column of them has no bank twice
constexpr int HALVES = 2 * TILE_N * SUM_PITCH;   // floats of the sums; the new weights stand behind them
constexpr int EACH = TILE_N * TILE_K / THREADS;  // elements of a thread
static_assert(2 * CHUNK * (TILE_N + TILE_K) <= SUMS && HALVES + TILE_N * PITCH <= SUMS,
              "a tile works in the products' memory");
static_assert(HALF == TILE_N / 4 * (TILE_K / 4) && EACH * THREADS == TILE_N * TILE_K, "threads share out a tile");

// ---- the rules, as in optimizer.cu ------------------------------------------------------------------

struct MlpRule {
    int options;
    float lr, weight_decay;
    float momentum, gradient_scale;                                   // SGD
    float beta1, rest1, beta2, rest2, eps, step_size, correction2, decay;  // Adam

    // The slots of `hyper`: HYPER of gpunn/primitives/optimizer.py.
    __device__ __forceinline__ MlpRule(const double* hyper, int options) : options(options), lr(hyper[0]) {
        if (options & ADAM) {
            beta1 = hyper[1], rest1 = 1 - hyper[1], beta2 = hyper[2], rest2 = 1 - hyper[2], eps = hyper[3];
            step_size = lr / static_cast<float>(hyper[6]), correction2 = 1 / static_cast<float>(hyper[7]);
            decay = options & DECOUPLED ? 1 - hyper[0] * hyper[4] : 1;
            weight_decay = options & DECOUPLED ? 0 : hyper[4];
            momentum = gradient_scale = 0;
        } else {
            momentum = hyper[1], weight_decay = hyper[3], gradient_scale = hyper[5];
            beta1 = rest1 = beta2 = rest2 = eps = step_size = correction2 = decay = 0;
        }
    }
    __device__ __forceinline__ bool has_first() const { return options & (MOMENTUM | ADAM); }
    __device__ __forceinline__ bool has_second() const { return options & ADAM; }
    __device__ __forceinline__ void apply(float& w, float g, float& first, float& second) const {
        if (weight_decay != 0) g += weight_decay * w;
        if (options & ADAM) {
            first = beta1 * first + rest1 * g;
            second = beta2 * second + rest2 * (g * g);
            w = decay * w - step_size * (first / (square_root(second) * correction2 + eps));
            return;
        }
        if (options & MOMENTUM) {
            first = momentum * first + gradient_scale * g;
            g = options & NESTEROV ? g + momentum * first : first;
        }
        w -= lr * g;
    }
};

struct MlpState {
    float *first, *second, *gradients;
    double* squares;  // of each tile's gradients
    double max_norm;
};

// ---- where a tile lies ------------------------------------------------------------------------------

struct Tile {
    MlpLayer layer;
    int n0, k0;
    bool with_bias;
    __device__ __forceinline__ Tile(const MlpNetwork& net, int number) : layer(net.layer(find(net, number))) {
        const int along_k = layer.tiles_along_k(), own = number - layer.first_tile;
        n0 = own / along_k * TILE_N, k0 = own % along_k * TILE_K;
        with_bias = k0 == 0 && layer.bias >= 0;
    }
    static __device__ __forceinline__ int find(const MlpNetwork& net, int number) {
        int l = net.layers - 1;
        while (net.table[l * FIELDS + 9] > number) l--;
        return l;
    }
    // Element e of the thread: neighbouring threads have neighbouring inputs.
    static __device__ __forceinline__ int n(int e) { return (threadIdx.x + e * THREADS) / TILE_K; }
    static __device__ __forceinline__ int k(int e) { return (threadIdx.x + e * THREADS) % TILE_K; }
    __device__ __forceinline__ bool has(int e) const { return n0 + n(e) < layer.outputs && k0 + k(e) < layer.inputs; }
    __device__ __forceinline__ int64 at(int e) const {
        return layer.weight + static_cast<int64>(n0 + n(e)) * layer.inputs + k0 + k(e);
    }
    // The thread's element of the bias.
    __device__ __forceinline__ bool has_bias() const {
        return with_bias && threadIdx.x < TILE_N && n0 + threadIdx.x < layer.outputs;
    }
    __device__ __forceinline__ int64 at_bias() const { return layer.bias + n0 + threadIdx.x; }
};

// ---- the gradient -----------------------------------------------------------------------------------

// What a thread brings of a chunk: 4 numbers of X in each half of its rows, and 4 of dZ.
struct ChunkPart {
    Pack<float, 4> x[2], slope;

    __device__ __forceinline__ void load(const MlpNetwork& net, const MlpData& data, const Tile& tile, int step,
                                         int first_row) {
        const int k = tile.k0 + threadIdx.x % (TILE_K / 4) * 4, inputs = tile.layer.inputs;
#pragma unroll
        for (int u = 0; u < 2; u++) {
            x[u] = {};
            const int row = first_row + u * (CHUNK / 2) + threadIdx.x / (TILE_K / 4);
            if (row >= net.rows || k >= inputs) continue;
            if (tile.layer.input < 0)
                x[u] = data.numbers(data.sample(step, net.batch, row), k, inputs, net.options & VECTOR);
            else
                x[u] = load_pack<float, 4>(net.scratch + tile.layer.input +
                                           static_cast<int64>(row) * whole_packs(inputs) + k);
        }
        slope = {};
        const int row = first_row + threadIdx.x / (TILE_N / 4), n = tile.n0 + threadIdx.x % (TILE_N / 4) * 4;
        const int outputs = tile.layer.outputs;
        if (row < net.rows && n < outputs)
            slope = load_pack<float, 4>(net.scratch + tile.layer.slope +
                                        static_cast<int64>(row) * whole_packs(outputs) + n);
    }
    __device__ __forceinline__ void store(float* chunk) const {
        const int row = threadIdx.x / (TILE_K / 4), k = threadIdx.x % (TILE_K / 4) * 4;
        store_pack(chunk + row * TILE_K + k, x[0]);
        store_pack(chunk + (row + CHUNK / 2) * TILE_K + k, x[1]);
        store_pack(chunk + CHUNK * TILE_K + threadIdx.x * 4, slope);
    }
};
static_assert(THREADS == CHUNK / 2 * (TILE_K / 4) && THREADS == CHUNK * (TILE_N / 4), "threads share out a chunk");

// The thread's 4 x 4 sums over its half of a chunk's rows, and its bias's over all of them.
__device__ __forceinline__ void add_chunk(const Tile& tile, const float* chunk, float (&sum)[4][4], double& bias) {
    const int half = threadIdx.x / HALF, k = threadIdx.x % (TILE_K / 4) * 4, n = threadIdx.x % HALF / (TILE_K / 4) * 4;
    const float *x = chunk + half * (CHUNK / 2) * TILE_K + k, *slope = chunk + CHUNK * TILE_K;
    if (tile.with_bias && threadIdx.x < TILE_N) {
        float some = 0;
#pragma unroll 8
        for (int r = 0; r < CHUNK; r++) some += slope[r * TILE_N + threadIdx.x];
        bias += some;
    }
    slope += half * (CHUNK / 2) * TILE_N + n;
#pragma unroll 8
    for (int r = 0; r < CHUNK / 2; r++) {
        const Pack<float, 4> a = load_pack<float, 4>(x + r * TILE_K), d = load_pack<float, 4>(slope + r * TILE_N);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][j] += d.item[i] * a.item[j];
    }
}

// memory[2][TILE_N][SUM_PITCH] = the sums of each half of the rows; returns the thread's sum for the bias.
__device__ __forceinline__ float tile_gradient(const MlpNetwork& net, const MlpData& data, const Tile& tile,
                                               float* memory, int step) {
    float* const chunk[2] = {memory, memory + CHUNK * (TILE_N + TILE_K)};
    float sum[4][4] = {};
    double bias = 0;
    ChunkPart part[2];
    part[0].load(net, data, tile, step, 0);
    part[1].load(net, data, tile, step, CHUNK);
    for (int row = 0; row < net.rows; row += 2 * CHUNK) {
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const int start = row + u * CHUNK;
            if (start >= net.rows) break;
            part[u].store(chunk[u]);
            __syncthreads();  // also: all have left the chunk before last, which is written next
            part[u].load(net, data, tile, step, start + 2 * CHUNK);
            add_chunk(tile, chunk[u], sum, bias);
        }
    }
    __syncthreads();
    const int k = threadIdx.x % (TILE_K / 4) * 4, n = threadIdx.x % HALF / (TILE_K / 4) * 4;
    float* const own = memory + threadIdx.x / HALF * TILE_N * SUM_PITCH + n * SUM_PITCH + k;
#pragma unroll
    for (int i = 0; i < 4; i++)
        store_pack(own + i * SUM_PITCH, Pack<float, 4>{{sum[i][0], sum[i][1], sum[i][2], sum[i][3]}});
    __syncthreads();
    return static_cast<float>(bias);
}

// ---- the update -------------------------------------------------------------------------------------

// The thread's elements of a weight and of its state, and behind them that of the bias.
struct Elements {
    float w[EACH + 1], first[EACH + 1], second[EACH + 1];
    __device__ __forceinline__ void load(const MlpNetwork& net, const Tile& tile, const MlpState& state,
                                         const MlpRule& rule) {
#pragma unroll
        for (int e = 0; e <= EACH; e++) {
            w[e] = first[e] = second[e] = 0;
            if (e == EACH ? !tile.has_bias() : !tile.has(e)) continue;
            const int64 at = e == EACH ? tile.at_bias() : tile.at(e);
            w[e] = net.parameters[at];
            if (rule.has_first()) first[e] = state.first[at];
            if (rule.has_second()) second[e] = state.second[at];
        }
    }
    // Element e, moved by its gradient.
    __device__ __forceinline__ void update(const MlpNetwork& net, const MlpState& state, const MlpRule& rule, int e,
                                           int64 at, float gradient) {
        rule.apply(w[e], gradient, first[e], second[e]);
        net.parameters[at] = w[e];
        if (rule.has_first()) state.first[at] = first[e];
        if (rule.has_second()) state.second[at] = second[e];
    }
};

// Updates the thread's elements with the gradients g, and the copies of the weight that the rows read.
__device__ __forceinline__ void update_tile(const MlpNetwork& net, const Tile& tile, const MlpState& state,
                                            const MlpRule& rule, Elements& own, const float (&g)[EACH], float bias,
                                            float* transposed) {
    const MlpLayer& layer = tile.layer;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        if (!tile.has(e)) continue;
        own.update(net, state, rule, e, tile.at(e), g[e]);
        if (layer.backward >= 0) {
            const int64 row = tile.n0 + Tile::n(e);
            net.scratch[layer.backward + row * whole_packs(layer.inputs) + tile.k0 + Tile::k(e)] = own.w[e];
        }
        transposed[Tile::n(e) * PITCH + Tile::k(e)] = own.w[e];
    }
    if (tile.has_bias()) own.update(net, state, rule, EACH, tile.at_bias(), bias);
    __syncthreads();
    const int wide = whole_packs(layer.outputs), n = threadIdx.x % TILE_N;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int k = threadIdx.x / TILE_N + e * (THREADS / TILE_N);
        if (tile.n0 + n < layer.outputs && tile.k0 + k < layer.inputs)
            net.scratch[layer.forward + static_cast<int64>(tile.k0 + k) * wide + tile.n0 + n] =
                transposed[n * PITCH + k];
    }
    __syncthreads();  // the next tile's sums go over this one's
}

// Keeps a tile's gradient where its update will find it, and the sum of its squares.
__device__ __forceinline__ void keep_gradient(const Tile& tile, const MlpState& state, const float (&g)[EACH],
                                              float bias, int number) {
    __shared__ double partial[WARP];
    double squares = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        if (!tile.has(e)) continue;
        state.gradients[tile.at(e)] = g[e];
        squares += static_cast<double>(g[e]) * g[e];
    }
    if (tile.has_bias()) {
        state.gradients[tile.at_bias()] = bias;
        squares += static_cast<double>(bias) * bias;
    }
    squares = block_reduce<Sum>(squares, partial);
    if (threadIdx.x == 0) state.squares[number] = squares;
    __syncthreads();
}

// What all gradients are multiplied by: 1, or max_norm / (norm + 1e-6), as clip_by_norm.
__device__ __forceinline__ float clip_coefficient(const MlpNetwork& net, const MlpState& state) {
    __shared__ double partial[WARP];
    double sum = 0;
    for (int i = threadIdx.x; i < net.tiles; i += THREADS) sum += state.squares[i];
    const float norm = static_cast<float>(sqrt(block_reduce<Sum>(sum, partial)));
    const double ratio = state.max_norm / (static_cast<double>(norm) + 1e-6);
    return ratio >= 1 ? 1.0f : static_cast<float>(ratio);
}

__device__ __forceinline__ float clipped(float gradient, float coefficient) {
    return gradient == 0 || coefficient == 1 ? gradient : gradient * coefficient;  // zeros stay, also for NaN
}

// The block's tiles: gradients and their update, or with CLIP the gradients, a meeting, and then the update.
// Written as two rounds, so that the code of either stands in the kernel once.
__device__ __forceinline__ void train_weights(const MlpNetwork& net, const MlpData& data, const MlpBlock& block,
                                              const MlpState& state, const MlpRule& rule, Meeting& meeting, int step) {
    const bool clip = net.options & CLIP;
    float coefficient = 1;
    for (int round = clip ? 0 : 1; round < 2; round++) {
        for (int number = blockIdx.x; number < net.tiles; number += gridDim.x) {
            const Tile tile(net, number);
            float g[EACH], bias = 0;
            Elements own;
            if (round == 1) own.load(net, tile, state, rule);
            if (round == 0 || !clip) {
                bias = tile_gradient(net, data, tile, block.sums, step);
#pragma unroll
                for (int e = 0; e < EACH; e++) {
                    const int at = Tile::n(e) * SUM_PITCH + Tile::k(e);
                    g[e] = block.sums[at] + block.sums[TILE_N * SUM_PITCH + at];
                }
            } else {
#pragma unroll
                for (int e = 0; e < EACH; e++)
                    g[e] = tile.has(e) ? clipped(state.gradients[tile.at(e)], coefficient) : 0.0f;
                if (tile.has_bias()) bias = clipped(state.gradients[tile.at_bias()], coefficient);
            }
            if (round == 0)
                keep_gradient(tile, state, g, bias, number);
            else
                update_tile(net, tile, state, rule, own, g, bias, block.sums + HALVES);
        }
        if (round == 0) {
            meeting.hold();
            coefficient = clip_coefficient(net, state);
        }
    }
}

// ---- the copies, before the first step --------------------------------------------------------------

__device__ __forceinline__ void copy_weights(const MlpNetwork& net) {
    for (int l = 0; l < net.layers; l++) {
        const MlpLayer layer = net.layer(l);
        const float* weight = net.parameters + layer.weight;
        const int wide = whole_packs(layer.outputs), long_rows = whole_packs(layer.inputs);
        for (int64 i = global_thread(); i < static_cast<int64>(layer.inputs) * wide; i += grid_threads()) {
            const int64 k = i / wide, n = i % wide;
            net.scratch[layer.forward + i] = n < layer.outputs ? weight[n * layer.inputs + k] : 0.0f;
        }
        if (layer.backward < 0) continue;
        for (int64 i = global_thread(); i < static_cast<int64>(layer.outputs) * long_rows; i += grid_threads()) {
            const int64 n = i / long_rows, k = i % long_rows;
            net.scratch[layer.backward + i] = k < layer.inputs ? weight[n * layer.inputs + k] : 0.0f;
        }
    }
}
