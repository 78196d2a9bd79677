// mlp_rows.cuh - the first phase of a step of mlp_train.cu: rows of the batch through the network and back.
//
// A block holds what a layer makes of its 8 rows in shared memory, number by number with the 8 rows side by side,
// so that a thread gets four rows of a number by one 16-byte load, the same for all threads of a warp.
// A product (8, depth) x (depth, columns): a thread owns 4 columns for all 8 rows, 32 sums in registers. For each
// k it loads 16 bytes of the weights (neighbouring threads neighbouring columns), 32 of the rows, and makes 32
// multiply-adds: the multiply-adds, 8 cycles of a multiprocessor a warp, are what it waits for, not the 6 of its
// loads. There are fewer columns than threads have; the others take other k of the same columns, and the sums are
// added in shared memory, always in the same order. Eight loads of weights are under way at a time in each
// thread, 32 KB of the block, and each makes room for the next one. What the end of a product needs, the bias or
// the Z of the way forward, is copied to where its result will be meanwhile.
// Where there are more blocks than groups of 8 rows, several take the same rows as a team. Of a product whose
// weights take long to come each makes some columns; they pass through the scratch memory, and the team meets
// behind it.
#pragma once
#include "mlp.cuh"

constexpr int AHEAD = 8;  // loads of weights that a thread has under way

__device__ __forceinline__ void multiply_add(float (&sum)[ROWS][4], const float* numbers, const Pack<float, 4>& w) {
    const Pack<float, 4> low = load_pack<float, 4>(numbers), high = load_pack<float, 4>(numbers + 4);
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            sum[r][c] += low.item[r] * w.item[c];
            sum[r + 4][c] += high.item[r] * w.item[c];
        }
}

// ending(column, row, sum over k of in[k][row] weight[k][column]) for all `columns`, a multiple of 4 up to 512,
// of a weight with `pitch`, and all 8 rows; the same thread has called before(column, row) for it, to let copies
// begin that are done then (cp.async). All threads of the block have met behind it.
template <typename Before, typename Ending>
__device__ __forceinline__ void product(const float* in, int depth, const float* weight, int pitch, int columns,
                                        float* sums, Before before, Ending ending) {
    const int row = threadIdx.x % ROWS;
    for (int column = threadIdx.x / ROWS; column < columns; column += THREADS / ROWS) before(column, row);
    ptx::copy_async_commit();
    const int wide = columns / 4, most = THREADS / wide, enough = divide_up(depth, 4);
    const int slices = most < enough ? most : enough;
    const int slice = threadIdx.x / wide;
    if (slice < slices) {
        const int step = slices * ROWS, stride = slices * pitch, end = depth * ROWS;
        const float* from = weight + slice * pitch + threadIdx.x % wide * 4;  // the next to load
        float sum[ROWS][4] = {};
        Pack<float, 4> pack[AHEAD];
        int place = slice * ROWS;
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            pack[u] = {};
            if (place + u * step < end) pack[u] = load_pack<float, 4>(from), from += stride;
        }
        // The next load of each goes out as soon as its registers are free. The breaks also keep the compiler
        // from gathering all loads of a turn behind its multiply-adds, where nothing would hide them.
        const int last = end - AHEAD * step;
        while (place < end) {
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                if (place >= end) break;
                multiply_add(sum, in + place, pack[u]);
                if (place < last) pack[u] = load_pack<float, 4>(from), from += stride;
                place += step;
            }
        }
#pragma unroll
        for (int e = 0; e < ROWS * 4; e++) sums[e * (THREADS + 1) + threadIdx.x] = sum[e / 4][e % 4];
    }
    ptx::copy_async_wait<0>();
    __syncthreads();
    // Eight rows of four columns a warp: with the odd pitch no two threads meet in a bank, here or in `in`.
    for (int column = threadIdx.x / ROWS; column < columns; column += THREADS / ROWS) {
        const float* part = sums + (row * 4 + column % 4) * (THREADS + 1) + column / 4;
        float total = 0;
#pragma unroll 8
        for (int s = 0; s < slices; s++) total += part[s * wide];
        ending(column, row, total);
    }
    __syncthreads();
}

// Whether dropout keeps element `index` of a layer's (batch, outputs), as the primitive dropout does.
__device__ __forceinline__ bool kept(const MlpLayer& layer, const MlpData& data, int step, int64 index) {
    const uint64 offset = data.offset + static_cast<uint64>(step) * data.dropouts + layer.dropout;
    const uint4 words = philox(static_cast<uint64>(index) / 4, offset, data.seed);
    const int which = static_cast<int>(index % 4);
    const uint32 word = which == 0 ? words.x : which == 1 ? words.y : which == 2 ? words.z : words.w;
    return word >> 8 >= layer.threshold;
}

