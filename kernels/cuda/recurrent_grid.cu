// recurrent_grid.cu - recurrent networks whose weights no cluster holds: all steps in one launch of the whole chip.
//
// As recurrent_sequence_* of recurrent.cu, but a team is as many blocks as it takes, up to one on each multiprocessor:
// together they hold some 40 MB of W_hh. Vectors go through global memory, that is the second-level cache: a block
// writes its own elements there, counts itself in, waits until the team's blocks all have, and copies all vectors into
// its shared memory. The vectors lie there twice, those being read and those being written, so that one meeting
// a step is enough: who writes the next ones has seen all others finish reading the last but one.
//
// The launch must be cooperative (gpunn/device/sources.py lists this file): blocks that wait for each other must all
// be there, whatever else runs on the chip.
//
// The limit: a step waits for the one before: two passes through the second-level cache and an atomic, about
// 2 us, and the copy of all vectors by every block, 2 hidden gates bytes a sequence in 16 bits. What it saves is W_hh,
// which step by step goes through the chip at every step (8 MB for LSTM with 1024 units in 16 bits), and launches.
// Not yet run on hardware.
// Assumes: what recurrent.cu does; `counts` zero before the launch (recurrent_clear).
#include "recurrent_sequence.cuh"

constexpr int COUNT_STRIDE = 32;  // of the teams' counts: lines of the cache of their own

__global__ void __launch_bounds__(WARP) recurrent_clear(uint32* counts, int teams) {
    for (int i = threadIdx.x; i < teams * COUNT_STRIDE; i += WARP) counts[i] = 0;
}

template <typename T> struct GridTeam {
    int members, rank, tiles, columns;
    int64 start;
    T *now, *there;  // the vectors of the step before in shared memory, and both sets in global memory
    int set;         // elements of a set
    uint32 *count, round;

    __device__ __forceinline__ GridTeam(int members, int tiles, int64 batch, T* vectors, uint32* counts)
        : members(members), tiles(tiles), there(vectors), round(0) {
        const int team = blockIdx.x / members;
        rank = blockIdx.x % members;
        start = static_cast<int64>(team) * tiles * COLUMNS;
        const int64 left = batch - start;
        columns = left < tiles * COLUMNS ? static_cast<int>(left) : tiles * COLUMNS;
        count = counts + team * COUNT_STRIDE;
    }
    template <typename Product>
    __device__ __forceinline__ int packs(int segments, int units) const {
        return Product::packs(segments, units, divide_up(columns, COLUMNS), columns);
    }
    template <typename Product>
    __device__ __forceinline__ unsigned char* begin(const Product& product, unsigned char* memory, int segments,
                                                    int units, int pitch) {
        const int bytes = product.vector_bytes(tiles);
        set = bytes / static_cast<int>(sizeof(T));
        there += static_cast<int64>(blockIdx.x / members) * 2 * set;
        now = reinterpret_cast<T*>(memory);
        for (int i = threadIdx.x; i < set; i += THREADS) now[i] = narrow<T>(Accumulator<T>(0));
        // Units beyond the end are never put.
        Pack<T, PACK<T>> zeros;
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) zeros.item[e] = narrow<T>(Accumulator<T>(0));
        for (int i = threadIdx.x; i < packs<Product>(segments, units); i += THREADS) {
            T* to = there + product.pack_place(i, segments, units, rank * units, pitch);
            store_pack(to, zeros);
            store_pack(to + set, zeros);
        }
        __syncthreads();
        return memory + bytes;
    }
    __device__ __forceinline__ T* first() const { return now; }
    __device__ __forceinline__ void ready() const {}
    template <typename Product>
    __device__ __forceinline__ void receive(const Product& product, int segments, int, int pitch) const {
        if (round == 0) return;
        if (threadIdx.x == 0)
            while (ptx::load_acquire(count) < static_cast<uint32>(members) * round) __nanosleep(20);
        __syncthreads();
        const T* from = there + (round % 2) * set;
        for (int i = threadIdx.x; i < packs<Product>(segments, pitch); i += THREADS) {
            const int at = product.pack_place(i, segments, pitch, 0, pitch);
            ptx::copy_async<16>(now + at, from + at);
        }
        ptx::copy_async_commit();
        ptx::copy_async_wait<0>();
        __syncthreads();
    }
    __device__ __forceinline__ void put(int at, T value) const { there[(round + 1) % 2 * set + at] = value; }
    template <typename Product> __device__ __forceinline__ void send(const Product&, int, int, int) {
        round++;
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(count, 1u);
        }
    }
};

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
recurrent_grid_forward(const T* gates, const T* weight, const T* bias, const T* h0, const T* c0, const void* lengths,
                       bool wide, T* output, T* h_n, T* c_n, T* activated, T* inner, int steps, int64 batch,
                       int hidden, int units, int tiles, int mode, bool reverse, int members, T* vectors,
                       uint32* counts) {
    DYNAMIC_SHARED(unsigned char, memory);
    GridTeam<T> team(members, tiles, batch, vectors, counts);
    sequence_forward<T, typename ProductFor<T, 4>::type>(
        team, {steps, batch, hidden, units, mode, reverse}, {gates, bias, output, activated, inner}, weight, h0, c0,
        {lengths, wide, steps}, h_n, c_n, memory);
}

// A block has so few rows, the units without their gates, that a warp owns a single fragment of them.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
recurrent_grid_backward(const T* grad_output, const T* grad_h_n, const T* grad_c_n, const T* output,
                        const T* activated, const T* inner, const T* weight, const T* h0, const T* c0,
                        const void* lengths, bool wide, T* grad_gates, T* grad_hidden, T* grad_h0, T* grad_c0,
                        int steps, int64 batch, int hidden, int units, int tiles, int mode, bool reverse, int members,
                        T* vectors, uint32* counts) {
    DYNAMIC_SHARED(unsigned char, memory);
    GridTeam<T> team(members, tiles, batch, vectors, counts);
    sequence_backward<T, typename ProductFor<T, 1>::type>(
        team, {steps, batch, hidden, units, mode, reverse},
        {grad_output, output, activated, inner, h0, c0, grad_gates, grad_hidden, steps, reverse}, weight, grad_h_n,
        grad_c_n, {lengths, wide, steps}, grad_h0, grad_c0, memory);
}
