// attention_mma.cu - attention on tensor cores for sm_80 and later, 16-bit types: cp.async, ldmatrix, mma.sync.
//
// Formulas: gpunn/primitives/attention.py. Source: Dao, FlashAttention-2 (2023). What is seen, rows and tables:
// attention.cuh; panels and the layout of a warp's results: attention_mma.cuh.
//
// Who does what: a block of 4 warps owns 64 rows of a table and a part of the keys; a warp owns 16 rows. KEYS keys at
// a time: scores = Q K^T in registers; exponentials in units of log2 under a running maximum; rounded to 16 bits
// they are at once the left operand of P V. Keys and values of the next tile are copied meanwhile.
// Shared memory: the panel of the queries and two stages of keys and values: 40 KB for DIM = 64, 80 KB for 128,
// 96 KB for 256 (KEYS = 32).
// The limit: 4 D multiply-adds a score on tensor cores, against an exponential and about ten other instructions.
// A warp reads each fragment of keys or values for its 16 rows alone, so shared memory is read at the pace of the
// tensor cores of an A100; warps of 32 rows would halve that, for registers that DIM = 128 does not have.
// Registers: DIM / 2 for the sums, KEYS / 2 for the scores; in all 168 for DIM = 64, 208 for 128 (sm_90a).
// Warps without rows (decoding) only copy.
// Assumes: rows that begin at multiples of 16 bytes, dim a multiple of 8.
#include "attention_mma.cuh"

template <int DIM> constexpr int KEYS = DIM > 128 ? 32 : 64;

// With one part of the keys `out` and `log_sum_exp` are written; else `partial`, (parts, B, H, Tq, D) of weighted
// means, and `log_sum_exp` has a part for each.
template <typename T, int DIM>
__global__ void __launch_bounds__(MMA_THREADS, DIM > 64 ? 2 : 3)
attention_forward_mma(const T* q, const T* k, const T* v, const void* mask, const int* q_lengths,
                      const int* kv_lengths, const int* causal_offsets, const uint64* counter, T* out,
                      float* log_sum_exp, float* partial, Attention p, int tiles, int parts) {
    constexpr int N = KEYS<DIM>;
    typedef HeadPanel<T, OWN, DIM> Queries;
    typedef HeadPanel<T, N, DIM> Others;
    DYNAMIC_SHARED(unsigned char, memory);
    unsigned char* const stages = memory + Queries::BYTES;  // of keys and values, in turns

    int index = blockIdx.x;
    const int tile = tiles - 1 - index % tiles;  // the last ones see the most where attention is causal: first
    index /= tiles;
    const int part = index % parts;
    const Sequence s(p, {q_lengths, kv_lengths, causal_offsets}, index / parts);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int row0 = tile * OWN, row_end = min(row0 + OWN, p.rows()), mine = row0 + warp * 16;

    int first, end;
    s.keys_of_rows(row0, row_end, p.group, first, end);
    first = first / N * N;
    if (parts > 1) {
        const int each = ((end - first + N - 1) / N + parts - 1) / parts * N;
        first += part * each;
        end = min(end, first + each);
    }
    const KeyRows<T> keys(k, p.k, s), values(v, p.v, s);
    const typename Queries::Own own(warp * 16);
    const typename Others::Columns columns(0);
    const typename Others::Values across(0);
    const auto load = [&](int key0, int stage) {
        unsigned char* panel = stages + stage * 2 * Others::BYTES;
        load_panel<N, DIM>(panel, keys, key0, p.dim);
        load_panel<N, DIM>(panel + Others::BYTES, values, key0, p.dim);
    };

    const RowView rows[2] = {RowView(p, s, mine + g), RowView(p, s, mine + g + 8)};
    const float scale = static_cast<float>(p.scale) * LOG2_E;
    const bool active = mine < p.rows();
    float top[2] = {-infinity<float>(), -infinity<float>()}, total[2] = {0.f, 0.f};
    float sums[DIM / 8][4];
    clear(sums);

    if (first < end) {
        load_panel<OWN, DIM>(memory, QueryRows<T>(q, p.q, s, p.group), row0, p.dim);
        load(first, 0);
    }
    ptx::copy_async_commit();
    int stage = 0;
#pragma unroll 1
    for (int key0 = first; key0 < end; key0 += N, stage ^= 1) {
        if (key0 + N < end) load(key0 + N, stage ^ 1);
        ptx::copy_async_commit();
        uint32 kept = ~0u;  // made while the copies are under way
        if (p.threshold != 0 && active) {
            const int64 rows_index[2] = {rows[0].index(p, s), rows[1].index(p, s)};
            kept = kept_by_query<N>(p, counter, rows_index, key0);
        }
        ptx::copy_async_wait<1>();
        __syncthreads();
        if (active) {
            const unsigned char* panel = stages + stage * 2 * Others::BYTES;
            float weights[N / 8][4];
            scores_of<T, N, DIM, (DIM > 128 ? 4 : DIM / 16)>(weights, memory, own, panel, columns);
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) weights[j][e] *= scale;
            if (p.mask_kind != NO_MASK || !s.all_seen(mine, mine + 16, key0, key0 + N, p.group)) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int64 base = mask_row(p, s, rows[h]);
#pragma unroll
                    for (int j = 0; j < N / 8; j++)
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            const int key = key0 + 8 * j + 2 * t + e;
                            float& score = weights[j][2 * h + e];
                            score = masked<T>(score, p.mask_kind, mask, base + key * p.mask[3], key, rows[h].first,
                                              rows[h].end);
                        }
                }
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float largest = top[h];
#pragma unroll
                for (int j = 0; j < N / 8; j++)
                    largest = fmaxf(largest, fmaxf(weights[j][2 * h], weights[j][2 * h + 1]));
                largest = fmaxf(largest, shuffle_xor(largest, 1));
                largest = fmaxf(largest, shuffle_xor(largest, 2));
                const float reference = largest == -infinity<float>() ? 0.f : largest;
                const float factor = ptx::power_of_2(top[h] - reference);
                top[h] = largest;
                float sum = 0.f;