// ---- the loss ---------------------------------------------------------------------------------------

// What the loss needs of a thread's row, the one of its number modulo 8: loaded long before, as it comes from
// afar, and not looked at until then.
struct RowFacts {
    int64 sample, label;  // label: of a sample that exists, for cross-entropy
    int count;            // real rows of the step
    __device__ __forceinline__ RowFacts(const MlpNetwork& net, const MlpData& data, int64 sample, int step)
        : sample(sample), label(!(net.options & MSE) && data.exists(sample) ? data.labels[sample] : -1),
          count(data.counts[step]) {}
};

// Of one row by one warp, lanes over the outputs: in shared memory z[n][row] becomes the slope. Every lane
// returns the row's loss; `right` is whether the largest output, the first of equals and NaN above all, stands at
// the label.
__device__ __forceinline__ float row_cross_entropy(float* z, int outputs, int64 label, float smoothing, float scale,
                                                   bool& right) {
    const int lane = threadIdx.x % WARP;
    float largest = -infinity<float>(), best = -infinity<float>();
    int place = 1 << 30;
    for (int n = lane; n < outputs; n += WARP) {
        const float value = z[n * ROWS];
        largest = maximum(largest, value);
        if (place == 1 << 30 || value > best || (value != value && best == best)) best = value, place = n;
    }
    largest = warp_reduce<Maximum>(largest);
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float value = __shfl_xor_sync(FULL_WARP, best, step);
        const int at = __shfl_xor_sync(FULL_WARP, place, step);
        const bool same = value == best || (value != value && best != best);
        const bool above = value > best || (value != value && best == best);
        if (above || (same && at < place)) best = value, place = at;
    }
    right = place == label;
    float sum = 0, spread = 0;
    for (int n = lane; n < outputs; n += WARP) {
        const float far = z[n * ROWS] - largest;
        sum += expf(far);
        spread += far;
    }
    const float log_sum = logf(warp_reduce<Sum>(sum));
    const bool known = label >= 0 && label < outputs;
    float loss = known ? log_sum - (z[label * ROWS] - largest) : not_a_number();
    if (smoothing > 0) {
        spread = warp_reduce<Sum>(spread);
        loss = (1 - smoothing) * loss + smoothing * (log_sum - spread / outputs);
    }
    __syncwarp();  // all have read the label's before it changes
    for (int n = lane; n < outputs; n += WARP) {
        float slope = expf(z[n * ROWS] - largest - log_sum) - smoothing / outputs;
        if (n == label) slope -= 1 - smoothing;
        z[n * ROWS] = known ? slope * scale : loss;
    }
    return loss;
}

__device__ __forceinline__ float row_squares(float* z, int outputs, const float* wanted, float scale) {
    float sum = 0;
    for (int n = threadIdx.x % WARP; n < outputs; n += WARP) {
        const float difference = z[n * ROWS] - wanted[n];
        sum += difference * difference;
        z[n * ROWS] = 2 * scale * difference;
    }
    return warp_reduce<Sum>(sum);
}

// The losses of the block's rows, and their slopes in shared memory and, if it is to `write`, for the weights.
__device__ __forceinline__ void row_losses(const MlpNetwork& net, const MlpData& data, const MlpLayer& layer,
                                           float* z, const RowFacts& facts, int first_row, bool write) {
    const int lane = threadIdx.x % WARP, row = threadIdx.x / WARP, outputs = layer.outputs;
    const int wide = whole_packs(outputs);
    const int64 sample = __shfl_sync(FULL_WARP, facts.sample, row);
    const int64 label = __shfl_sync(FULL_WARP, facts.label, row);
    float loss = 0;
    bool right = false;
    z += row;
    if (sample == -1) {
        for (int n = lane; n < outputs; n += WARP) z[n * ROWS] = 0;
    } else if (!data.exists(sample)) {
        loss = not_a_number();
        for (int n = lane; n < outputs; n += WARP) z[n * ROWS] = loss;
    } else if (net.options & MSE) {
        const float scale = 1.0f / (static_cast<float>(facts.count) * static_cast<float>(outputs));
        loss = row_squares(z, outputs, data.wanted + sample * outputs, scale);
    } else {
        const float scale = 1.0f / static_cast<float>(facts.count);
        loss = row_cross_entropy(z, outputs, label, data.smoothing, scale, right);
    }
    __syncwarp();
    float* slope = net.scratch + layer.slope + static_cast<int64>(first_row + row) * wide;
    for (int n = lane; n < wide && write; n += WARP) slope[n] = z[n * ROWS];  // zeros behind the outputs
    if (lane == 0 && write) {
        net.scratch[first_row + row] = loss;
        net.scratch[net.rows + first_row + row] = right ? 1.0f : 0.0f;
    }
    __syncthreads();
}

