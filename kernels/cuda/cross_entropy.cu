// cross_entropy.cu - softmax and cross-entropy of rows of logits, forward, backward, and both in one pass.
//
// With x a row of C logits, L = log(sum_c exp(x_c)) and shares a_c = weight_c q_c of the classes,
//
//   cross_entropy_forward    loss = sum_c a_c (L - x_c), and if it is wanted at once
//                            gradient_c = scale (S exp(x_c - L) - a_c), S = sum_c a_c
//   cross_entropy_weights    the sum of the labels' weights, which the mean's gradient is divided by
//   cross_entropy_finish     mean or sum of the rows' losses, from the blocks' partial sums
//   cross_entropy_backward   the same gradient from the saved L, for any gradient of the loss
//
// where the target q is a label (q_c = 1 for it, else 0) or a row of probabilities, mixed with the uniform
// distribution by label smoothing: q_c (1 - smoothing) + smoothing / C. For PROBABILITIES and
// SMOOTHED_LABELS all classes have a share ("dense"); with LABELS a row needs only x at its label.
// Source of the single pass: Milakov & Gimelshein, Online normalizer calculation for softmax, 2018.
//
// Who does what: a team of threads shares a row, as row.cuh and row_plan (gpunn/primitives/rows.py) have it:
// parts of a warp for few classes, a block, and from sm_90 on a cluster of 2, 4 or 8 blocks for long rows and
// for few of them. The grid just fills the chip and walks over the rows. Each thread has FLIGHT
// packs of a row under way, takes their largest element, rescales its running sum once and adds their
// exponentials. For the gradient the row stays in shared memory (`kept` packs a thread; the probabilities
// as well) and is not read again, unless it is longer than all that the team has. The gradient may be
// written over the logits: each thread writes only packs that it alone reads. Losses are summed a
// thread over its rows, then a block in a fixed tree, then over the blocks by cross_entropy_finish: no
// atomics, the same bits each run.
// In backward no thread needs another (but for probabilities), so any number of blocks shares a long row.
// Below sm_90 a row of the forward has one block at most.
// Static shared memory: 40 row states and 32 accumulators, at most 1,536 bytes.
// The limit: forward reads C elements a row (2 C with probabilities) and writes two numbers; with the
// gradient it writes C as well, 2 C elements where forward and backward together move 3 C; backward
// reads and writes C. At 4 bytes an element that is one exponential, about 12 operations, for 4 bytes,
// so memory is the limit in float32, and memory and arithmetic are near each other at 16 bit.
// cross_entropy_weights moves 4 or 8 bytes a row; for few rows every block adds all the weights itself.
// Accuracy: a_c multiplies x_c - max, so terms have one sign and a common offset of the logits cancels
// before anything is rounded. The saved L is rounded once: where logits are large, exp(x - L) has the
// relative error |L| 2^-24 (2^-53 in float64) in backward; forward uses max and sum themselves.
// Assumes: labels are not trusted. One that is neither in 0 … C - 1 nor ignore_index reads nothing; its
// loss, L and gradient are NaN. Rows with the label ignore_index read nothing; their loss, L and gradient are 0.
// Probabilities in the backward pass are read twice, for S and then for the gradient; a block's row
// is then in the L2 cache. Saving S in the forward pass would spare that, for one more output.
#include "row.cuh"

constexpr int MAX_THREADS = 512;

enum Targets { LABELS, SMOOTHED_LABELS, PROBABILITIES };

// Packs of a row that a thread has under way at once: as many as fit into the registers without a spill.
template <typename T, Targets KIND>
constexpr int FLIGHT = sizeof(T) == 8 ? 2 : (KIND == LABELS ? 16 : 8) / PACK<T>;

template <typename A> __device__ __forceinline__ A not_a_number() { return infinity<A>() - infinity<A>(); }

// ---- the running state of a row --------------------------------------------------------------------

// exp(x - reference) never overflows, and is 0 and not NaN for x = -inf where all elements are -inf.
template <typename A> __device__ __forceinline__ A reference(A max) { return max == -infinity<A>() ? A(0) : max; }

