// attention_wgmma.cu - attention forward on the tensor cores of sm_90a (H100, H200): TMA and wgmma, 16-bit types.
//
// Formulas: gpunn/primitives/attention.py. Source: Shah et al., FlashAttention-3 (2024). What is seen, rows and tables:
// attention.cuh; shared memory, the order of work and the loading warp: attention_wgmma.cuh.
//
// Who does what: a block owns a tile of ROWS rows of a table, 64 for each of its multiplying warpgroups, and walks over
// the keys, 128 at a time; a grid that fills the chip walks over the tiles. One warp loads: it keeps rings of two stages
// of keys and of values full, is a tile ahead with the queries, and its warpgroup gives its registers away.
// A multiplying warpgroup makes scores (64 x 128, in 64 registers of each thread) out of shared memory alone, turns
// them into weights in registers, and these, in 16 bits, are the left operand of the product by the values, whose
// rows the hardware reads across. Two things run beside the tensor cores:
//   - the weights of a tile are made while the product of the tile before is under way (two groups of wgmmas);
//   - the warpgroups take turns in giving out products (named barriers 1 …), so that while one is at its exponentials
//     the products of the others run.
// Shared memory: queries, two stages of keys and of values: 88 KB for DIM = 64 (192 rows), 160 KB for 128 (128 rows),
// and 11 barriers.
// The limit: 2 D multiply-adds a score at 2048 a cycle of a multiprocessor, and an exponential a score at 16 a cycle: of
// a tile of 128 x 128 with D = 64 1024 cycles each, with D = 128 2048 and 1024. So for D = 64 tensor cores and
// exponentials must both be busy all the time, which is what three warpgroups are for.
// Registers: 160 a thread for DIM = 64, 232 for 128: sums, scores, and packed weights of the tile before.
// Keys are masked in the tiles at the edges of what a warp sees; tiles that no row sees are not loaded.
// A head of fewer than DIM numbers has zeros behind, which the tensor copies put there.
// Assumes: maps with the boxes of gpunn/primitives/attention_wgmma.py; scale > 0; no mask, no dropout; p.group divides
// ROWS, and p.kv_heads counts tables of a sequence, plan.share of which have one head of keys.
#include "attention_wgmma.cuh"

// d = the 64 rows from `row` on of the queries times the keys.
template <typename T, int DIM>
__device__ __forceinline__ void multiply_keys(float (&d)[Panels<DIM>::KEYS / 2], const unsigned char* queries, int row,
                                              const unsigned char* keys) {
    typedef Panels<DIM> S;
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
        const int box = step / 4, at = step % 4 * 32;
        const uint64 a = ptx::matrix_descriptor(queries + box * S::QUERY_BOX + row * S::LINE + at, 16, 8 * S::LINE,
                                                ptx::Swizzle::bytes128);
        const uint64 b = ptx::matrix_descriptor(keys + box * S::KEY_BOX + at, 16, 8 * S::LINE, ptx::Swizzle::bytes128);
        ptx::wgmma<S::KEYS, KIND<T>>(d, a, b, step > 0);
    }
}

// d += weights times the values: their lines are the k of the product.
template <typename T, int DIM>
__device__ __forceinline__ void multiply_values(float (&d)[DIM / 2], const uint32 (&weights)[Panels<DIM>::KEYS / 16][4],
                                                const unsigned char* values) {
    typedef Panels<DIM> S;
#pragma unroll
    for (int step = 0; step < S::KEYS / 16; step++)
        ptx::wgmma<DIM, KIND<T>, true>(d, weights[step],
                                       ptx::matrix_descriptor(values + step * 16 * S::LINE, S::KEY_BOX, 8 * S::LINE,
                                                              ptx::Swizzle::bytes128));
}

