// barrier.h - warp-wide operations, barriers of the block, atomics and fences.
#pragma once
#include "hooks.h"

// ---- warp-wide -------------------------------------------------------------------------------------------

// All wanted lanes have come: run the function for them and let them go on.
static void finish_collective(Block* b, int warp, Collective& c) {
    b->warp[warp].open &= ~(1u << (&c - b->warp[warp].collective));
    b->in_callback = true;
    c.function(c.arguments, c.arrived);
    b->in_callback = false;
    for (u32 lanes = c.arrived; lanes; lanes &= lanes - 1) {
        Fiber* f = &b->fibers[warp * WARP + __builtin_ctz(lanes)];
        if (f != current()) set_ready(f);
    }
}

static void collective(u32 mask, void* argument, emu::CollectiveFunction function, const char* what, void* place) {
    Fiber* f = current();
    Block* b = f->home;
    Warp& w = b->warp[f->warp];
    settle(f);
    if (f->held.address) judge_held(f);
    if (!(mask >> f->lane & 1)) {
        report(DIVERGENCE, place, 0, nullptr, "%s: lane %d is not in its own mask %#x", what, f->lane, mask);
        die(b);
    }
    Collective* c = nullptr;
    for (u32 left = w.open; left; left &= left - 1) {
        Collective& one = w.collective[__builtin_ctz(left)];
        if (one.wanted == mask && !(one.arrived >> f->lane & 1)) c = &one;
    }
    if (c && c->function != function) {
        report(DIVERGENCE, place, 0, nullptr, "%s: other lanes of the mask %#x are at %s", what, mask, c->what);
        die(b);
    }
    if (!c) {
        if (w.open == ~0u) {
            report(DIVERGENCE, place, 0, nullptr, "%s: lanes of one warp wait in more than 32 places", what);
            die(b);
        }
        const int free = __builtin_ctz(~w.open);
        w.open |= 1u << free;
        c = &w.collective[free];
        c->wanted = mask;
        c->arrived = 0;
        c->function = function;
        c->what = what;
    }
    c->arguments[f->lane] = argument;
    c->arrived |= 1u << f->lane;
    if (c->arrived == (mask & w.live)) finish_collective(b, f->warp, *c);
    else block_here(what, place);
}

static void syncwarp_all(void** arguments, unsigned mask) {
    Clocks all;
    Fiber* first = static_cast<Fiber*>(arguments[__builtin_ctz(mask)]);
    if (!checking(first->home)) return;
    KnowledgeRef foreign;
    for (u32 lanes = mask; lanes; lanes &= lanes - 1) {
        Fiber* f = static_cast<Fiber*>(arguments[__builtin_ctz(lanes)]);
        Clocks& mine = clocks_of(f);
        mine[f->id] = f->clock;
        join(all, mine);
        foreign = joined(foreign, f->foreign);
        advance(f);
    }
    for (u32 lanes = mask; lanes; lanes &= lanes - 1) {
        Fiber* f = static_cast<Fiber*>(arguments[__builtin_ctz(lanes)]);
        f->clocks = all;
        f->foreign = foreign;
    }
}

// ---- barriers ---------------------------------------------------------------------------------------------

static void finish_barrier(Block* b, NamedBarrier& bar, bool whole_block) {
    if (checking(b)) {
        if (whole_block) {
            whole_block_barrier(b);
        } else {
            for (int t : bar.waiting) {
                acquire_from(&b->fibers[t], bar.arriving);
                b->fibers[t].foreign = joined(b->fibers[t].foreign, bar.foreign);
            }
        }
    }
    for (int t : bar.waiting)
        if (&b->fibers[t] != current()) set_ready(&b->fibers[t]);
    bar.arrived = bar.expected = 0;
    bar.arriving.clear();
    bar.foreign = nullptr;
    bar.waiting.clear();
    bar.warp_place.assign(bar.warp_place.size(), nullptr);
}

static void barrier(int id, int threads, bool wait, void* place) {
    Fiber* f = current();
    Block* b = f->home;
    settle(f);
    if (f->held.address) judge_held(f);
    if (id < 0 || id > 15) {
        report(BARRIER, place, 0, nullptr, "there is no barrier %d: they are numbered 0 to 15", id);
        die(b);
    }
    if (threads % WARP || threads < 0 || threads > (b->threads + WARP - 1) / WARP * WARP) {
        report(BARRIER, place, 0, nullptr, "barrier %d of %d threads: the number must be a multiple of 32 and not more than "
               "the block has (%d)", id, threads, b->threads);
        die(b);
    }
    NamedBarrier& bar = b->barrier[id];
    if (threads && bar.arrived && bar.expected != threads) {
        report(DIVERGENCE, place, 0, nullptr, "barrier %d is used for %d and for %d threads at once", id,
               bar.expected ? bar.expected : b->live, threads);
        die(b);
    }
    if (!threads && checking(b)) {
        bar.warp_place.resize(b->warps, nullptr);
        void*& there = bar.warp_place[f->warp];
        if (there && there != place) {
            const Access other = {b->gang->tag, 0, f->id, place_of(b->launch, there)};
            report(DIVERGENCE_IF_LINES_DIFFER, place, 0, &other, "lanes of one warp are at different __syncthreads()");
        }
        there = place;
    }
    bar.expected = threads;
    bar.arrived++;
    if (threads) {  // what the thread did so far, and not what it does if it goes on
        release_to(f, bar.arriving);
        bar.foreign = joined(bar.foreign, f->foreign);
    }
    if (wait) bar.waiting.push_back(f->linear);
    const int needed = threads ? threads : b->live;
    if (bar.arrived >= needed) {
        const bool whole = static_cast<int>(bar.waiting.size()) == b->live && needed >= b->live;
        finish_barrier(b, bar, whole);
    } else if (wait) {
        block_here(id ? "a named barrier" : "__syncthreads()", place);
    }
}

