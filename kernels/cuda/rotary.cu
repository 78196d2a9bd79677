// rotary.cu - rotary position embedding: pairs of columns turned by an angle that grows with the position.
//
//   (a, b) -> (a cos - b sin, b cos + a sin),  cos and sin of the row's position and the pair's number
//
// Pair k of `half` pairs is columns (k, half + k), or (2 k, 2 k + 1) where `interleaved`; later columns are copied.
// Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.
//
// x is (groups, outer, time, inner, columns): rows of one time step of a group share their position. Who does what: a
// thread owns one place along the columns, two packs of WIDTH elements, in up to AHEAD rows that share a position, so
// that an angle is loaded once for them and AHEAD pairs of loads are under way. Neighbouring threads own neighbouring
// places, then neighbouring rows. A pack has 16 bytes where columns and addresses allow it, else one element.
// Shared memory: none. The limit: memory, each element read and written once, and the tables: 8 bytes a pair and
// AHEAD rows, mostly from the second-level cache.
// A position outside the tables makes its rows NaN. In place is allowed: a thread reads all it writes first.
#include "index.cuh"

constexpr int BLOCK = 256, AHEAD = 4;

// How rows lie, and how they are shared out among threads: along `inner` or along `outer` a thread has up to AHEAD.
struct Shape {
    int64 time, inner, outer;          // outer: of one group
    int64 inner_shares, outer_shares;  // threads along the two
};

template <typename T, int WIDTH>
__global__ void __launch_bounds__(BLOCK)
rotary_turn(const T* x, const Accumulator<T>* cosine, const Accumulator<T>* sine, const void* positions, bool wide,
            T* out, Shape shape, int64 offset, int64 table_rows, int columns, int half, bool interleaved, bool inverse,
            int64 threads) {
    typedef Accumulator<T> A;
    const int64 thread = global_thread();
    if (thread >= threads) return;
    // Places along the columns: half / WIDTH that turn, then pairs of packs that are copied.
    const int turning = half / WIDTH, rest = columns - 2 * half;
    const int places = turning + (rest + 2 * WIDTH - 1) / (2 * WIDTH);
    int64 left = thread / places;
    const int place = static_cast<int>(thread - left * places);
    const int64 in = left % shape.inner_shares;
    left /= shape.inner_shares;
    const int64 t = left % shape.time;
    left /= shape.time;
    const int64 group = left / shape.outer_shares, up = left - group * shape.outer_shares;

    const bool turns = place < turning;
    int first = place * WIDTH, second = half + first;  // columns of the two packs
    if (!turns) first = 2 * half + (place - turning) * 2 * WIDTH;
    else if (interleaved) first *= 2;
    if (!turns || interleaved) second = first + WIDTH;
    const bool both = second < columns;

    Pack<T, WIDTH> a[AHEAD], b[AHEAD];
    int64 start[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        const int64 i = in + u * shape.inner_shares, o = up + u * shape.outer_shares;
        // One of the two is cut into shares, and u walks along it; the other has u = 0 alone.
        const bool along_inner = shape.inner_shares < shape.inner;
        const bool here = along_inner ? i < shape.inner : o < shape.outer;
        const int64 row = ((group * shape.outer + (along_inner ? up : o)) * shape.time + t) * shape.inner +
                          (along_inner ? i : in);
        start[u] = here ? row * columns : -1;
        if (here) {
            a[u] = load_pack<T, WIDTH>(x + start[u] + first);
            if (both) b[u] = load_pack<T, WIDTH>(x + start[u] + second);
        }
    }

    Pack<A, WIDTH> c, s;
    if (turns) {
        const int64 position = offset + (positions == nullptr ? t : index_at(positions, wide, group * shape.time + t));
        const bool known = position >= 0 && position < table_rows;
        const int64 at = position * half + place * WIDTH;
        if (known) {
            c = load_pack<A, WIDTH>(cosine + at);
            s = load_pack<A, WIDTH>(sine + at);
        }
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            if (!known) c.item[e] = s.item[e] = infinity<A>() - infinity<A>();
            if (inverse) s.item[e] = -s.item[e];
        }
    }

#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        if (start[u] < 0) continue;
        if (turns && (WIDTH == 1 || !interleaved)) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                const A p = widen(a[u].item[e]), q = widen(b[u].item[e]);
                a[u].item[e] = narrow<T>(p * c.item[e] - q * s.item[e]);
                b[u].item[e] = narrow<T>(q * c.item[e] + p * s.item[e]);
            }
        } else if (turns) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {  // pair k of the two packs, which lie one after the other
                Pack<T, WIDTH>& pack = 2 * k < WIDTH ? a[u] : b[u];
                const int e = 2 * k % WIDTH, f = (2 * k + 1) % WIDTH;
                const A p = widen(pack.item[e]), q = widen(pack.item[f]);
                pack.item[e] = narrow<T>(p * c.item[k] - q * s.item[k]);
                pack.item[f] = narrow<T>(q * c.item[k] + p * s.item[k]);
            }
        }
        store_pack(out + start[u] + first, a[u]);
        if (both) store_pack(out + start[u] + second, b[u]);
    }
}
