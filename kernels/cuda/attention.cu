// attention.cu - attention and its gradients on the ordinary units, for every GPU, dtype, alignment and head up to
// 256; and the two small kernels that the ones for tensor cores need as well.
//
// Formulas: gpunn/primitives/attention.py. Source: Dao et al., FlashAttention (2022) and FlashAttention-2 (2023):
// tiles of scores, softmax with a running maximum and sum, scores made again in backward.
//
//   attention_forward       a block owns 64 rows and a part of the keys: 64 scores each at a time, their
//                           exponentials as weights in shared memory, the products with the values in registers
//   attention_combine       joins the parts of the keys, where there are several
//   attention_delta         delta[row] = grad_out[row] · out[row]
//   attention_pad           a copy with rows of another length: for the kernels for tensor cores, and back
//   attention_grad_q        as forward: a block owns 64 rows and walks over the keys that they see
//   attention_grad_kv       a block owns 64 keys and walks over the rows that see them, of the whole group
//
// So every sum is made by one block in one order: no atomics. The price is that the two backward kernels each make
// the scores again, seven products instead of five.
//
// Who does what: 256 threads, 16 x 16. Thread (ty, tx) has the elements (ty + 16 i, tx + 16 j), i, j < 4, of a tile of
// scores, and of a result the rows ty + 16 i and the columns 4 tx … 4 tx + 3 of each of CHUNKS times 64. A head of
// more than CHUNKS * 64 is shared by blocks, which then make the same scores.
// Shared memory, in bytes of A = Accumulator<T>: two operands of 64 x 32 or one of 64 x 64, and the weights 64 x 64,
// all rows with 16 bytes to spare, which keeps 16-byte reads of 8 neighbouring rows in different banks:
// 36 KB for float, 69 KB for double.
// The limit: arithmetic. Of 8 loads of 16 bytes from shared memory come 64 multiply-adds (float).
// Assumes: contiguous last dimensions; `vector` says that all rows begin at multiples of 16 bytes (8 for 16 bits).
#include "attention.cuh"

constexpr int TILE = 64, DEPTH = 32, THREADS = 256;

template <typename A> constexpr int LANES = 16 / sizeof(A);  // elements of 16 bytes
template <typename A> constexpr int DEPTH_PITCH = DEPTH + LANES<A>;
template <typename A> constexpr int PITCH = TILE + LANES<A>;

template <typename A> struct Panels {
    A *left, *right, *values, *weights;  // `values` lies over `left` and `right`

    __device__ __forceinline__ explicit Panels(A* memory)
        : left(memory), right(memory + TILE * DEPTH_PITCH<A>), values(memory),
          weights(memory + 2 * TILE * DEPTH_PITCH<A>) {}
};

// 64 rows from `first` on, columns [column, column + COLUMNS), into shared memory; zeros where there is nothing.
template <int COLUMNS, int PITCH_, template <typename> class Rows, typename T>
__device__ __forceinline__ void load_rows(Accumulator<T>* panel, const Rows<T>& rows, int first, int column, int dim,
                                          bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = LANES<A>, PER_ROW = COLUMNS / WIDTH;
#pragma unroll 2
    for (int index = threadIdx.x; index < TILE * PER_ROW; index += THREADS) {
        const int line = index / PER_ROW, from = index % PER_ROW * WIDTH, at = column + from;
        Pack<T, WIDTH> pack;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) pack.item[e] = T(0.f);
        if (first + line < rows.end && at < dim) {
            const T* source = rows.row(first + line) + at;
            if (vector) {  // then dim is a multiple of WIDTH
                pack = load_pack<T, WIDTH>(source);
            } else {
#pragma unroll
                for (int e = 0; e < WIDTH; e++)
                    if (at + e < dim) pack.item[e] = source[e];
            }
        }
        Pack<A, WIDTH> wide;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) wide.item[e] = widen(pack.item[e]);
        store_pack(panel + line * PITCH_ + from, wide);
    }
}

// sums[i][j] = left row (ty + 16 i) · right row (tx + 16 j)
template <typename T, typename Left, typename Right>
__device__ __forceinline__ void products(Accumulator<T> (&sums)[4][4], const Panels<Accumulator<T>>& panels,
                                         const Left& left, int first_left, const Right& right, int first_right,
                                         int dim, bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = LANES<A>;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = A(0);
#pragma unroll 1
    for (int column = 0; column < dim; column += DEPTH) {
        __syncthreads();
        load_rows<DEPTH, DEPTH_PITCH<A>>(panels.left, left, first_left, column, dim, vector);
        load_rows<DEPTH, DEPTH_PITCH<A>>(panels.right, right, first_right, column, dim, vector);
        __syncthreads();
#pragma unroll 2
        for (int d = 0; d < DEPTH; d += WIDTH) {
            Pack<A, WIDTH> a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = load_pack<A, WIDTH>(panels.left + (ty + 16 * i) * DEPTH_PITCH<A> + d);
                b[i] = load_pack<A, WIDTH>(panels.right + (tx + 16 * i) * DEPTH_PITCH<A> + d);
            }
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[i][j] += a[i].item[e] * b[j].item[e];
        }
    }
}

