// sync_batch_norm.cu - batch norm by the values of all ranks: what is joined between the passes over x.
//
// The passes over x are those of channel_norm.cu and channel_norm_backward.cu, which leave a state of each (o, c) and
// part of an array. Here they become what ranks send to each other, and what they received becomes what the next pass
// over x reads:
//
//   sync_moments      the states of a channel, merged: count, mean and sum of squared differences of this rank
//   sync_statistics   those of all ranks, merged: mean, variance and count; moves the running statistics
//   sync_totals       the sums of d and of d h of a channel: dbias and dweight of this rank, and, times weight / count,
//                     what it adds to the two means over all ranks that the gradient of x needs
//   sync_count        counts a batch of which this rank has nothing, so that no pass over x counts it
//
// A team of 1 to 256 threads of row.cuh has a channel and takes every team-th of its states; the last step is a
// butterfly over the team (shared memory: one state a warp).
// The limit: latency. A state is 12 bytes, channels are thousands at most: 8 ranks of 2048 channels are 200 KB, less
// than a microsecond at 4 TB/s, and a launch costs more. All else of a layer is in the passes over x, which read it
// once for the moments and once for y, as without other ranks.
// Deterministic, and the same bits on all ranks: each merges the same states in the same order.
// Counts are accumulators: beyond 2^24 values of a channel those of floats are rounded, by 2^-24 at most.
// Assumes: contiguous arrays. Not yet run on hardware.
#include "channel_norm.cuh"

// The states of set k that this thread takes, merged; (count, mean, squares) each.
template <typename A>
__device__ __forceinline__ Moments<A> merged(const A* states, const Members& which, int64 base, int64 members,
                                             const RowLoop& at) {
    Moments<A> state = {A(0), A(0), A(0)};
    for (int64 i = at.rank; i < members && at.active(); i += at.team) {
        const A* own = states + 3 * (base + which.at(i));
        state = MergeMoments::apply(state, Moments<A>{own[0], own[1], own[2]});
    }
    return state;
}

// moments: (channels, 3)
template <typename A>
__global__ void __launch_bounds__(BLOCK)
sync_moments(const A* states, A* moments, int64 sets, int64 members, int64 divisor, int64 high, int64 low, int64 parts,
             int64 step, int64 part, int threads) {
    __shared__ Moments<A> scratch[WARP];
    const Members which = {divisor, high, low, parts, step, part};
    for (RowLoop at(sets, threads); at.more(); at.next()) {
        const Moments<A> own = merged(states, which, which.base(at.row()), members, at);
        const Moments<A> state = group_reduce<MergeMoments>(own, threads, scratch);
        if (at.rank > 0 || !at.active()) continue;
        moments[3 * at.row()] = state.count;
        moments[3 * at.row() + 1] = state.mean;
        moments[3 * at.row() + 2] = state.squares;
    }
}

// moments: (ranks, channels, 3). A negative momentum stands for the average of all batches; `batches` counts those
// before this one. NaN for a channel with a value that is not finite, and where all ranks have fewer than two.
template <typename T>
__global__ void __launch_bounds__(BLOCK)
sync_statistics(const Accumulator<T>* moments, Accumulator<T>* mean, Accumulator<T>* variance, Accumulator<T>* count,
                void* running_mean, void* running_var, const int64* batches, int64 ranks, int64 channels,
                Accumulator<T> momentum, int threads, bool wide) {
    typedef Accumulator<T> A;
    __shared__ Moments<A> scratch[WARP];
    const Members which = {1, 1, 0, 1, channels, 0};
    for (RowLoop at(channels, threads); at.more(); at.next()) {
        const int64 c = at.row();
        const Moments<A> own = merged(moments, which, which.base(c), ranks, at);
        const Moments<A> state = group_reduce<MergeMoments>(own, threads, scratch);
        if (at.rank > 0 || !at.active()) continue;
        const bool known = state.count > A(1) && state.squares == state.squares;
        const A nan = infinity<A>() - infinity<A>(), middle = known ? state.mean : nan;
        count[c] = state.count;
        mean[c] = middle;
        variance[c] = known ? state.squares / state.count : nan;
        if (running_mean == nullptr) continue;
        const A factor = momentum >= A(0) ? momentum : A(1) / static_cast<A>(*batches + 1), rest = A(1) - factor;
        const A unbiased = known ? state.squares / (state.count - A(1)) : nan;
        put_weight<T>(running_mean, c, wide, rest * weight_at<T>(running_mean, c, wide) + factor * middle);
        put_weight<T>(running_var, c, wide, rest * weight_at<T>(running_var, c, wide) + factor * unbiased);
    }
}

// means: (channels, 2)
template <typename T>
__global__ void __launch_bounds__(BLOCK)
sync_totals(const Accumulator<T>* sums, const void* weight, const Accumulator<T>* count, Accumulator<T>* means,
            void* dweight, void* dbias, int64 sets, int64 members, int64 divisor, int64 high, int64 low, int64 parts,
            int64 step, int64 part, int threads, bool wide) {
    typedef Accumulator<T> A;
    __shared__ Two<A> scratch[WARP];
    const Members which = {divisor, high, low, parts, step, part};
    for (RowLoop at(sets, threads); at.more(); at.next()) {
        const int64 c = at.row();
        Two<A> total = {A(0), A(0)};
        for (int64 i = at.rank; i < members && at.active(); i += threads) {
            const A* own = sums + 2 * (which.base(c) + which.at(i));
            total = SumTwo::apply(total, Two<A>{own[0], own[1]});
        }
        total = group_reduce<SumTwo>(total, threads, scratch);
        if (at.rank > 0 || !at.active()) continue;
        if (dweight != nullptr) put_weight<T>(dweight, c, wide, total.second);
        if (dbias != nullptr) put_weight<T>(dbias, c, wide, total.first);
        const A share = (weight == nullptr ? A(1) : weight_at<T>(weight, c, wide)) / count[c];
        means[2 * c] = total.first * share;
        means[2 * c + 1] = total.second * share;
    }
}

__global__ void sync_count(int64* batches) {
    if (global_thread() == 0) ++*batches;
}
