// clocks.h - the order between accesses ("happens before"), kept with vector clocks.
//
// Most order comes from barriers of a whole block. So a block keeps for each block of its gang the clock up
// to which all its threads know everything (Block::known), and a thread has clocks of its own only for what
// it learned in other ways: __syncwarp, named barriers, mbarriers, cluster barriers, flags.
#pragma once
#include <algorithm>
#include "report.h"

static inline void advance(Fiber* f) { f->clock = ++f->home->gang->clock; }

static Clocks& clocks_of(Fiber* f) {
    if (f->clocks.empty()) f->clocks.assign(f->home->gang->total_threads() + f->home->gang->agents(), 0);
    return f->clocks;
}
static void join(Clocks& into, const Clocks& from) {
    if (into.size() < from.size()) into.resize(from.size(), 0);
    for (size_t i = 0; i < from.size(); i++) into[i] = into[i] < from[i] ? from[i] : into[i];
}
static bool checking(Block* b) { return b->launch->options.check; }

static KnowledgeRef joined(const KnowledgeRef& a, const KnowledgeRef& b) {
    if (!b || a == b) return a;
    if (!a) return b;
    auto made = std::make_shared<Knowledge>(*a);
    for (auto& entry : *b) {
        auto& mine = (*made)[entry.first];
        if (!mine || mine->clock < entry.second->clock) mine = entry.second;
    }
    return made;
}

// All that `f` knows, its own accesses included, as clocks; what barriers said is filled in.
static Clocks everything(Fiber* f) {
    Gang* g = f->home->gang;
    const int threads = f->home->threads;
    Clocks all = clocks_of(f);
    for (int rank = 0; rank < g->size; rank++) {
        const u32 known = f->home->known[rank];
        for (int t = rank * threads; t < (rank + 1) * threads; t++) all[t] = all[t] < known ? known : all[t];
    }
    for (int i = 0; i < g->agents(); i++) all[g->engine(0) + i] = std::max(all[g->engine(0) + i], f->home->agents_known[i]);
    all[f->id] = f->clock;
    return all;
}

// What `f` did so far may be known to whoever acquires from `into`. Then a new clock begins.
static void release_to(Fiber* f, Clocks& into) {
    if (!checking(f->home)) return;
    if (f->home->gang->size == 1) {
        Clocks& mine = clocks_of(f);
        mine[f->id] = f->clock;
        join(into, mine);
        // The barriers' part is the same for all threads of the block and need not be passed on.
    } else {
        join(into, everything(f));
    }
    advance(f);
}
static void acquire_from(Fiber* f, const Clocks& from) {
    if (checking(f->home)) join(clocks_of(f), from);
}

// Does f know of an access of a thread (or copy engine) of its own gang?
static inline bool knows(Fiber* f, u32 thread, u32 clock) {
    if (thread == f->id) return true;
    Block* b = f->home;
    const u32 threads = b->threads;
    const u32 rank = thread / threads;
    if (rank < static_cast<u32>(b->gang->size)) {
        if (clock <= b->known[rank]) return true;
    } else if (clock <= b->agents_known[thread - b->gang->size * threads]) {
        return true;
    }
    return !f->clocks.empty() && clock <= f->clocks[thread];
}

// Does f know of an access of another gang?
static bool knows_foreign(Fiber* f, const Access& a) {
    for (const KnowledgeRef* ref : {&f->foreign, &f->home->foreign}) {
        if (!*ref) continue;
        for (auto it = (*ref)->lower_bound({a.gang, 0}); it != (*ref)->end() && it->first.first == a.gang; ++it) {
            const Snapshot& s = *it->second;
            if (s.thread == a.thread) {
                if (a.clock <= s.clock) return true;
                continue;
            }
            if (!s.clocks.empty() && a.thread < s.clocks.size() && a.clock <= s.clocks[a.thread]) return true;
            const size_t rank = a.thread / f->home->threads, agent = a.thread - s.barriers.size() * f->home->threads;
            if (rank < s.barriers.size()) {
                if (a.clock <= s.barriers[rank]) return true;
            } else if (agent < s.agents.size() && a.clock <= s.agents[agent]) {
                return true;
            }
        }
    }
    return false;
}

