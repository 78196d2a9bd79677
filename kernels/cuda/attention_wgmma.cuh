// attention_wgmma.cuh - the parts of attention on sm_90a: shared memory, the order of work, the loading warp, and what
// a thread does with its scores.
//
// Panels of heads lie in shared memory as boxes of 64 columns: lines of 128 bytes in the swizzle of 128 bytes, as
// tensor copies write and wgmma reads them. A thread (g, t) = (lane / 4, lane % 4) has of a result of 64 rows, for
// columns 8 j … 8 j + 7, as in attention_mma.cuh:
//   [4 j + 0..1]: row g of its warp's 16, columns 8 j + 2 t + 0..1     [4 j + 2..3]: row g + 8, the same columns
#pragma once
#include "attention_mma.cuh"
#include "ptx.cuh"

constexpr int WARPGROUP = 128;

// Sizes; bytes unless named otherwise. Their like in Python is gpunn/primitives/attention_wgmma.py.
template <int DIM> struct Panels {
    static constexpr int CONSUMERS = DIM == 64 ? 3 : 2, ROWS = 64 * CONSUMERS, KEYS = 128, STAGES = 2;
    static constexpr int THREADS = WARPGROUP * (1 + CONSUMERS);
    static constexpr int LOADER_REGISTERS = CONSUMERS == 3 ? 32 : 40, REGISTERS = CONSUMERS == 3 ? 160 : 232;
    static constexpr int LINE = 128, BOXES = DIM / 64;
    static constexpr int QUERY_BOX = ROWS * LINE, KEY_BOX = KEYS * LINE;
    static constexpr int QUERIES = BOXES * QUERY_BOX, PANEL = BOXES * KEY_BOX;
    static constexpr int FIRST_KEYS = QUERIES, FIRST_VALUES = FIRST_KEYS + STAGES * PANEL;
    static constexpr int BARRIERS = FIRST_VALUES + STAGES * PANEL;
    static_assert(DIM == 64 || DIM == 128, "whole boxes, and registers for the sums");
};

// Its barriers. `full` ones are told by the tensor copies, `empty` ones by the warps that have read.
template <int DIM> struct Barriers {
    typedef Panels<DIM> S;
    uint64 *key_full, *key_empty, *value_full, *value_empty, *query_full, *query_empty, *edge;

    __device__ __forceinline__ explicit Barriers(unsigned char* memory)
        : key_full(reinterpret_cast<uint64*>(memory + S::BARRIERS)), key_empty(key_full + S::STAGES),
          value_full(key_empty + S::STAGES), value_empty(value_full + S::STAGES),
          query_full(value_empty + S::STAGES), query_empty(query_full + 1), edge(query_empty + 1) {}

    // By one thread; a barrier of the block follows.
    __device__ __forceinline__ void open() const {
        for (int stage = 0; stage < S::STAGES; stage++) {
            ptx::mbarrier_init(&key_full[stage], 1);
            ptx::mbarrier_init(&value_full[stage], 1);
            ptx::mbarrier_init(&key_empty[stage], 4 * S::CONSUMERS);
            ptx::mbarrier_init(&value_empty[stage], 4 * S::CONSUMERS);
        }
        ptx::mbarrier_init(query_full, 1);
        ptx::mbarrier_init(query_empty, 4 * S::CONSUMERS);
        ptx::mbarrier_init(edge, 1);
        ptx::fence_mbarrier_init();
    }
};

// A place in a ring of stages. Phases have parity 0, 1, 0 …
template <int STAGES> struct Slot {
    int index = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++index == STAGES) index = 0, parity ^= 1;
    }
};

// ---- the order of work ---------------------------------------------------------------------------------------------

// A unit is a tile of rows of a table and one of `parts` parts of the keys. `section` tables are walked together, tile
// by tile from the last: with causal attention the last sees the most, and what takes longest comes first. Their keys
// and values should fit in the L2 cache. With one table in a section its tiles follow each other.
struct Plan {
    int tiles, parts, tables, section;
    int share;  // tables that have one head of keys

