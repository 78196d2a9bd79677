// mlp.cuh - what both phases of mlp_train.cu share: the layers, the data, the memory of a block, how blocks meet.
#pragma once
#include "matmul_epilogue.cuh"
#include "ptx_memory.cuh"
#include "random.cuh"

constexpr int THREADS = 256, ROWS = 8;        // of a block; of the batch, a warp for each
constexpr int TILE_N = 32, TILE_K = 64;       // of a weight's gradient
constexpr int SUMS = ROWS * 4 * (THREADS + 1);  // floats that a product or a tile works in
constexpr int FIELDS = 16;                    // of a layer in the table
constexpr int MOST_SLOTS = 8;                 // of a step in `hyper`

// The bits of `options`, as in gpunn/primitives/mlp_launch.py.
enum MlpOptions { MOMENTUM = 1, ADAM = 2, NESTEROV = 4, DECOUPLED = 8, MSE = 16, CLIP = 32, VECTOR = 64 };

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fc00000); }
// A width rounded up to whole packs of 16 bytes.
__device__ __forceinline__ int whole_packs(int width) { return (width + 3) & ~3; }

// A layer of the table. Offsets count floats: of `parameters`, then of `scratch`; -1 where there is nothing.
struct MlpLayer {
    int inputs, outputs;
    int64 weight, bias;
    int activation;
    float alpha;
    uint32 threshold;  // of dropout
    float scale;       // of what it keeps
    int dropout;       // which of the step's dropouts it is
    int first_tile;
    int64 forward;   // W^T (inputs, whole_packs(outputs)), zeros behind the outputs
    int64 backward;  // W (outputs, whole_packs(inputs)); -1: as it lies in `parameters`, if not resident
    int64 input;     // X (rows, whole_packs(inputs)); -1: rows of the data
    int64 pre;       // Z (rows, whole_packs(outputs)); of all layers but the last
    int64 slope;     // dZ, like Z
    int split;       // which of its products a team shares out: bit 0 forward, bit 1 backward

    __device__ __forceinline__ MlpLayer(const int64* field)
        : inputs(static_cast<int>(field[0])), outputs(static_cast<int>(field[1])), weight(field[2]), bias(field[3]),
          activation(static_cast<int>(field[4])), alpha(__int_as_float(static_cast<int>(field[5]))),
          threshold(static_cast<uint32>(field[6])), scale(__int_as_float(static_cast<int>(field[7]))),
          dropout(static_cast<int>(field[8])), first_tile(static_cast<int>(field[9])), forward(field[10]),
          backward(field[11]), input(field[12]), pre(field[13]), slope(field[14]),
          split(static_cast<int>(field[15])) {}
    __device__ __forceinline__ int tiles_along_k() const { return divide_up(inputs, TILE_K); }
};

struct MlpNetwork {
    const int64* table;
    int layers, tiles, batch, rows;  // rows: the batch rounded up to whole groups of 8
    int options;
    bool resident;                // the scratch memory is the block's own
    float *parameters, *scratch;  // at the front of the scratch memory the rows' losses, then 1 for each right one
    __device__ __forceinline__ MlpLayer layer(int l) const { return MlpLayer(table + l * FIELDS); }
};

struct MlpData {
    const float* x;
    int64 samples;
    const int64* labels;
    const float* wanted;
    const int64 *order;
    const int* counts;  // real rows of each step
    float smoothing;
    uint64 seed, offset;
    int dropouts;
    // The sample of a row of a step; -1 where there is none.
    __device__ __forceinline__ int64 sample(int step, int batch, int row) const {
        return row < batch ? order[static_cast<int64>(step) * batch + row] : -1;
    }
    // Whether to read a sample; what is neither that nor -1 is an error that shows as NaN.
    __device__ __forceinline__ bool exists(int64 sample) const { return sample >= 0 && sample < samples; }
    // Four of a sample's numbers from the k-th on, zeros behind the last; `vector`: all lie at 16 bytes.
    __device__ __forceinline__ Pack<float, 4> numbers(int64 sample, int k, int inputs, bool vector) const {
        Pack<float, 4> found = {};
        if (sample == -1 || k >= inputs) return found;
        const bool real = exists(sample);
        const float* from = x + (real ? sample * inputs + k : 0);
        if (real && vector) return load_pack<float, 4>(from);
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (k + e < inputs) found.item[e] = real ? from[e] : not_a_number();
        return found;
    }
};

struct MlpBlock {
    float* sums;
    float* buffer[2];  // [number of a layer's output][row of 8]; the layers take turns
    __device__ __forceinline__ float* of(int l) const { return l % 2 ? buffer[1] : buffer[0]; }
};

constexpr int COUNT_STRIDE = 32;  // of the counts of meetings: lines of the cache of their own

// `members` blocks wait for each other: what each wrote before is there for the others behind it.
struct Meeting {
    uint32* count;
    uint32 members, held;
    __device__ __forceinline__ void hold() {
        __syncthreads();
        if (members == 1) return;
        held++;
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(count, 1u);
            // By the sign of the difference: in a long launch the counts pass 2^32.
            while (static_cast<int>(ptx::load_acquire(count) - members * held) < 0) __nanosleep(20);
        }
        __syncthreads();
    }
};

// The blocks that take the same rows of the batch: neighbours.
struct MlpTeam {
    int members, rank, number, teams;
    Meeting meeting;
};
