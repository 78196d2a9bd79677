// ctc.cu - connectionist temporal classification: the probability of a labelling over all its alignments.
//
// A target of S labels has 2 S + 1 states, blanks between labels: b 1 b 2 b … A path stays, goes on by one state,
// or skips the blank between two labels that differ. With y_t the log-probabilities of step t, all in logarithms:
//
//   alpha_t(s) = y_t(s) + log-sum-exp of alpha_{t-1} over s, s - 1 and, where allowed, s - 2
//   loss       = - log-sum-exp of alpha_{T-1} over the last two states
//   beta_t(s)  = log-sum-exp of beta_{t+1}(r) + y_{t+1}(r) over r = s, s + 1 and, where allowed, s + 2
//   share      = exp(alpha_t(s) + beta_t(s) + loss), the part of all paths that is in state s at step t
//   gradient   = grad (exp(y_t(c)) - the sum of the shares of the states of class c)
//
// which sums to 0 over the classes of a step: the gradient through a log-softmax as well as of the loss (PyTorch's
// convention). Graves et al., Connectionist Temporal Classification, 2006. Shares are divided by their sum over the
// states of a step, which is 1 but for rounding: alpha and the loss grow with the steps, and most of their error is
// the same for all states. In float32 that leaves a fifth of the error after 100 steps, a twentieth after 500.
//
// Who does what. ctc_forward and ctc_shares: a block for each sequence and a thread for each state (several where
// there are more than 1024, or 512 of double), one barrier a step; the row before lies in shared memory, and the
// log-probabilities of the next AHEAD steps are under way while a step is computed. ctc_gradient: a block for each
// row of classes, all steps at once; then the first state of each class sums the shares of its class in order, along a list made by
// ctc_shares, and a tree those of the blanks. No atomics: the same bits each time.
// Shared memory: the first two, dynamic: two rows of states and the labels: 20 bytes a label for float, 36 for
// double; ctc_gradient 256 bytes. The limit: ctc_forward and ctc_shares the latency of T steps, each a barrier,
// four transcendental functions and a trip to shared memory; ctc_gradient memory, the rows read and written once.
// What is not valid becomes NaN: a length or a label out of range. A target too long for its input: loss +inf.
#include "index.cuh"
#include "row.cuh"

// Steps whose log-probabilities are under way.
template <typename T> constexpr int AHEAD = sizeof(T) == 8 ? 1 : 4;
// Threads of a sequence's block at most: double needs more registers.
template <typename T> constexpr int LARGEST = sizeof(T) == 8 ? 512 : 1024;

// The sequence of one block. `extents` is (3, batch): steps, labels, and where the labels begin.
struct Sequence {
    int64 steps, labels, start;
    bool valid, fits;  // fits: no more labels than the rows of states were made for

    __device__ __forceinline__ Sequence(const int64* extents, int b, int batch, int most_steps, int states, int64 total)
        : steps(extents[b]), labels(extents[batch + b]), start(extents[2 * batch + b]) {
        valid = steps >= 0 && steps <= most_steps && labels >= 0 && start >= 0 && start + labels <= total;
        if (!valid) steps = labels = 0;
        fits = 2 * labels < states;
    }
};

template <typename A> __device__ __forceinline__ A log_sum(A a, A b, A c) {
    const A top = larger(a, larger(b, c));
    const A reference = top == -infinity<A>() ? A(0) : top;  // NaN passes by the maximum and comes with the sum
    return reference + logarithm(exponential(a - reference) + exponential(b - reference) + exponential(c - reference));
}

// Labels of a sequence to shared memory; whether all are classes that are not the blank. All threads must come.
__device__ __forceinline__ bool load_labels(
    int* label, const void* targets, bool wide, const Sequence& own, int classes, int blank) {
    bool right = true;
    for (int k = threadIdx.x; k < own.labels; k += blockDim.x) {
        const int64 c = index_at(targets, wide, own.start + k);
        const bool known = c >= 0 && c < classes && c != blank;
        label[k] = known ? static_cast<int>(c) : 0;
        right = right && known;
    }
    return __syncthreads_and(right);
}

// The class of a state.
__device__ __forceinline__ int class_of(const int* label, int state, int blank) {
    return state % 2 ? label[state / 2] : blank;
}

// ---- forward ------------------------------------------------------------------------------------------

