// optimizer.cu - weight updates of a whole model in one launch over its flat arena.
//
//   advance_step     hyper.step += 1, and the numbers that follow from it (one thread)
//   sgd_update       Robbins & Monro 1951; momentum Polyak 1964, Nesterov form of Sutskever et al. 2013
//   adam_update      Kingma & Ba 2015; AdamW Loshchilov & Hutter 2019; AMSGrad Reddi et al. 2018
//   rmsprop_update   Tieleman & Hinton 2012; centered Graves 2013
//   adagrad_update   Duchi et al. 2011
//   lion_update      Chen et al. 2023
//
// Each formula stands at its kernel, with w the parameter and g the gradient, which is first negated
// (maximize) and then given the coupled weight decay: g += weight_decay w. Who owns what: optimizer.cuh.
//
// Hyperparameters are read from device memory (`hyper`, float64), so that a schedule changes them without
// a new launch argument and a captured graph sees the change; the step count lives there too. All
// threads read it while they update, so it cannot be counted up by the same launch: advance_step is a
// launch of one thread before it, which also computes powers and roots once, in double precision,
// rather than once an element. After the first block of a multiprocessor, hyper comes from its cache; its
// conversion to A is a handful of instructions a thread, behind the loads of the arena.
// Launch bounds ask for three blocks a multiprocessor, 80 registers a thread: left to itself the compiler
// aims at more blocks for some kernels on sm_100a and spills, which gains nothing (see optimizer.cuh).
// `skip` may be null. Assumes: the arrays do not overlap; VECTOR only if all pointers are multiples of 16 bytes.
#include "optimizer.cuh"

// ---- hyperparameters: the slots of `hyper` in their order ------------------------------------------

struct SgdHyper {
    double lr, momentum, dampening, weight_decay, step;
    double gradient_scale;  // of g in the buffer: the first step starts it with g, undamped
    __device__ void advance() {
        step += 1;
        gradient_scale = step == 1 ? 1 : 1 - dampening;
    }
};

struct AdamHyper {
    double lr, beta1, beta2, eps, weight_decay, step;
    double bias_correction1, bias_correction2_sqrt;  // 1 - beta1^step, sqrt(1 - beta2^step)
    __device__ void advance() {
        step += 1;
        bias_correction1 = 1 - pow(beta1, step);
        bias_correction2_sqrt = sqrt(1 - pow(beta2, step));
    }
};

struct RmspropHyper {
    double lr, alpha, eps, weight_decay, momentum, step;
    __device__ void advance() { step += 1; }
};

struct AdagradHyper {
    double lr, lr_decay, weight_decay, eps, step;
    double decayed_lr;  // lr / (1 + (step - 1) lr_decay)
    __device__ void advance() {
        step += 1;
        decayed_lr = lr / (1 + (step - 1) * lr_decay);
    }
};

struct LionHyper {
    double lr, beta1, beta2, weight_decay, step;
    __device__ void advance() { step += 1; }
};

// Whether this step is left out: gradients that overflowed leave a flag in device memory. One load, the same
// for all threads; an update makes it beside those of its tile, so that nothing waits for it alone.
__device__ __forceinline__ bool skipped(const float* skip) { return skip != nullptr && *skip != 0; }

template <typename Hyper> __global__ void advance_step(Hyper* hyper, const float* skip) {
    if (global_thread() == 0 && !skipped(skip)) hyper->advance();
}

// The gradient that the formulas mean. The branches are the same for all threads; without them an
// infinite parameter would make 0 * inf = NaN where there is no decay.
template <typename A>
__device__ __forceinline__ A effective_gradient(A gradient, A parameter, A weight_decay, bool maximize) {
    if (maximize) gradient = -gradient;
    if (weight_decay != A(0)) gradient += weight_decay * parameter;
    return gradient;
}

// ---- SGD -----------------------------------------------------------------------------------------------

