// block.h - one block from its first thread to its last: ends of threads, signals, deadlocks, turns in a gang.
#pragma once
#include <signal.h>
#include <unistd.h>
#include "cluster.h"

// ---- a thread of the kernel ends ------------------------------------------------------------------------------

static void report_unfinished(Fiber* f) {
    const auto say = [&](void* place, const char* what) {
        report(MISSING_WAIT, place, 0, nullptr, "the thread ends without a wait for %s", what);
    };
    for (auto& group : f->copy_groups)
        if (!group.empty()) return say(group.front().place, "this cp.async");
    if (!f->copies.empty()) return say(f->copies.front().place, "this cp.async, which is not even committed");
    for (auto& group : f->step_groups)
        if (!group.empty()) return say(group.front().place, "this wgmma");
    if (!f->steps.empty()) return say(f->steps.front().place, "this wgmma, which is not even committed");
    for (auto& group : f->store_groups)
        for (auto& s : group)
            if (!s.read_done) return say(s.place, "this store to read its shared memory");
    if (!f->stores.empty()) return say(f->stores.front().place, "this store, which is not even committed");
}

static void end_of_block(Block* b) {
    b->exited = true;
    if (!checking(b)) return;
    if (!b->jobs.empty() && b->jobs.front().kind != EngineJob::ARRIVE)
        report(MISSING_WAIT, b->jobs.front().place, 0, nullptr,
               "the block ends while this copy into its shared memory is in flight");
    if (b->remote.empty()) return;
    Clocks all;  // what any of the block's threads knew of the others at its end
    for (int t = 0; t < b->threads; t++) join(all, everything(&b->fibers[t]));
    for (size_t id = 0; id < b->remote.size(); id++) {
        if (!b->remote[id] || b->remote[id] <= all[id]) continue;
        report(LIFETIME, b->fibers[0].waiting_place, 0, nullptr,
               "block %d of the cluster may end while a thread of block %d still uses its shared memory: a cluster "
               "barrier before the end is missing", b->rank, static_cast<int>(id) / b->threads);
        return;
    }
}

static void fiber_main() {
    Block* b = own_block;
    b->launch->kernel(b->launch->arguments);
    Fiber* f = current();
    settle(f);
    if (f->held.address) judge_held(f);
    if (checking(b)) report_unfinished(f);
    for (auto& group : f->store_groups)  // done by the end of the kernel, waited for or not
        for (BulkStore& s : group) finish_read(f, s);
    for (BulkStore& s : f->stores) finish_read(f, s);
    Warp& w = b->warp[f->warp];
    b->live--;
    w.live &= ~(1u << f->lane);
    if (!b->live) end_of_block(b);
    set_blocked(f);
    f->state = DONE;
    for (u32 left = w.open; left; left &= left - 1)
        if (Collective& c = w.collective[__builtin_ctz(left)]; c.arrived == (c.wanted & w.live)) finish_collective(b, f->warp, c);
    NamedBarrier& bar = b->barrier[0];
    if (bar.arrived && !bar.expected && bar.arrived >= b->live && b->live) finish_barrier(b, bar, true);
    Gang* g = b->gang;
    if (g->arrived && g->arrived >= live_threads(g)) {
        if (b->launch->options.cooperative) finish_grid_barrier(g);
        else finish_cluster_barrier(g);
    }
    switch_to(b, pick(b));
    __builtin_unreachable();
}

// ---- signals: memory faults, and the watchdog's tap on the shoulder ----------------------------------------------

static const int FAULT_SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
constexpr int WATCHDOG_SIGNAL = SIGURG;  // one that is ignored by default
static struct sigaction previous_action[64];

static void* place_of_signal(void* context) {
    auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    return reinterpret_cast<void*>(machine->gregs[REG_RIP] + 1);
#else
    return reinterpret_cast<void*>(machine->pc + 1);
#endif
}

