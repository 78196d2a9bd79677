// recurrent_sequence.cuh - all steps of a batch of sequences in one launch, forward and backward.
//
// A team of blocks owns some sequences, and each of its blocks `units` units of the state with all their gates: what
// a step needs beside the state, such as c, never leaves the block. Its part of W_hh stays in registers and
// shared memory (recurrent_product.cuh). A step multiplies the vectors of the step before, forward h, backward
// the gradients by h W_hh^T; makes the block's elements of the next ones; and sends them to the whole team.
//
// How blocks of a team exchange vectors is the team's own affair. Teams are those of recurrent.cu (one block, or a
// cluster) and of recurrent_grid.cu. They have
//
//   rank, members           this block's number in its team, and how many there are
//   start, columns, tiles   the team's sequences: the first, how many, and tiles of 8 they may fill
//   begin(product, ...)     the vectors before the first step are zero
//   first()                 where to put what they are instead; ready() when all of the block have
//   receive(product, ...)   waits for the team; `now` then has the vectors of the step before
//   put(at, value)          an element of the next vectors
//   send(product, ...)      hands them over; the block's threads have met
//
// A thread loads what it needs of a step's inputs before it waits for the vectors, and stores the step's results when
// the team has been told to go on: memory is not in the way from one step to the next.
#pragma once
#include "recurrent.cuh"
#include "recurrent_product.cuh"

// The rows of W_hh for the block's units, gate after gate; k is a unit.
template <typename T> struct ForwardMatrix {
    const T* weight;
    int hidden, units, first, gates;

    __device__ __forceinline__ int64 row(int r) const {
        const int gate = r / units, unit = first + r % units;
        return gate < gates && unit < hidden ? (static_cast<int64>(gate) * hidden + unit) * hidden : -1;
    }
    __device__ __forceinline__ T at(int64 row, int k) const {
        return row >= 0 && k < hidden ? weight[row + k] : narrow<T>(Accumulator<T>(0));
    }
};

// The columns of W_hh for the block's units; k is a unit of a gate, `pitch` from gate to gate.
template <typename T> struct BackwardMatrix {
    const T* weight;
    int hidden, units, first, gates, pitch;

    __device__ __forceinline__ int64 row(int r) const {
        return r < units && first + r < hidden ? first + r : -1;
    }
    __device__ __forceinline__ T at(int64 row, int k) const {
        const int gate = (k >= pitch) + (k >= 2 * pitch) + (k >= 3 * pitch) + (k >= 4 * pitch);
        const int unit = k - gate * pitch;
        if (row < 0 || gate >= gates || unit >= hidden) return narrow<T>(Accumulator<T>(0));
        return weight[(static_cast<int64>(gate) * hidden + unit) * hidden + row];
    }
};

// Element i of a tile or of a state: units are neighbours.
struct Element {
    int column, unit;
    __device__ __forceinline__ Element(int i, int units) : column(i / units), unit(i % units) {}
};

constexpr int AHEAD = 2;  // elements of a tile that a thread works on at a time

// The sizes that both directions share.
struct Sizes {
    int steps;
    int64 batch;
    int hidden, units, mode;
    bool reverse;

    // Elements of a tile that the block makes.
    template <typename Team> __device__ __forceinline__ int elements(const Team& team, int tile) const {
        const int left = team.columns - tile * COLUMNS;
        return (left < COLUMNS ? left : COLUMNS) * units;
    }
};

