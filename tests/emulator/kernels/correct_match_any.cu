// Correct: counting by key with one atomic a group of equal keys in the warp: __match_any_sync gives the
// group, its first lane adds for all, a shuffle within the group's mask hands the old count out. Each
// element gets a place of its own.

extern "C" __global__ void match_any(int* places, int* counts, const int* keys, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    const unsigned present = __ballot_sync(0xffffffffu, i < n);
    if (i >= n) return;
    const int key = keys[i];
    const unsigned group = __match_any_sync(present, key);
    const int leader = __ffs(group) - 1;
    int start = 0;
    if (lane == leader) start = atomicAdd(&counts[key], __popc(group));
    start = __shfl_sync(group, start, leader);
    places[i] = start + __popc(group & ((1u << lane) - 1));
}