// The weights, where all threads have them for `accumulate`.
template <typename A>
__device__ __forceinline__ void put_weights(const Panels<A>& panels, const A (&weights)[4][4]) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) panels.weights[(ty + 16 * i) * PITCH<A> + tx + 16 * j] = weights[i][j];
}

// Masks a tile of scores by way of shared memory, where a loop can pick elements: this way it stays small. TURNED: the
// keys are ty + 16 i and the rows tx + 16 j.
template <typename T, bool TURNED>
__device__ __forceinline__ void mask_tile(Accumulator<T> (&scores)[4][4], const Panels<Accumulator<T>>& panels,
                                          const Attention& p, const Sequence& s, const void* mask, int row0,
                                          int key0) {
    typedef Accumulator<T> A;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    A* mine = panels.weights + ty * PITCH<A> + tx;  // only this thread's elements, so without a barrier
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mine[16 * i * PITCH<A> + 16 * j] = scores[i][j];
#pragma unroll 1
    for (int n = 0; n < 16; n++) {
        const int y = ty + n / 4 * 16, x = tx + n % 4 * 16;
        const RowView row(p, s, row0 + (TURNED ? x : y));
        A& score = mine[n / 4 * 16 * PITCH<A> + n % 4 * 16];
        score = mask_score<T>(score, p, s, mask, row, key0 + (TURNED ? y : x), A(1));
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) scores[i][j] = mine[16 * i * PITCH<A> + 16 * j];
}

// Bit 4 i + j: whether dropout keeps the weight (i, j) of this thread.
template <bool TURNED>
__device__ __forceinline__ uint32 kept_of_tile(const Attention& p, const Sequence& s, int row0, int key0) {
    if (p.threshold == 0) return 0xffffu;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    uint32 kept = 0;
#pragma unroll 1
    for (int n = 0; n < 16; n++) {
        const int y = ty + n / 4 * 16, x = tx + n % 4 * 16;
        const RowView row(p, s, row0 + (TURNED ? x : y));
        kept |= static_cast<uint32>(is_kept(p, row.index(p, s), key0 + (TURNED ? y : x))) << n;
    }
    return kept;
}

// sums[c][i][e] += weights row (ty + 16 i) · column (64 c + 4 tx + e) of the 64 rows from `first` on
template <typename T, int CHUNKS, typename Rows>
__device__ __forceinline__ void accumulate(Accumulator<T> (&sums)[CHUNKS][4][4],
                                           const Panels<Accumulator<T>>& panels, const Rows& rows, int first,
                                           int column, int dim, bool vector) {
    typedef Accumulator<T> A;
    constexpr int WIDTH = LANES<A>;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (column + c * TILE >= dim) break;
        __syncthreads();
        load_rows<TILE, PITCH<A>>(panels.values, rows, first, column + c * TILE, dim, vector);
        __syncthreads();
#pragma unroll 2
        for (int key = 0; key < TILE; key += WIDTH) {
            Pack<A, WIDTH> weight[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                weight[i] = load_pack<A, WIDTH>(panels.weights + (ty + 16 * i) * PITCH<A> + key);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                A value[4];
#pragma unroll
                for (int w = 0; w < 4; w += WIDTH) {
                    const Pack<A, WIDTH> some =
                        load_pack<A, WIDTH>(panels.values + (key + e) * PITCH<A> + 4 * tx + w);
#pragma unroll
                    for (int u = 0; u < WIDTH; u++) value[w + u] = some.item[u];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int u = 0; u < 4; u++) sums[c][i][u] += weight[i].item[e] * value[u];
            }
        }
    }
}

template <int CHUNKS, typename A> __device__ __forceinline__ void clear(A (&sums)[CHUNKS][4][4]) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[c][i][e] = A(0);
}

// Row i of a thread's results, times a factor, to where the row begins.
template <typename T, int CHUNKS, typename A>
__device__ __forceinline__ void store_row_of(T* row, const A (&sums)[CHUNKS][4][4], int i, A factor, int column,
                                             int dim, bool vector) {
    constexpr int WIDTH = LANES<A>;
    const int tx = threadIdx.x % 16;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int w = 0; w < 4; w += WIDTH) {
            const int at = column + c * TILE + 4 * tx + w;
            Pack<T, WIDTH> pack;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) pack.item[e] = narrow<T>(sums[c][i][w + e] * factor);
            if (at >= dim) continue;
            if (vector) {
                store_pack(row + at, pack);
            } else {
#pragma unroll
                for (int e = 0; e < WIDTH; e++)
                    if (at + e < dim) row[at + e] = pack.item[e];
            }
        }
}

// Over the 16 lanes that share rows.
template <typename Op, typename A> __device__ __forceinline__ A reduce_row(A value) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) value = Op::apply(value, shuffle_xor(value, offset));
    return value;
}
struct Larger {
    template <typename A> static __device__ __forceinline__ A apply(A a, A b) { return larger(a, b); }
};

