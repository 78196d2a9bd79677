// cross_entropy.cu - softmax and cross-entropy of rows of logits, one pass over each row.
//
// With x a row of C logits, L = log(sum_c exp(x_c)) and shares a_c = weight_c q_c of the classes,
//
//   cross_entropy_forward    loss = sum_c a_c (L - x_c)
//   cross_entropy_finish     mean or sum of the rows' losses, from the blocks' partial sums
//   cross_entropy_backward   out_c = scale (S exp(x_c - L) - a_c), S = sum_c a_c, scale from grad
//
// where the target q is a label (q_c = 1 for it, else 0) or a row of probabilities, mixed with the uniform
// distribution by label smoothing: q_c (1 - smoothing) + smoothing / C. A kernel is DENSE if all classes
// have a share, so if it is given probabilities or smoothing; else a row needs only x at its label.
// Source of the single pass: Milakov & Gimelshein, Online normalizer calculation for softmax, 2018.
//
// Who does what: `threads` threads share a row, as row.cuh has it: parts of a warp for few classes, a
// warp up to 8 KB a row, else a block. The grid just fills the chip and walks over the rows. Each
// thread has FLIGHT packs of a row under way, takes their largest element, rescales its running sum
// once and adds their exponentials. Losses are summed a thread over its rows, then a
// block in a fixed tree, then over the blocks by cross_entropy_finish: no atomics, the same bits each run.
// Shared memory: 32 row states and 32 accumulators, at most 1,280 bytes.
// The limit: forward reads C elements a row (2 C with probabilities) and writes two numbers; backward
// reads and writes C. At 4 bytes an element that is one exponential, about 12 operations, for 4 bytes,
// so memory is the limit in float32, and memory and arithmetic are near each other at 16 bits.
// Accuracy: a_c multiplies x_c - max, so terms have one sign and a common offset of the logits cancels
// before anything is rounded. The saved L is rounded once: where logits are large, exp(x - L) has the
// relative error |L| 2^-24 (2^-53 in float64).
// Assumes: labels are not trusted. One that is neither in 0 … C - 1 nor ignore_index reads nothing; its
// loss, L and gradient are NaN. Rows with the label ignore_index read nothing; their loss, L and gradient are 0.
// Probabilities in the backward pass are read twice, for S and then for the gradient; a block's row
// is then in the L2 cache. Saving S in the forward pass would spare that, for one more output.
#include "row.cuh"

constexpr int MAX_THREADS = 512;

// Packs of a row that a thread has under way at once: as many as fit into the registers without a spill.
template <typename T, bool DENSE> constexpr int FLIGHT = sizeof(T) == 8 ? 2 : (DENSE ? 8 : 16) / PACK<T>;

// Tells the two kinds of targets apart.
template <typename T> constexpr bool IS_LABEL = false;
template <> constexpr bool IS_LABEL<int> = true;
template <> constexpr bool IS_LABEL<int64> = true;

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

// ---- shares -------------------------------------------------------------------------------------------

// What a label's row knows beforehand.
struct Label {
    int index;  // -1 if it is not valid
    bool ignored, valid;
    __device__ __forceinline__ Label(int64 label, int classes, int64 ignore_index)
        : ignored(label == ignore_index), valid(!ignored && label >= 0 && label < classes) {
        index = valid ? static_cast<int>(label) : -1;
    }
};

// a_c of one pack of classes, 0 outside the row. With labels, without the label's own part.
template <typename A, typename Target, int N> struct Shares {
    const Target* target;
    const A* weight;  // of the classes, or null
    A keep, uniform;  // 1 - smoothing, smoothing / C

    template <typename T>
    __device__ __forceinline__ void load(A (&a)[N], int at, const Row<T, int>& row, int p) const {
        const int column = row.column(p);
        Pack<T, PACK<T>> q;
        if constexpr (!IS_LABEL<Target>) q = load_row(target, row, p, narrow<T>(A(0)));
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) {
            A share = uniform;
            if constexpr (!IS_LABEL<Target>) share += keep * widen(q.item[e]);
            const bool inside = row.inside(column + e);
            if (inside && weight != nullptr) share *= weight[column + e];
            a[at + e] = inside ? share : A(0);
        }
    }
};

