// Correct: each warp turns its own 32 x 8 patch of shared memory around, again and again, with nothing but
// __syncwarp; the warps make different numbers of rounds and never meet. Also with half a warp: lanes 0-15
// and 16-31 go their own ways with __syncwarp of their own mask.

extern "C" __global__ void warp_exchange(int* y, const int* x) {
    __shared__ int patches[4][32 * 8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int* patch = patches[warp];
    int values[8];
    for (int k = 0; k < 8; k++) values[k] = x[threadIdx.x * 8 + k];
    for (int round = 0; round <= warp; round++) {
        for (int k = 0; k < 8; k++) patch[k * 32 + lane] = values[k];
        __syncwarp();
        for (int k = 0; k < 8; k++) values[k] = patch[lane * 8 + k] + round;
        __syncwarp();
    }
    if (lane < 16) {
        patch[lane] = values[0];
        __syncwarp(0x0000ffffu);
        values[0] = patch[15 - lane];
    } else {
        patch[lane] = values[1];
        __syncwarp(0xffff0000u);
        values[1] = patch[lane ^ 1];
        __syncwarp(0xffff0000u);
        patch[lane] = values[2];
        __syncwarp(0xffff0000u);
        values[2] = patch[47 - lane];
    }
    for (int k = 0; k < 8; k++) y[threadIdx.x * 8 + k] = values[k];
}