// Who does what: the product as in recurrent_product.cuh; then thread i of a tile has unit i % units of sequence
// i / units.
template <typename T, typename Product, typename Team>
__device__ __forceinline__ void sequence_forward(Team& team, const Sizes& of, const ForwardArrays<T>& arrays,
                                                 const T* weight, const T* h0, const T* c0, const Lengths& ends,
                                                 T* h_n, T* c_n, unsigned char* memory) {
    typedef Accumulator<T> A;
    const int hidden = of.hidden, units = of.units, mode = of.mode, count = gates_of(mode);
    const int pitch = team.members * units, first = team.rank * units;
    const Product product(ForwardMatrix<T>{weight, hidden, units, first, count}, count * units, pitch, memory);
    A* cell = reinterpret_cast<A*>(team.begin(product, memory + product.bytes(), 1, units, pitch));
    if (h0 != nullptr)
        for (int i = threadIdx.x; i < team.columns * hidden; i += THREADS)
            team.first()[product.place(i / hidden, i % hidden)] = h0[team.start * hidden + i];
    for (int i = threadIdx.x; i < team.columns * units; i += THREADS) {
        const Element e(i, units);
        const bool given = c0 != nullptr && first + e.unit < hidden;
        cell[i] = given ? widen(c0[(team.start + e.column) * hidden + first + e.unit]) : A(0);
    }
    __syncthreads();
    team.ready();

    for (int s = 0; s < of.steps; s++) {
        const int64 t = of.reverse ? of.steps - 1 - s : s;
        ForwardInput<T> input[AHEAD];
        Stepped<A> made[AHEAD];
        const auto load = [&](int tile, int base) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int i = base + a * THREADS + threadIdx.x;
                const Element e(i, units);
                if (i >= of.elements(team, tile) || first + e.unit >= hidden) continue;
                const int64 sequence = team.start + tile * COLUMNS + e.column;
                const Place at(t, sequence, first + e.unit, of.batch, hidden, count);
                input[a] = load_input(arrays, at, hidden, count, t < ends.of(sequence));
            }
        };
        const auto store = [&](int tile, int base) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int i = base + a * THREADS + threadIdx.x;
                const Element e(i, units);
                if (i >= of.elements(team, tile) || first + e.unit >= hidden) continue;
                const Place at(t, team.start + tile * COLUMNS + e.column, first + e.unit, of.batch, hidden, count);
                store_step(arrays, at, hidden, mode, input[a].active, made[a]);
            }
        };
        const int tiles = divide_up(team.columns, COLUMNS);
        int last = 0;  // where the elements begin that are stored at the end
        for (int tile = 0; tile < tiles; tile++) {
            load(tile, 0);
            if (tile == 0) team.receive(product, 1, units, pitch);
            product.multiply(team.now, tile);
            __syncthreads();
            for (int base = 0; base < of.elements(team, tile); base += AHEAD * THREADS) {
                if (base > 0) load(tile, base);
#pragma unroll
                for (int a = 0; a < AHEAD; a++) {
                    const int i = base + a * THREADS + threadIdx.x;
                    const Element e(i, units);
                    const int unit = first + e.unit, column = tile * COLUMNS + e.column;
                    if (i >= of.elements(team, tile) || unit >= hidden) continue;
                    A x[MOST_GATES], p[MOST_GATES];
#pragma unroll
                    for (int q = 0; q < MOST_GATES; q++) {
                        x[q] = widen(input[a].x[q]);
                        p[q] = A(0);
                        if (q >= count) continue;
                        p[q] = product.sum(e.column, q * units + e.unit);
                        if (arrays.bias != nullptr) p[q] += widen(arrays.bias[q * hidden + unit]);
                    }
                    A& c = cell[column * units + e.unit];
                    const A before = widen(team.now[product.place(column, unit)]);
                    made[a] = step_forward<T>(mode, x, p, before, c);
                    if (!input[a].active && mode == LSTM) made[a].inner = c;
                    if (mode == LSTM) c = made[a].inner;
                    team.put(product.place(column, unit), narrow<T>(input[a].active ? made[a].h : before));
                }
                const bool more = tile + 1 < tiles || base + AHEAD * THREADS < of.elements(team, tile);
                if (more) store(tile, base);
                else last = base;
            }
            __syncthreads();
        }
        team.send(product, 1, units, pitch);
        store(tiles - 1, last);
    }
    team.receive(product, 1, units, pitch);
    for (int i = threadIdx.x; i < team.columns * units; i += THREADS) {
        const Element e(i, units);
        const int unit = first + e.unit;
        if (unit >= hidden) continue;
        h_n[(team.start + e.column) * hidden + unit] = team.now[product.place(e.column, unit)];
        if (mode == LSTM) c_n[(team.start + e.column) * hidden + unit] = narrow<T>(cell[i]);
    }
}