static void on_fault(int signal, siginfo_t* info, void* context) {
    Block* b = own_block;
    if (!b || !emu_current || !b->running) {  // not ours: let whoever was there before see it
        sigaction(signal, &previous_action[signal], nullptr);
        return;
    }
    void* place = place_of_signal(context);
    const u64 address = reinterpret_cast<u64>(info->si_addr), pc = reinterpret_cast<u64>(place);
    if (pc < b->launch->image_start || pc > b->launch->image_end) place = current()->waiting_place;
    if (signal == SIGFPE) {
        report(TRAP, place, 0, nullptr, "division by zero");
    } else if (signal == SIGILL || signal == SIGTRAP) {
        report(TRAP, place, 0, nullptr, "an instruction that traps");
    } else if (address - reinterpret_cast<u64>(b->stacks) < b->stack_size * b->stack_count) {
        report(STACK_OVERFLOW, place, 0, nullptr, "the thread's local memory is full (%llu KiB)",
               static_cast<unsigned long long>(b->launch->options.stack / 1024));
    } else if (address < PAGE) {
        report(OUT_OF_BOUNDS, place, 0, nullptr, "access through a null pointer");
    } else {
        bool near = false;
        for (auto& m : b->launch->memory) {
            if (address + 2 * PAGE < m.base || address > m.base + m.size + 2 * PAGE) continue;
            const bool before = address < m.base;
            report_near(m, place, address, "access %llu bytes %s",
                        static_cast<unsigned long long>(before ? m.base - address : address - m.base - m.size),
                        before ? "before its start" : "behind its end");
            near = true;
            break;
        }
        if (!near) report(OUT_OF_BOUNDS, place, address, nullptr, "access to memory that belongs to no argument");
    }
    drop_atomic_lock();
    siglongjmp(b->escape, 1);
}

static void on_watchdog(int, siginfo_t*, void* context) {
    Block* b = own_block;
    if (!b || !emu_current || b->in_callback || b->dead || !b->running) return;
    const u64 pc = reinterpret_cast<u64>(place_of_signal(context));
    if (pc < b->launch->image_start || pc > b->launch->image_end) return;  // in the runtime: not now
    if (b->launch->timed_out) {
        report(DEADLOCK, place_of_signal(context), 0, nullptr, "no end after %g seconds: this thread is still here",
               b->launch->options.timeout);
        siglongjmp(b->escape, 1);
    }
    if (b->launch->abort) siglongjmp(b->escape, 1);
    // A thread that spins without a word: let others run, of other blocks of the gang, too.
    b->switches--;  // the watchdog looks for changes that are not its own
    b->give_turn = b->gang->size > 1;
    switch_to(b, b->give_turn ? nullptr : after(current()));
}

// ---- one block -----------------------------------------------------------------------------------------------------

static void reset(Fiber* f, Block* b, int linear) {
    const Index3 size = b->launch->block_size, grid = b->launch->grid;
    const u32 x = linear % size.x, y = linear / size.x % size.y, z = linear / size.x / size.y;
    f->thread = {x, y, z};
    f->block = {static_cast<u32>(b->index % grid.x), static_cast<u32>(b->index / grid.x % grid.y),
                static_cast<u32>(b->index / grid.x / grid.y)};
    f->block_size = size;
    f->grid_size = grid;
    f->lane = linear % WARP;
    f->warp = linear / WARP;
    f->linear = linear;
    f->home = b;
    f->id = b->rank * b->threads + linear;
    f->clock = 1;
    f->clocks.clear();
    f->foreign = f->last_acquired = nullptr;
    f->fenced = f->block_fenced = f->wgmma_fenced = f->tile_touched = false;
    f->fence_clock = f->block_fence_clock = f->proxy_fence_clock = 0;
    f->proxy_known.clear();
    f->proxy_clocks.clear();
    f->copies.clear();
    f->copy_groups.clear();
    f->steps.clear();
    f->step_groups.clear();
    f->groups_committed = f->groups_waited = 0;
    f->stores.clear();
    f->store_groups.clear();
    f->tile_bytes = 0;
    f->overwrite.bytes = 0;
    f->acquire_later = 0;
    f->held.address = 0;
    f->initialised.clear();
    f->waiting_for = "its work";
    f->spins = 0;
    f->waiting_place = nullptr;
    f->stack = b->stacks + linear * b->stack_size;
    // Tops at different offsets, or all threads' locals would share the same lines of the cache.
    f->stack_pointer = first_frame(f->stack + b->stack_size - 64 * (linear % 16), fiber_main);
    b->warp[f->warp].live |= 1u << f->lane;
    set_ready(f);
}

