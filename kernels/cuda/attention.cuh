// attention.cuh - what the kernels of attention share: the problem, who sees what, masks and dropout.
//
// A table of scores belongs to one batch and one head of keys. Its *rows* are the queries of all heads that share
// these keys (a group): row r is query r / group of member r % group, so that neighbouring rows see nearly the
// same keys, a tile of rows reads them once for the whole group, and the sum of the group's gradients by keys and
// values is a sum over rows. A block works on tiles of rows x keys of one table; where no row of a tile sees a
// key of it, the tile is not looked at.
#pragma once
#include "random.cuh"
#include "row.cuh"

constexpr int UNLIMITED = 1 << 30;  // the window of a causal query that has none

enum MaskKind { NO_MASK, BOOL_MASK, ADDED_MASK };

// The same structure as STRUCT in gpunn/primitives/attention_launch.py. Strides count elements from one batch,
// position and head to the next; the last dimension is contiguous.
struct Attention {
    int64 q[3], k[3], v[3], out[3], grad_out[3], grad_q[3], grad_k[3], grad_v[3];
    int64 mask[4];  // from one batch, head, query and key to the next; 0 where it repeats
    uint64 seed, random_offset;
    double scale, keep_scale;  // of the products, and of the weights that dropout keeps
    int queries, keys, heads, kv_heads, group, dim;
    int causal, causal_offset, window, mask_kind;
    uint32 threshold;  // of dropout; 0 for none

    __device__ __forceinline__ int rows() const { return queries * group; }
};

// The inputs that are not there for every problem, and what a block must know of its sequence.
struct Lengths {
    const int *queries, *keys, *offsets;
};

struct Sequence {
    int batch, kv_head;
    int queries, keys;  // that count
    int shift;          // a causal query i sees keys up to i + shift
    bool causal;
    int window;

    __device__ __forceinline__ Sequence(const Attention& p, Lengths lengths, int index)
        : batch(index / p.kv_heads), kv_head(index % p.kv_heads), causal(p.causal != 0), window(p.window) {
        queries = lengths.queries ? min(max(lengths.queries[batch], 0), p.queries) : p.queries;
        keys = lengths.keys ? min(max(lengths.keys[batch], 0), p.keys) : p.keys;
        // As `Problem.shift_of`: beyond these bounds an offset changes nothing, and within them nothing overflows.
        const int offset = lengths.offsets ? lengths.offsets[batch] : p.causal_offset;
        shift = max(min(offset, p.keys + (p.window < UNLIMITED ? p.window : 0)), -p.queries);
    }
    // Of a query that counts: the first key that it sees, and one past the last.
    __device__ __forceinline__ int first_key(int query) const {
        return causal ? max(query + shift + 1 - window, 0) : 0;
    }
    __device__ __forceinline__ int end_key(int query) const {
        return causal ? max(min(query + shift + 1, keys), 0) : keys;
    }
    // The keys that rows [row, row_end) see between them.
    __device__ __forceinline__ void keys_of_rows(int row, int row_end, int group, int& first, int& end) const {
        const int query = row / group, last = min((row_end - 1) / group, queries - 1);
        first = first_key(query);
        end = last < query ? 0 : end_key(last);
    }
    // The rows that see one of the keys [key, key_end).
    __device__ __forceinline__ void rows_of_keys(int key, int key_end, int group, int& first, int& end) const {
        key_end = min(key_end, keys);
        int query = 0, query_end = key < key_end ? queries : 0;
        if (causal) {
            query = min(max(key - shift, 0), query_end);
            query_end = static_cast<int>(
                min(static_cast<int64>(query_end), static_cast<int64>(key_end) + window - 1 - shift));
        }
        first = query * group;
        end = query_end > query ? query_end * group : first;
    }
    // Whether every one of the rows sees every one of the keys, as far as masks and dropout leave them.
    __device__ __forceinline__ bool all_seen(int row, int row_end, int key, int key_end, int group) const {
        const int last = (row_end - 1) / group;
        return last < queries && key_end <= end_key(row / group) && key >= first_key(last);
    }
};