    __device__ __forceinline__ uint32 units() const { return static_cast<uint32>(tiles) * tables * parts; }
    // The block's unit of a round, if there is one left. Every other round goes backwards, so that no block always has
    // the longest of each.
    __device__ __forceinline__ uint32 number(uint32 round) const {
        return round * gridDim.x + (round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
    }
};

template <int DIM> struct Unit {
    int part;
    Sequence s;
    int row0, first, end;  // the tile's rows, and keys [first, end)

    __device__ __forceinline__ Unit(const Attention& p, Lengths lengths, const Plan& plan, uint32 number)
        : Unit(p, lengths, plan, number / (static_cast<uint32>(plan.section) * plan.tiles),
               number % (static_cast<uint32>(plan.section) * plan.tiles)) {}

private:
    __device__ __forceinline__ Unit(const Attention& p, Lengths lengths, const Plan& plan, uint32 section, uint32 rest)
        : Unit(p, lengths, plan, section * plan.section, rest,
               min(static_cast<uint32>(plan.section), plan.tables * plan.parts - section * plan.section)) {}

    // Of `wide` tables times parts from `from` on.
    __device__ __forceinline__ Unit(const Attention& p, Lengths lengths, const Plan& plan, uint32 from, uint32 rest,
                                    uint32 wide)
        : part((from + rest % wide) % plan.parts), s(p, lengths, (from + rest % wide) / plan.parts),
          row0((plan.tiles - 1 - static_cast<int>(rest / wide)) * Panels<DIM>::ROWS) {
        constexpr int N = Panels<DIM>::KEYS;
        s.keys_of_rows(row0, min(row0 + Panels<DIM>::ROWS, p.rows()), p.group, first, end);
        first = first / N * N;
        if (plan.parts > 1) {
            const int each = ((end - first + N - 1) / N + plan.parts - 1) / plan.parts * N;
            first += part * each;
            end = min(end, first + each);
        }
    }
};

// ---- loading: one warp ---------------------------------------------------------------------------------------------

template <int DIM> struct Loader {
    typedef Panels<DIM> S;
    unsigned char* memory;
    Barriers<DIM> barriers;
    const ptx::TensorMap *map_q, *map_k, *map_v;
    Slot<S::STAGES> keys, values;
    int query_parity, edge_parity;

    __device__ __forceinline__ void load_boxes(unsigned char* panel, int box_bytes, const ptx::TensorMap* map,
                                               uint64* barrier, int head, int position, int batch) const {
#pragma unroll
        for (int box = 0; box < S::BOXES; box++) {
            const int at[4] = {box * 64, head, position, batch};
            ptx::tensor_load<4>(panel + box * box_bytes, map, barrier, at);
        }
    }
    __device__ __forceinline__ void load_queries(const Attention& p, const Unit<DIM>& unit) {
        if (threadIdx.x == 0) {
            ptx::mbarrier_wait(barriers.query_empty, query_parity ^ 1);
            ptx::mbarrier_arrive_expect(barriers.query_full, S::QUERIES);
            load_boxes(memory, S::QUERY_BOX, map_q, barriers.query_full, unit.s.kv_head * p.group, unit.row0 / p.group,
                       unit.s.batch);
        }
        query_parity ^= 1;
    }
    __device__ __forceinline__ void load_keys(int head, int key, int batch) {
        if (threadIdx.x == 0) {
            uint64* full = &barriers.key_full[keys.index];
            ptx::mbarrier_wait(&barriers.key_empty[keys.index], keys.parity ^ 1);
            ptx::mbarrier_arrive_expect(full, S::PANEL);
            load_boxes(memory + S::FIRST_KEYS + keys.index * S::PANEL, S::KEY_BOX, map_k, full, head, key, batch);
        }
        keys.next();
    }
    // The first `valid` of the values count. What lies behind the length of a sequence may be NaN, which a weight of 0
    // leaves NaN: then the warp waits for the copy itself and puts zeros there before it tells the consumers.
    __device__ __forceinline__ void load_values(int head, int key, int batch, int valid) {
        unsigned char* panel = memory + S::FIRST_VALUES + values.index * S::PANEL;
        uint64* full = &barriers.value_full[values.index];
        const bool whole = valid >= S::KEYS;
        if (threadIdx.x == 0) {
            ptx::mbarrier_wait(&barriers.value_empty[values.index], values.parity ^ 1);
            ptx::mbarrier_arrive_expect(whole ? full : barriers.edge, S::PANEL);
            load_boxes(panel, S::KEY_BOX, map_v, whole ? full : barriers.edge, head, key, batch);
        }
        values.next();
        if (whole) return;
        __syncwarp();
        ptx::mbarrier_wait(barriers.edge, edge_parity);
        edge_parity ^= 1;
        for (int box = 0; box < S::BOXES; box++)
            for (int at = valid * S::LINE + threadIdx.x * 16; at < S::KEY_BOX; at += WARP * 16)
                *reinterpret_cast<uint4*>(panel + box * S::KEY_BOX + at) = make_uint4(0, 0, 0, 0);
        ptx::fence_proxy_async();
        __syncwarp();
        if (threadIdx.x == 0) ptx::mbarrier_arrive(full);
    }

    __device__ __forceinline__ void run(const Attention& p, Lengths lengths, const Plan& plan) {
        query_parity = edge_parity = 0;
#pragma unroll 1
        for (uint32 round = 0, number; (number = plan.number(round)) < plan.units(); round++) {
            const Unit<DIM> unit(p, lengths, plan, number);
            if (unit.first >= unit.end) continue;
            const int head = unit.s.kv_head / plan.share, batch = unit.s.batch;
            load_keys(head, unit.first, batch);
            load_queries(p, unit);
#pragma unroll 1
            for (int key = unit.first; key < unit.end; key += S::KEYS) {
                if (key + S::KEYS < unit.end) load_keys(head, key + S::KEYS, batch);
                // Behind the last key of the arrays the tensor copies themselves put zeros.
                load_values(head, key, batch, unit.s.keys < p.keys ? unit.s.keys - key : S::KEYS);
            }
        }
    }
};

// ---- scores --------------------------------------------------------------------------------------------------------

// The running softmax of a thread's two rows; `top` in units of the products, before they are scaled.
struct Running {
    float top[2] = {-infinity<float>(), -infinity<float>()}, total[2] = {0.f, 0.f};

