// embedding.cu - rows of a table by their numbers, and the sum of gradients into those rows.
//
//   embedding_forward   out[i] = weight[indices[i]]
//   embedding_reduce    out[v] = the sum of grad[i] over all i with indices[i] == v, in the order of i
//
// Forward. A copy of bits, in words of 16, 4 or 2 bytes, whichever divides a row and its address. Who does what: a
// block owns BLOCK * AHEAD neighbouring words of `out`, whatever the length of a row, so that no thread idles and a
// warp's store is one piece of memory. AHEAD numbers, then AHEAD words, are under way together. An index outside
// the table gives a row of bits that are all 1, which is NaN in every floating type: nobody waits for a check.
// The limit: memory, 2 bytes moved for a byte of `out`.
//
// Backward. No float atomics: equal numbers are brought together by a stable sort, and neighbours summed in order.
//   sort_count, sort_scan, sort_scatter   one pass of a radix sort of (number, position) by up to BIN_BITS bits:
//       counts of each tile, where each (digit, tile) begins, then the stable move. 2 passes up to 2^18 rows, and
//       for up to 32,768 indices no sort_scan.
//       Indices that do not count (padding, outside the table) get the largest key.
//   embedding_reduce   a team of threads walks over CHUNK sorted entries and sums runs of one number. A run that
//       lies inside is written to its row; what a chunk has of a run that goes on before or after it becomes a
//       partial row, at most two a chunk, and the partial rows are entries of the next launch of the same kernel,
//       which has a sixteenth of the work. So a number that is everywhere costs no more than any other, and sums
//       are a tree of fixed shape: the same bits each time.
//   embedding_factor   1 / how often each number occurs, where sums are divided by that
//   embedding_clear    zeros for rows that nobody touches; not needed to add to what is there.
// The limit: memory. Gradients are read once (a row in 16-byte packs where it can be), touched rows written once,
// and the table once more for the zeros. The sort moves 16 bytes an index and pass.
// Shared memory (static): sort_count 2 KB, sort_scan 128 bytes, sort_scatter 16.1 KB; the others none.
// Assumes: fewer than 2^30 rows, columns and indices; WIDTH divides a row and its address.
#include "index.cuh"

constexpr int BLOCK = 256, AHEAD = 4;
constexpr int WARPS = BLOCK / WARP;
constexpr int ITEMS = 4;                // of the sort, a thread
constexpr int TILE = BLOCK * ITEMS;     // of the sort, a block
constexpr int BIN_BITS = 9, BINS = 1 << BIN_BITS;
constexpr int CHUNK = 32;               // sorted entries that one team sums
constexpr int NONE = -1;                // key of an entry that belongs to no run
constexpr int EMPTY = 1 << 30;          // marks the key of an entry that belongs to a run and adds nothing

// ---- forward ------------------------------------------------------------------------------------------

__device__ __forceinline__ void set_ones(uint4& word) { word = make_uint4(~0u, ~0u, ~0u, ~0u); }
__device__ __forceinline__ void set_ones(uint32& word) { word = ~0u; }
__device__ __forceinline__ void set_ones(unsigned short& word) { word = 0xffff; }

// `words` of a row, `rows` of the table, `n` words of out.
template <typename Word>
__global__ void __launch_bounds__(BLOCK)
embedding_forward(const Word* weight, const void* indices, bool wide, Word* out, int64 n, int words, int64 rows) {
    const int64 first = static_cast<int64>(blockIdx.x) * (BLOCK * AHEAD);
    const int64 row0 = first / words;
    const uint32 column0 = static_cast<uint32>(first - row0 * words);
    int64 index[AHEAD];
    uint32 column[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        const uint32 at = column0 + u * BLOCK + threadIdx.x, down = at / words;
        column[u] = at - down * words;
        index[u] = first + u * BLOCK + threadIdx.x < n ? index_at(indices, wide, row0 + down) : -1;
    }
    Word word[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        set_ones(word[u]);
        if (index[u] >= 0 && index[u] < rows) word[u] = weight[index[u] * words + column[u]];
    }
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        const int64 i = first + u * BLOCK + threadIdx.x;
        if (i < n) out[i] = word[u];
    }
}

template <typename Word> __global__ void __launch_bounds__(BLOCK) embedding_clear(Word* out, int64 n) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        const int64 i = (static_cast<int64>(blockIdx.x) * AHEAD + u) * BLOCK + threadIdx.x;
        if (i < n) out[i] = Word{};
    }
}

// ---- the sort -----------------------------------------------------------------------------------------

// Where the keys of a pass come from: the indices themselves in the first, what the pass before left later.
struct Keys {
    const void* indices;  // null after the first pass
    bool wide;
    const int* keys;
    int rows;          // keys from 0 to rows - 1 count; `rows` is the key of all others
    int64 padding;     // an index that does not count, -1 for none
    int shift, bins;   // of this pass: bins is a power of two

