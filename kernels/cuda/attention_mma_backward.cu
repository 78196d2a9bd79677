// attention_mma_backward.cu - the gradients of attention on tensor cores for sm_80 and later, 16-bit types.
//
// Formulas: gpunn/primitives/attention.py; `delta` comes from attention_delta (attention.cu). The scores are made
// again from log_sum_exp. Two kernels, each of whose sums one block makes in one order, without atomics:
//
//   attention_grad_kv_mma   a block owns 64 keys, a warp 16 of them, and walks over the rows that see them, of the
//                           whole group, ROWS at a time. Scores lie keys x rows, so that the rounded weights and
//                           slopes are the left operands of dV += P dO and dK += dS Q as they are.
//   attention_grad_q_mma    a block owns 64 rows and walks over the keys that they see, KEYS at a time:
//                           dQ += dS K.
//
// They make Q K^T and dO V^T each: seven products, where one kernel with atomics needs five.
// Shared memory: two panels of 64 lines that stay, and two that change, in two stages (one for DIM = 256, whose copies
// then wait for the products):
//   32 KB for DIM = 64, 64 KB for 128, 96 KB for 256; in grad_kv also what is to be known of each row
// Registers: grad_kv DIM for its two sums, of no more than 128 columns: a head of 256 is shared by two blocks.
// Spills: attention_grad_kv_mma<__nv_bfloat16, 256>: two registers of the 255 that a thread can have, on sm_80.
// Assumes: rows that begin at multiples of 16 bytes, dim a multiple of 8.
#include "attention_mma.cuh"

constexpr int OTHERS = 32;  // lines of the panels that change
template <int DIM> constexpr int BLOCKS = DIM > 128 ? 1 : DIM > 64 ? 2 : 3;  // on a multiprocessor
template <int DIM> constexpr int STAGES = DIM > 128 ? 1 : 2;
template <int DIM> constexpr int COLUMNS = DIM > 128 ? 128 : DIM;

// From the scores of a tile, in units of log2, and the products of gradients and values to the weights and slopes.
// A weight of -inf is 0 whatever the norm is: a row that sees nothing has -inf for one.
__device__ __forceinline__ float weight_of(float score, float norm) {
    return score == -infinity<float>() ? 0.f : ptx::power_of_2(score - norm);
}
__device__ __forceinline__ void finish_slope(float& weight, float& slope, bool kept, float keep_scale, float delta) {
    slope = weight * ((kept ? slope * keep_scale : 0.f) - delta);
    weight = kept ? weight : 0.f;
}

// ---- by keys and values -------------------------------------------------------------------------------------------

// What must be known of a row: `norm` and `delta` are copied, the others computed.
template <int ROWS> struct RowInfo {
    float norm[ROWS], delta[ROWS];
    int first[ROWS], end[ROWS];
    int64 index[ROWS], mask[ROWS];
};

template <typename T, int DIM>
__global__ void __launch_bounds__(MMA_THREADS, BLOCKS<DIM>)
attention_grad_kv_mma(const T* grad_out, const T* q, const T* k, const T* v, const float* log_sum_exp,
                      const float* delta, const void* mask, const int* q_lengths, const int* kv_lengths,
                      const int* causal_offsets, const uint64* counter, T* grad_k, T* grad_v, Attention p, int tiles,
                      int groups) {
    constexpr int ROWS = OTHERS, N = COLUMNS<DIM>;
    typedef HeadPanel<T, OWN, DIM> Keys;
    typedef HeadPanel<T, ROWS, DIM> Rows;
    typedef RowInfo<ROWS> Info;
    constexpr int STAGE = 2 * Rows::BYTES + static_cast<int>(sizeof(Info));
    DYNAMIC_SHARED(unsigned char, memory);
    unsigned char *const key_panel = memory, *const value_panel = memory + Keys::BYTES;
    unsigned char* const stages = memory + 2 * Keys::BYTES;  // rows, their gradients, and Info, in turns

    int place = blockIdx.x;
    const int tile = place % tiles;  // the first ones are seen the most where attention is causal
    place /= tiles;
    const int column = place % groups * N;
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, place / groups);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int key0 = tile * OWN, mine = key0 + warp * 16;
    int first, end;
    s.rows_of_keys(key0, key0 + OWN, p.group, first, end);
    first = first / ROWS * ROWS;

    const typename Keys::Own own(warp * 16);
    const typename Rows::Columns columns(0);
    const typename Rows::Values across(0);
    const auto load = [&](int row0, int stage) {
        unsigned char* panel = stages + stage * STAGE;
        load_panel<ROWS, DIM>(panel, QueryRows<T>(q, p.q, s, p.group), row0, p.dim);
        load_panel<ROWS, DIM>(panel + Rows::BYTES, QueryRows<T>(grad_out, p.grad_out, s, p.group), row0, p.dim);
        Info& info = *reinterpret_cast<Info*>(panel + 2 * Rows::BYTES);
        for (int r = threadIdx.x; r < ROWS; r += MMA_THREADS) {
            const RowView row(p, s, row0 + r);
            const bool counts = row.query < s.queries;
            const int64 index = counts ? row.index(p, s) : 0;
            ptx::copy_async<4>(&info.norm[r], log_sum_exp + index, counts);
            ptx::copy_async<4>(&info.delta[r], delta + index, counts);
            info.first[r] = row.first;
            info.end[r] = row.end;
            info.index[r] = index;
            info.mask[r] = mask_row(p, s, row);
        }
    };

    const float scale = static_cast<float>(p.scale) * LOG2_E, keep_scale = static_cast<float>(p.keep_scale);
    float sums_k[N / 8][4], sums_v[N / 8][4];
    clear(sums_k);
    clear(sums_v);

    load_panel<OWN, DIM>(key_panel, KeyRows<T>(k, p.k, s), key0, p.dim);
    load_panel<OWN, DIM>(value_panel, KeyRows<T>(v, p.v, s), key0, p.dim);
    if (STAGES<DIM> > 1 && first < end) load(first, 0);
    ptx::copy_async_commit();
    int stage = 0;