// One warpgroup's 64 rows of every tile of the block. What lives from tile to tile: places in the rings.
template <typename T, int DIM> struct Consumer {
    typedef Panels<DIM> S;
    unsigned char* memory;
    Barriers<DIM> barriers;
    int number;  // of the warpgroup
    Slot<S::STAGES> keys, values;
    int query_parity;
    float sums[DIM / 2], scores[S::KEYS / 2], factor[2];
    uint32 weights[S::KEYS / 16][4];
    Running running;

    // The turns: barrier 1 + n lets warpgroup n give out products. The last one opens the first turn of the first.
    __device__ __forceinline__ void open_turns() const {
        if (number == S::CONSUMERS - 1) ptx::barrier_arrive(1, 2 * WARPGROUP);
    }
    __device__ __forceinline__ void begin_turn() const { ptx::barrier_sync(1 + number, 2 * WARPGROUP); }
    __device__ __forceinline__ void end_turn() const {
        ptx::barrier_arrive(1 + (number == S::CONSUMERS - 1 ? 0 : number + 1), 2 * WARPGROUP);
    }
    __device__ __forceinline__ void close_turns() const {
        if (number == 0) begin_turn();
    }

    static __device__ __forceinline__ void release(uint64* barrier) {
        if (threadIdx.x % WARP == 0) ptx::mbarrier_arrive(barrier);
    }
    __device__ __forceinline__ void wait_for_keys() { ptx::mbarrier_wait(&barriers.key_full[keys.index], keys.parity); }
    __device__ __forceinline__ void start_scores() {
        begin_turn();
        ptx::wgmma_hold(scores);
        ptx::wgmma_fence();
        multiply_keys<T, DIM>(scores, memory, number * 64, memory + S::FIRST_KEYS + keys.index * S::PANEL);
        ptx::wgmma_commit();
    }
    // Called with the sums of all tiles before, under an older maximum.
    __device__ __forceinline__ void start_sums() {
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) sums[i] *= factor[i / 2 % 2];
        ptx::mbarrier_wait(&barriers.value_full[values.index], values.parity);
        ptx::wgmma_hold(sums);
        ptx::wgmma_fence();
        multiply_values<T, DIM>(sums, weights, memory + S::FIRST_VALUES + values.index * S::PANEL);
        ptx::wgmma_commit();
    }
    __device__ __forceinline__ void finish_scores() {
        ptx::wgmma_hold(scores);
        release(&barriers.key_empty[keys.index]);
        keys.next();
    }
    __device__ __forceinline__ void finish_sums() {
        ptx::wgmma_wait<0>();
        ptx::wgmma_hold(sums);
#pragma unroll
        for (int step = 0; step < S::KEYS / 16; step++) ptx::wgmma_hold(weights[step]);
        release(&barriers.value_empty[values.index]);
        values.next();
    }

    // Lets a tile of keys pass that none of the warpgroup's rows sees.
    __device__ __forceinline__ void pass_tile() {
        wait_for_keys();
        begin_turn();
        end_turn();
        release(&barriers.key_empty[keys.index]);
        keys.next();
        ptx::mbarrier_wait(&barriers.value_full[values.index], values.parity);
        release(&barriers.value_empty[values.index]);
        values.next();
    }

    // The rows `rows`, g and g + 8 of the warp's 16 from `mine` on.
    __device__ __forceinline__ void run(const Attention& p, const Unit<DIM>& unit, const RowView (&rows)[2], int mine) {
        constexpr int N = S::KEYS;
        const float scale = static_cast<float>(p.scale) * LOG2_E;
        running = Running();
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) sums[i] = 0.f;
        if (unit.first >= unit.end) return;

        // The tiles of the unit that the warpgroup's rows see: with causal attention fewer than the others.
        const int row = unit.row0 + number * 64;
        int first, end;
        unit.s.keys_of_rows(row, min(row + 64, p.rows()), p.group, first, end);
        first = max(first / N * N, unit.first);
        end = min(end, unit.end);
        const bool any = first < end;
        const int before = any ? first : unit.end, behind = any ? first + (end - first + N - 1) / N * N : unit.end;

        ptx::mbarrier_wait(barriers.query_full, query_parity);
        query_parity ^= 1;
#pragma unroll 1
        for (int key0 = unit.first; key0 < before; key0 += N) pass_tile();
        if (any) attend(p, unit, rows, mine, scale, first, end);
        release(barriers.query_empty);
        if (any) {
            start_sums();
            finish_sums();
        }
#pragma unroll 1
        for (int key0 = behind; key0 < unit.end; key0 += N) pass_tile();
    }

    // All but the last product by values, of the keys [first, end).
    __device__ __forceinline__ void attend(const Attention& p, const Unit<DIM>& unit, const RowView (&rows)[2], int mine,
                                           float scale, int first, int end) {
        constexpr int N = S::KEYS;
        // Keys that all of the warp's rows see are not masked.
        const int last = (mine + 15) / p.group;
        const int seen_end = last < unit.s.queries ? unit.s.end_key(mine / p.group) : -1;
        const int seen_first = unit.s.first_key(last);
        const auto mask = [&](int key0) {
            if (key0 >= seen_first && key0 + N <= seen_end) return;
            const int key = key0 + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                if (!rows[i / 2 % 2].sees(key + i / 4 * 8 + i % 2)) scores[i] = -infinity<float>();
        };
        wait_for_keys();
        start_scores();
        end_turn();
        ptx::wgmma_wait<0>();
        finish_scores();
        mask(first);
        running.weigh(scores, scale, factor);
        pack_weights<T>(weights, scores);
        if (first + N < end) wait_for_keys();
#pragma unroll 1
        for (int key0 = first + N; key0 < end; key0 += N) {
            start_scores();
            start_sums();
            end_turn();
            ptx::wgmma_wait<1>();
            finish_scores();
            mask(key0);
            running.weigh(scores, scale, factor);
            // The next keys are waited for here because the loop in that wait is what keeps the compiler from moving
            // the wait for the product up, before the exponentials, which are to run beside it.
            if (key0 + N < end) wait_for_keys();
            finish_sums();
            pack_weights<T>(weights, scores);
        }
    }
};