template <typename A> struct DenseState {
    MaxSum<A> exps;
    A share;  // sum of a_c so far
    A dot;    // sum of a_c (x_c - reference(exps.max)) so far
};
template <typename A> __device__ __forceinline__ DenseState<A> shuffle_xor(DenseState<A> value, int offset) {
    return {shuffle_xor(value.exps, offset), shuffle_xor(value.share, offset), shuffle_xor(value.dot, offset)};
}
struct MergeDense {
    template <typename A> static __device__ __forceinline__ DenseState<A> apply(DenseState<A> a, DenseState<A> b) {
        const bool first = a.exps.max >= b.exps.max;
        const DenseState<A> big = first ? a : b, small = first ? b : a;
        const A shift = reference(small.exps.max) - reference(big.exps.max);
        return {MergeMaxSum::apply(a.exps, b.exps), a.share + b.share,
                big.dot + (small.dot + shift * small.share)};
    }
};

// Take N more logits x with their shares a in; -inf with share 0 stands for "no element".
template <typename T, int N, typename A>
__device__ __forceinline__ void dense_add(DenseState<A>& state, const A (&x)[N], const A (&a)[N]) {
    const A before = reference(state.exps.max);
    max_sum_add<T>(state.exps, x);
    const A now = reference(state.exps.max);
    state.dot += (before - now) * state.share;
#pragma unroll
    for (int i = 0; i < N; i++) {
        state.dot += a[i] == A(0) ? A(0) : a[i] * (x[i] - now);  // 0 * -inf is 0 here: no share, no loss
        state.share += a[i];
    }
}

// ---- targets and shares -------------------------------------------------------------------------------

__device__ __forceinline__ int64 label_at(const void* target, bool wide, int64 row) {
    return wide ? static_cast<const int64*>(target)[row] : static_cast<const int*>(target)[row];
}

// What a label's row knows beforehand.
struct Label {
    int index;  // -1 if it is not valid
    bool ignored, valid;
    __device__ __forceinline__ Label(int64 label, int classes, int64 ignore_index)
        : ignored(label == ignore_index), valid(!ignored && label >= 0 && label < classes) {
        index = valid ? static_cast<int>(label) : -1;
    }
};

// What a row adds to the mean's divisor.
template <typename A> __device__ __forceinline__ A own_weight(const Label& label, const A* weight) {
    return !label.valid ? A(0) : weight == nullptr ? A(1) : weight[label.index];
}

// a_c of one pack of classes, 0 outside the row. With labels, without the label's own part.
template <typename T, Targets KIND> struct Shares {
    typedef Accumulator<T> A;
    const A* weight;  // of the classes, or null
    A keep, uniform;  // 1 - smoothing, smoothing / C

    __device__ __forceinline__ Shares(const A* weight, A smoothing, int cols)
        : weight(weight), keep(A(1) - smoothing), uniform(smoothing / A(cols)) {}

    // `q` holds the pack's probabilities.
    __device__ __forceinline__ void load(
        A* a, const Row<T, int>& row, int p, const Pack<T, PACK<T>>& q) const {
        const int column = row.column(p);
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) {
            A share = uniform;
            if constexpr (KIND == PROBABILITIES) share += keep * widen(q.item[e]);
            const bool inside = row.inside(column + e);
            if (inside && weight != nullptr) share *= weight[column + e];
            a[e] = inside ? share : A(0);
        }
    }
};

// ---- forward ------------------------------------------------------------------------------------------

// The weights of the labels first, first + step, …
template <typename A>
__device__ __forceinline__ A sum_of_weights(const void* target, bool wide, const A* weight, int64 rows,
                                            int cols, int64 ignore_index, int64 first, int64 step) {
    A sum = A(0);
#pragma unroll 4
    for (int64 r = first; r < rows; r += step)
        sum += own_weight(Label(label_at(target, wide, r), cols, ignore_index), weight);
    return sum;
}