#pragma unroll 1
    for (int row0 = first; row0 < end; row0 += ROWS) {
        if constexpr (STAGES<DIM> > 1) {
            if (row0 + ROWS < end) load(row0 + ROWS, stage ^ 1);
        } else {
            load(row0, 0);
        }
        ptx::copy_async_commit();
        ptx::copy_async_wait<STAGES<DIM> - 1>();
        __syncthreads();
        const unsigned char* panel = stages + stage * STAGE;
        const Info& info = *reinterpret_cast<const Info*>(panel + 2 * Rows::BYTES);
        uint32 kept = ~0u;  // made first, while few registers are in use
        if (p.threshold != 0) kept = kept_by_key<ROWS>(p, counter, mine, [&](int r) { return info.index[r]; });
        float weights[ROWS / 8][4], slopes[ROWS / 8][4];
        scores_of<T, ROWS, DIM>(weights, key_panel, own, panel, columns);
        scores_of<T, ROWS, DIM>(slopes, value_panel, own, panel + Rows::BYTES, columns);
        const bool plain = p.mask_kind == NO_MASK && s.all_seen(row0, row0 + ROWS, mine, mine + 16, p.group);
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int r = 8 * j + 2 * t + e % 2, key = mine + g + e / 2 * 8;
                float score = weights[j][e] * scale;
                if (!plain)
                    score = masked<T>(score, p.mask_kind, mask, info.mask[r] + key * p.mask[3], key, info.first[r],
                                      info.end[r]);
                weights[j][e] = weight_of(score, info.norm[r] * LOG2_E);
                finish_slope(weights[j][e], slopes[j][e], (kept >> (4 * j + e) & 1) != 0, keep_scale, info.delta[r]);
            }
        add_weighted<T, ROWS, DIM, N>(sums_v, weights, panel + Rows::BYTES, across, column);
        add_weighted<T, ROWS, DIM, N>(sums_k, slopes, panel, across, column);
        __syncthreads();
        if constexpr (STAGES<DIM> > 1) stage ^= 1;
    }
    ptx::copy_async_wait<0>();
    __syncthreads();
    const auto row_of = [&](T* array, const int64(&strides)[3]) {
        return array + s.batch * strides[0] + mine * strides[1] + s.kv_head * strides[2];
    };
    const float factor_k[2] = {static_cast<float>(p.scale), static_cast<float>(p.scale)};
    const float factor_v[2] = {keep_scale, keep_scale};
    store_lines<T, DIM, N>(key_panel, sums_k, factor_k, column, p.dim, p.keys - mine,
                           [&](int line) { return row_of(grad_k, p.grad_k) + line * p.grad_k[1]; });
    store_lines<T, DIM, N>(value_panel, sums_v, factor_v, column, p.dim, p.keys - mine,
                           [&](int line) { return row_of(grad_v, p.grad_v) + line * p.grad_v[1]; });
}

// ---- by queries ---------------------------------------------------------------------------------------------------

