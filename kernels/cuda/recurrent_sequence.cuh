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

constexpr int AHEAD = 2;  // elements of a tile that a thread works on at a time

// The sizes that both directions share.
struct Sizes {
    int steps;
    int64 batch;
    int hidden, units, mode;
    bool reverse;
};

// A step goes through its tiles, and through the block's elements of a tile AHEAD for each thread at a time.
struct Pass {
    int tile = 0, base = 0;

    template <typename Team>
    static __device__ __forceinline__ int elements(const Sizes& of, const Team& team, int tile) {
        const int left = team.columns - tile * COLUMNS;
        return (left < COLUMNS ? left : COLUMNS) * of.units;
    }
    template <typename Team> __device__ __forceinline__ void advance(const Sizes& of, const Team& team) {
        base += AHEAD * THREADS;
        if (base < elements(of, team, tile)) return;
        base = 0;
        tile++;
    }
    __device__ __forceinline__ bool first() const { return tile == 0 && base == 0; }
    template <typename Team> __device__ __forceinline__ bool over(const Team& team) const {
        return tile * COLUMNS >= team.columns;
    }
};

// Element `a` of this thread in a pass: units are neighbours.
struct Element {
    int column, own, unit;  // the team's sequence; the block's unit, and its number in the whole state
    bool real;

    template <typename Team>
    __device__ __forceinline__ Element(const Sizes& of, const Team& team, const Pass& pass, int a) {
        const int i = pass.base + a * THREADS + threadIdx.x;
        own = i % of.units;
        column = pass.tile * COLUMNS + i / of.units;
        unit = team.rank * of.units + own;
        real = i < Pass::elements(of, team, pass.tile) && unit < of.hidden;
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
        const int column = i / units, unit = first + i % units;
        const bool given = c0 != nullptr && unit < hidden;
        cell[i] = given ? widen(c0[(team.start + column) * hidden + unit]) : A(0);
    }
    __syncthreads();
    team.ready();

    for (int s = 0; s < of.steps; s++) {
        const int64 t = of.reverse ? of.steps - 1 - s : s;
        ForwardInput<T> input[AHEAD];
        Stepped<A> made[AHEAD];
        for (Pass now, last;; last = now, now.advance(of, team)) {
            if (now.over(team)) {
                __syncthreads();
                team.send(product, 1, units, pitch);
            }
            if (!now.first()) {
#pragma unroll
                for (int a = 0; a < AHEAD; a++) {
                    const Element e(of, team, last, a);
                    if (!e.real) continue;
                    const Place at(t, team.start + e.column, e.unit, of.batch, hidden, count);
                    store_step(arrays, at, hidden, mode, input[a].active, made[a]);
                }
            }
            if (now.over(team)) break;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const Element e(of, team, now, a);
                if (!e.real) continue;
                const Place at(t, team.start + e.column, e.unit, of.batch, hidden, count);
                input[a] = load_input(arrays, at, hidden, count, t < ends.of(team.start + e.column));
            }
            if (now.base == 0) {
                if (now.first()) team.receive(product, 1, units, pitch);
                else __syncthreads();
                product.multiply(team.now, now.tile);
                __syncthreads();
            }
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const Element e(of, team, now, a);
                if (!e.real) continue;
                A x[MOST_GATES], p[MOST_GATES] = {};
                product.add(e.column % COLUMNS, e.own, units, count, p);
#pragma unroll
                for (int q = 0; q < MOST_GATES; q++) {
                    x[q] = widen(input[a].x[q]);
                    if (q < count && arrays.bias != nullptr) p[q] += widen(arrays.bias[q * hidden + e.unit]);
                }
                A& c = cell[e.column * units + e.own];
                const int place = product.place(e.column, e.unit);
                const A before = widen(team.now[place]);
                made[a] = step_forward<T>(mode, x, p, before, c);
                if (!input[a].active && mode == LSTM) made[a].inner = c;
                if (mode == LSTM) c = made[a].inner;
                team.put(place, narrow<T>(input[a].active ? made[a].h : before));
            }
        }
    }
    team.receive(product, 1, units, pitch);
    for (int i = threadIdx.x; i < team.columns * units; i += THREADS) {
        const int column = i / units, unit = first + i % units;
        if (unit >= hidden) continue;
        h_n[(team.start + column) * hidden + unit] = team.now[product.place(column, unit)];
        if (mode == LSTM) c_n[(team.start + column) * hidden + unit] = narrow<T>(cell[i]);
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
        const int64 from = (team.start + i / units) * hidden + first + i % units;
        const bool real = first + i % units < hidden;
        grad_h[i] = real && grad_h_n != nullptr ? widen(grad_h_n[from]) : A(0);
        grad_c[i] = real && grad_c_n != nullptr ? widen(grad_c_n[from]) : A(0);
    }
    __syncthreads();
    team.ready();

    for (int s = 0;; s++) {  // one more than there are steps: what reaches the initial states
        const int64 t = of.reverse ? s : of.steps - 1 - s;
        const int64 done = of.reverse ? t - 1 : t + 1;  // the step before, on the way back
        const bool end = s == of.steps;
        BackwardInput<T> input[AHEAD];
        SteppedBack<A> made[AHEAD];
        for (Pass now, last;; last = now, now.advance(of, team)) {
            if (now.over(team)) {
                if (end) return;
                __syncthreads();
                team.send(product, count, units, pitch);
            }
            if (!now.first() && !end) {
#pragma unroll
                for (int a = 0; a < AHEAD; a++) {
                    const Element e(of, team, last, a);
                    if (!e.real) continue;
                    const Place at(t, team.start + e.column, e.unit, of.batch, hidden, count);
                    store_gradients(arrays, at, hidden, count, made[a]);
                }
            }
            if (now.over(team)) break;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const Element e(of, team, now, a);
                if (!e.real || end) continue;
                const int64 sequence = team.start + e.column;
                const Place at(t, sequence, e.unit, of.batch, hidden, count);
                input[a] = load_input(arrays, at, t, ends.of(sequence), of.batch, hidden, mode);
            }
            if (now.base == 0) {
                if (now.first()) team.receive(product, count, units, pitch);
                else __syncthreads();
                product.multiply(team.now, now.tile);
                __syncthreads();
            }
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const Element e(of, team, now, a);
                if (!e.real) continue;
                const int length = ends.of(team.start + e.column), own = e.column * units + e.own;
                A h[1] = {grad_h[own]};
                const A c = grad_c[own];
                if (s > 0 && done < length) product.add(e.column % COLUMNS, e.own, 0, 1, h);
                if (end) {
                    const int64 to = (team.start + e.column) * hidden + e.unit;
                    grad_h0[to] = narrow<T>(h[0]);
                    if (mode == LSTM) grad_c0[to] = narrow<T>(c);
                    continue;
                }
                made[a] = {};
                made[a].h = h[0];
                made[a].c = c;
                if (t < length) made[a] = step_backward<T>(mode, input[a], h[0] + widen(input[a].grad_output), c);
                grad_h[own] = made[a].h;
                grad_c[own] = made[a].c;
#pragma unroll
                for (int q = 0; q < MOST_GATES; q++)
                    if (q < count)
                        team.put(product.place(e.column, q * pitch + e.unit), narrow<T>(made[a].hidden[q]));
            }
        }
    }
}