// b = momentum b + gradient_scale g;  w -= lr (nesterov ? g + momentum b : b);  without momentum
// w -= lr g. Moves 12 bytes a float parameter, 20 with momentum.
template <typename T, bool MOMENTUM, bool VECTOR>
__global__ void __launch_bounds__(256, 3)
sgd_update(T* parameters, const T* gradients, Accumulator<T>* momentum_buffer, const SgdHyper* hyper,
           const float* skip, int64 n, bool nesterov, bool maximize) {
    typedef Accumulator<T> A;
    const Arena<T, MOMENTUM> arena = {parameters, gradients, {momentum_buffer}, n};
    ArenaTile<T, MOMENTUM, VECTOR> tile(arena);
    if (skipped(skip)) return;
    const A lr = A(hyper->lr), momentum = A(hyper->momentum), weight_decay = A(hyper->weight_decay);
    const A gradient_scale = A(hyper->gradient_scale);
    tile.update([=](A& w, A gradient, A* state) {
        A g = effective_gradient(gradient, w, weight_decay, maximize);
        if (MOMENTUM) {
            A& buffer = state[0];
            buffer = momentum * buffer + gradient_scale * g;
            g = nesterov ? g + momentum * buffer : buffer;
        }
        w -= lr * g;
    });
}

// ---- Adam and AdamW ----------------------------------------------------------------------------------

// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g²
// w -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// decoupled (AdamW): w is first multiplied by 1 - lr weight_decay, and g is left without decay.
// AMSGRAD: the largest v so far stands in the root. Moves 28 bytes a float parameter, 36 with AMSGRAD.
template <typename T, bool AMSGRAD, bool VECTOR>
__global__ void __launch_bounds__(256, 3)
adam_update(T* parameters, const T* gradients, Accumulator<T>* exp_avg, Accumulator<T>* exp_avg_sq,
            Accumulator<T>* max_exp_avg_sq, const AdamHyper* hyper, const float* skip, int64 n,
            bool decoupled, bool maximize) {
    typedef Accumulator<T> A;
    constexpr int LARGEST = AMSGRAD ? 2 : 0;
    Arena<T, 2 + AMSGRAD> arena = {parameters, gradients, {exp_avg, exp_avg_sq}, n};
    if (AMSGRAD) arena.state[LARGEST] = max_exp_avg_sq;
    ArenaTile<T, 2 + AMSGRAD, VECTOR> tile(arena);
    if (skipped(skip)) return;
    const A beta1 = A(hyper->beta1), rest1 = A(1 - hyper->beta1);
    const A beta2 = A(hyper->beta2), rest2 = A(1 - hyper->beta2);
    const A eps = A(hyper->eps), step_size = A(hyper->lr) / A(hyper->bias_correction1);
    const A correction2 = A(1) / A(hyper->bias_correction2_sqrt);
    const A decay = decoupled ? A(1 - hyper->lr * hyper->weight_decay) : A(1);
    const A weight_decay = decoupled ? A(0) : A(hyper->weight_decay);
    tile.update([=](A& w, A gradient, A* state) {
        const A g = effective_gradient(gradient, w, weight_decay, maximize);
        A &m = state[0], &v = state[1];
        m = beta1 * m + rest1 * g;
        v = beta2 * v + rest2 * (g * g);
        A second = v;
        if (AMSGRAD) second = state[LARGEST] = maximum(state[LARGEST], v);
        w = decay * w - step_size * (m / (square_root(second) * correction2 + eps));
    });
}

// ---- RMSprop -----------------------------------------------------------------------------------------

