// matrix.h - operations of a warp or a warpgroup on matrices: ldmatrix, stmatrix, mma.sync, wgmma.
//
// A wgmma is executed when a thread waits for its group, so that what was not waited for is seen not to be
// there; its operands are checked where it is issued, because the multiplication may begin at once.
#pragma once
#include "barrier.h"
#include "tensor_core.h"

// ---- ldmatrix, stmatrix, mma.sync --------------------------------------------------------------------------

struct MatrixAccess {
    u32* registers;
    void* row;
    int count, transposed;
    Fiber* fiber;
    void* place;
};
static void check_rows(void** arguments, int count, Mode mode) {
    for (int lane = 0; lane < 8 * count; lane++) {
        auto* m = static_cast<MatrixAccess*>(arguments[lane]);
        const u64 address = reinterpret_cast<u64>(m->row);
        if (address % 16) {
            report(MISALIGNED, m->place, address, nullptr, "a row of ldmatrix or stmatrix (of lane %d) is not 16-byte aligned",
                   lane);
            die(own_block);
        }
        if (checking(m->fiber->home)) check(m->fiber, address, 16, mode, BY_THREAD, m->place);
    }
}
static void load_matrix_all(void** arguments, unsigned) {
    auto* first = static_cast<MatrixAccess*>(arguments[0]);
    const void* rows[WARP];
    u32* registers[WARP];
    for (int lane = 0; lane < WARP; lane++) {
        auto* m = static_cast<MatrixAccess*>(arguments[lane]);
        rows[lane] = m->row;
        registers[lane] = m->registers;
    }
    check_rows(arguments, first->count, READ);
    tensor::load_matrix(rows, registers, first->count, first->transposed);
}
static void store_matrix_all(void** arguments, unsigned) {
    auto* first = static_cast<MatrixAccess*>(arguments[0]);
    void* rows[WARP];
    const u32* registers[WARP];
    for (int lane = 0; lane < WARP; lane++) {
        auto* m = static_cast<MatrixAccess*>(arguments[lane]);
        rows[lane] = m->row;
        registers[lane] = m->registers;
    }
    check_rows(arguments, first->count, WRITE);
    tensor::store_matrix(rows, registers, first->count, first->transposed);
}

struct MmaArgument {
    tensor::MmaLane lane;
    int kind;
};
static void mma_all(void** arguments, unsigned) {
    tensor::MmaLane* lanes[WARP];
    for (int lane = 0; lane < WARP; lane++) lanes[lane] = &static_cast<MmaArgument*>(arguments[lane])->lane;
    tensor::mma(static_cast<MmaArgument*>(arguments[0])->kind, lanes);
}

extern "C" {
void emu_ldmatrix(uint32_t* registers, const void* row, int count, int transposed) {
    MatrixAccess m{registers, const_cast<void*>(row), count, transposed, current(), PLACE};
    collective(~0u, &m, load_matrix_all, "ldmatrix", PLACE);
}
void emu_stmatrix(const uint32_t* registers, void* row, int count, int transposed) {
    MatrixAccess m{const_cast<u32*>(registers), row, count, transposed, current(), PLACE};
    collective(~0u, &m, store_matrix_all, "stmatrix", PLACE);
}
void emu_mma(void* d, const uint32_t* a, const uint32_t* b, const void* c, int kind) {
    MmaArgument m{{d, a, b, c}, kind};
    collective(~0u, &m, mma_all, "mma.sync", PLACE);
}
}

// ---- wgmma -------------------------------------------------------------------------------------------------------------------

// The operands in shared memory, as the thread that issues the step knows them: the multiplication may begin at once.
static void check_operands(Fiber* f, WgmmaStep& s) {
    static thread_local auto* values = new tensor::WgmmaScratch;
    Block* b = f->home;
    const tensor::WgmmaOp op = s.op();
    if (const char* why = tensor::refuse(op)) {
        report(MISALIGNED, s.place, 0, nullptr, "%s", why);
        die(b);
    }
    if (!checking(b)) return;
    s.clock = ++b->gang->clock;
    const Access as = {b->gang->tag, s.clock, b->gang->tensor_core(b->rank, f->linear / WARPGROUP),
                       place_of(b->launch, s.place)};
    const auto touch = [&](const void* p, int bytes) {
        check(f, reinterpret_cast<u64>(p), bytes, READ, BY_ASYNC_PROXY, s.place, &as);
    };
    const u8* window = reinterpret_cast<u8*>(b->shared);
    tensor::with_formats(op.kind, [&](auto format_a, auto format_b) {
        typedef decltype(format_a) A;
        typedef decltype(format_b) B;
        if (!op.a_in_registers)
            tensor::read_operand<A>(tensor::Descriptor(op.a), 64, op.transpose_a, values->a, 32, 1, window, touch);
        tensor::read_operand<B>(tensor::Descriptor(op.b), op.n, op.transpose_b, values->b, 1, op.n, window, touch);
    });
}