// ---- one row ------------------------------------------------------------------------------------------------------

// What is seen of one row. Made for rows beyond the last as well: they see nothing.
struct RowView {
    int query, head, first, end;

    __device__ __forceinline__ RowView(const Attention& p, const Sequence& s, int row) {
        query = row / p.group;
        head = s.kv_head * p.group + (row - query * p.group);
        const bool counts = query < s.queries;
        first = counts ? s.first_key(query) : 0;
        end = counts ? s.end_key(query) : 0;
    }
    __device__ __forceinline__ bool sees(int key) const { return key >= first && key < end; }
    // Where an array (B, H, Tq) has the row.
    __device__ __forceinline__ int64 index(const Attention& p, const Sequence& s) const {
        return (static_cast<int64>(s.batch) * p.heads + head) * p.queries + query;
    }
    // Where an array (B, T, H, D) with these strides has the row.
    __device__ __forceinline__ int64 offset(const Sequence& s, const int64 (&strides)[3]) const {
        return s.batch * strides[0] + query * strides[1] + head * strides[2];
    }
};

// The score of a row and a key: -inf where it is not seen; a mask that is numbers is added, times `unit`.
template <typename T>
__device__ __forceinline__ Accumulator<T> mask_score(Accumulator<T> score, const Attention& p, const Sequence& s,
                                                     const void* mask, const RowView& row, int key,
                                                     Accumulator<T> unit) {
    typedef Accumulator<T> A;
    if (!row.sees(key)) return -infinity<A>();
    if (p.mask_kind == NO_MASK) return score;
    const int64 at = s.batch * p.mask[0] + row.head * p.mask[1] + row.query * p.mask[2] + key * p.mask[3];
    if (p.mask_kind == BOOL_MASK) return static_cast<const unsigned char*>(mask)[at] ? score : -infinity<A>();
    return score + widen(static_cast<const T*>(mask)[at]) * unit;
}

// ---- rows of (B, T, H, D) arrays as an operand: keys, or rows of the table ----------------------------------------

template <typename T> struct KeyRows {
    const T* base;
    int64 stride;
    int end;
    __device__ __forceinline__ KeyRows(const T* array, const int64 (&strides)[3], const Sequence& s)
        : base(array + s.batch * strides[0] + s.kv_head * strides[2]), stride(strides[1]), end(s.keys) {}
    __device__ __forceinline__ const T* row(int index) const { return base + index * stride; }
};
template <typename T> struct QueryRows {
    const T* base;
    int64 stride, head_stride;
    int group, end;
    __device__ __forceinline__ QueryRows(const T* array, const int64 (&strides)[3], const Sequence& s, int group)
        : base(array + s.batch * strides[0] + s.kv_head * group * strides[2]), stride(strides[1]),
          head_stride(strides[2]), group(group), end(s.queries * group) {}
    __device__ __forceinline__ const T* row(int index) const {
        const int query = group == 1 ? index : index / group;
        return base + query * stride + (index - query * group) * head_stride;
    }
};

// ---- dropout ------------------------------------------------------------------------------------------------------

// The block of four words that holds those of keys 4 n … 4 n + 3 of a row.
__device__ __forceinline__ uint64 random_block(const Attention& p, int64 row_index, int key) {
    return static_cast<uint64>(row_index) * ((p.keys + 3) / 4) + key / 4;
}
__device__ __forceinline__ bool is_kept(const Attention& p, uint32 word) { return word >> 8 >= p.threshold; }

// Where its numbers begin, asked for a tile at a time, so that a counter in device memory, which then lies in the first
// level's cache, takes no registers from the products.
__device__ __forceinline__ Origin random_origin(const Attention& p, const uint64* counter) {
    return Origin(p.seed, p.random_offset, counter);
}
__device__ __forceinline__ bool is_kept(const Attention& p, const Origin& from, int64 row_index, int key) {
    const uint4 words = philox(random_block(p, row_index, key), from.offset, from.seed);
    const uint32 low = key & 1 ? words.y : words.x, high = key & 1 ? words.w : words.z;
    return is_kept(p, key & 2 ? high : low);
}