    // Turns scores into weights under the new maximum. The sums so far are to be multiplied by `factor`.
    template <int COUNT>
    __device__ __forceinline__ void weigh(float (&scores)[COUNT], float scale, float (&factor)[2]) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float largest = top[h];
#pragma unroll
            for (int j = 0; j < COUNT; j += 4) largest = fmaxf(largest, fmaxf(scores[j + 2 * h], scores[j + 2 * h + 1]));
            largest = fmaxf(largest, shuffle_xor(largest, 1));
            largest = fmaxf(largest, shuffle_xor(largest, 2));
            const float reference = largest == -infinity<float>() ? 0.f : largest * scale;
            factor[h] = ptx::power_of_2(fmaf(top[h], scale, -reference));
            top[h] = largest;
            float sum[2] = {total[h] * factor[h], 0.f};
#pragma unroll
            for (int j = 0; j < COUNT; j += 4)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& score = scores[j + 2 * h + e];
                    score = ptx::power_of_2(fmaf(score, scale, -reference));
                    sum[e] += score;
                }
            total[h] = sum[0] + sum[1];
        }
    }
};

// The left operand of the next product: weights in 16 bits, 16 keys a step.
template <typename T, int COUNT>
__device__ __forceinline__ void pack_weights(uint32 (&packed)[COUNT / 8][4], const float (&weights)[COUNT]) {
#pragma unroll
    for (int step = 0; step < COUNT / 8; step++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            packed[step][r] = pack_two<T>(weights[8 * step + 2 * r], weights[8 * step + 2 * r + 1]);
}

// ---- results -------------------------------------------------------------------------------------------------------

// Row h (0: g, 1: g + 8) of the sums times a factor, `dim` numbers of 16 bits. The four lanes of a row exchange words, so
// that each has whole runs of 16 bytes; all lanes call it, and those whose row is there have a target.
template <typename T, int DIM>
__device__ __forceinline__ void store_row(T* target, int dim, const float (&sums)[DIM / 2], int h, float factor) {
    const int t = threadIdx.x % 4;
    const bool odd = t % 2 != 0, upper = t / 2 != 0;
#pragma unroll
    for (int run = 0; run < DIM / 32; run++) {
        uint32 w[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int at = 4 * (4 * run + k) + 2 * h;
            w[k] = pack_two<T>(sums[at] * factor, sums[at + 1] * factor);
        }
        // Word k of lane t becomes word t of lane k.
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            const uint32 got = __shfl_xor_sync(FULL_WARP, odd ? w[k] : w[k + 1], 1);
            w[k] = odd ? got : w[k], w[k + 1] = odd ? w[k + 1] : got;
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint32 got = __shfl_xor_sync(FULL_WARP, upper ? w[k] : w[k + 2], 2);
            w[k] = upper ? got : w[k], w[k + 2] = upper ? w[k + 2] : got;
        }
        if (target != nullptr && 32 * run + 8 * t < dim)
            *reinterpret_cast<uint4*>(target + 32 * run + 8 * t) = make_uint4(w[0], w[1], w[2], w[3]);
    }
}
