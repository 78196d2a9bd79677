// schedule.h - whose turn it is.
#pragma once
#include "fiber.h"
#include "state.h"

// The first bit of `set` at or after bit `from`, going round. Quick, and random enough for a random `from`.
static inline int bit_from(u32 set, int from) {
    const u32 turned = set >> from | set << (-from & 31);
    return (from + __builtin_ctz(turned)) & 31;
}

// The next thread to run, or null. In order: stay with the warp, lowest lane first. At random: mostly stay
// with the warp (whole warps run ahead of others, as on a GPU), any lane.
static Fiber* pick(Block* b) {
    if (!b->ready_warps) return nullptr;
    const int mode = b->launch->options.schedule;
    const int here = emu_current && current()->home == b ? current()->warp : 0;
    int warp = here, lane;
    if (mode == RANDOM) {
        const u32 random = random_number(b);
        if (!(b->ready_warps >> here & 1) || !(random & 15)) warp = bit_from(b->ready_warps, random >> 4 & 31);
        lane = bit_from(b->warp[warp].ready, random >> 9 & 31);
    } else if (mode == IN_ORDER) {
        const u32 from_here = b->ready_warps & (~0u << here);
        warp = __builtin_ctz(from_here ? from_here : b->ready_warps);
        lane = __builtin_ctz(b->warp[warp].ready);
    } else {
        warp = 31 - __builtin_clz(b->ready_warps);
        lane = 31 - __builtin_clz(b->warp[warp].ready);
    }
    return &b->fibers[warp * WARP + lane];
}

static inline void set_ready(Fiber* f) {
    Block* b = f->home;
    f->state = READY;
    b->warp[f->warp].ready |= 1u << f->lane;
    b->ready_warps |= 1u << f->warp;
}
// No lane of the warp can run: those that asked for the active mask are, by place, together.
static void settle_activemask(Block* b, Warp& w, int warp) {
    while (w.at_activemask) {
        void* place = b->fibers[warp * WARP + __builtin_ctz(w.at_activemask)].waiting_place;
        u32 together = 0;
        for (u32 lanes = w.at_activemask; lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            if (b->fibers[warp * WARP + lane].waiting_place == place) together |= 1u << lane;
        }
        w.at_activemask &= ~together;
        for (u32 lanes = together; lanes; lanes &= lanes - 1) {
            Fiber* f = &b->fibers[warp * WARP + __builtin_ctz(lanes)];
            *static_cast<unsigned*>(f->argument) = together;
            set_ready(f);
        }
    }
}

static inline void set_blocked(Fiber* f) {
    Block* b = f->home;
    Warp& w = b->warp[f->warp];
    f->state = BLOCKED;
    if (w.ready &= ~(1u << f->lane)) return;
    b->ready_warps &= ~(1u << f->warp);
    if (w.at_activemask) settle_activemask(b, w, f->warp);
}

// Go on with another thread of this block; null: with the block's own loop (run_block).
static void switch_to(Block* b, Fiber* next) {
    Fiber* self = current();
    if (next == self) return;
    b->switches++;
    emu_current = next;
    emu_switch(&self->stack_pointer, next ? next->stack_pointer : b->main_stack_pointer);
}

// Other launches, and other blocks, must not find the lock of a thread that is gone.
static void drop_atomic_lock() {
    if (atomic_locked) atomic_mutex.unlock();
    atomic_locked = false;
}

[[noreturn]] static void die(Block* b) {
    drop_atomic_lock();
    b->dead = true;
    b->launch->abort = true;
    switch_to(b, nullptr);
    __builtin_unreachable();
}

static inline void block_here(const char* what, void* place) {
    Fiber* f = current();
    f->waiting_for = what;
    f->waiting_place = place;
    set_blocked(f);
    switch_to(f->home, pick(f->home));  // comes back at once if it was the last lane at __activemask()
}

static bool run_engine(Gang* gang);

// The next thread in turn after `f`, for one that spins: the fixed orders would come back to it for ever.
static Fiber* after(Fiber* f) {
    Block* b = f->home;
    if (b->launch->options.schedule == RANDOM) return pick(b);
    const bool forward = b->launch->options.schedule == IN_ORDER;
    for (int step = 1; step <= b->threads; step++) {
        const int t = (f->linear + (forward ? step : b->threads - step)) % b->threads;
        if (b->fibers[t].state == READY) return &b->fibers[t];
    }
    return nullptr;
}

// Let others run. Threads that spin drive the copy engines now and then, and give way to other blocks.
static void give_way(Block* b, void* place) {
    Fiber* f = current();
    f->waiting_for = "a loop";
    f->waiting_place = place;
    if (b->launch->abort.load(std::memory_order_relaxed)) {  // what it waits for may never come
        b->dead = !b->launch->timed_out;                       // run_block reports, if the time is up
        switch_to(b, nullptr);
    }
    if (++f->spins % 16 == 0) {
        run_engine(b->gang);
        if (f->spins % 256 == 0) sched_yield();  // what it waits for may be another processor's work
        if (b->gang->size > 1 || f->spins % 64 == 0) {
            b->give_turn = true;
            switch_to(b, nullptr);  // to the loop, which may hand over to another block
            return;
        }
    }
    switch_to(b, after(f));
}