#pragma unroll
                for (int j = 0; j < N / 8; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        weights[j][2 * h + e] = ptx::power_of_2(weights[j][2 * h + e] - reference);
                        sum += weights[j][2 * h + e];
                    }
                total[h] = total[h] * factor + sum;
#pragma unroll
                for (int j = 0; j < DIM / 8; j++) sums[j][2 * h] *= factor, sums[j][2 * h + 1] *= factor;
            }
            if (p.threshold != 0) {
#pragma unroll
                for (int j = 0; j < N / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if ((kept >> (4 * j + e) & 1) == 0) weights[j][e] = 0.f;
            }
            add_weighted<T, N, DIM, DIM>(sums, weights, panel + Others::BYTES, across, 0);
        }
        __syncthreads();
    }
    ptx::copy_async_wait<0>();
    if (!active) return;

    float factor[2];
    const int64 tables = static_cast<int64>(gridDim.x) / tiles / parts;
    const int64 before = part * (tables * p.group * p.queries);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += shuffle_xor(total[h], 1);
        total[h] += shuffle_xor(total[h], 2);
        factor[h] = total[h] == 0.f ? 0.f : static_cast<float>(p.keep_scale) / total[h];
        if (mine + g + 8 * h < p.rows() && log_sum_exp != nullptr && t == 0)
            log_sum_exp[before + rows[h].index(p, s)] =
                total[h] == 0.f ? -infinity<float>() : top[h] * LN_2 + logf(total[h]);
    }
    if (parts == 1) {
        store_lines<T, DIM, DIM>(memory, sums, factor, 0, p.dim, p.rows() - mine, [&](int line) {
            const RowView row(p, s, mine + line);
            return out + row.offset(s, p.out);
        });
        return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (mine + g + 8 * h >= p.rows()) continue;
        float* target = partial + (before + rows[h].index(p, s)) * p.dim;
#pragma unroll
        for (int j = 0; j < DIM / 8; j++) {
            const int column = 8 * j + 2 * t;
            if (column < p.dim)
                *reinterpret_cast<float2*>(target + column) =
                    make_float2(sums[j][2 * h] * factor[h], sums[j][2 * h + 1] * factor[h]);
        }
    }
}
