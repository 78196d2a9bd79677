// schedule.h - whose turn it is.
#pragma once
#include "fiber.h"
#include "state.h"

static Fiber* nth_ready(Block* b, int warp, int skip) {
    u32 ready = b->warp[warp].ready;
    while (skip--) ready &= ready - 1;
    return &b->fibers[warp * WARP + __builtin_ctz(ready)];
}

// The next thread to run, or null. In order: stay with the warp, lowest lane first. At random: mostly stay
// with the warp (whole warps run ahead of others, as on a GPU), any lane.
static Fiber* pick(Block* b) {
    if (!b->ready_warps) return nullptr;
    const int mode = b->launch->options.schedule;
    const int here = emu_current && current()->home == b ? current()->warp : 0;
    if (mode == IN_ORDER) {
        const u32 from_here = b->ready_warps & (~0u << here);
        const int warp = __builtin_ctz(from_here ? from_here : b->ready_warps);
        return nth_ready(b, warp, 0);
    }
    if (mode == REVERSE) {
        const int warp = 31 - __builtin_clz(b->ready_warps);
        return &b->fibers[warp * WARP + 31 - __builtin_clz(b->warp[warp].ready)];
    }
    int warp = here;
    if (!(b->ready_warps >> here & 1) || !(random_number(b) & 15)) {
        u32 warps = b->ready_warps;
        for (int skip = random_number(b) % __builtin_popcount(warps); skip; skip--) warps &= warps - 1;
        warp = __builtin_ctz(warps);
    }
    return nth_ready(b, warp, random_number(b) % __builtin_popcount(b->warp[warp].ready));
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

[[noreturn]] static void die(Block* b) {
    b->dead = true;
    b->launch->abort = true;
    switch_to(b, nullptr);
    __builtin_unreachable();
}

static void block_here(const char* what, void* place) {
    Fiber* f = current();
    f->waiting_for = what;
    f->waiting_place = place;
    set_blocked(f);
    switch_to(f->home, pick(f->home));  // comes back at once if it was the last lane at __activemask()
}

static bool run_engine(Gang* gang);

// Let others run. Threads that spin drive the copy engines now and then, and give way to other blocks.
static void give_way(Block* b, void* place) {
    Fiber* f = current();
    f->waiting_for = "a loop";
    f->waiting_place = place;
    if (b->launch->timed_out.load(std::memory_order_relaxed)) switch_to(b, nullptr);  // run_block reports
    if (++f->spins % 16 == 0) {
        run_engine(b->gang);
        if (b->gang->size > 1 || f->spins % 64 == 0) {
            switch_to(b, nullptr);  // to the loop, which may hand over to another block
            return;
        }
    }
    switch_to(b, pick(b));
}