// v = alpha v + (1 - alpha) g²;  CENTERED: a = alpha a + (1 - alpha) g and a² is taken off v
// u = g / (sqrt(v) + eps);  w -= lr u, or with MOMENTUM b = momentum b + u, w -= lr b
// Moves 20 bytes a float parameter, and 8 more for each of MOMENTUM and CENTERED.
template <typename T, bool MOMENTUM, bool CENTERED, bool VECTOR>
__global__ void __launch_bounds__(256, 3)
rmsprop_update(T* parameters, const T* gradients, Accumulator<T>* square_avg, Accumulator<T>* momentum_buffer,
               Accumulator<T>* grad_avg, const RmspropHyper* hyper, const float* skip, int64 n, bool maximize) {
    typedef Accumulator<T> A;
    constexpr int BUFFER = MOMENTUM ? 1 : 0, MEAN = CENTERED ? 1 + MOMENTUM : 0;
    Arena<T, 1 + MOMENTUM + CENTERED> arena = {parameters, gradients, {square_avg}, n};
    if (MOMENTUM) arena.state[BUFFER] = momentum_buffer;
    if (CENTERED) arena.state[MEAN] = grad_avg;
    ArenaTile<T, 1 + MOMENTUM + CENTERED, VECTOR> tile(arena);
    if (skipped(skip)) return;
    const A lr = A(hyper->lr), alpha = A(hyper->alpha), rest = A(1 - hyper->alpha), eps = A(hyper->eps);
    const A weight_decay = A(hyper->weight_decay), momentum = A(hyper->momentum);
    tile.update([=](A& w, A gradient, A* state) {
        const A g = effective_gradient(gradient, w, weight_decay, maximize);
        A variance = state[0] = alpha * state[0] + rest * (g * g);
        if (CENTERED) {
            const A mean = state[MEAN] = alpha * state[MEAN] + rest * g;
            // Rounding may leave a negative difference, whose root would be NaN for ever.
            variance = maximum(variance - mean * mean, A(0));
        }
        A update = g / (square_root(variance) + eps);
        if (MOMENTUM) update = state[BUFFER] = momentum * state[BUFFER] + update;
        w -= lr * update;
    });
}

// ---- Adagrad -----------------------------------------------------------------------------------------

// s += g²;  w -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps). Moves 20 bytes a float parameter.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256, 3)
adagrad_update(T* parameters, const T* gradients, Accumulator<T>* state_sum, const AdagradHyper* hyper,
               const float* skip, int64 n, bool maximize) {
    typedef Accumulator<T> A;
    const Arena<T, 1> arena = {parameters, gradients, {state_sum}, n};
    ArenaTile<T, 1, VECTOR> tile(arena);
    if (skipped(skip)) return;
    const A lr = A(hyper->decayed_lr), weight_decay = A(hyper->weight_decay), eps = A(hyper->eps);
    tile.update([=](A& w, A gradient, A* state) {
        const A g = effective_gradient(gradient, w, weight_decay, maximize);
        state[0] += g * g;
        w -= lr * (g / (square_root(state[0]) + eps));
    });
}

// ---- Lion ----------------------------------------------------------------------------------------------

// w = (1 - lr weight_decay) w - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g
// Moves 20 bytes a float parameter.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(256, 3)
lion_update(T* parameters, const T* gradients, Accumulator<T>* exp_avg, const LionHyper* hyper,
            const float* skip, int64 n, bool maximize) {
    typedef Accumulator<T> A;
    const Arena<T, 1> arena = {parameters, gradients, {exp_avg}, n};
    ArenaTile<T, 1, VECTOR> tile(arena);
    if (skipped(skip)) return;
    const A lr = A(hyper->lr), decay = A(1 - hyper->lr * hyper->weight_decay);
    const A beta1 = A(hyper->beta1), rest1 = A(1 - hyper->beta1);
    const A beta2 = A(hyper->beta2), rest2 = A(1 - hyper->beta2);
    tile.update([=](A& w, A gradient, A* state) {
        const A g = maximize ? -gradient : gradient;
        const A mixed = beta1 * state[0] + rest1 * g;
        const A sign = mixed > A(0) ? A(1) : mixed < A(0) ? A(-1) : mixed;  // 0 stays 0, NaN NaN
        w = decay * w - lr * sign;
        state[0] = beta2 * state[0] + rest2 * g;
    });
}