    __device__ __forceinline__ int key(int i) const {
        if (indices == nullptr) return keys[i];
        const int64 index = index_at(indices, wide, i);
        return index >= 0 && index < rows && index != padding ? static_cast<int>(index) : rows;
    }
    __device__ __forceinline__ int digit(int key) const { return (key >> shift) & (bins - 1); }
};

// The i-th item of this thread: a warp owns WARP * ITEMS neighbours, so that order is kept.
__device__ __forceinline__ int64 item_of(int i) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    return static_cast<int64>(blockIdx.x) * TILE + warp * (WARP * ITEMS) + i * WARP + lane;
}

// counts[digit * tiles + tile]
__global__ void __launch_bounds__(BLOCK)
sort_count(const void* indices, bool wide, const int* keys, int rows, int64 padding, int shift, int bins, int* counts,
           int n) {
    __shared__ int bin[BINS];
    const Keys source{indices, wide, keys, rows, padding, shift, bins};
    for (int b = threadIdx.x; b < bins; b += BLOCK) bin[b] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const int64 at = item_of(i);
        if (at < n) atomicAdd(&bin[source.digit(source.key(static_cast<int>(at)))], 1);
    }
    __syncthreads();
    for (int b = threadIdx.x; b < bins; b += BLOCK) counts[b * gridDim.x + blockIdx.x] = bin[b];
}

// The sum of `value` over the threads before this one. `scratch` holds WARP values; all threads must come.
__device__ __forceinline__ int sum_before(int value, int* scratch, int* total) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int sum = value;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, sum, offset);
        if (lane >= offset) sum += before;
    }
    __syncthreads();  // the scratch may still be read by an earlier call
    if (lane == WARP - 1) scratch[warp] = sum;
    __syncthreads();
    int earlier = 0, all = 0;
    for (int w = 0; w < warps; w++) {
        if (w == warp) earlier = all;
        all += scratch[w];
    }
    *total = all;
    return earlier + sum - value;
}

// counts -> the sum of all before, in place; one block of 1024 threads, 4 neighbours each at a time.
__global__ void __launch_bounds__(1024) sort_scan(int* counts, int n) {
    __shared__ int scratch[WARP];
    int carry = 0;
    for (int start = 0; start < n; start += 4096) {
        int own[4], sum = 0, total;
        const int at = start + 4 * threadIdx.x;
#pragma unroll
        for (int i = 0; i < 4; i++) own[i] = at + i < n ? counts[at + i] : 0;
#pragma unroll
        for (int i = 0; i < 4; i++) sum += own[i];
        int before = carry + sum_before(sum, scratch, &total);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < n) counts[at + i] = before;
            before += own[i];
        }
        carry += total;
    }
}

// Moves the tile's items to their places. `counts` are those of sort_count, or what sort_scan made of them; null for
// a single tile, which counts by itself. A few tiles sum the counts before their own sooner than a launch would.
__global__ void __launch_bounds__(BLOCK)
sort_scatter(const void* indices, bool wide, const int* keys, const int* positions, int rows, int64 padding, int shift,
             int bins, const int* counts, bool scanned, int* sorted, int* places, int n) {
    __shared__ int table[WARPS][BINS];  // counts of each warp, then where its items of a digit begin
    __shared__ int scratch[WARP];
    const Keys source{indices, wide, keys, rows, padding, shift, bins};
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int b = threadIdx.x; b < WARPS * BINS; b += BLOCK) (&table[0][0])[b] = 0;
    __syncthreads();
    int key[ITEMS], rank[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const int64 at = item_of(i);
        key[i] = at < n ? source.key(static_cast<int>(at)) : -1;
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const int digit = key[i] < 0 ? -1 : source.digit(key[i]);
        const uint32 peers = __match_any_sync(FULL_WARP, digit);
        const int earlier = __popc(peers & ((1u << lane) - 1));
        const int before = digit < 0 ? 0 : table[warp][digit];
        __syncwarp();
        if (digit >= 0 && earlier == 0) table[warp][digit] = before + __popc(peers);
        __syncwarp();
        rank[i] = before + earlier;
    }
    __syncthreads();
    // Two neighbouring digits a thread: BINS is 2 * BLOCK.
    int starts[2] = {0, 0};  // where this tile's items of the digit begin
    if (scanned) {
        for (int j = 0; j < 2; j++)
            if (2 * threadIdx.x + j < bins) starts[j] = counts[(2 * threadIdx.x + j) * gridDim.x + blockIdx.x];
    } else {
        int sums[2] = {0, 0}, unused;  // items of the digit in all tiles
        for (int j = 0; j < 2; j++) {
            const int digit = 2 * threadIdx.x + j;
            if (digit >= bins) break;
            if (counts == nullptr) {
                for (int w = 0; w < WARPS; w++) sums[j] += table[w][digit];
                continue;
            }
            for (int tile = 0; tile < gridDim.x; tile++) {
                const int count = counts[digit * gridDim.x + tile];
                sums[j] += count;
                if (tile < blockIdx.x) starts[j] += count;
            }
        }
        const int before = sum_before(sums[0] + sums[1], scratch, &unused);
        starts[0] += before;
        starts[1] += before + sums[0];
    }
    for (int j = 0; j < 2; j++) {
        const int digit = 2 * threadIdx.x + j;
        if (digit >= bins) break;
        int next = starts[j];
        for (int w = 0; w < WARPS; w++) {
            const int count = table[w][digit];
            table[w][digit] = next;
            next += count;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (key[i] < 0) continue;
        const int place = table[warp][source.digit(key[i])] + rank[i], at = static_cast<int>(item_of(i));
        sorted[place] = key[i];
        places[place] = positions == nullptr ? at : positions[at];
    }
}