template <typename T, int DIM>
__global__ void __launch_bounds__(MMA_THREADS, BLOCKS<DIM>)
attention_grad_q_mma(const T* grad_out, const T* q, const T* k, const T* v, const float* log_sum_exp,
                     const float* delta, const void* mask, const int* q_lengths, const int* kv_lengths,
                     const int* causal_offsets, const uint64* counter, T* grad_q, Attention p, int tiles) {
    constexpr int KEYS = OTHERS;
    typedef HeadPanel<T, OWN, DIM> Rows;
    typedef HeadPanel<T, KEYS, DIM> Keys;
    constexpr int STAGE = 2 * Keys::BYTES;
    DYNAMIC_SHARED(unsigned char, memory);
    unsigned char *const query_panel = memory, *const grad_panel = memory + Rows::BYTES;
    unsigned char* const stages = memory + 2 * Rows::BYTES;  // keys and values, in turns

    const int tile = tiles - 1 - static_cast<int>(blockIdx.x) % tiles;
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, blockIdx.x / tiles);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int row0 = tile * OWN, mine = row0 + warp * 16;
    int first, end;
    s.keys_of_rows(row0, min(row0 + OWN, p.rows()), p.group, first, end);
    first = first / KEYS * KEYS;

    const KeyRows<T> keys(k, p.k, s), values(v, p.v, s);
    const typename Rows::Own own(warp * 16);
    const typename Keys::Columns columns(0);
    const typename Keys::Values across(0);
    const auto load = [&](int key0, int stage) {
        unsigned char* panel = stages + stage * STAGE;
        load_panel<KEYS, DIM>(panel, keys, key0, p.dim);
        load_panel<KEYS, DIM>(panel + Keys::BYTES, values, key0, p.dim);
    };

    const RowView rows[2] = {RowView(p, s, mine + g), RowView(p, s, mine + g + 8)};
    const int64 rows_index[2] = {rows[0].index(p, s), rows[1].index(p, s)};
    float norm[2], mean[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const bool counts = rows[h].query < s.queries;
        norm[h] = counts ? log_sum_exp[rows_index[h]] * LOG2_E : 0.f;
        mean[h] = counts ? delta[rows_index[h]] : 0.f;
    }
    const float scale = static_cast<float>(p.scale) * LOG2_E, keep_scale = static_cast<float>(p.keep_scale);
    float sums[DIM / 8][4];
    clear(sums);

    load_panel<OWN, DIM>(query_panel, QueryRows<T>(q, p.q, s, p.group), row0, p.dim);
    load_panel<OWN, DIM>(grad_panel, QueryRows<T>(grad_out, p.grad_out, s, p.group), row0, p.dim);
    if (STAGES<DIM> > 1 && first < end) load(first, 0);
    ptx::copy_async_commit();
    int stage = 0;
#pragma unroll 1
    for (int key0 = first; key0 < end; key0 += KEYS) {
        if constexpr (STAGES<DIM> > 1) {
            if (key0 + KEYS < end) load(key0 + KEYS, stage ^ 1);
        } else {
            load(key0, 0);
        }
        ptx::copy_async_commit();
        uint32 kept = ~0u;  // made while the copies are under way
        if (p.threshold != 0) kept = kept_by_query<KEYS>(p, counter, rows_index, key0);
        ptx::copy_async_wait<STAGES<DIM> - 1>();
        __syncthreads();
        const unsigned char* panel = stages + stage * STAGE;
        float weights[KEYS / 8][4], slopes[KEYS / 8][4];
        scores_of<T, KEYS, DIM>(weights, query_panel, own, panel, columns);
        scores_of<T, KEYS, DIM>(slopes, grad_panel, own, panel + Keys::BYTES, columns);
        const bool plain = p.mask_kind == NO_MASK && s.all_seen(mine, mine + 16, key0, key0 + KEYS, p.group);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int64 base = plain ? 0 : mask_row(p, s, rows[h]);
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    const int key = key0 + 8 * j + 2 * t + e % 2;
                    float score = weights[j][e] * scale;
                    if (!plain)
                        score = masked<T>(score, p.mask_kind, mask, base + key * p.mask[3], key, rows[h].first,
                                          rows[h].end);
                    weights[j][e] = weight_of(score, norm[h]);
                    finish_slope(weights[j][e], slopes[j][e], (kept >> (4 * j + e) & 1) != 0, keep_scale, mean[h]);
                }
        }
        add_weighted<T, KEYS, DIM, DIM>(sums, slopes, panel, across, 0);
        __syncthreads();
        if constexpr (STAGES<DIM> > 1) stage ^= 1;
    }
    ptx::copy_async_wait<0>();
    __syncthreads();
    const float factor[2] = {static_cast<float>(p.scale), static_cast<float>(p.scale)};
    store_lines<T, DIM, DIM>(query_panel, sums, factor, 0, p.dim, p.rows() - mine, [&](int line) {
        const RowView row(p, s, mine + line);
        return grad_q + row.offset(s, p.grad_q);
    });
}
