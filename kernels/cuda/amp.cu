// amp.cu - the loss scale of float16 training, which lives on the device so that nobody waits for it.
//
//   unscale_gradients   g *= 1 / scale, and *found = 1 if some g is infinite or NaN
//   update_loss_scale   what follows for the scale, by one thread
//
// unscale_gradients is elementwise (elementwise.cuh) and in place: 8 bytes a float gradient for 3 operations, so
// memory is the limit. A block that has found something tells it by one atomic exchange with 1: whoever comes
// first, the result is the same. Shared memory: what __syncthreads_or needs.
// Assumes: *found is 0 or 1, and no part of the gradients. These are one array, which lies alike with itself.
#include "elementwise.cuh"

// 1 in one atomic write of its bits, because several blocks may do it.
__device__ __forceinline__ void set_flag(float* flag) { atomicExch(reinterpret_cast<uint32*>(flag), 0x3f800000u); }
__device__ __forceinline__ void set_flag(double* flag) {
    atomicExch(reinterpret_cast<uint64*>(flag), 0x3ff0000000000000ull);
}

template <typename T> __device__ __forceinline__ bool is_finite(T x) { return x - x == T(0); }

// T is the type of the gradients, S that of the scale.
template <typename T, typename S>
__global__ void __launch_bounds__(256)
unscale_gradients(T* gradients, const S* scale, S* found, int64 n) {
    const T factor = T(1) / static_cast<T>(*scale);
    const Inputs<T, 1> in = {{gradients}};
    bool bad = false;
    elementwise<T, true>(gradients, in, n, [&](const T (&v)[1]) {
        bad |= !is_finite(v[0]);
        return v[0] * factor;
    });
    if (__syncthreads_or(bad) && threadIdx.x == 0) set_flag(found);
}

// After a step that found an infinity the scale is multiplied by `backoff`; after `interval` steps in a row that
// found none, by `growth`, unless that is infinite.
template <typename S> struct LossScale {
    S scale, growth_tracker, found, skipped;
};

template <typename S> __global__ void update_loss_scale(LossScale<S>* state, S growth, S backoff, S interval) {
    if (global_thread() != 0) return;
    LossScale<S> now = *state;
    if (now.found != S(0)) {
        now.scale *= backoff;
        now.growth_tracker = S(0);
        now.skipped += S(1);
    } else if (now.growth_tracker + S(1) >= interval) {
        const S larger = now.scale * growth;
        if (is_finite(larger)) now.scale = larger;
        now.growth_tracker = S(0);
    } else {
        now.growth_tracker += S(1);
    }
    now.found = S(0);
    *state = now;
}
