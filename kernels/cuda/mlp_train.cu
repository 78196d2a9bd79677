// mlp_train.cu - a small multilayer perceptron trained for many steps by one launch that stays on the chip.
//
// A step, with X the rows of a layer's input (for the first one: rows of the data, gathered by `order`):
//
//   Z = X W^T + b,  X' = dropout(f(Z));  dZ of the last layer from the loss;  dX = dZ W,  dZ' = dropout(dX) f'(Z')
//   dW = dZ^T X,  db = sum of dZ over the rows;  W, b and the optimizer's state are updated in place
//
// Who does what. A step has two phases, and all blocks meet after each, whatever the depth:
//   rows      a block owns 8 rows of the batch at a time and takes them through all layers to the loss and back
//             to the slopes dZ of all layers (mlp_rows.cuh). It keeps X', Z and dZ in the scratch memory. Blocks
//             that would have no rows help as members of a team, with products whose weights are large.
//   weights   a block owns tiles of 32 x 64 of the weights: the product over the whole batch, and the update at
//             once, of the weight, its state and the copies that the rows read (mlp_weights.cuh)
// With a limit on the gradients' norm a third meeting stands between a tile's gradient and its update. With one
// block nobody meets, and where all it makes fits its own memory, nothing but parameters and data leaves it.
//
// Memory: `scratch` holds W^T of every layer, its rows padded to multiples of 4 for 16-byte loads; W itself where
// its rows are no such multiple; X', Z and dZ; the losses of the rows. In shared memory: 33 KB for sums and
// tiles, two buffers of 8 rows (32 bytes a number of the widest layers), the table of the layers; at most 89 KB
// in all, but for a block that holds the scratch memory, too.
// The table is described at MlpLayer. gpunn/primitives/mlp_plan.py makes it and chooses the number of blocks.
//
// The limit, for P weights, B rows, G blocks: 6 P B FLOPs a step, over G multiprocessors in the second phase and
// over B / 8 in the first, where each block reads all copies of the weights (8 P bytes, 4 P0 of the first layer)
// through the second-level cache for its 8 rows: for 784-256-128-10 that is 1.1 MB, on paper 12 us of an H200's
// multiprocessor. With a batch of 128 teams of 8 share out the first layer, and 4 us are left. The update moves
// 24 P bytes (Adam). Two meetings of all and one of the teams, about 1 us each. Launched one by one, the same
// step is some thirty kernels. Estimates from data sheets: not yet run on hardware.
// Assumes: inputs <= 1024, outputs <= 512, weights at multiples of 4 floats, `parameters` at one of 16 bytes or a
// copy of every W; all blocks exist at once (a cooperative launch: gpunn/device/sources.py). Any batch, depth,
// width.
// Why fused multiply-adds and not tensor cores: TF32 would round the products to 11 bits, and the same training step
// by step does not.
#include "mlp_rows.cuh"
#include "mlp_weights.cuh"

// counts[s] = real rows of step s, one warp each; behind them `meetings` numbers: no meetings so far.
__global__ void __launch_bounds__(256)
mlp_count_rows(const int64* order, int steps, int batch, int* counts, int meetings) {
    const int lane = threadIdx.x % WARP;
    for (int64 s = global_thread() / WARP; s < steps; s += grid_threads() / WARP) {
        int count = 0;
        for (int i = lane; i < batch; i += WARP) count += order[s * batch + i] != -1;
        count = warp_reduce<Sum>(count);
        if (lane == 0) counts[s] = count;
    }
    for (int64 i = global_thread(); i < meetings; i += grid_threads()) counts[steps + i] = 0;
}

// RESIDENT: the scratch memory lies in shared memory, of the only block.
template <bool RESIDENT>
__global__ void __launch_bounds__(THREADS, 1)
mlp_train(const float* x, int64 samples, const int64* labels, const float* wanted, const int64* order, int steps,
          int batch, float* parameters, float* first, float* second, const double* hyper, int slots,
          const int64* layer_table, int layers, int tiles, int members, float* global_scratch,
          int first_buffer, int second_buffer, float* gradients, double* squares, int* counts, float* losses,
          int* correct, float smoothing, double max_norm, uint64 seed, uint64 offset, int dropouts, int options) {
    DYNAMIC_SHARED(float, memory);
    float* const buffers = memory + SUMS;
    int64* const table = reinterpret_cast<int64*>(buffers + first_buffer + second_buffer);
    float* const scratch = RESIDENT ? reinterpret_cast<float*>(table + layers * FIELDS) : global_scratch;
    for (int i = threadIdx.x; i < layers * FIELDS; i += THREADS) table[i] = layer_table[i];
    __syncthreads();
    const MlpNetwork net = {table, layers, tiles, batch, divide_up(batch, ROWS) * ROWS, options, RESIDENT,
                            parameters, scratch};
    const MlpData data = {x, samples, labels, wanted, order, counts, smoothing, seed, offset, dropouts};
    const MlpBlock block = {memory, {buffers, buffers + first_buffer}};
    const MlpState state = {first, second, gradients, squares, max_norm};
    uint32* const meetings = reinterpret_cast<uint32*>(counts + steps);
    const int number = blockIdx.x / members;
    Meeting meeting = {meetings, gridDim.x, 0};
    MlpTeam team = {members, static_cast<int>(blockIdx.x % members), number, static_cast<int>(gridDim.x / members),
                    {meetings + (1 + number) * COUNT_STRIDE, static_cast<uint32>(members), 0}};
    const Sharing sharing(net);

    copy_weights(net);
    meeting.hold();
    __shared__ double values[MOST_SLOTS];
    const int own_row = team.number * ROWS + threadIdx.x % ROWS;
    int64 sample = data.sample(0, batch, own_row);
    for (int step = 0; step < steps; step++) {
        // What this step and the next need to begin with is loaded while there is other work.
        if (threadIdx.x < slots)
            ptx::copy_async<8>(values + threadIdx.x, hyper + static_cast<int64>(step) * slots + threadIdx.x);
        train_rows(net, data, block, team, sharing, sample, step);
        if (step + 1 < steps) sample = data.sample(step + 1, batch, own_row);
        ptx::copy_async_commit();
        ptx::copy_async_wait<0>();
        meeting.hold();
        if (blockIdx.x == gridDim.x - 1) sum_losses(net, data, step, losses, correct);
        const MlpRule rule(values, options);
        train_weights(net, data, block, state, rule, meeting, step);
        meeting.hold();
    }
}