// alpha is (batch, steps, states); what no path reaches is -inf.
template <typename T>
__global__ void __launch_bounds__(LARGEST<T>, 1)
ctc_forward(const T* log_probs, const void* targets, bool wide, const int64* extents, Accumulator<T>* loss,
            Accumulator<T>* alpha, int most_steps, int batch, int classes, int states, int blank, int64 total) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const int b = blockIdx.x, wide_row = states + 2;  // two states before the first, which no path is in
    int* label = reinterpret_cast<int*>(memory + 2 * wide_row);
    const Sequence own(extents, b, batch, most_steps, states, total);
    A* alphas = alpha + static_cast<int64>(b) * most_steps * states;

    const int64 steps = own.fits ? own.steps : 0;
    for (int64 i = steps * states + threadIdx.x; i < static_cast<int64>(most_steps) * states; i += blockDim.x)
        alphas[i] = -infinity<A>();
    if (!own.fits || !own.valid) {
        if (threadIdx.x == 0) loss[b] = own.valid ? infinity<A>() : infinity<A>() - infinity<A>();
        return;
    }
    const bool right = load_labels(label, targets, wide, own, classes, blank);
    const int last = static_cast<int>(2 * own.labels);  // the last state
    for (int s = threadIdx.x; s < 2 * wide_row; s += blockDim.x) memory[s] = -infinity<A>();

    const int first = threadIdx.x;  // the state whose log-probabilities are loaded ahead
    const int64 stride = static_cast<int64>(batch) * classes;
    const T* y = log_probs + static_cast<int64>(b) * classes;
    const T* mine = y + (first <= last ? class_of(label, first, blank) : 0);
    const auto load = [&](A (&ahead)[AHEAD<T>], int64 t) {
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++)
            if (t + u < steps && first <= last) ahead[u] = widen(mine[(t + u) * stride]);
    };
    A ahead[AHEAD<T>], now[AHEAD<T>];
    load(ahead, 0);
    __syncthreads();
    for (int64 t0 = 0; t0 < steps; t0 += AHEAD<T>) {
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) now[u] = ahead[u];
        load(ahead, t0 + AHEAD<T>);
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) {
            const int64 t = t0 + u;
            if (t >= steps) break;
            const A* before = memory + (t + 1) % 2 * wide_row;
            A* after = memory + t % 2 * wide_row;
            for (int s = first; s < states; s += blockDim.x) {
                A value = -infinity<A>();
                if (s <= last) {
                    const int c = class_of(label, s, blank);
                    const A own_y = s == first ? now[u] : widen(y[t * stride + c]);
                    const bool skips = s % 2 && s > 1 && label[s / 2 - 1] != c;
                    if (t == 0) value = s < 2 ? own_y : -infinity<A>();
                    else value = own_y + log_sum(before[s + 2], before[s + 1], skips ? before[s] : -infinity<A>());
                }
                after[s + 2] = value;
                alphas[t * states + s] = value;
            }
            __syncthreads();
        }
    }
    if (threadIdx.x == 0) {
        A value = own.labels == 0 ? A(0) : infinity<A>();  // of no steps at all
        if (steps > 0) {
            const A* end = memory + (steps - 1) % 2 * wide_row + last + 2;  // without labels end[-1] is -inf
            value = -log_sum(end[0], end[-1], -infinity<A>());
        }
        loss[b] = right ? value : infinity<A>() - infinity<A>();
    }
}

// ---- backward -----------------------------------------------------------------------------------------

// share is (batch, steps, states), written where a path may be. chain is (batch, labels): the next place of the same
// label, `labels` for none; its complement where the label stood earlier.
template <typename T>
__global__ void __launch_bounds__(LARGEST<T>, 1)
ctc_shares(const T* log_probs, const void* targets, bool wide, const int64* extents, const Accumulator<T>* loss,
           const Accumulator<T>* alpha, Accumulator<T>* share, int* chain, int most_steps, int batch, int classes,
           int states, int blank, int64 total) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const int b = blockIdx.x, wide_row = states + 2;  // two states after the last
    int* label = reinterpret_cast<int*>(memory + 2 * wide_row);
    const Sequence own(extents, b, batch, most_steps, states, total);
    const A own_loss = loss[b];
    if (!own.valid || !own.fits || !(own_loss < infinity<A>())) return;  // the gradient is none or NaN
    load_labels(label, targets, wide, own, classes, blank);
    const int labels = static_cast<int>(own.labels), last = 2 * labels, most = states / 2;
    for (int k = threadIdx.x; k < labels; k += blockDim.x) {
        int next = k + 1, earlier = 0;
        while (next < labels && label[next] != label[k]) next++;
        while (label[earlier] != label[k]) earlier++;
        if (next == labels) next = most;
        chain[static_cast<int64>(b) * most + k] = earlier < k ? ~next : next;
    }
    for (int s = threadIdx.x; s < 2 * wide_row; s += blockDim.x) memory[s] = -infinity<A>();

    // A row holds beta_t(s) + y_t(s), what the step before needs.
    const int first = threadIdx.x;
    const int64 stride = static_cast<int64>(batch) * classes, steps = own.steps;
    const T* y = log_probs + static_cast<int64>(b) * classes;
    const int64 base = static_cast<int64>(b) * most_steps * states;
    const T* mine = y + (first <= last ? class_of(label, first, blank) : 0);
    const auto load = [&](A (&y_ahead)[AHEAD<T>], A (&alpha_ahead)[AHEAD<T>], int64 t) {
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) {
            if (t - u < 0 || first > last) continue;
            y_ahead[u] = widen(mine[(t - u) * stride]);
            alpha_ahead[u] = alpha[base + (t - u) * states + first];
        }
    };
    A y_ahead[AHEAD<T>], alpha_ahead[AHEAD<T>], y_now[AHEAD<T>], alpha_now[AHEAD<T>];
    load(y_ahead, alpha_ahead, steps - 1);
    __syncthreads();
    for (int64 t0 = steps - 1; t0 >= 0; t0 -= AHEAD<T>) {
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) {
            y_now[u] = y_ahead[u];
            alpha_now[u] = alpha_ahead[u];
        }
        load(y_ahead, alpha_ahead, t0 - AHEAD<T>);
