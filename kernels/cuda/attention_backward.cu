// attention_backward.cu - the gradients of attention on the ordinary units, for every GPU, dtype, alignment and head
// up to 256.
//
// Formulas: gpunn/primitives/attention.py. Source: Dao et al., FlashAttention (2022) and FlashAttention-2 (2023):
// the scores are made again, tile by tile. Who does what, shared memory and the limit: attention_simt.cuh.
//
//   attention_grad_q        as attention_forward: a block owns 64 rows and walks over the keys that they see
//   attention_grad_kv       a block owns 64 keys and walks over the rows that see them, of the whole group
//
// So every sum is made by one block in one order: no atomics. The price is that the two kernels each make the scores
// again, seven products instead of five.
#include "attention_simt.cuh"

// From the score of a row and a key and the product of their gradient and value to the weight, as the value meets it,
// and to the slope of the score: weight = d p, slope = p (d g·v - delta).
template <typename A>
__device__ __forceinline__ void weight_and_slope(A& weight, A& slope, bool kept, A keep_scale, A norm, A delta) {
    weight = exponential(weight - norm);
    slope = weight * ((kept ? slope * keep_scale : A(0)) - delta);
    weight = kept ? weight : A(0);
}
// Both of a whole tile of scores without their factor.
template <typename T, bool TURNED>
__device__ __forceinline__ void prepare_scores(Accumulator<T> (&scores)[4][4], const Panels<Accumulator<T>>& panels,
                                               const Attention& p, const Sequence& s, const void* mask, int row0,
                                               int key0) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) scores[i][j] *= static_cast<Accumulator<T>>(p.scale);
    if (p.mask_kind != NO_MASK || !s.all_seen(row0, row0 + TILE, key0, key0 + TILE, p.group))
        mask_tile<T, TURNED>(scores, panels, p, s, mask, row0, key0);
}
// log_sum_exp of a row as it is subtracted: of one that sees nothing +inf, which makes its weights 0.
template <typename A> __device__ __forceinline__ A norm_of(A log_sum_exp) {
    return log_sum_exp == -infinity<A>() ? infinity<A>() : log_sum_exp;
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
attention_grad_q(const T* grad_out, const T* q, const T* k, const T* v, const Accumulator<T>* log_sum_exp,
                 const Accumulator<T>* delta, const void* mask, const int* q_lengths, const int* kv_lengths,
                 const int* causal_offsets, const uint64* counter, T* grad_q, Attention p, int tiles, int groups,
                 bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const Panels<A> panels(memory);
    const Place at(tiles, groups, 1, HEAD_COLUMNS<A>);
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, at.table);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int row0 = at.tile * TILE, row_end = min(row0 + TILE, p.rows());
    const A scale = static_cast<A>(p.scale), keep_scale = static_cast<A>(p.keep_scale);
    int first, end;
    s.keys_of_rows(row0, row_end, p.group, first, end);
    const QueryRows<T> queries(q, p.q, s, p.group), grads(grad_out, p.grad_out, s, p.group);
    const KeyRows<T> keys(k, p.k, s), values(v, p.v, s);

    A norm[4], slope_mean[4], sums[CHUNKS<A>][4][4];
    clear(sums);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const RowView row(p, s, row0 + ty + 16 * i);
        const bool counts = row.query < s.queries;
        norm[i] = counts ? norm_of(log_sum_exp[row.index(p, s)]) : infinity<A>();
        slope_mean[i] = counts ? delta[row.index(p, s)] : A(0);
    }
#pragma unroll 1
    for (int key0 = first / TILE * TILE; key0 < end; key0 += TILE) {
        A weights[4][4], slopes[4][4];
        products<T>(weights, panels, queries, row0, keys, key0, p.dim, vector);
        products<T>(slopes, panels, grads, row0, values, key0, p.dim, vector);
        prepare_scores<T, false>(weights, panels, p, s, mask, row0, key0);
        const uint32 kept = kept_of_tile<false>(p, s, counter, row0, key0);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                weight_and_slope(weights[i][j], slopes[i][j], (kept >> (4 * i + j) & 1) != 0, keep_scale, norm[i],
                                 slope_mean[i]);
        put_weights(panels, slopes);
        accumulate<T>(sums, panels, keys, key0, at.column, p.dim, vector);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row0 + ty + 16 * i >= p.rows()) continue;
        const RowView row(p, s, row0 + ty + 16 * i);
        store_row_of<T>(grad_q + row.offset(s, p.grad_q), sums, i, scale, at.column, p.dim, vector);
    }
}

// The tile of scores lies the other way round: keys ty + 16 i, rows tx + 16 j.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
attention_grad_kv(const T* grad_out, const T* q, const T* k, const T* v, const Accumulator<T>* log_sum_exp,
                  const Accumulator<T>* delta, const void* mask, const int* q_lengths, const int* kv_lengths,
                  const int* causal_offsets, const uint64* counter, T* grad_k, T* grad_v, Attention p, int tiles,
                  int groups, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const Panels<A> panels(memory);
    const Place at(tiles, groups, 1, HEAD_COLUMNS<A>);
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, at.table);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int key0 = at.tile * TILE;
    const A scale = static_cast<A>(p.scale), keep_scale = static_cast<A>(p.keep_scale);
    int first, end;
    s.rows_of_keys(key0, key0 + TILE, p.group, first, end);
    const QueryRows<T> queries(q, p.q, s, p.group), grads(grad_out, p.grad_out, s, p.group);
    const KeyRows<T> keys(k, p.k, s), values(v, p.v, s);

    A sums_k[CHUNKS<A>][4][4], sums_v[CHUNKS<A>][4][4];
    clear(sums_k);
    clear(sums_v);
#pragma unroll 1
    for (int row0 = first / TILE * TILE; row0 < end; row0 += TILE) {
        A weights[4][4], slopes[4][4];
        products<T>(weights, panels, keys, key0, queries, row0, p.dim, vector);
        products<T>(slopes, panels, values, key0, grads, row0, p.dim, vector);
        prepare_scores<T, true>(weights, panels, p, s, mask, row0, key0);
        const uint32 kept = kept_of_tile<true>(p, s, counter, row0, key0);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const RowView row(p, s, row0 + tx + 16 * j);
            const bool counts = row.query < s.queries;
            const A norm = counts ? norm_of(log_sum_exp[row.index(p, s)]) : infinity<A>();
            const A slope_mean = counts ? delta[row.index(p, s)] : A(0);
#pragma unroll
            for (int i = 0; i < 4; i++)
                weight_and_slope(weights[i][j], slopes[i][j], (kept >> (4 * i + j) & 1) != 0, keep_scale, norm,
                                 slope_mean);
        }
        put_weights(panels, weights);
        accumulate<T>(sums_v, panels, grads, row0, at.column, p.dim, vector);
        put_weights(panels, slopes);
        accumulate<T>(sums_k, panels, queries, row0, at.column, p.dim, vector);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int key = key0 + ty + 16 * i;
        if (key >= p.keys) continue;
        const auto target = [&](T* array, const int64(&strides)[3]) {
            return array + s.batch * strides[0] + key * strides[1] + s.kv_head * strides[2];
        };
        store_row_of<T>(target(grad_k, p.grad_k), sums_k, i, scale, at.column, p.dim, vector);
        store_row_of<T>(target(grad_v, p.grad_v), sums_v, i, keep_scale, at.column, p.dim, vector);
    }
}