// partial: (blocks,)
template <typename A>
__global__ void __launch_bounds__(256)
cross_entropy_weights(const void* target, bool wide, const A* weight, A* partial, int64 rows, int cols,
                      int64 ignore_index) {
    __shared__ A sums[WARP];
    const A sum = sum_of_weights(target, wide, weight, rows, cols, ignore_index, global_thread(), grid_threads());
    const A total = block_reduce<Sum>(sum, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// Thread 0: the block's sums to where they belong.
template <typename A>
__device__ __forceinline__ void write_result(A loss, A weight, bool mean, A* out, A* total_weight) {
    if (out != nullptr) out[0] = mean ? loss / weight : loss;
    total_weight[0] = weight;
}

// One team's first pass over its row.
template <typename T, Targets KIND>
__device__ __forceinline__ DenseState<Accumulator<T>> row_state(
    const T* logits, const T* probabilities, const Row<T, int>& row, int rank, int team,
    const Shares<T, KIND>& shares, const Kept<T>& keep, const Kept<T>& keep_q) {
    typedef Accumulator<T> A;
    constexpr int EACH = FLIGHT<T, KIND>, N = EACH * PACK<T>;
    DenseState<A> state = {max_sum_identity<A>(), A(0), A(0)};
#pragma unroll 1
    for (int k = 0; rank + k * team < row.packs; k += EACH) {
        Pack<T, PACK<T>> pack[EACH], q[EACH];
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const int p = rank + (k + u) * team;
            pack[u] = load_row(logits, row, p, narrow<T>(-infinity<A>()));
            if constexpr (KIND == PROBABILITIES) q[u] = load_row(probabilities, row, p, narrow<T>(A(0)));
        }
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const int p = rank + (k + u) * team;
            keep.put(pack[u], row, p, k + u);
            if constexpr (KIND == PROBABILITIES) keep_q.put(q[u], row, p, k + u);
        }
        A x[N];
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = widen(pack[i / PACK<T>].item[i % PACK<T>]);
        if constexpr (KIND == LABELS) {
            max_sum_add<T>(state.exps, x);
        } else {
            A a[N];
#pragma unroll
            for (int u = 0; u < EACH; u++) shares.load(a + u * PACK<T>, row, rank + (k + u) * team, q[u]);
            dense_add<T>(state, x, a);
        }
    }
    return state;
}

// A team's second pass: gradient_c = scale (factor exp(x_c - top) - a_c), or `constant` all over if not `read`.
template <typename T, Targets KIND>
__device__ __forceinline__ void write_gradient(
    const T* logits, const T* probabilities, T* gradient, const Row<T, int>& row, int rank, int team,
    const Shares<T, KIND>& shares, const Kept<T>& keep, const Kept<T>& keep_q, bool read,
    Accumulator<T> constant, int label, Accumulator<T> own, Accumulator<T> top, Accumulator<T> factor,
    Accumulator<T> scale) {
    typedef Accumulator<T> A;
    constexpr int EACH = FLIGHT<T, KIND>;
#pragma unroll 1
    for (int k = last_round<EACH>(row.packs, rank, team); k >= 0; k -= EACH) {
        Pack<T, PACK<T>> pack[EACH], q[EACH];
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const int p = rank + (k + u) * team;
            if (read) pack[u] = keep.again(logits, row, p, k + u, narrow<T>(A(0)));
            if constexpr (KIND == PROBABILITIES)
                q[u] = keep_q.again(probabilities, row, p, k + u, narrow<T>(A(0)));
        }
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            const int p = rank + (k + u) * team;
            if (p >= row.packs) continue;
            const int hit = label - row.column(p);  // the label's place in this pack
            A a[PACK<T>];
            if constexpr (KIND != LABELS) shares.load(a, row, p, q[u]);
#pragma unroll
            for (int e = 0; e < PACK<T>; e++) {
                A share = e == hit ? own : A(0);
                if constexpr (KIND != LABELS) share += a[e];
                const A slope = scale * (factor * row_exponential<T>(widen(pack[u].item[e]) - top) - share);
                pack[u].item[e] = narrow<T>(read ? slope : constant);
            }
            store_row(gradient, row, p, pack[u]);
        }
    }
}