// ---- the phase --------------------------------------------------------------------------------------

// The rows' data, transposed: eight rows of four neighbouring packs a warp, all loads of up to 1024 inputs at once.
// Each pack turns by its place, so that the warp's stores meet in no bank.
__device__ __forceinline__ void gather_rows(const MlpData& data, int inputs, int64 sample, bool vector, float* out) {
    const int turn = threadIdx.x / ROWS % 4;
    for (int start = threadIdx.x / ROWS * 4; start < inputs; start += AHEAD * (THREADS / ROWS) * 4) {
        Pack<float, 4> pack[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
            pack[u] = data.numbers(sample, start + u * (THREADS / ROWS) * 4, inputs, vector);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int k = start + u * (THREADS / ROWS) * 4;
            if (k >= inputs) break;
            const float(&item)[4] = pack[u].item;
            float half[4], turned[4];
#pragma unroll
            for (int e = 0; e < 4; e++) half[e] = turn & 1 ? item[(e + 1) % 4] : item[e];
#pragma unroll
            for (int e = 0; e < 4; e++) turned[e] = turn & 2 ? half[(e + 2) % 4] : half[e];
#pragma unroll
            for (int e = 0; e < 4; e++) out[(k + (e + turn) % 4) * ROWS + threadIdx.x % ROWS] = turned[e];
        }
    }
}

// The columns of a product that a block makes: all of `wide`, or its share where the team shares it out.
struct Share {
    int first, count;
    __device__ __forceinline__ Share(bool split, const MlpTeam& team, int wide) : first(0), count(wide) {
        if (!split) return;
        const int each = divide_up(wide / 4, team.members) * 4;
        first = team.rank * each;
        count = wide - first < each ? wide - first : each;
    }
};

// What the team has made of a layer, into the block's shared memory.
__device__ __forceinline__ void take_rows(const float* from, int wide, int first_row, float* out) {
    const float* row = from + static_cast<int64>(first_row + threadIdx.x % ROWS) * wide;
#pragma unroll 4
    for (int n = threadIdx.x / ROWS; n < wide; n += THREADS / ROWS) out[n * ROWS + threadIdx.x % ROWS] = row[n];
    __syncthreads();
}

__device__ __forceinline__ void layer_forward(const MlpNetwork& net, const MlpData& data, const MlpBlock& block,
                                              MlpTeam& team, int l, int step, int first_row, bool real) {
    const MlpLayer layer = net.layer(l);
    const bool last = l + 1 == net.layers, split = layer.split & 1, write = split || team.rank == 0;
    const int wide = whole_packs(layer.outputs);
    const Share share(split, team, wide);
    float* const out = block.of(l + 1);
    float* const pre = net.scratch + layer.pre;
    float* const next = last ? nullptr : net.scratch + net.layer(l + 1).input;
    const float* const bias = layer.bias < 0 ? nullptr : net.parameters + layer.bias;
    const float* const weight = net.scratch + layer.forward + share.first;
    if (share.count > 0)
        product(block.of(l), layer.inputs, weight, wide, share.count, block.sums, [&](int column, int row) {
            const int n = share.first + column;
            const bool has = n < layer.outputs && bias != nullptr;
            ptx::copy_async<4>(out + n * ROWS + row, has ? bias + n : net.parameters, has);  // else zero
        }, [&](int column, int row, float sum) {
            const int n = share.first + column;
            const bool inside = n < layer.outputs;
            sum += out[n * ROWS + row];
            if (!last) {
                const int64 number = first_row + row, at = number * wide + n;
                if (write) pre[at] = sum;
                float value[1] = {sum};
                activate<float>(value, layer.activation, layer.alpha);
                if (layer.dropout >= 0)
                    value[0] = kept(layer, data, step, number * layer.outputs + n) ? value[0] * layer.scale : 0.0f;
                sum = real ? value[0] : 0.0f;  // this thread's row is the same in all columns
                if (write) next[at] = inside ? sum : 0.0f;
            }
            out[n * ROWS + row] = inside ? sum : 0.0f;
        });
    if (split) {
        team.meeting.hold();
        take_rows(next, wide, first_row, out);
    }
}