// Runs a group for the whole warpgroup: called when its 128 threads have committed it.
static void run_group(Block* b, int warpgroup) {
    Fiber* first = &b->fibers[warpgroup * WARPGROUP];
    const size_t steps = first->step_groups.front().size();
    for (int t = 1; t < WARPGROUP; t++)
        if (first[t].step_groups.front().size() != steps) {
            report(DIVERGENCE, first[t].waiting_place, 0, nullptr, "the threads of a warpgroup issued different numbers of "
                   "wgmma in one group");
            die(own_block);
        }
    static thread_local auto* scratch = new tensor::WgmmaScratch;
    std::vector<tensor::WgmmaOp> ops(steps);
    std::vector<float*> d(WARPGROUP);
    std::vector<const u32*> a(WARPGROUP);
    size_t from = 0;
    while (from < steps) {  // runs of steps on the same accumulators
        const WgmmaStep& start = first->step_groups.front()[from];
        size_t to = from;
        ops.clear();
        for (; to < steps; to++) {
            const WgmmaStep& s = first->step_groups.front()[to];
            if (s.d != start.d || s.n != start.n || s.kind != start.kind || (to > from && s.a_registers)) break;
            ops.push_back(s.op());
        }
        for (int t = 0; t < WARPGROUP; t++) {
            const WgmmaStep& s = first[t].step_groups.front()[from];
            d[t] = s.d;
            a[t] = s.a_registers;
            if (s.a != start.a || s.b != start.b || s.n != start.n || s.accumulate != start.accumulate) {
                report(DIVERGENCE, s.place, 0, nullptr, "the threads of a warpgroup give different operands to one wgmma");
                die(own_block);
            }
        }
        tensor::wgmma(ops.data(), static_cast<int>(ops.size()), d.data(), start.a_registers ? a.data() : nullptr,
                      reinterpret_cast<u8*>(b->shared), [](const void*, int) {}, scratch);
        from = to;
    }
    u32& clock = b->warpgroups[warpgroup].clock;
    for (int t = 0; t < WARPGROUP; t += WARP)
        for (const WgmmaStep& s : first[t].step_groups.front()) clock = std::max(clock, s.clock);
    for (int t = 0; t < WARPGROUP; t++) first[t].step_groups.pop_front();
    b->warpgroups[warpgroup].executed++;
}

// Runs what the whole warpgroup has committed up to group `until`; false if some thread has not come so far.
static bool run_groups(Block* b, int warpgroup, u64 until) {
    Warpgroup& w = b->warpgroups[warpgroup];
    while (w.executed < until && w.executed < w.committed) run_group(b, warpgroup);
    return w.executed >= until;
}

// The reads of the groups that were waited for lie behind the thread, and behind those whom it tells.
static void know_tensor_core(Fiber* f) {
    Block* b = f->home;
    const int warpgroup = f->linear / WARPGROUP;
    if (!checking(b)) return;
    u32& known = clocks_of(f)[b->gang->tensor_core(b->rank, warpgroup)];
    known = std::max(known, b->warpgroups[warpgroup].clock);
}

extern "C" {
void emu_wgmma(float* d, int n, int kind, const uint32_t* a_registers, uint64_t a, uint64_t b, int accumulate,
               int transpose_a, int transpose_b) {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    if ((f->linear / WARPGROUP + 1) * WARPGROUP > f->home->threads) {
        report(DIVERGENCE, place, 0, nullptr, "wgmma needs whole warpgroups of 128 threads; the block has %d threads",
               f->home->threads);
        die(f->home);
    }
    if (checking(f->home) && (!f->wgmma_fenced || f->tile_touched)) {
        report(MISSING_FENCE, place, 0, nullptr, "wgmma on registers that were written since the last wgmma.fence");
        f->wgmma_fenced = true;
        f->tile_touched = false;
    }
    f->tile = reinterpret_cast<const char*>(d);
    f->tile_bytes = n * 2;
    f->steps.push_back({d, a_registers, n, kind, a, b, accumulate != 0, transpose_a != 0, transpose_b != 0, place, 0});
    // One thread for all, another at each step.
    const size_t reader = (f->groups_committed + f->steps.size()) % 4 * WARP;
    if (f->linear % WARPGROUP == static_cast<int>(reader)) check_operands(f, f->steps.back());
}
void emu_wgmma_fence() {
    Fiber* f = current();
    f->wgmma_fenced = true;
    f->tile_touched = false;
}
void emu_wgmma_commit() {
    Fiber* f = current();
    Block* b = f->home;
    f->step_groups.push_back(std::move(f->steps));
    f->steps.clear();
    f->groups_committed++;
    if (b->warpgroups.size() <= static_cast<size_t>(f->linear / WARPGROUP)) return;
    Warpgroup& w = b->warpgroups[f->linear / WARPGROUP];
    const size_t group = f->groups_committed - 1 - w.committed;
    if (w.committing.size() <= group) w.committing.resize(group + 1, 0);
    if (++w.committing[group] < WARPGROUP) return;
    w.committing.pop_front();  // the first that is not complete is always in front
    w.committed++;
    for (size_t i = 0; i < w.waiting.size();) {
        Fiber* waiting = w.waiting[i];
        if (!run_groups(b, f->linear / WARPGROUP, waiting->groups_waited)) {
            i++;
            continue;
        }
        w.waiting.erase(w.waiting.begin() + i);
        know_tensor_core(waiting);
        set_ready(waiting);
    }
}
void emu_wgmma_wait(int keep) {
    Fiber* f = current();
    Block* b = f->home;
    void* place = PLACE;
    settle(f);
    if (f->groups_committed <= static_cast<u64>(keep)) return;
    f->groups_waited = f->groups_committed - keep;
    if (run_groups(b, f->linear / WARPGROUP, f->groups_waited)) return know_tensor_core(f);
    b->warpgroups[f->linear / WARPGROUP].waiting.push_back(f);
    block_here("wgmma.wait_group (for the other threads of the warpgroup)", place);
}
}
