// random.cu - random numbers and dropout over arrays of any shape.
//
//   random_bits      out[i] = word(i)                       word(i) of random.cuh
//   random_uniform   out[i] = low + width u(i)              u(i) = (word(i) >> 8) 2^-24 in [0, 1)
//   random_normal    out[i] = mean + std Phi^-1((word(i) + 1/2) 2^-32)
//   dropout          out[i] = word(i) >> 8 >= threshold ? x[i] scale : 0,  threshold = ceil(p 2^24)
//
//   advance_counter  counter[1] += draws
//
// (for double: u and the quantile of 53 bits; the mask of dropout is the same for every type.) seed and offset come
// by value or from a counter in device memory, which every thread reads once: two loads that a warp shares, then
// uniform registers.
//
// Who does what: a thread owns the four neighbouring elements of one Philox block and goes on by the
// grid's size; in dropout of 16-bit elements those of two, because 8 bytes a thread would be too few under
// way to hide the latency of a load. With VECTOR it moves them in one 16-byte transaction (two for double,
// 8 bytes for 16-bit random numbers), a warp thus a whole run of memory; without, and at the end, one by one.
// The limit: float32 moves 4 bytes an element (dropout 8) for about 25 instructions, about 100 with the
// quantile. A chip of 4.3 TB/s and 30 T instructions/s is thus near its memory's limit with uniform numbers
// and dropout, and at about a quarter of it with normal ones.
// Assumes: nothing of the shape; VECTOR only if all pointers are multiples of 16 bytes (of 8 for 16-bit
// random numbers). out may be x in dropout. Indices have 64 bits.
// Why not a generator with state (as XORWOW): its state must be read, written and seeded, and the
// numbers would depend on the number of threads.
#include "random.cuh"

constexpr int ITEMS = 4;  // of one Philox block

// Elements of COUNT in one transaction.
template <typename T, int COUNT> constexpr int WIDTH = PACK<T> < COUNT ? PACK<T> : COUNT;
// Philox blocks of a thread in dropout.
template <typename T> constexpr int TOGETHER = sizeof(T) == 2 ? 2 : 1;

template <typename T> __device__ __forceinline__ T zero() { return narrow<T>(Accumulator<T>(0)); }

// Calls f(first element, number) for every run of COUNT elements that this thread owns.
template <int COUNT = ITEMS, typename Function> __device__ __forceinline__ void for_each_block(int64 n, Function f) {
    const int64 blocks = (n + COUNT - 1) / COUNT;
    for (int64 b = global_thread(); b < blocks; b += grid_threads()) f(b * COUNT, static_cast<uint64>(b));
}

template <bool VECTOR, typename T, int COUNT>
__device__ __forceinline__ void store_block(T* out, int64 first, int64 n, const T (&value)[COUNT]) {
    constexpr int W = WIDTH<T, COUNT>;
    if (VECTOR && first + COUNT <= n) {
#pragma unroll
        for (int k = 0; k < COUNT; k += W) {
            Pack<T, W> pack;
#pragma unroll
            for (int e = 0; e < W; e++) pack.item[e] = value[k + e];
            store_pack(out + first + k, pack);
        }
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (first + k < n) out[first + k] = value[k];
    }
}

template <bool VECTOR, typename T, int COUNT>
__device__ __forceinline__ void load_block(const T* x, int64 first, int64 n, T (&value)[COUNT]) {
    constexpr int W = WIDTH<T, COUNT>;
    if (VECTOR && first + COUNT <= n) {
#pragma unroll
        for (int k = 0; k < COUNT; k += W) {
            const Pack<T, W> pack = load_pack<T, W>(x + first + k);
#pragma unroll
            for (int e = 0; e < W; e++) value[k + e] = pack.item[e];
        }
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; k++) value[k] = first + k < n ? x[first + k] : zero<T>();
    }
}

template <bool VECTOR>
__global__ void __launch_bounds__(256)
random_bits(uint32* out, int64 n, uint64 seed, uint64 offset, const uint64* counter, uint64 first_block) {
    const Origin from(seed, offset, counter);
    for_each_block(n, [=](int64 first, uint64 block) {
        const Draws<float> words(first_block + block, from);
        store_block<VECTOR>(out, first, n, words.item);
    });
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256)
random_uniform(T* out, int64 n, uint64 seed, uint64 offset, const uint64* counter, Accumulator<T> low,
               Accumulator<T> width) {
    const Origin from(seed, offset, counter);
    for_each_block(n, [=](int64 first, uint64 block) {
        const Draws<Accumulator<T>> draws(block, from);
        T value[ITEMS];
#pragma unroll
        for (int k = 0; k < ITEMS; k++)
            value[k] = narrow<T>(rounded::add(rounded::multiply(uniform(draws.item[k]), width), low));
        store_block<VECTOR>(out, first, n, value);
    });
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256)
random_normal(T* out, int64 n, uint64 seed, uint64 offset, const uint64* counter, Accumulator<T> mean,
              Accumulator<T> std) {
    typedef Accumulator<T> A;
    const Origin from(seed, offset, counter);
    for_each_block(n, [=](int64 first, uint64 block) {
        const Draws<A> draws(block, from);
        T value[ITEMS];
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            const A z = standard_normal<A>(draws.item[k]);
            value[k] = narrow<T>(rounded::add(rounded::multiply(z, std), mean));
        }
        store_block<VECTOR>(out, first, n, value);
    });
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256)
dropout(const T* x, T* out, int64 n, uint64 seed, uint64 offset, const uint64* counter, uint32 threshold,
        Accumulator<T> scale) {
    constexpr int BLOCKS = TOGETHER<T>;
    const Origin from(seed, offset, counter);
    for_each_block<BLOCKS * ITEMS>(n, [=](int64 first, uint64 number) {
        T value[BLOCKS * ITEMS];
        load_block<VECTOR>(x, first, n, value);  // under way while Philox computes
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            const Draws<float> words(number * BLOCKS + b, from);
#pragma unroll
            for (int k = b * ITEMS; k < (b + 1) * ITEMS; k++) {
                const bool keep = words.item[k - b * ITEMS] >> 8 >= threshold;
                value[k] = keep ? narrow<T>(widen(value[k]) * scale) : zero<T>();
            }
        }
        store_block<VECTOR>(out, first, n, value);
    });
}

// The offset of a counter for the next repetition of what has used it; one thread.
__global__ void advance_counter(uint64* counter, uint64 draws) { counter[1] += draws; }