static void reset(Block* b) {
    Launch* launch = b->launch;
    b->dead = b->in_callback = b->exited = b->give_turn = false;
    b->live = b->threads;
    b->ready_warps = 0;
    b->reduction = 0;
    b->mbarriers.clear();
    b->jobs.clear();
    b->warpgroups.assign(b->threads / WARPGROUP, {});
    b->known.assign(b->gang->size, 0);
    b->agents_known.assign(b->gang->agents(), 0);
    b->remote.clear();
    b->foreign = nullptr;
    b->last_memory = 0;
    b->random = (launch->options.seed + 1) * 0x9E3779B97F4A7C15ull ^ (b->index + 1) * 0xD1342543DE82EF95ull;
    for (int i = 0; i < 4; i++) random_number(b);
    b->countdown = launch->options.preempt;
    for (auto& bar : b->barrier) bar = NamedBarrier();
    for (int i = 0; i < b->warps; i++) {
        b->warp[i].live = b->warp[i].ready = b->warp[i].at_activemask = 0;
        b->warp[i].open = 0;
    }
    // Shared memory begins as NaN, or as an index that is far outside.
    memset(b->dynamic, 0xFF, launch->options.shared);
    memset(b->shared, 0xFF, b->dynamic - b->shared);
    char* rest = b->dynamic + MAX_DYNAMIC_SHARED;
    memset(rest, 0xFF, b->shared + b->shared_size - rest);
    for (int t = 0; t < b->threads; t++) reset(&b->fibers[t], b, t);
}

// Do lanes of a warp wait for others that wait elsewhere, at a barrier or at an operation of other lanes?
static bool lanes_apart(Block* b, int warp) {
    for (u32 left = b->warp[warp].open; left; left &= left - 1) {
        const Collective& c = b->warp[warp].collective[__builtin_ctz(left)];
        for (u32 lanes = c.wanted & b->warp[warp].live & ~c.arrived; lanes; lanes &= lanes - 1) {
            const Fiber& f = b->fibers[warp * WARP + __builtin_ctz(lanes)];
            if (f.state == BLOCKED && strcmp(f.waiting_for, "a wait for an mbarrier")) return true;
        }
    }
    return false;
}

// Says where the threads wait: a finding for each place, the first with the count of all.
static void report_deadlock(Block* b, const char* how) {
    std::map<std::string, int> waiting;
    std::map<std::pair<std::string, void*>, Fiber*> places;
    std::string detail;
    int ended = 0;
    bool diverged = false;
    for (Block* one : b->gang->blocks) {
        ended += one->threads - one->live;
        for (int warp = 0; warp < one->warps; warp++) diverged |= lanes_apart(one, warp);
        for (int t = 0; t < one->threads; t++) {
            Fiber* f = &one->fibers[t];
            if (f->state == DONE) continue;
            waiting[f->waiting_for]++;
            if (f->waiting_place) places.insert({{f->waiting_for, f->waiting_place}, f});
            if (detail.empty() && !strcmp(f->waiting_for, "a wait for an mbarrier")) {
                auto* m = static_cast<MBarrier*>(f->argument);
                detail = "; the mbarrier of thread " + std::to_string(f->linear) + " lacks " +
                         std::to_string(m->pending) + " of " + std::to_string(m->count) + " arrivals and " +
                         std::to_string(m->bytes) + " bytes";
            }
        }
    }
    if (diverged) how = "lanes of one warp are at different operations, or name different lanes; no thread can go on:";
    std::string text = how;
    for (auto& w : waiting) text += (text == how ? " " : ", ") + std::to_string(w.second) + " in " + w.first;
    if (ended) text += ", " + std::to_string(ended) + " have ended";
    text += detail;
    for (auto& place : places) {
        emu_current = place.second;
        report(diverged ? DIVERGENCE : DEADLOCK, place.first.second, 0, nullptr, "%s", text.c_str());
        text = "other threads wait here";
    }
    emu_current = nullptr;
}

