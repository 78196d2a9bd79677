// Stands in for NVIDIA's <cooperative_groups.h>: the same names over the emulator's primitives.
//
// There are: this_thread_block, this_grid, this_cluster, tiled_partition (static and dynamic, up to a warp),
// coalesced_threads, labeled_partition, binary_partition, invoke_one; reduce, scan and memcpy_async in the files
// of cooperative_groups/. Not there: tiles larger than a warp, multi_grid, split arrive and wait of a block.
#pragma once

namespace cooperative_groups {

namespace details {

EMU_INLINE unsigned rank_in_block() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
EMU_INLINE unsigned block_size() { return blockDim.x * blockDim.y * blockDim.z; }
EMU_INLINE unsigned rank_of_block() { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); }
EMU_INLINE unsigned grid_size() { return gridDim.x * gridDim.y * gridDim.z; }
EMU_INLINE unsigned lane() { return rank_in_block() & 31; }
EMU_INLINE unsigned lanes_below(unsigned lane) { return (1u << lane) - 1; }

// The bits of `word` at the places that `mask` names, moved together at the low end.
EMU_INLINE unsigned packed(unsigned word, unsigned mask) {
    unsigned result = 0;
    for (unsigned at = 0, to = 0; at < 32; at++)
        if (mask >> at & 1) result |= (word >> at & 1) << to++;
    return result;
}

}  // namespace details

// What every group offers: sync, size, rank. A thread block, or some lanes of one warp.
class thread_group {
public:
    EMU_INLINE void sync() const { whole_block ? emu_block_barrier() : emu_syncwarp(mask); }
    EMU_INLINE unsigned long long size() const {
        return whole_block ? details::block_size() : (unsigned)__builtin_popcount(mask);
    }
    EMU_INLINE unsigned long long num_threads() const { return size(); }
    EMU_INLINE unsigned long long thread_rank() const {
        return whole_block ? details::rank_in_block()
                           : (unsigned)__builtin_popcount(mask & details::lanes_below(details::lane()));
    }
    EMU_INLINE bool is_valid() const { return true; }

    EMU_INLINE thread_group(bool is_block, unsigned lanes) : whole_block(is_block), mask(lanes) {}

protected:
    bool whole_block;
    unsigned mask;
};

class thread_block : public thread_group {
public:
    EMU_INLINE thread_block() : thread_group(true, 0) {}
    EMU_INLINE static void sync() { emu_block_barrier(); }
    EMU_INLINE static unsigned thread_rank() { return details::rank_in_block(); }
    EMU_INLINE static unsigned size() { return details::block_size(); }
    EMU_INLINE static unsigned num_threads() { return details::block_size(); }
    EMU_INLINE static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
    EMU_INLINE static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
    EMU_INLINE static dim3 group_dim() { return dim3(blockDim.x, blockDim.y, blockDim.z); }
    EMU_INLINE static dim3 dim_threads() { return group_dim(); }
};
EMU_INLINE thread_block this_thread_block() { return thread_block(); }

// All blocks of a cooperative launch.
class grid_group {
public:
    EMU_INLINE static bool is_valid() { return true; }
    EMU_INLINE static void sync() { emu_grid_sync(); }
    EMU_INLINE static unsigned long long size() { return num_threads(); }
    EMU_INLINE static unsigned long long num_threads() {
        return (unsigned long long)details::grid_size() * details::block_size();
    }
    EMU_INLINE static unsigned long long thread_rank() {
        return block_rank() * details::block_size() + details::rank_in_block();
    }
    EMU_INLINE static unsigned long long block_rank() { return details::rank_of_block(); }
    EMU_INLINE static unsigned long long num_blocks() { return details::grid_size(); }
    EMU_INLINE static dim3 block_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
    EMU_INLINE static dim3 dim_blocks() { return dim3(gridDim.x, gridDim.y, gridDim.z); }
    EMU_INLINE static dim3 group_dim() { return dim_blocks(); }
};
EMU_INLINE grid_group this_grid() { return grid_group(); }