// The slope of the layer below `l` from the slope of `l`.
__device__ __forceinline__ void layer_backward(const MlpNetwork& net, const MlpData& data, const MlpBlock& block,
                                               MlpTeam& team, int l, int step, int first_row, bool real) {
    const MlpLayer layer = net.layer(l), below = net.layer(l - 1);
    const bool split = layer.split & 2, write = split || team.rank == 0;
    const int wide = whole_packs(layer.inputs);
    const Share share(split, team, wide);
    const bool copied = net.resident || layer.backward >= 0;
    const float* const weight =
        (copied ? net.scratch + layer.backward : net.parameters + layer.weight) + share.first;
    float* const out = block.of(l);
    const float* const pre = net.scratch + below.pre;
    float* const slope = net.scratch + below.slope;
    if (share.count > 0)
        product(block.of(l + 1), layer.outputs, weight, wide, share.count, block.sums, [&](int column, int row) {
            const int k = share.first + column;
            const float* from = pre + static_cast<int64>(first_row + row) * wide + k;
            if (net.resident)
                out[k * ROWS + row] = *from;
            else
                ptx::copy_async<4>(out + k * ROWS + row, from);
        }, [&](int column, int row, float sum) {
            const int k = share.first + column;
            const int64 number = first_row + row, at = number * wide + k;
            if (below.dropout >= 0)
                sum = kept(below, data, step, number * layer.inputs + k) ? sum * below.scale : 0.0f;
            float value[1] = {sum};
            const float saved[1] = {out[k * ROWS + row]};
            differentiate<float>(value, saved, below.activation, below.alpha);
            sum = k < layer.inputs && real ? value[0] : 0.0f;
            if (write) slope[at] = sum;
            out[k * ROWS + row] = sum;
        });
    if (split && l > 1) {
        team.meeting.hold();
        take_rows(slope, wide, first_row, out);
    }
}

// Which layers a team shares out: the last one forward, -1 for none; the last one backward, `layers` for none.
struct Sharing {
    int forward, backward;
    __device__ __forceinline__ explicit Sharing(const MlpNetwork& net) : forward(-1), backward(net.layers) {
        for (int l = net.layers - 1; l >= 0; l--) {
            if (net.layer(l).split & 1 && forward < 0) forward = l;
            if (net.layer(l).split & 2) backward = l;
        }
    }
};

// `sample` is that of the thread's row, the one of its number modulo 8, of the first rows that the block takes.
// What is not shared out is made by every block of a team as long as a later product is, and then by the first
// alone.
__device__ __forceinline__ void train_rows(const MlpNetwork& net, const MlpData& data, const MlpBlock& block,
                                           MlpTeam& team, const Sharing& sharing, int64 sample, int step) {
    const bool through = team.rank == 0 || sharing.backward < net.layers;
    for (int first_row = team.number * ROWS; first_row < net.batch; first_row += team.teams * ROWS) {
        if (first_row != team.number * ROWS) sample = data.sample(step, net.batch, first_row + threadIdx.x % ROWS);
        const RowFacts facts(net, data, sample, step);
        gather_rows(data, net.layer(0).inputs, sample, net.options & VECTOR, block.of(0));
        __syncthreads();
        const int forward = through ? net.layers : sharing.forward + 1;
        for (int l = 0; l < forward; l++) layer_forward(net, data, block, team, l, step, first_row, sample != -1);
        if (!through) continue;
        row_losses(net, data, net.layer(net.layers - 1), block.of(net.layers), facts, first_row, team.rank == 0);
        if (sharing.backward < net.layers) team.meeting.hold();  // for Z of layers that the first block made alone
        const int backward = team.rank == 0 ? 1 : sharing.backward;
        for (int l = net.layers - 1; l >= backward; l--)
            layer_backward(net, data, block, team, l, step, first_row, sample != -1);
    }
}

// The step's loss and hits from those of its rows: by one block.
__device__ __forceinline__ void sum_losses(const MlpNetwork& net, const MlpData& data, int step, float* losses,
                                           int* correct) {
    __shared__ double partial[WARP];
    double loss = 0, right = 0;
    for (int row = threadIdx.x; row < net.batch; row += THREADS) {
        loss += net.scratch[row];
        right += net.scratch[net.rows + row];
    }
    loss = block_reduce<Sum>(loss, partial);
    right = block_reduce<Sum>(right, partial);
    if (threadIdx.x == 0) {
        const double each = net.options & MSE ? net.layer(net.layers - 1).outputs : 1;
        losses[step] = static_cast<float>(loss / (data.counts[step] * each));
        correct[step] = static_cast<int>(right);
    }
}