#pragma unroll
        for (int u = 0; u < AHEAD<T>; u++) {
            const int64 t = t0 - u;
            if (t < 0) break;
            const A* before = memory + (t + 1) % 2 * wide_row;
            A* after = memory + t % 2 * wide_row;
            for (int s = first; s <= last; s += blockDim.x) {
                const int c = class_of(label, s, blank);
                const int64 at = base + t * states + s;
                const bool ahead = s == first;
                const bool skips = s % 2 && s + 2 <= last && label[s / 2 + 1] != c;
                A beta = s + 1 >= last ? A(0) : -infinity<A>();  // paths end in the last two states
                if (t < steps - 1)
                    beta = log_sum(before[s], before[s + 1], skips ? before[s + 2] : -infinity<A>());
                after[s] = beta + (ahead ? y_now[u] : widen(y[t * stride + c]));
                share[at] = exponential((ahead ? alpha_now[u] : alpha[at]) + beta + own_loss);
            }
            __syncthreads();
        }
    }
}

// A block for each row (t, b) of classes.
template <typename T>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 2 : 4)
ctc_gradient(const Accumulator<T>* grad_loss, const T* log_probs, const void* targets, bool wide, const int64* extents,
             const Accumulator<T>* loss, const Accumulator<T>* share, const int* chain, T* out, int most_steps,
             int batch, int classes, int states, int blank, int64 total, bool zero_infinity, bool vector) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const int t = blockIdx.x / batch, b = blockIdx.x % batch;
    const Sequence own(extents, b, batch, most_steps, states, total);
    const A own_loss = loss[b], factor = grad_loss[b];
    const bool infinite = own_loss == infinity<A>();
    const bool nothing = (own.valid && t >= own.steps) || (infinite && zero_infinity);
    const bool plain = own_loss < infinity<A>();  // neither infinite nor NaN
    const A nan = infinity<A>() - infinity<A>();

    const Row<T, int> row(blockIdx.x, classes, vector);
    for (int p = threadIdx.x; p < row.packs; p += blockDim.x) {
        Pack<T, PACK<T>> pack = load_row(log_probs, row, p, narrow<T>(A(0)));
#pragma unroll
        for (int e = 0; e < PACK<T>; e++)
            pack.item[e] = narrow<T>(nothing ? A(0) : plain ? factor * exponential(widen(pack.item[e])) : nan);
        store_row(out, row, p, pack);
    }
    if (nothing || !plain) return;
    const A* shares = share + (b * static_cast<int64>(most_steps) + t) * states;
    const int labels = static_cast<int>(own.labels), most = states / 2;
    A blanks = A(0), others = A(0);
    for (int s = 2 * threadIdx.x; s <= 2 * labels; s += 2 * blockDim.x) {
        blanks += shares[s];
        if (s < 2 * labels) others += shares[s + 1];
    }
    blanks = block_reduce<Sum>(blanks, scratch);
    const A whole = blanks + block_reduce<Sum>(others, scratch);
    __syncthreads();  // the row is written
    const int* next = chain + static_cast<int64>(b) * most;
    for (int k = threadIdx.x; k <= labels; k += blockDim.x) {  // the last is the blank
        int64 c = blank;
        A sum = blanks;
        if (k < labels) {
            int at = next[k];
            if (at < 0) continue;  // the label stood earlier: the state there sums
            c = index_at(targets, wide, own.start + k);
            sum = shares[2 * k + 1];
            while (at < most) {
                sum += shares[2 * at + 1];
                at = next[at] < 0 ? ~next[at] : next[at];
            }
        }
        const int64 place = row.start + c;
        out[place] = narrow<T>(factor * (exponential(widen(log_probs[place])) - sum / whole));
    }
}