extern "C" {
void emu_collective(unsigned mask, void* argument, emu::CollectiveFunction function, const char* what) {
    collective(mask, argument, function, what, PLACE);
}
void emu_collective_at(unsigned mask, void* argument, emu::CollectiveFunction function, const char* what, void* place) {
    collective(mask, argument, function, what, place);
}
void emu_syncwarp(unsigned mask) { collective(mask, current(), syncwarp_all, "__syncwarp()", PLACE); }

// The lanes that are here together: known once no other lane of the warp can run on (settle_activemask).
unsigned emu_activemask() {
    Fiber* f = current();
    unsigned mask = 0;
    f->argument = &mask;
    f->home->warp[f->warp].at_activemask |= 1u << f->lane;
    block_here("__activemask()", PLACE);
    return mask;
}

void emu_block_barrier() { barrier(0, 0, true, PLACE); }

int emu_block_barrier_reduce(int predicate, int operation) {
    Fiber* f = current();
    Block* b = f->home;
    NamedBarrier& bar = b->barrier[0];
    bar.sum += predicate;
    const int slot = b->reduction & 1;
    if (bar.arrived + 1 >= b->live) {
        b->reduced[slot] = operation == 0 ? bar.sum : operation == 1 ? bar.sum == b->live : bar.sum > 0;
        bar.sum = 0;
        b->reduction++;
    }
    barrier(0, 0, true, PLACE);
    return b->reduced[slot];
}

void emu_named_barrier(int id, int threads, int wait) { barrier(id, threads, wait, PLACE); }

void emu_nanosleep() { give_way(current()->home, PLACE); }

void emu_trap(const char* text) {
    report(TRAP, PLACE, 0, nullptr, "%s", text);
    die(own_block);
}

// ---- atomics and fences -----------------------------------------------------------------------------------

void emu_atomic_begin(void* address, int bytes, void* place) {
    Fiber* f = current();
    Block* b = f->home;
    const u64 a = reinterpret_cast<u64>(address);
    settle(f);
    if (f->held.address == a) f->held.address = 0;
    if (a % bytes) {
        report(MISALIGNED, place, a, nullptr, "%d-byte atomic at an address that is no multiple of %d", bytes, bytes);
        die(b);
    }
    // Before the access, so that a thread that spins on it lets others run in between.
    if (b->launch->options.schedule == RANDOM ? random_number(b) % 8 == 0 : ++f->spins % 16 == 0) give_way(b, place);
    if (!owner_of(b, a)) {
        atomic_mutex.lock();
        atomic_locked = true;
    }
    // Within the lock: the order of the records must be that of the changes, and what is acquired must be what the
    // value read announces.
    check_if(address, bytes, ATOMIC_MODIFY, place);
    if (checking(b)) {
        release_at(f, a, false);
        acquire_at(f, a);
    }
    b->in_callback = true;  // the watchdog must not switch threads in between
}
void emu_atomic_end() {
    own_block->in_callback = false;
    drop_atomic_lock();
}

void emu_thread_fence(int scope) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Fiber* f = current();
    if (!checking(f->home)) return;
    f->block_fenced = true;
    f->block_fence_clock = f->clock;
    if (scope) {
        f->fenced = true;
        f->fence_clock = f->clock;
    }
    advance(f);
}

static void acquire_access(const void* address, u32 bytes, void* place) {
    Fiber* f = current();
    settle(f);
    give_way(f->home, place);
    check_if(const_cast<void*>(address), bytes, ATOMIC_READ, place);
    f->acquire_later = checking(f->home) ? reinterpret_cast<u64>(address) : 0;
}
static void release_access(void* address, u32 bytes, void* place) {
    Fiber* f = current();
    settle(f);
    check_if(address, bytes, ATOMIC_WRITE, place);
    if (checking(f->home)) release_at(f, reinterpret_cast<u64>(address), true);
}
unsigned emu_load_acquire32(const void* address) {
    acquire_access(address, 4, PLACE);
    return __atomic_load_n(static_cast<const u32*>(address), __ATOMIC_ACQUIRE);
}
uint64_t emu_load_acquire64(const void* address) {
    acquire_access(address, 8, PLACE);
    return __atomic_load_n(static_cast<const u64*>(address), __ATOMIC_ACQUIRE);
}
void emu_store_release32(void* address, unsigned value) {
    release_access(address, 4, PLACE);
    __atomic_store_n(static_cast<u32*>(address), value, __ATOMIC_RELEASE);
}
void emu_store_release64(void* address, uint64_t value) {
    release_access(address, 8, PLACE);
    __atomic_store_n(static_cast<u64*>(address), value, __ATOMIC_RELEASE);
}
}
