// attention.cu - attention on the ordinary units, for every GPU, dtype, alignment and head up to 256; and the small
// kernels that the ones for tensor cores need as well.
//
// Formulas: gpunn/primitives/attention.py. Source: Dao et al., FlashAttention (2022) and FlashAttention-2 (2023):
// tiles of scores, softmax with a running maximum and sum. Who does what, shared memory and the limit:
// attention_simt.cuh; the gradients: attention_backward.cu.
//
//   attention_forward       a block owns 64 rows and a part of the keys: 64 scores each at a time, their
//                           exponentials as weights in shared memory, the products with the values in registers
//   attention_combine       joins the parts of the keys, where there are several
//   attention_pad           a copy with rows of another length: for the kernels for tensor cores, and back
//   attention_delta         delta[row] = grad_out[row] · out[row], for all kernels of the gradients
#include "attention_simt.cuh"

// With one part of the keys `out` and `log_sum_exp` are written; else `partial`, (parts, B, H, Tq, D) of weighted
// means, and `log_sum_exp` has a part for each.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
attention_forward(const T* q, const T* k, const T* v, const void* mask, const int* q_lengths, const int* kv_lengths,
                  const int* causal_offsets, const uint64* counter, T* out, Accumulator<T>* log_sum_exp,
                  Accumulator<T>* partial, Attention p, int tiles, int groups, int parts, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const Panels<A> panels(memory);
    const Place at(tiles, groups, parts, HEAD_COLUMNS<A>);
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, at.table);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int row0 = at.tile * TILE, row_end = min(row0 + TILE, p.rows());
    const A scale = static_cast<A>(p.scale);

    int first, end;
    s.keys_of_rows(row0, row_end, p.group, first, end);
    first = first / TILE * TILE;
    if (parts > 1) {
        const int each = ((end - first + TILE - 1) / TILE + parts - 1) / parts * TILE;
        first += at.part * each;
        end = min(end, first + each);
    }
    const QueryRows<T> queries(q, p.q, s, p.group);
    const KeyRows<T> keys(k, p.k, s), values(v, p.v, s);

    A top[4], total[4], sums[CHUNKS<A>][4][4];
    clear(sums);
#pragma unroll
    for (int i = 0; i < 4; i++) top[i] = -infinity<A>(), total[i] = A(0);

#pragma unroll 1
    for (int key0 = first; key0 < end; key0 += TILE) {
        A scores[4][4];
        products<T>(scores, panels, queries, row0, keys, key0, p.dim, vector);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) scores[i][j] *= scale;
        if (p.mask_kind != NO_MASK || !s.all_seen(row0, row0 + TILE, key0, key0 + TILE, p.group))
            mask_tile<T, false>(scores, panels, p, s, mask, row0, key0);
        const uint32 kept = kept_of_tile<false>(p, s, counter, row0, key0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            A largest = top[i];
#pragma unroll
            for (int j = 0; j < 4; j++) largest = larger(largest, scores[i][j]);
            largest = reduce_row<Larger>(largest);
            const A reference = largest == -infinity<A>() ? A(0) : largest;
            const A factor = exponential(top[i] - reference);
            top[i] = largest;
            A sum = A(0);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const A weight = exponential(scores[i][j] - reference);
                sum += weight;
                scores[i][j] = kept >> (4 * i + j) & 1 ? weight : A(0);
            }
            total[i] = total[i] * factor + sum;
#pragma unroll
            for (int c = 0; c < CHUNKS<A>; c++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[c][i][e] *= factor;
        }
        put_weights(panels, scores);
        accumulate<T>(sums, panels, values, key0, at.column, p.dim, vector);
    }

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const A sum = reduce_row<Sum>(total[i]);
        if (row0 + ty + 16 * i >= p.rows()) continue;
        const RowView row(p, s, row0 + ty + 16 * i);
        const int64 index = at.part * (static_cast<int64>(gridDim.x) / tiles / groups / parts / p.kv_heads) *
                                p.heads * p.queries + row.index(p, s);
        const A factor = sum == A(0) ? A(0) : static_cast<A>(p.keep_scale) / sum;
        if (parts > 1) store_row_of<A>(partial + index * p.dim, sums, i, factor, at.column, p.dim, vector);
        else store_row_of<T>(out + row.offset(s, p.out), sums, i, factor, at.column, p.dim, vector);
        if (log_sum_exp != nullptr && tx == 0 && at.column == 0)
            log_sum_exp[index] = sum == A(0) ? -infinity<A>() : top[i] + logarithm(sum);
    }
}