// A barrier of the whole block: from now on every thread knows all that any of them did or knew.
static void whole_block_barrier(Block* b) {
    if (!checking(b)) return;
    Gang* g = b->gang;
    for (int i = 0; i < b->threads; i++) {
        Fiber& f = b->fibers[i];
        if (f.foreign) {
            b->foreign = joined(b->foreign, f.foreign);
            f.foreign = nullptr;
        }
        if (f.clocks.empty()) continue;
        for (int agent = 0; agent < g->agents(); agent++)
            b->agents_known[agent] = std::max(b->agents_known[agent], f.clocks[g->engine(0) + agent]);
        if (g->size == 1) f.clocks.clear();  // the barrier says it all
    }
    if (g->size > 1) {  // what some learned of other blocks, all know now
        Clocks all;
        for (int i = 0; i < b->threads; i++)
            if (!b->fibers[i].clocks.empty()) join(all, b->fibers[i].clocks);
        if (!all.empty())
            for (int i = 0; i < b->threads; i++) b->fibers[i].clocks = all;
    }
    b->known[b->rank] = g->clock;
    ++g->clock;
    for (int i = 0; i < b->threads; i++) b->fibers[i].clock = g->clock;
}

// ---- order through atomics, volatile flags and fences --------------------------------------------------

static bool in_shared_memory(Block* b, u64 address) {
    return address - reinterpret_cast<u64>(b->shared) < b->shared_size;
}

// After a __threadfence, an atomic or volatile write passes on what came before the fence; after a
// __threadfence_block, and in shared memory, to threads of the same block alone.
static void release_at(Fiber* f, u64 address, bool always) {
    Block* b = f->home;
    if (!f->block_fenced && !always) return;
    const bool everywhere = (f->fenced || always) && !in_shared_memory(b, address);
    auto snapshot = std::make_shared<Snapshot>();
    snapshot->gang = b->gang->tag;
    snapshot->thread = f->id;
    snapshot->clock = always ? f->clock : everywhere ? f->fence_clock : f->block_fence_clock;
    snapshot->barriers = b->known;
    snapshot->agents = b->agents_known;
    snapshot->clocks = b->gang->size > 1 ? everything(f) : f->clocks;
    auto made = std::make_shared<Knowledge>();
    (*made)[{snapshot->gang, snapshot->thread}] = snapshot;
    const KnowledgeRef mine = joined(joined(made, f->foreign), b->foreign);
    Launch* launch = b->launch;
    {
        std::lock_guard<std::mutex> guard(launch->sync_mutex);
        KnowledgeRef& there = everywhere ? launch->released[address]
                                         : launch->released_in_block[{address, b->gang->tag, b->rank}];
        there = joined(there, mine);
    }
    if (always) advance(f);
}

static void acquire(Fiber* f, const KnowledgeRef& there) {
    const u32 own = f->home->gang->tag;
    for (auto it = there->lower_bound({own, 0}); it != there->end() && it->first.first == own; ++it) {
        const Snapshot& s = *it->second;
        if (s.thread == f->id) continue;
        if (!s.clocks.empty()) join(clocks_of(f), s.clocks);
        Clocks& mine = clocks_of(f);
        mine[s.thread] = std::max(mine[s.thread], s.clock);
    }
    f->foreign = joined(f->foreign, there);
}

static void acquire_at(Fiber* f, u64 address) {
    Block* b = f->home;
    Launch* launch = b->launch;
    KnowledgeRef there, in_block;
    {
        std::lock_guard<std::mutex> guard(launch->sync_mutex);
        auto found = launch->released.find(address);
        if (found != launch->released.end()) there = found->second;
        if (!launch->released_in_block.empty()) {
            auto also = launch->released_in_block.find({address, b->gang->tag, b->rank});
            if (also != launch->released_in_block.end()) in_block = also->second;
        }
    }
    if (in_block) acquire(f, in_block);
    if (!there || there == f->last_acquired) return;
    f->last_acquired = there;
    acquire(f, there);
}