template <typename T, typename Product, typename Team>
__device__ __forceinline__ void sequence_backward(Team& team, const Sizes& of, const BackwardArrays<T>& arrays,
                                                  const T* weight, const T* grad_h_n, const T* grad_c_n,
                                                  const Lengths& ends, T* grad_h0, T* grad_c0,
                                                  unsigned char* memory) {
    typedef Accumulator<T> A;
    const int hidden = of.hidden, units = of.units, mode = of.mode, count = gates_of(mode);
    const int pitch = team.members * units, first = team.rank * units;
    const Product product(BackwardMatrix<T>{weight, hidden, units, first, count, pitch}, units, count * pitch,
                          memory);
    A* grad_h = reinterpret_cast<A*>(team.begin(product, memory + product.bytes(), count, units, pitch));
    A* grad_c = grad_h + team.tiles * COLUMNS * units;
    for (int i = threadIdx.x; i < team.columns * units; i += THREADS) {
        const Element e(i, units);
        const int64 from = (team.start + e.column) * hidden + first + e.unit;
        const bool real = first + e.unit < hidden;
        grad_h[i] = real && grad_h_n != nullptr ? widen(grad_h_n[from]) : A(0);
        grad_c[i] = real && grad_c_n != nullptr ? widen(grad_c_n[from]) : A(0);
    }
    __syncthreads();
    team.ready();

    for (int s = 0; s < of.steps; s++) {
        const int64 t = of.reverse ? s : of.steps - 1 - s;
        BackwardInput<T> input[AHEAD];
        SteppedBack<A> made[AHEAD];
        const auto load = [&](int tile, int base) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int i = base + a * THREADS + threadIdx.x;
                const Element e(i, units);
                if (i >= of.elements(team, tile) || first + e.unit >= hidden) continue;
                const int64 sequence = team.start + tile * COLUMNS + e.column;
                const Place at(t, sequence, first + e.unit, of.batch, hidden, count);
                input[a] = load_input(arrays, at, t, ends.of(sequence), of.batch, hidden, mode);
            }
        };
        const auto store = [&](int tile, int base) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int i = base + a * THREADS + threadIdx.x;
                const Element e(i, units);
                if (i >= of.elements(team, tile) || first + e.unit >= hidden) continue;
                const Place at(t, team.start + tile * COLUMNS + e.column, first + e.unit, of.batch, hidden, count);
                store_gradients(arrays, at, hidden, count, made[a]);
            }
        };
        const int tiles = divide_up(team.columns, COLUMNS);
        int last = 0;
        for (int tile = 0; tile < tiles; tile++) {
            load(tile, 0);
            if (tile == 0) team.receive(product, count, units, pitch);
            product.multiply(team.now, tile);
            __syncthreads();
            for (int base = 0; base < of.elements(team, tile); base += AHEAD * THREADS) {
                if (base > 0) load(tile, base);
#pragma unroll
                for (int a = 0; a < AHEAD; a++) {
                    const int i = base + a * THREADS + threadIdx.x;
                    const Element e(i, units);
                    const int unit = first + e.unit, column = tile * COLUMNS + e.column;
                    if (i >= of.elements(team, tile) || unit >= hidden) continue;
                    const int length = ends.of(team.start + column), own = column * units + e.unit;
                    const int64 done = of.reverse ? t - 1 : t + 1;  // the step before, on the way back
                    made[a] = {};
                    made[a].h = grad_h[own];
                    made[a].c = grad_c[own];
                    if (s > 0 && done < length) made[a].h += product.sum(e.column, e.unit);
                    if (t < length)
                        made[a] = step_backward<T>(mode, input[a], made[a].h + widen(input[a].grad_output),
                                                   made[a].c);
                    grad_h[own] = made[a].h;
                    grad_c[own] = made[a].c;
#pragma unroll
                    for (int q = 0; q < MOST_GATES; q++)
                        if (q < count)
                            team.put(product.place(column, q * pitch + unit), narrow<T>(made[a].hidden[q]));
                }
                const bool more = tile + 1 < tiles || base + AHEAD * THREADS < of.elements(team, tile);
                if (more) store(tile, base);
                else last = base;
            }
            __syncthreads();
        }
        team.send(product, count, units, pitch);
        store(tiles - 1, last);
    }
    team.receive(product, count, units, pitch);
    for (int tile = 0; tile < divide_up(team.columns, COLUMNS); tile++) {
        product.multiply(team.now, tile);
        __syncthreads();
        for (int i = threadIdx.x; i < of.elements(team, tile); i += THREADS) {
            const Element e(i, units);
            const int unit = first + e.unit, column = tile * COLUMNS + e.column;
            if (unit >= hidden) continue;
            const int64 to = (team.start + column) * hidden + unit;
            const int length = ends.of(team.start + column);
            A h = grad_h[column * units + e.unit];
            if ((of.reverse ? of.steps - 1 : 0) < length) h += product.sum(e.column, e.unit);
            grad_h0[to] = narrow<T>(h);
            if (mode == LSTM) grad_c0[to] = narrow<T>(grad_c[column * units + e.unit]);
        }
        __syncthreads();
    }
}