// ---- forward ------------------------------------------------------------------------------------------

// Thread 0: the block's sums to where they belong.
template <typename A>
__device__ __forceinline__ void write_result(A loss, A weight, bool mean, A* out, A* total_weight) {
    if (out != nullptr) out[0] = mean ? loss / weight : loss;
    total_weight[0] = weight;
}

// row_loss: (rows,) for reduction "none", else null; out: (), else null. partial: (blocks, 2), not touched by
// a grid of one block, which writes the results itself.
template <typename T, typename Target, bool DENSE>
__global__ void __launch_bounds__(MAX_THREADS, sizeof(T) == 8 ? 1 : 2)
cross_entropy_forward(const T* logits, const Target* target, const Accumulator<T>* weight, T* row_loss,
                      Accumulator<T>* out, Accumulator<T>* log_normalizer, Accumulator<T>* total_weight,
                      Accumulator<T>* partial, int64 rows, int cols, int64 ignore_index,
                      Accumulator<T> smoothing, bool mean, int threads, bool vector) {
    typedef Accumulator<T> A;
    constexpr int N = FLIGHT<T, DENSE> * PACK<T>;
    __shared__ DenseState<A> scratch[WARP];
    __shared__ A sums[WARP];
    const Shares<A, Target, N> shares = {target, weight, A(1) - smoothing, smoothing / A(cols)};
    const T fill = narrow<T>(-infinity<A>());
    A loss_sum = A(0), weight_sum = A(0);

    for (RowLoop at(rows, threads); at.more(); at.next()) {
        Label label(-1, cols, -1);
        bool read = at.active();
        if constexpr (IS_LABEL<Target>) {
            if (read) label = Label(target[at.row()], cols, ignore_index);
            read = read && label.valid;
        }
        const Row<T, int> row(at.row(), cols, vector, read);
        DenseState<A> state = {max_sum_identity<A>(), A(0), A(0)};
        for (int p = at.rank; p < row.packs; p += FLIGHT<T, DENSE> * threads) {
            Pack<T, PACK<T>> pack[FLIGHT<T, DENSE>];
#pragma unroll
            for (int u = 0; u < FLIGHT<T, DENSE>; u++) pack[u] = load_row(logits, row, p + u * threads, fill);
            A x[N];
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = widen(pack[i / PACK<T>].item[i % PACK<T>]);
            if constexpr (DENSE) {
                A a[N];
#pragma unroll
                for (int u = 0; u < FLIGHT<T, DENSE>; u++) shares.load(a, u * PACK<T>, row, p + u * threads);
                dense_add<T>(state, x, a);
            } else {
                max_sum_add<T>(state.exps, x);
            }
        }
        if constexpr (DENSE) state = group_reduce<MergeDense>(state, threads, scratch);
        else state.exps = group_reduce<MergeMaxSum>(state.exps, threads, reinterpret_cast<MaxSum<A>*>(scratch));
        if (!at.active() || at.rank != 0) continue;

        const A log_sum = logarithm(state.exps.sum);  // of exp(x - max)
        A loss = state.share * log_sum - state.dot, own = A(1), normalizer = state.exps.max + log_sum;
        if constexpr (IS_LABEL<Target>) {
            if (label.valid) {
                own = weight == nullptr ? A(1) : weight[label.index];
                const A far = state.exps.max - widen(logits[row.start + label.index]);
                loss = (DENSE ? loss : A(0)) + shares.keep * own * (log_sum + far);
            } else {
                loss = normalizer = label.ignored ? A(0) : not_a_number<A>();
                own = A(0);
            }
        }
        loss_sum += loss;
        weight_sum += own;
        log_normalizer[at.row()] = normalizer;
        if (row_loss != nullptr) row_loss[at.row()] = narrow<T>(loss);
    }
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
template <typename T, typename Shared>
__device__ __forceinline__ Accumulator<T> sum_of_shares(const Shared& shares, const Row<T, int>& row, int rank,
                                                        int threads, Accumulator<T>* scratch) {
    typedef Accumulator<T> A;
    A sum = A(0);
    for (int p = rank; p < row.packs; p += threads) {
        A a[PACK<T>];
        shares.load(a, 0, row, p);
#pragma unroll
        for (int e = 0; e < PACK<T>; e++) sum += a[e];
    }
    return group_reduce<Sum>(sum, threads, scratch);
}

// The gradient of the loss is row_grad (rows,) for reduction "none", else grad (); the other one is null.
template <typename T, typename Target, bool DENSE>
__global__ void __launch_bounds__(MAX_THREADS, sizeof(T) == 8 ? 1 : 2)
cross_entropy_backward(const Accumulator<T>* grad, const T* row_grad, const T* logits, const Target* target,
                       const Accumulator<T>* log_normalizer, const Accumulator<T>* total_weight,
                       const Accumulator<T>* weight, T* out, int64 rows, int cols, int64 ignore_index,
                       Accumulator<T> smoothing, bool mean, int threads, bool vector) {
    typedef Accumulator<T> A;
    __shared__ A scratch[WARP];
    const Shares<A, Target, PACK<T>> shares = {target, weight, A(1) - smoothing, smoothing / A(cols)};
    A uniform = smoothing;  // S of the uniform distribution, the same for each label's row
    if constexpr (DENSE && IS_LABEL<Target>) {
        if (weight != nullptr) {
            uniform = A(0);
            for (int c = threadIdx.x; c < cols; c += blockDim.x) uniform += shares.uniform * weight[c];
            uniform = block_reduce<Sum>(uniform, scratch);
        }
    }

    for (RowLoop at(rows, threads); at.more(); at.next()) {
        const Row<T, int> row(at.row(), cols, vector, at.active());
        A sum = uniform, own = A(0), scale = A(0), normalizer = A(0);
        Label label(-1, cols, -1);
        if (at.active()) {
            normalizer = log_normalizer[at.row()];
            scale = row_grad != nullptr ? widen(row_grad[at.row()]) : grad[0];
            if (mean) scale /= total_weight[0];
            if constexpr (IS_LABEL<Target>) {
                label = Label(target[at.row()], cols, ignore_index);
                if (label.valid) own = shares.keep * (weight == nullptr ? A(1) : weight[label.index]);
                // Poisons the whole row without a look at the logits, which stays within bounds.
                else if (!label.ignored) normalizer = not_a_number<A>();
                sum = DENSE ? uniform + own : own;
            }
        }
        if constexpr (!IS_LABEL<Target>) sum = sum_of_shares(shares, row, at.rank, threads, scratch);
        const bool zero = IS_LABEL<Target> && label.ignored;

        for (int p = at.rank; p < row.packs; p += FLIGHT<T, DENSE> * threads) {
            Pack<T, PACK<T>> pack[FLIGHT<T, DENSE>];
#pragma unroll
            for (int u = 0; u < FLIGHT<T, DENSE>; u++)
                if (!zero) pack[u] = load_row(logits, row, p + u * threads, narrow<T>(A(0)));
#pragma unroll
            for (int u = 0; u < FLIGHT<T, DENSE>; u++) {
                const int at_pack = p + u * threads;
                const int hit = label.index - row.column(at_pack);  // the label's place in this pack
                A a[PACK<T>];
                if constexpr (DENSE) shares.load(a, 0, row, at_pack);
#pragma unroll
                for (int e = 0; e < PACK<T>; e++) {
                    A share = e == hit ? own : A(0);
                    if constexpr (DENSE) share += a[e];
                    const A slope = scale * (sum * row_exponential<T>(widen(pack[u].item[e]) - normalizer) - share);
                    pack[u].item[e] = narrow<T>(zero ? A(0) : slope);
                }
                store_row(out, row, at_pack, pack[u]);
            }
        }
    }
}