// row_loss: (rows,) for reduction "none", else null; out: (), else null. partial: (blocks, 2), not touched by
// a grid of one block, which writes the results itself. gradient: null if it is not wanted. weights: what
// cross_entropy_weights left, or null; they are looked at only for the gradient of the mean.
template <typename T, Targets KIND, int CLUSTER>
__global__ void __launch_bounds__(MAX_THREADS, sizeof(T) == 8 ? 1 : 2) __cluster_dims__(CLUSTER, 1, 1)
cross_entropy_forward(const T* logits, const void* target, bool wide, const Accumulator<T>* weight, T* row_loss,
                      Accumulator<T>* out, Accumulator<T>* log_normalizer, Accumulator<T>* total_weight,
                      Accumulator<T>* partial, T* gradient, const Accumulator<T>* weights, int weight_parts,
                      int64 rows, int cols, int64 ignore_index, Accumulator<T> smoothing, bool mean, int threads,
                      int kept, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ DenseState<A> scratch[WARP + CLUSTER];
    __shared__ A sums[WARP];
    const T* probabilities = KIND == PROBABILITIES ? static_cast<const T*>(target) : nullptr;
    const Shares<T, KIND> shares(weight, smoothing, cols);
    const Kept<T> keep(memory, kept);
    const Kept<T> keep_q(memory + 16 * kept * blockDim.x, kept);
    A loss_sum = A(0), weight_sum = A(0), scale = A(1);

    team_enter<CLUSTER>();
    if (mean && gradient != nullptr) {
        A total = A(rows);
        if constexpr (KIND != PROBABILITIES) {
            total = A(0);
            if (weights == nullptr)
                total = sum_of_weights(target, wide, weight, rows, cols, ignore_index, threadIdx.x, blockDim.x);
            else
                for (int i = threadIdx.x; i < weight_parts; i += blockDim.x) total += weights[i];
            total = block_reduce<Sum>(total, sums);
        }
        scale = A(1) / total;
    }
    for (RowLoop at(rows, threads, CLUSTER); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector, at.active());
        Label label(-1, cols, -1);
        bool read = at.active();
        if constexpr (KIND != PROBABILITIES) {
            if (read) label = Label(label_at(target, wide, at.row()), cols, ignore_index);
            read = read && label.valid;
        }
        DenseState<A> state = {max_sum_identity<A>(), A(0), A(0)};
        if (read) state = row_state<T, KIND>(logits, probabilities, row, at.rank, at.team, shares, keep, keep_q);
        if constexpr (KIND == LABELS)
            state.exps = team_reduce<MergeMaxSum, CLUSTER>(
                state.exps, threads, reinterpret_cast<MaxSum<A>*>(scratch));
        else
            state = team_reduce<MergeDense, CLUSTER>(state, threads, scratch);
        if (!at.active()) continue;

        // The loss is the affair of one thread: of the one that may overwrite the label's logit, if there is one.
        const A own = shares.keep * own_weight(label, weight);
        const int speaker = label.valid ? (label.index + row.shift) / PACK<T> % at.team : 0;
        if (at.rank == speaker) {
            const A log_sum = logarithm(state.exps.sum);  // of exp(x - max)
            A loss = state.share * log_sum - state.dot, normalizer = state.exps.max + log_sum;
            if constexpr (KIND != PROBABILITIES) {
                if (label.valid) {
                    const A far = state.exps.max - widen(logits[row.start + label.index]);
                    const A terms = own == A(0) ? log_sum : log_sum + far;  // 0 * inf is 0 here, but NaN travels
                    loss = (KIND == LABELS ? A(0) : loss) + own * terms;
                } else {
                    loss = normalizer = label.ignored ? A(0) : not_a_number<A>();
                }
            }
            loss_sum += loss;
            weight_sum += KIND == PROBABILITIES ? A(1) : own_weight(label, weight);
            log_normalizer[at.row()] = normalizer;
            if (row_loss != nullptr) row_loss[at.row()] = narrow<T>(loss);
        }
        if (gradient != nullptr) {
            const A sum = KIND == LABELS ? own : KIND == PROBABILITIES ? state.share : state.share + own;
            const A constant = label.ignored ? A(0) : not_a_number<A>();
            write_gradient<T, KIND>(logits, probabilities, gradient, row, at.rank, at.team, shares, keep, keep_q,
                                    read, constant, label.index, own, state.exps.max, sum / state.exps.sum, scale);
        }
    }
    team_leave<CLUSTER>();
    loss_sum = block_reduce<Sum>(loss_sum, sums);
    weight_sum = block_reduce<Sum>(weight_sum, sums);
    if (threadIdx.x != 0) return;
    if (gridDim.x == 1) {
        write_result(loss_sum, weight_sum, mean, out, total_weight);
    } else {
        partial[2 * blockIdx.x] = loss_sum;
        partial[2 * blockIdx.x + 1] = weight_sum;
    }
}