// Which tile, which columns, which part of the keys and which table block x is for. The last tiles, which see the
// most where attention is causal, come first.
struct Place {
    int tile, column, part, table;
    __device__ __forceinline__ Place(int tiles, int groups, int parts, int chunks) {
        int index = blockIdx.x;
        tile = tiles - 1 - index % tiles;
        index /= tiles;
        column = index % groups * chunks * TILE;
        index /= groups;
        part = index % parts;
        table = index / parts;
    }
};

// ---- forward ------------------------------------------------------------------------------------------------------

// With one part of the keys `out` and `log_sum_exp` are written; else `partial`, (parts, B, H, Tq, D) of weighted
// means, and `log_sum_exp` has a part for each.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(THREADS, 1)
attention_forward(const T* q, const T* k, const T* v, const void* mask, const int* q_lengths, const int* kv_lengths,
                  const int* causal_offsets, T* out, Accumulator<T>* log_sum_exp, Accumulator<T>* partial,
                  Attention p, int tiles, int groups, int parts, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const Panels<A> panels(memory);
    const Place at(tiles, groups, parts, CHUNKS);
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

    A top[4], total[4], sums[CHUNKS][4][4];
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
        const uint32 kept = kept_of_tile<false>(p, s, row0, key0);
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
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[c][i][e] *= factor;
        }
        put_weights(panels, scores);
        accumulate<T, CHUNKS>(sums, panels, values, key0, at.column, p.dim, vector);
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

// ---- backward -----------------------------------------------------------------------------------------------------

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

template <typename T, int CHUNKS>
__global__ void __launch_bounds__(THREADS, 1)
attention_grad_q(const T* grad_out, const T* q, const T* k, const T* v, const Accumulator<T>* log_sum_exp,
                 const Accumulator<T>* delta, const void* mask, const int* q_lengths, const int* kv_lengths,
                 const int* causal_offsets, T* grad_q, Attention p, int tiles, int groups, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const Panels<A> panels(memory);
    const Place at(tiles, groups, 1, CHUNKS);
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, at.table);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int row0 = at.tile * TILE, row_end = min(row0 + TILE, p.rows());
    const A scale = static_cast<A>(p.scale), keep_scale = static_cast<A>(p.keep_scale);
    int first, end;
    s.keys_of_rows(row0, row_end, p.group, first, end);
    const QueryRows<T> queries(q, p.q, s, p.group), grads(grad_out, p.grad_out, s, p.group);
    const KeyRows<T> keys(k, p.k, s), values(v, p.v, s);

    A norm[4], slope_mean[4], sums[CHUNKS][4][4];
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
        const uint32 kept = kept_of_tile<false>(p, s, row0, key0);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                weight_and_slope(weights[i][j], slopes[i][j], (kept >> (4 * i + j) & 1) != 0, keep_scale, norm[i],
                                 slope_mean[i]);
        put_weights(panels, slopes);
        accumulate<T, CHUNKS>(sums, panels, keys, key0, at.column, p.dim, vector);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row0 + ty + 16 * i >= p.rows()) continue;
        const RowView row(p, s, row0 + ty + 16 * i);
        store_row_of<T>(grad_q + row.offset(s, p.grad_q), sums, i, scale, at.column, p.dim, vector);
    }
}

// The tile of scores lies the other way round: keys ty + 16 i, rows tx + 16 j.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(THREADS, 1)
attention_grad_kv(const T* grad_out, const T* q, const T* k, const T* v, const Accumulator<T>* log_sum_exp,
                  const Accumulator<T>* delta, const void* mask, const int* q_lengths, const int* kv_lengths,
                  const int* causal_offsets, T* grad_k, T* grad_v, Attention p, int tiles, int groups, bool vector) {
    typedef Accumulator<T> A;
    DYNAMIC_SHARED(A, memory);
    const Panels<A> panels(memory);
    const Place at(tiles, groups, 1, CHUNKS);
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, at.table);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int key0 = at.tile * TILE;
    const A scale = static_cast<A>(p.scale), keep_scale = static_cast<A>(p.keep_scale);
    int first, end;
    s.rows_of_keys(key0, key0 + TILE, p.group, first, end);
    const QueryRows<T> queries(q, p.q, s, p.group), grads(grad_out, p.grad_out, s, p.group);
    const KeyRows<T> keys(k, p.k, s), values(v, p.v, s);

    A sums_k[CHUNKS][4][4], sums_v[CHUNKS][4][4];
    clear(sums_k);
    clear(sums_v);
#pragma unroll 1
    for (int row0 = first / TILE * TILE; row0 < end; row0 += TILE) {
        A weights[4][4], slopes[4][4];
        products<T>(weights, panels, keys, key0, queries, row0, p.dim, vector);
        products<T>(slopes, panels, values, key0, grads, row0, p.dim, vector);
        prepare_scores<T, true>(weights, panels, p, s, mask, row0, key0);
        const uint32 kept = kept_of_tile<true>(p, s, row0, key0);
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
        accumulate<T, CHUNKS>(sums_v, panels, grads, row0, at.column, p.dim, vector);
        put_weights(panels, slopes);
        accumulate<T, CHUNKS>(sums_k, panels, queries, row0, at.column, p.dim, vector);
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
