// Correct: divergent warps. Groups of lanes shuffle, vote and reduce with their own masks at the same time;
// groups of unequal size; a group made by a ballot; lanes that return while others go on; a result that a
// lane does not use may come from a lane outside the mask (shfl_down over half a warp).

constexpr unsigned FULL = 0xffffffffu;

extern "C" __global__ void partial_masks(int* y, const int* x, int n) {
    const int t = threadIdx.x, lane = t % 32;
    int value = x[t], result = 0;
    if (lane < 8) {
        result = __shfl_xor_sync(0x000000ffu, value, 4);
        result += __popc(__ballot_sync(0x000000ffu, value > 0));
    } else if (lane < 20) {
        result = __reduce_add_sync(0x000fff00u, value);
    } else {
        for (int k = 0; k < 3; k++) result += __shfl_sync(0xfff00000u, value + k, 20 + (lane + k) % 12);
    }
    __syncwarp();
    const unsigned odd = __ballot_sync(FULL, value & 1);
    if (value & 1) {
        const int least = __reduce_min_sync(odd, value);
        if (lane == __ffs(odd) - 1) result += 1000 * least;
    }
    // Groups of 16 lanes add up with shfl_down: lane 0 of a group gets the sum, others what is not used.
    const unsigned mine = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    int sum = value;
    if (lane < 16)
        for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_down_sync(0x0000ffffu, sum, offset);
    else
        for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffff0000u, sum, offset, 16);
    if (lane % 16 == 0) result += sum;
    y[t] = result + __popc(mine);
    if (lane >= n) return;
    const unsigned rest = (1u << n) - 1;  // n < 32 lanes remain
    for (int k = 0; k < lane % 3; k++) result += k;
    __syncwarp(rest);
    y[t] += __shfl_sync(rest, result, (lane + 1) % n) + __any_sync(rest, value == 3);
}
