// recurrent.cu - recurrent networks (Elman's, LSTM, GRU) over a batch of sequences, forward and backward.
//
// The formulas of a step are those of recurrent.cuh. For every step the state of each sequence is multiplied by the
// recurrent weights: forward h (hidden) by W_hh^T, backward the gradient of the gates (gates hidden) by W_hh.
// Three ways, chosen by gpunn/primitives/recurrent_plan.py:
//
//   recurrent_sequence_*   one launch for all steps. A block, or a cluster of 8, owns 8, 16, 24 or 32 sequences and
//                  holds W_hh in registers and shared memory from the first step to the last
//                  (recurrent_sequence.cuh). After each step the blocks write what they made into each
//                  other's shared memory and meet at the cluster's barrier, once a step.
//   recurrent_grid_*       the same with more weights than a cluster holds: recurrent_grid.cu.
//   recurrent_cell_*       weights that do not fit either, a single step, or a batch so large that a matrix product of
//                  the whole chip is better: a product and this kernel for each step, a thread for a unit
//                  of a sequence.
//
// The limit: a step waits for the one before. W_hh is read once in all instead of once a step, so what remains of a
// step is 2 gates hidden^2 FLOPs a sequence over the cluster's tensor cores (16-bit; on paper 0.3 us for LSTM with
// 512 units and 8 sequences on 8 blocks), reading the fragments that registers do not hold from shared memory (up
// to 190 KB), and the exchange: hidden elements a sequence through the cluster's network and a barrier.
// That latency is what the design is about: one barrier, the inputs of a step loaded before the product, its
// results stored after the blocks have been told to go on. A product and a cell a step would be two launches
// and W_hh through the chip each time. Not yet run on hardware.
//
// Shared memory in bytes is counted in recurrent_plan.py by the rules in recurrent_product.cuh.
// Assumes: hidden >= 1; `units` a multiple of 8 that covers hidden with the cluster's blocks; lengths beyond the
// end count as the nearest within. Any alignment.
#include "ptx_cluster.cuh"
#include "recurrent_sequence.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900  // which refuses it even for clusters of one block
#undef __cluster_dims__
#define __cluster_dims__(...)
#endif

// ---- a step in a launch of its own --------------------------------------------------------------------------

// Step `t` behind product = h W_hh^T (null: zero); h is null before the first step if it is zero there. `cell` keeps c
// in full; `first` takes it from c0 (null: zero), `c_n` is given in the last step alone. Without steps (t = steps
// = 0) the states are copied.
template <typename T>
__global__ void __launch_bounds__(256)
recurrent_cell_forward(const T* gates, const T* product, const T* bias, const T* h, const T* c0, const void* lengths,
                       bool wide, Accumulator<T>* cell, T* output, T* h_n, T* c_n, T* activated, T* inner, int64 t,
                       int steps, int64 batch, int64 hidden, int mode, bool first) {
    typedef Accumulator<T> A;
    const ForwardArrays<T> arrays{gates, bias, output, activated, inner};
    const Lengths ends{lengths, wide, steps};
    const int count = gates_of(mode);
    for (int64 i = global_thread(); i < batch * hidden; i += grid_threads()) {
        const int64 sequence = i / hidden, unit = i % hidden;
        const Place at(t, sequence, unit, batch, hidden, count);
        const bool active = t < ends.of(sequence);
        const ForwardInput<T> input = load_input(arrays, at, hidden, count, active);
        A x[MOST_GATES], p[MOST_GATES];
#pragma unroll
        for (int q = 0; q < MOST_GATES; q++) {
            x[q] = widen(input.x[q]);
            p[q] = A(0);
            if (q >= count) continue;
            if (product != nullptr) p[q] = widen(product[sequence * hidden * count + q * hidden + unit]);
            if (bias != nullptr) p[q] += widen(bias[q * hidden + unit]);
        }
        const A before = h == nullptr ? A(0) : widen(h[i]);
        A c = A(0);
        if (mode == LSTM) c = !first ? cell[i] : c0 == nullptr ? A(0) : widen(c0[i]);
        Stepped<A> to = step_forward<T>(mode, x, p, before, c);
        if (!active && mode == LSTM) to.inner = c;
        h_n[i] = narrow<T>(active ? to.h : before);
        if (mode == LSTM) {
            cell[i] = to.inner;
            if (c_n != nullptr) c_n[i] = narrow<T>(to.inner);
        }
        if (t < steps) store_step(arrays, at, hidden, mode, active, to);
    }
}