// The blocks of a cluster.
class cluster_group {
public:
    struct arrival_token {};
    EMU_INLINE static void sync() { emu_cluster_arrive(), emu_cluster_wait(); }
    EMU_INLINE static arrival_token barrier_arrive() { return emu_cluster_arrive(), arrival_token(); }
    EMU_INLINE static void barrier_wait() { emu_cluster_wait(); }
    EMU_INLINE static void barrier_wait(arrival_token&&) { emu_cluster_wait(); }
    EMU_INLINE static unsigned block_rank() { return (unsigned)emu_cluster_rank(); }
    EMU_INLINE static unsigned num_blocks() { return (unsigned)emu_cluster_size(); }
    EMU_INLINE static unsigned num_threads() { return num_blocks() * details::block_size(); }
    EMU_INLINE static unsigned size() { return num_threads(); }
    EMU_INLINE static unsigned thread_rank() {
        return block_rank() * details::block_size() + details::rank_in_block();
    }
    template <class Type>
    EMU_INLINE static Type* map_shared_rank(Type* address, int rank) {
        return (Type*)emu_map_shared((const void*)address, rank);
    }
};
EMU_INLINE cluster_group this_cluster() { return cluster_group(); }

// SIZE_ neighbouring lanes of a warp.
template <unsigned SIZE_, class Parent = void>
class thread_block_tile : public thread_group {
    static_assert(SIZE_ >= 1 && SIZE_ <= 32 && (SIZE_ & (SIZE_ - 1)) == 0,
                  "the emulator has tiles of 1, 2, 4, 8, 16 and 32 threads");

public:
    EMU_INLINE thread_block_tile() : thread_group(false, all_of_tile() << first_lane()) {}
    template <class Other>
    EMU_INLINE thread_block_tile(const thread_block_tile<SIZE_, Other>&) : thread_block_tile() {}

    EMU_INLINE static unsigned thread_rank() { return details::rank_in_block() & (SIZE_ - 1); }
    EMU_INLINE static constexpr unsigned size() { return SIZE_; }
    EMU_INLINE static constexpr unsigned num_threads() { return SIZE_; }
    EMU_INLINE static unsigned meta_group_rank() { return details::rank_in_block() / SIZE_; }
    EMU_INLINE static unsigned meta_group_size() { return (details::block_size() + SIZE_ - 1) / SIZE_; }

    template <class Type>
    EMU_INLINE Type shfl(Type value, int rank) const {
        return __shfl_sync(mask, value, rank, SIZE_);
    }
    template <class Type>
    EMU_INLINE Type shfl_up(Type value, unsigned delta) const {
        return __shfl_up_sync(mask, value, delta, SIZE_);
    }
    template <class Type>
    EMU_INLINE Type shfl_down(Type value, unsigned delta) const {
        return __shfl_down_sync(mask, value, delta, SIZE_);
    }
    template <class Type>
    EMU_INLINE Type shfl_xor(Type value, unsigned bits) const {
        return __shfl_xor_sync(mask, value, (int)bits, SIZE_);
    }
    EMU_INLINE int any(int predicate) const { return __any_sync(mask, predicate); }
    EMU_INLINE int all(int predicate) const { return __all_sync(mask, predicate); }
    EMU_INLINE unsigned ballot(int predicate) const { return own(__ballot_sync(mask, predicate)); }
    template <class Type>
    EMU_INLINE unsigned match_any(Type value) const {
        return own(__match_any_sync(mask, value));
    }
    template <class Type>
    EMU_INLINE unsigned match_all(Type value, int& same) const {
        return own(__match_all_sync(mask, value, &same));
    }
    EMU_INLINE unsigned details_mask() const { return mask; }

private:
    EMU_INLINE static constexpr unsigned all_of_tile() { return 0xffffffffu >> (32 - SIZE_); }
    EMU_INLINE static unsigned first_lane() { return details::lane() & ~(SIZE_ - 1); }
    EMU_INLINE static unsigned own(unsigned lanes) { return lanes >> first_lane() & all_of_tile(); }
};

