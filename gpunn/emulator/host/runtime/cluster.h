// cluster.h - blocks that work together: ranks, distributed shared memory, barriers of cluster and grid.
#pragma once
#include "bulk.h"

static int live_threads(Gang* g) {
    int live = 0;
    for (Block* b : g->blocks) live += b->live;
    return live;
}

// All live threads of the gang have arrived: those that wait go on and know what all did before.
static void finish_cluster_barrier(Gang* g) {
    g->arrived = 0;
    g->phase++;
    join(g->complete, g->arriving);
    for (Fiber* f : g->waiting) {
        acquire_from(f, g->complete);
        set_ready(f);
    }
    g->waiting.clear();
}

// A barrier of a whole grid has too many threads for clocks of each: everyone knows everything.
static void finish_grid_barrier(Gang* g) {
    KnowledgeRef foreign;
    for (Block* b : g->blocks) {
        for (u32& known : b->known) known = g->clock;
        for (u32& known : b->agents_known) known = g->clock;
        for (int t = 0; t < b->threads; t++) b->fibers[t].clocks.clear();
    }
    ++g->clock;
    for (Block* b : g->blocks)
        for (int t = 0; t < b->threads; t++) b->fibers[t].clock = g->clock;
    g->arrived = 0;
    for (Fiber* f : g->waiting) set_ready(f);
    g->waiting.clear();
}

extern "C" {
int emu_cluster_rank() {
    Block* b = own_block;
    return b->launch->options.cooperative ? 0 : b->rank;
}
int emu_cluster_size() {
    Block* b = own_block;
    return b->launch->options.cooperative ? 1 : b->gang->size;
}
void* emu_map_shared(const void* pointer, int rank) { return in_block(pointer, block_of_rank(rank, PLACE)); }
uint32_t emu_shared_address(const void* pointer) {
    return static_cast<u32>(static_cast<const char*>(pointer) - own_block->shared);
}
int emu_is_shared(const void* pointer) { return owner_of(own_block, reinterpret_cast<u64>(pointer)) != nullptr; }

void emu_cluster_arrive() {
    Fiber* f = current();
    settle(f);
    Gang* g = f->home->gang;
    if (g->arrived_phase.empty()) g->arrived_phase.assign(g->total_threads(), ~0u);
    if (g->arrived_phase[f->id] == g->phase) {
        report(BARRIER, PLACE, 0, nullptr, "a thread arrives twice at one barrier of the cluster");
        die(f->home);
    }
    g->arrived_phase[f->id] = g->phase;
    release_to(f, g->arriving);
    if (++g->arrived >= live_threads(g)) finish_cluster_barrier(g);
}
void emu_cluster_wait() {
    Fiber* f = current();
    void* place = PLACE;
    Gang* g = f->home->gang;
    if (g->arrived_phase.empty() || g->arrived_phase[f->id] == ~0u) {
        report(BARRIER, place, 0, nullptr, "a wait at the barrier of the cluster without an arrival before");
        die(f->home);
    }
    if (g->arrived_phase[f->id] != g->phase) {  // everyone has arrived meanwhile
        acquire_from(f, g->complete);
        return;
    }
    g->waiting.push_back(f);
    block_here("the barrier of the cluster", place);
}

void emu_grid_sync() {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    Gang* g = f->home->gang;
    if (!f->home->launch->options.cooperative) {
        report(BARRIER, place, 0, nullptr, "a barrier of the grid needs a cooperative launch (enable_cooperative_groups=True)");
        die(f->home);
    }
    g->arrived++;
    if (g->arrived >= live_threads(g)) {
        finish_grid_barrier(g);
        return;
    }
    g->waiting.push_back(f);
    block_here("the barrier of the grid", place);
}
}