// ---- the sums -----------------------------------------------------------------------------------------

// 1 / how often a number occurs, for each that does, from `n` sorted keys. The factors of others stay as they are.
template <typename A>
__global__ void __launch_bounds__(BLOCK) embedding_factor(const int* sorted, A* factor, int n, int rows) {
    const int64 i = global_thread();
    if (i >= n) return;
    const int key = sorted[i];
    if (key >= rows || (i > 0 && sorted[i - 1] == key)) return;
    int low = static_cast<int>(i) + 1, high = n;  // where the next key begins
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (sorted[middle] == key) low = middle + 1;
        else high = middle;
    }
    factor[key] = A(1) / A(low - static_cast<int>(i));
}

// Entries are rows of `values`, at `places` or, where that is null, at their own number. Blocks are (columns,
// chunks) of threads. `factors` has one for each number, or is null; `partial` is null if there is a single chunk.
template <typename S, typename T, int WIDTH>
__global__ void __launch_bounds__(BLOCK, 2)
embedding_reduce(const S* values, const int* keys, const int* places, int entries, T* out, Accumulator<T>* partial,
                 int* partial_keys, const Accumulator<T>* factors, int rows, int columns, bool add) {
    typedef Accumulator<T> A;
    const int chunk = blockIdx.x * blockDim.y + threadIdx.y;
    const int start = chunk * CHUNK, end = min(start + CHUNK, entries);
    if (start >= entries) return;
    const auto owner = [rows](int key) { return key < 0 || (key & ~EMPTY) >= rows ? NONE : key & ~EMPTY; };
    const int before = start > 0 ? owner(keys[start - 1]) : NONE, after = end < entries ? owner(keys[end]) : NONE;

    for (int column = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH; column < columns;
         column += gridDim.y * blockDim.x * WIDTH) {
        A sum[WIDTH];
#pragma unroll
        for (int e = 0; e < WIDTH; e++) sum[e] = A(0);
        int run = owner(keys[start]), head = NONE, tail = NONE;
        bool open = run != NONE && run == before;  // the run begins in an earlier chunk

        const auto keep = [&](int slot) {
            Pack<A, WIDTH> pack;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) pack.item[e] = sum[e];
            store_pack(partial + (2 * static_cast<int64>(chunk) + slot) * columns + column, pack);
        };
        const auto finish = [&]() {
            if (run == NONE) return;
            if (open) {
                keep(0);
                head = run;
                return;
            }
            T* target = out + static_cast<int64>(run) * columns + column;
            const A factor = factors == nullptr ? A(1) : factors[run];
            Pack<T, WIDTH> pack;
            if (add) pack = load_pack<T, WIDTH>(target);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                A value = sum[e] * factor;
                if (add) value += widen(pack.item[e]);
                pack.item[e] = narrow<T>(value);
            }
            store_pack(target, pack);
        };

        for (int j = start; j < end; j += AHEAD) {
            int key[AHEAD], place[AHEAD];  // all of them before the first row: they are waited for once
            Pack<S, WIDTH> item[AHEAD];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const int at = min(j + u, end - 1);
                key[u] = keys[at];
                place[u] = places == nullptr ? at : places[at];
            }
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                if (owner(key[u]) == NONE || (key[u] & EMPTY)) continue;
                item[u] = load_pack<S, WIDTH>(values + static_cast<int64>(place[u]) * columns + column);
            }
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                if (j + u >= end) break;
                const int own = owner(key[u]);
                if (own != run) {
                    finish();
                    run = own;
                    open = false;
#pragma unroll
                    for (int e = 0; e < WIDTH; e++) sum[e] = A(0);
                }
                if (own == NONE || (key[u] & EMPTY)) continue;
#pragma unroll
                for (int e = 0; e < WIDTH; e++) sum[e] += widen(item[u].item[e]);
            }
        }
        if (run != NONE && run == after) {
            keep(open ? 0 : 1);
            if (open) head = run;
            tail = open ? run | EMPTY : run;  // the run goes right through: its second entry adds nothing
        } else {
            finish();
        }
        if (column == 0 && partial_keys != nullptr) {
            partial_keys[2 * chunk] = head;
            partial_keys[2 * chunk + 1] = tail;
        }
    }
}