// Any lanes of one warp. Ranks count only them.
class coalesced_group : public thread_group {
public:
    EMU_INLINE explicit coalesced_group(unsigned lanes) : thread_group(false, lanes) {}
    template <unsigned SIZE_, class Parent>
    EMU_INLINE coalesced_group(const thread_block_tile<SIZE_, Parent>& tile)
        : thread_group(false, tile.details_mask()) {}

    EMU_INLINE static constexpr unsigned meta_group_rank() { return 0; }
    EMU_INLINE static constexpr unsigned meta_group_size() { return 1; }

    template <class Type>
    EMU_INLINE Type shfl(Type value, unsigned rank) const {
        return __shfl_sync(mask, value, lane_of(rank % (unsigned)size()));
    }
    template <class Type>
    EMU_INLINE Type shfl_up(Type value, unsigned delta) const {
        const unsigned rank = (unsigned)thread_rank();
        return __shfl_sync(mask, value, lane_of(rank < delta ? rank : rank - delta));
    }
    template <class Type>
    EMU_INLINE Type shfl_down(Type value, unsigned delta) const {
        const unsigned rank = (unsigned)thread_rank();
        return __shfl_sync(mask, value, lane_of(rank + delta < size() ? rank + delta : rank));
    }
    EMU_INLINE int any(int predicate) const { return __any_sync(mask, predicate); }
    EMU_INLINE int all(int predicate) const { return __all_sync(mask, predicate); }
    EMU_INLINE unsigned ballot(int predicate) const {
        return details::packed(__ballot_sync(mask, predicate), mask);
    }
    template <class Type>
    EMU_INLINE unsigned match_any(Type value) const {
        return details::packed(__match_any_sync(mask, value), mask);
    }
    template <class Type>
    EMU_INLINE unsigned match_all(Type value, int& same) const {
        return details::packed(__match_all_sync(mask, value, &same), mask);
    }
    EMU_INLINE unsigned details_mask() const { return mask; }

private:
    EMU_INLINE int lane_of(unsigned rank) const {
        unsigned left = mask;
        while (rank--) left &= left - 1;
        return __builtin_ctz(left);
    }
};
// The lanes that the runtime takes for active: it may split a warp that a GPU would keep together.
EMU_INLINE coalesced_group coalesced_threads() { return coalesced_group(emu_activemask()); }

template <unsigned SIZE_, class Parent>
EMU_INLINE thread_block_tile<SIZE_, Parent> tiled_partition(const Parent&) {
    return thread_block_tile<SIZE_, Parent>();
}
// Tiles of a size known only at run time, of a block or of a tile.
EMU_INLINE thread_group tiled_partition(const thread_group&, unsigned size) {
    return thread_group(false, (0xffffffffu >> (32 - size)) << (details::lane() & ~(size - 1)));
}
template <class Group, class Label>
EMU_INLINE coalesced_group labeled_partition(const Group& group, Label label) {
    return coalesced_group(__match_any_sync(group.details_mask(), (long long)label));
}
template <class Group>
EMU_INLINE coalesced_group binary_partition(const Group& group, bool predicate) {
    const unsigned with = __ballot_sync(group.details_mask(), predicate);
    return coalesced_group(predicate ? with : group.details_mask() & ~with);
}

template <class Group>
EMU_INLINE void sync(const Group& group) {
    group.sync();
}
template <class Group>
EMU_INLINE unsigned thread_rank(const Group& group) {
    return (unsigned)group.thread_rank();
}
template <class Group>
EMU_INLINE unsigned group_size(const Group& group) {
    return (unsigned)group.size();
}
template <class Group, class Function, class... Arguments>
EMU_INLINE void invoke_one(const Group& group, Function&& function, Arguments&&... arguments) {
    if (group.thread_rank() == 0) function(arguments...);
}

}  // namespace cooperative_groups