// Step `t` on the way back, behind product = (the gradient of p one step on) W_hh. grad_h and grad_c keep in full
// what reaches the states past the product; `first` takes them from grad_h_n and grad_c_n (null: zero) and has no
// product. `last` follows all steps and only leaves grad_h0 and grad_c0; then t is one past the last step.
template <typename T>
__global__ void __launch_bounds__(256)
recurrent_cell_backward(const T* grad_output, const T* product, const T* grad_h_n, const T* grad_c_n,
                        const T* output, const T* activated, const T* inner, const T* h0, const T* c0,
                        const void* lengths, bool wide, Accumulator<T>* grad_h, Accumulator<T>* grad_c,
                        T* grad_gates, T* grad_hidden, T* grad_h0, T* grad_c0, int64 t, int steps, int64 batch,
                        int64 hidden, int mode, bool reverse, bool first, bool last) {
    typedef Accumulator<T> A;
    const BackwardArrays<T> arrays{grad_output, output, activated, inner, h0, c0, grad_gates, grad_hidden, steps,
                                   reverse};
    const Lengths ends{lengths, wide, steps};
    const int count = gates_of(mode);
    for (int64 i = global_thread(); i < batch * hidden; i += grid_threads()) {
        const int64 sequence = i / hidden, unit = i % hidden;
        const int length = ends.of(sequence);
        const int64 done = reverse ? t - 1 : t + 1;  // the step before this one, on the way back
        A h, c = A(0);
        if (first) {
            h = grad_h_n == nullptr ? A(0) : widen(grad_h_n[i]);
            if (mode == LSTM && grad_c_n != nullptr) c = widen(grad_c_n[i]);
        } else {
            h = grad_h[i];
            if (done < length) h += widen(product[i]);
            if (mode == LSTM) c = grad_c[i];
        }
        if (last) {
            grad_h0[i] = narrow<T>(h);
            if (mode == LSTM) grad_c0[i] = narrow<T>(c);
            continue;
        }
        const Place at(t, sequence, unit, batch, hidden, count);
        const BackwardInput<T> input = load_input(arrays, at, t, length, batch, hidden, mode);
        SteppedBack<A> to = {};
        to.h = h;
        to.c = c;
        if (t < length) to = step_backward<T>(mode, input, h + widen(input.grad_output), c);
        grad_h[i] = to.h;
        if (mode == LSTM) grad_c[i] = to.c;
        store_gradients(arrays, at, hidden, count, to);
    }
}

// ---- all steps in one launch ----------------------------------------------------------------------------------

// A block, or a cluster whose blocks write into each other's shared memory: two sets of vectors, one that is read and
// one that is written, and one barrier a step.
template <typename T, int CLUSTER> struct ClusterTeam {
    static constexpr int members = CLUSTER;
    int rank, tiles, columns;
    int64 start;
    T *now, *next;

    __device__ __forceinline__ ClusterTeam(int tiles, int64 batch) : tiles(tiles) {
        rank = CLUSTER > 1 ? ptx::cluster_rank() : 0;
        start = static_cast<int64>(blockIdx.x / CLUSTER) * tiles * COLUMNS;
        const int64 left = batch - start;
        columns = left < tiles * COLUMNS ? static_cast<int>(left) : tiles * COLUMNS;
    }
    // Returns the memory behind the vectors.
    template <typename Product>
    __device__ __forceinline__ unsigned char* begin(const Product& product, unsigned char* memory, int, int, int) {
        const int bytes = product.vector_bytes(tiles);
        now = reinterpret_cast<T*>(memory);
        next = reinterpret_cast<T*>(memory + bytes);
        for (int i = threadIdx.x; i < 2 * (next - now); i += THREADS) now[i] = narrow<T>(Accumulator<T>(0));
        __syncthreads();
        return memory + 2 * bytes;
    }
    __device__ __forceinline__ T* first() const { return now; }
    __device__ __forceinline__ void ready() const {
        if constexpr (CLUSTER > 1) ptx::cluster_arrive();
    }
    template <typename Product> __device__ __forceinline__ void receive(const Product&, int, int, int) const {
        if constexpr (CLUSTER > 1) ptx::cluster_wait();
    }
    __device__ __forceinline__ void put(int at, T value) const { next[at] = value; }
    template <typename Product>
    __device__ __forceinline__ void send(const Product& product, int segments, int units, int pitch) {
        if constexpr (CLUSTER > 1) {
            const int packs = Product::packs(segments, units, divide_up(columns, COLUMNS), columns);
            for (int i = threadIdx.x; i < packs * (CLUSTER - 1); i += THREADS) {
                T* own = next + product.pack_place(i % packs, segments, units, rank * units, pitch);
                const int other = (rank + 1 + i / packs) % CLUSTER;
                store_pack(ptx::map_shared(own, other), load_pack<T, PACK<T>>(own));
            }
            ptx::cluster_arrive();
        }
        T* made = next;
        next = now;
        now = made;
    }
};

template <typename T, int CLUSTER>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
recurrent_sequence_forward(const T* gates, const T* weight, const T* bias, const T* h0, const T* c0,
                           const void* lengths, bool wide, T* output, T* h_n, T* c_n, T* activated, T* inner,
                           int steps, int64 batch, int hidden, int units, int tiles, int mode, bool reverse) {
    DYNAMIC_SHARED(unsigned char, memory);
    ClusterTeam<T, CLUSTER> team(tiles, batch);
    sequence_forward<T, typename ProductFor<T, 4>::type>(
        team, {steps, batch, hidden, units, mode, reverse}, {gates, bias, output, activated, inner}, weight, h0, c0,
        {lengths, wide, steps}, h_n, c_n, memory);
}

template <typename T, int CLUSTER>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
recurrent_sequence_backward(const T* grad_output, const T* grad_h_n, const T* grad_c_n, const T* output,
                            const T* activated, const T* inner, const T* weight, const T* h0, const T* c0,
                            const void* lengths, bool wide, T* grad_gates, T* grad_hidden, T* grad_h0, T* grad_c0,
                            int steps, int64 batch, int hidden, int units, int tiles, int mode, bool reverse) {
    DYNAMIC_SHARED(unsigned char, memory);
    ClusterTeam<T, CLUSTER> team(tiles, batch);
    sequence_backward<T, typename ProductFor<T, 4>::type>(
        team, {steps, batch, hidden, units, mode, reverse},
        {grad_output, output, activated, inner, h0, c0, grad_gates, grad_hidden, steps, reverse}, weight, grad_h_n,
        grad_c_n, {lengths, wide, steps}, grad_h0, grad_c0, memory);
}