// Joins the parts of a row: out = sum_part exp(l[part] - l) partial[part], l = log sum_part exp(l[part]). A warp for a
// row. `size` is B H Tq; `part_logs` is (parts, B, H, Tq).
template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
attention_combine(const Accumulator<T>* partial, const Accumulator<T>* part_logs, T* out,
                  Accumulator<T>* log_sum_exp, Attention p, int64 size, int parts) {
    typedef Accumulator<T> A;
    const int64 row = global_thread() / WARP;
    const int lane = threadIdx.x % WARP;
    if (row >= size) return;
    A top = -infinity<A>();
    for (int part = 0; part < parts; part++) top = larger(top, part_logs[part * size + row]);
    const A reference = top == -infinity<A>() ? A(0) : top;
    A total = A(0);
    for (int part = 0; part < parts; part++) total += exponential(part_logs[part * size + row] - reference);
    const int64 query = row % p.queries, head = row / p.queries % p.heads, batch = row / p.queries / p.heads;
    T* target = out + batch * p.out[0] + query * p.out[1] + head * p.out[2];
    for (int d = lane; d < p.dim; d += WARP) {
        A sum = A(0);
        for (int part = 0; part < parts; part++)
            sum += exponential(part_logs[part * size + row] - reference) * partial[(part * size + row) * p.dim + d];
        target[d] = narrow<T>(total == A(0) ? A(0) : sum / total);
    }
    if (log_sum_exp != nullptr && lane == 0)
        log_sum_exp[row] = total == A(0) ? -infinity<A>() : top + logarithm(total);
}

// y[row, d] = x[row, d], or 0 for d >= from; d < to. 16-bit numbers, rows of (B, T, H) with the strides p.q of x and
// p.out of y.
__global__ void __launch_bounds__(THREADS)
attention_pad(const uint16* x, uint16* y, Attention p, int positions, int heads, int from, int to, int64 size) {
    for (int64 at = global_thread(); at < size; at += grid_threads()) {
        const int64 row = at / to, head = row % heads, position = row / heads % positions;
        const int64 batch = row / heads / positions;
        const int d = static_cast<int>(at - row * to);
        const auto start = [&](const int64(&strides)[3]) {
            return batch * strides[0] + position * strides[1] + head * strides[2];
        };
        y[start(p.out) + d] = d < from ? x[start(p.q) + d] : static_cast<uint16>(0);
    }
}

// ---- for the gradients --------------------------------------------------------------------------------------------

// A group of `lanes` threads (a power of two up to 32) for each row of (B, H, Tq).
template <typename T>
__global__ void __launch_bounds__(THREADS)
attention_delta(const T* grad_out, const T* out, Accumulator<T>* delta, Attention p, int64 size, int lanes,
                bool vector) {
    typedef Accumulator<T> A;
    const int64 row = global_thread() / lanes;
    const int lane = threadIdx.x % lanes;
    A sum = A(0);
    if (row < size) {
        const int64 query = row % p.queries, head = row / p.queries % p.heads, batch = row / p.queries / p.heads;
        const T* g = grad_out + batch * p.grad_out[0] + query * p.grad_out[1] + head * p.grad_out[2];
        const T* y = out + batch * p.out[0] + query * p.out[1] + head * p.out[2];
        if (vector) {
            for (int d = lane * PACK<T>; d < p.dim; d += lanes * PACK<T>) {
                const Pack<T, PACK<T>> a = load_pack<T, PACK<T>>(g + d), b = load_pack<T, PACK<T>>(y + d);
#pragma unroll
                for (int e = 0; e < PACK<T>; e++) sum += widen(a.item[e]) * widen(b.item[e]);
            }
        } else {
            for (int d = lane; d < p.dim; d += lanes) sum += widen(g[d]) * widen(y[d]);
        }
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += shuffle_xor(sum, offset);
    if (row < size && lane == 0) delta[row] = sum;
}