// Gives the gang's turn to a block that can run, and waits for the next. False: this block has nothing more to do.
static bool hand_over(Block* b, std::unique_lock<std::mutex>& turn) {
    Gang* g = b->gang;
    b->give_turn = false;
    for (;;) {
        if (g->dead || g->over) return false;
        Block* next = nullptr;
        bool alive = false;
        const int first = g->launch->options.schedule == RANDOM ? random_number(b) % g->size : b->rank + 1;
        for (int i = 0; i < g->size; i++) {
            Block* one = g->blocks[(first + i) % g->size];
            alive |= one->live > 0;
            if (one->ready_warps && one != b && !next) next = one;
        }
        if (!next && b->ready_warps) return true;
        if (next) {
            g->turn = next->rank;
            g->changed.notify_all();
            g->changed.wait(turn, [&] { return g->turn == b->rank || g->dead || g->over; });
            return !g->dead && !g->over;
        }
        if (!alive) {
            g->over = true;
            g->changed.notify_all();
            return false;
        }
        if (run_engine(g)) continue;
        report_deadlock(b, "no thread can go on:");
        g->dead = true;
        b->launch->abort = true;
        g->changed.notify_all();
        return false;
    }
}

static void run_block(Block* b, u64 index) {
    Launch* launch = b->launch;
    Gang* g = b->gang;
    b->index = index;
    std::unique_lock<std::mutex> turn;
    if (g->size > 1) {
        turn = std::unique_lock<std::mutex>(g->mutex);
        reset(b);
        if (++g->ready == g->size) {
            g->ready = 0;
            g->generation++;
            g->changed.notify_all();
        } else {
            const int before = g->generation;
            g->changed.wait(turn, [&] { return g->generation != before; });
        }
        g->changed.wait(turn, [&] { return g->turn == b->rank || g->dead || g->over; });
    } else {
        reset(b);
    }
    b->running = true;
    if (sigsetjmp(b->escape, 1) == 0) {
        emu_current = nullptr;
        for (;;) {
            if (launch->timed_out && b->live && !b->dead) {
                report_deadlock(b, "no end after the time limit:");
                b->dead = true;
            }
            if (b->dead || g->dead) break;
            Fiber* next = pick(b);
            if (!next || (g->size > 1 && (b->give_turn || b->switches % 64 == 0))) {
                if (g->size > 1) {
                    b->switches++;
                    if (!hand_over(b, turn)) break;
                    next = pick(b);
                    if (!next) continue;
                } else {
                    if (!b->live) break;
                    if (run_engine(g)) continue;
                    report_deadlock(b, "no thread can go on:");
                    launch->abort = true;
                    break;
                }
            }
            emu_current = next;
            b->switches++;
            emu_switch(&b->main_stack_pointer, next->stack_pointer);
            emu_current = nullptr;
        }
    } else {  // out of a signal handler
        launch->abort = true;
        b->dead = true;
    }
    b->running = false;
    emu_current = nullptr;
    if (g->size > 1) {
        if (!turn.owns_lock()) turn.lock();
        if (b->dead) {
            g->dead = true;
            g->changed.notify_all();
        }
        b->exited = true;
        if (++g->finished == g->size) {
            g->finished = g->arrived = 0;
            g->waiting.clear();
            g->generation++;
            g->changed.notify_all();
        } else {
            g->changed.notify_all();
            while (g->finished) g->changed.wait(turn);
        }
    }
}
