// optimizer.cuh - the common core of weight updates over one flat arena of parameters.
//
// An arena is a run of n parameters w[i], their gradients g[i] and STATES arrays of state s_k[i], all at
// the same index i. w and g are stored as T, the state as Accumulator<T>: float for the 16-bit types.
// A rule changes (w, s_0, s_1, …) of one element, given g; the elements do not depend on each other.
//
// Who does what: as in elementwise.cuh. A block owns a tile of blockDim.x * UPDATE_UNROLL packs; a pack is
// the elements of 16 bytes of state (4, or 2 of double) if every pointer is a multiple of 16
// (VECTOR), else one element. Elements behind the last whole pack belong to the last block.
// Registers: UPDATE_UNROLL * 4 floats for each array. Two packs a thread are enough: four arrays give
// eight 16-byte loads in flight a thread, several times what hides the latency of memory.
// The limit: w, g and s_k are read once, w and s_k written once, which for Adam in float32 is
// 28 bytes for about 20 operations: memory is the limit.
#pragma once
#include "common.cuh"

constexpr int UPDATE_UNROLL = 2;

template <typename T, int STATES> struct Arena {
    T* parameters;
    const T* gradients;
    Accumulator<T>* state[STATES > 0 ? STATES : 1];
    int64 size;
};

// The values of one pack: what was read, and then what is to be written.
template <typename T, int STATES, int WIDTH> struct ArenaPack {
    Pack<T, WIDTH> parameters, gradients;
    Pack<Accumulator<T>, WIDTH> state[STATES > 0 ? STATES : 1];
};

template <int WIDTH, typename T, int STATES>
__device__ __forceinline__ void load_arena(ArenaPack<T, STATES, WIDTH>& pack, const Arena<T, STATES>& arena,
                                           int64 element) {
    pack.parameters = load_pack<T, WIDTH>(arena.parameters + element);
    pack.gradients = load_pack<T, WIDTH>(arena.gradients + element);
#pragma unroll
    for (int k = 0; k < STATES; k++)
        pack.state[k] = load_pack<Accumulator<T>, WIDTH>(arena.state[k] + element);
}

template <int WIDTH, typename T, int STATES, typename Rule>
__device__ __forceinline__ void update_pack(ArenaPack<T, STATES, WIDTH>& pack, const Arena<T, STATES>& arena,
                                            int64 element, Rule rule) {
    typedef Accumulator<T> A;
#pragma unroll
    for (int e = 0; e < WIDTH; e++) {
        A parameter = widen(pack.parameters.item[e]);
        A state[STATES > 0 ? STATES : 1];
#pragma unroll
        for (int k = 0; k < STATES; k++) state[k] = pack.state[k].item[e];
        rule(parameter, widen(pack.gradients.item[e]), state);
        pack.parameters.item[e] = narrow<T>(parameter);
#pragma unroll
        for (int k = 0; k < STATES; k++) pack.state[k].item[e] = state[k];
    }
    store_pack(arena.parameters + element, pack.parameters);
#pragma unroll
    for (int k = 0; k < STATES; k++) store_pack(arena.state[k] + element, pack.state[k]);
}

// What a thread holds of its block's tile: made (all loads under way), then updated and stored. A kernel
// makes the tile first and only then reads its hyperparameters, so that both wait for memory together.
template <typename T, int STATES, bool VECTOR> struct ArenaTile {
    static constexpr int WIDTH = VECTOR ? PACK<Accumulator<T>> : 1;
    const Arena<T, STATES>& arena;
    int64 packs, first;
    ArenaPack<T, STATES, WIDTH> pack[UPDATE_UNROLL];

    __device__ __forceinline__ ArenaTile(const Arena<T, STATES>& source)
        : arena(source), packs(source.size / WIDTH),
          first(static_cast<int64>(blockIdx.x) * blockDim.x * UPDATE_UNROLL + threadIdx.x) {
#pragma unroll
        for (int u = 0; u < UPDATE_UNROLL; u++) {
            const int64 p = first + static_cast<int64>(u) * blockDim.x;
            if (p < packs) load_arena<WIDTH>(pack[u], arena, p * WIDTH);
        }
    }

    template <typename Rule> __device__ __forceinline__ void update(Rule rule) {
#pragma unroll
        for (int u = 0; u < UPDATE_UNROLL; u++) {
            const int64 p = first + static_cast<int64>(u) * blockDim.x;
            if (p < packs) update_pack<WIDTH>(pack[u], arena, p * WIDTH, rule);
        }
        const int64 tail = packs * WIDTH + threadIdx.x;
        if (blockIdx.x == gridDim.x - 1 && tail < arena.size) {
            ArenaPack<T, STATES, 1> last;
            load_arena<1>(last, arena, tail);
            update_pack<1>(last, arena, tail, rule);
        }
    }
};