// With one part of the keys `out` and `log_sum_exp` are written; else `partial`, (parts, B, H, Tq, D) of weighted
// means, and `log_sum_exp` has a part for each.
template <typename T, int DIM>
__global__ void __launch_bounds__(Panels<DIM>::THREADS, 1)
attention_forward_wgmma(const __grid_constant__ ptx::TensorMap map_q, const __grid_constant__ ptx::TensorMap map_k,
                        const __grid_constant__ ptx::TensorMap map_v, const int* q_lengths, const int* kv_lengths,
                        const int* causal_offsets, T* out, float* log_sum_exp, float* partial, Attention p, int tiles,
                        int parts, int tables, int section, int share) {
    typedef Panels<DIM> S;
    extern __shared__ __align__(1024) unsigned char panels[];
    const Barriers<DIM> barriers(panels);
    const Lengths lengths = {q_lengths, kv_lengths, causal_offsets};
    const Plan plan = {tiles, parts, tables, section, share};
    if (threadIdx.x == 0) barriers.open();
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        ptx::registers_lower<S::LOADER_REGISTERS>();
        if (threadIdx.x < WARP) {
            if (threadIdx.x == 0) {
                ptx::prefetch_tensor_map(&map_q);
                ptx::prefetch_tensor_map(&map_k);
                ptx::prefetch_tensor_map(&map_v);
            }
            Loader<DIM> loader = {panels, barriers, &map_q, &map_k, &map_v};
            loader.run(p, lengths, plan);
        }
        return;
    }
    ptx::registers_raise<S::REGISTERS>();
    Consumer<T, DIM> consumer = {panels, barriers, static_cast<int>(threadIdx.x) / WARPGROUP - 1};
    const int warp = threadIdx.x / WARP % 4, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    consumer.query_parity = 0;
    consumer.open_turns();
#pragma unroll 1
    for (uint32 round = 0, number; (number = plan.number(round)) < plan.units(); round++) {
        const int rest = consumer.number * 64 + warp * 16;
        {
            const Unit<DIM> unit(p, lengths, plan, number);
            const int mine = unit.row0 + rest;
            const RowView rows[2] = {RowView(p, unit.s, mine + g), RowView(p, unit.s, mine + g + 8)};
            consumer.run(p, unit, rows, mine);
        }
        // Made again, which takes no time beside the products, rather than kept in registers that those need.
        uint32 same[1] = {number};
        ptx::wgmma_hold(same);
        const Unit<DIM> unit(p, lengths, plan, same[0]);
        const int mine = unit.row0 + rest;
        const RowView rows[2] = {RowView(p, unit.s, mine + g), RowView(p, unit.s, mine + g + 8)};

        Running& running = consumer.running;
        const int64 before = static_cast<int64>(unit.part) * plan.tables * p.rows();
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float& total = running.total[h];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            const float factor = total == 0.f ? 0.f : 1.f / total;
            const bool there = mine + g + 8 * h < p.rows();
            const int64 index = before + rows[h].index(p, unit.s);
            if (there && log_sum_exp != nullptr && t == 0)
                log_sum_exp[index] =
                    total == 0.f ? -infinity<float>() : running.top[h] * static_cast<float>(p.scale) + logf(total);
            if (parts == 1) {
                T* target = there ? out + rows[h].offset(unit.s, p.out) : nullptr;
                store_row<T, DIM>(target, p.dim, consumer.sums, h, factor);
            } else if (there) {
                float* target = partial + index * p.dim + 2 * t;
#pragma unroll
                for (int j = 0; j < DIM / 8; j++)
                    if (8 * j < p.dim) *reinterpret_cast<float2*>(target + 8 * j) =
                        make_float2(consumer.sums[4 * j + 2 * h] * factor, consumer.sums[4 * j + 2 * h + 1] * factor);
            }
        }
    }
    consumer.close_turns();
}
