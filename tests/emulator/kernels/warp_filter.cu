// kept = the positive values of x in any order, *count = how many.
//
// One thread an element. A warp counts its values with one ballot, its first keeping lane reserves that
// many places with one atomic, and a shuffle gives the other keeping lanes the start.

constexpr unsigned FULL = 0xffffffffu;

extern "C" __global__ void warp_filter(int* kept, int* count, const int* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    const int value = i < n ? x[i] : 0;
    const bool keep = value > 0;
    const unsigned votes = __ballot_sync(FULL, keep);
#ifdef BUG_FIRST_LANE_LEADS
    const int leader = 0;
#else
    const int leader = __ffs(votes) - 1;
#endif
#ifdef BUG_SHIFT_BY_32
    const unsigned below = ((1u << (lane + 1)) - 1) >> 1;  // FAULT: BUG_SHIFT_BY_32
#else
    const unsigned below = (1u << lane) - 1;
#endif
    int start = 0;
    if (keep && lane == leader) start = atomicAdd(count, __popc(votes));
#ifdef BUG_LANE_NOT_IN_MASK
    start = __shfl_sync(votes, start, leader);  // FAULT: BUG_LANE_NOT_IN_MASK
#endif
    if (keep) {
#if defined(BUG_FULL_MASK_IN_BRANCH)
        start = __shfl_sync(FULL, start, leader);  // FAULT: BUG_FULL_MASK_IN_BRANCH
#elif defined(BUG_MASK_OF_EACH_LANE)
        start = __shfl_sync(votes & (below | 1u << lane), start, leader);  // FAULT: BUG_MASK_OF_EACH_LANE
#elif !defined(BUG_LANE_NOT_IN_MASK)
        start = __shfl_sync(votes, start, leader);
#endif
        kept[start + __popc(votes & below)] = value;  // FAULT: BUG_FIRST_LANE_LEADS
    }
    __syncwarp();  // FAULT: BUG_FULL_MASK_IN_BRANCH
}