// One block. Adds the `blocks` pairs of partial sums in a fixed order.
template <typename A>
__global__ void __launch_bounds__(256)
cross_entropy_finish(const A* partial, int blocks, bool mean, A* out, A* total_weight) {
    __shared__ A sums[WARP];
    A loss = A(0), weight = A(0);
    for (int b = threadIdx.x; b < blocks; b += blockDim.x) {
        loss += partial[2 * b];
        weight += partial[2 * b + 1];
    }
    loss = block_reduce<Sum>(loss, sums);
    weight = block_reduce<Sum>(weight, sums);
    if (threadIdx.x == 0) write_result(loss, weight, mean, out, total_weight);
}

// ---- backward -----------------------------------------------------------------------------------------

// S without the label's own part: of a row of probabilities, or of the uniform distribution.
template <typename T, Targets KIND>
__device__ __forceinline__ Accumulator<T> sum_of_shares(
    const Shares<T, KIND>& shares, const T* probabilities, const Row<T, int>& row, int rank, int threads,
    Accumulator<T>* scratch) {
    typedef Accumulator<T> A;
    A sum = A(0);
    for (int p = rank; p < row.packs; p += threads) {
        A a[PACK<T>];
        shares.load(a, row, p, load_row(probabilities, row, p, narrow<T>(A(0))));
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) sum += a[e];
    }
    return group_reduce<Sum>(sum, threads, scratch);
}

// The gradient of the loss is row_grad (rows,) for reduction "none", else grad (); the other one is null.
// `parts` blocks share a row, with probabilities one.
template <typename T, Targets KIND>
__global__ void __launch_bounds__(MAX_THREADS, sizeof(T) == 8 ? 1 : 2)
cross_entropy_backward(const Accumulator<T>* grad, const T* row_grad, const T* logits, const void* target,
                       bool wide, const Accumulator<T>* log_normalizer, const Accumulator<T>* total_weight,
                       const Accumulator<T>* weight, T* out, int64 rows, int cols, int64 ignore_index,
                       Accumulator<T> smoothing, bool mean, int threads, int parts, bool vector) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const T* probabilities = KIND == PROBABILITIES ? static_cast<const T*>(target) : nullptr;
    const Shares<T, KIND> shares(weight, smoothing, cols);
    const Kept<T> none(nullptr, 0);
    A uniform = smoothing;  // S of the uniform distribution, the same for each label's row
    if constexpr (KIND == SMOOTHED_LABELS) {
        if (weight != nullptr) {
            uniform = A(0);
            for (int c = threadIdx.x; c < cols; c += blockDim.x) uniform += shares.uniform * weight[c];
            uniform = block_reduce<Sum>(uniform, scratch);
        }
    }

    for (RowLoop at(rows, threads, parts); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector, at.active());
        A sum = A(0), own = A(0), scale = A(0), normalizer = A(0);
        Label label(-1, cols, -1);
        if (at.active()) {
            normalizer = log_normalizer[at.row()];
            scale = row_grad != nullptr ? widen(row_grad[at.row()]) : grad[0];
            if (mean) scale /= total_weight[0];
            if constexpr (KIND != PROBABILITIES) {
                label = Label(label_at(target, wide, at.row()), cols, ignore_index);
                own = shares.keep * own_weight(label, weight);
                sum = KIND == LABELS ? own : uniform + own;
            }
        }
        if constexpr (KIND == PROBABILITIES)
            sum = sum_of_shares(shares, probabilities, row, at.rank, threads, scratch);
        const bool read = KIND == PROBABILITIES || label.valid;  // else not even a look at the logits
        const A constant = label.ignored ? A(0) : not_a_number<A>();
        write_gradient<T, KIND>(logits, probabilities, out, row, at.rank, at.team, shares, none, none, read,
                                constant, label.index, own, normalizer, sum, scale);
    }
}
