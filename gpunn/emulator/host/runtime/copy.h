// copy.h - what runs beside the threads: cp.async, mbarriers, and the copy engines that fill shared memory.
//
// cp.async is done at its wait, the engines' jobs when no thread can run: as late as the rules allow.
#pragma once
#include "matrix.h"

// ---- cp.async --------------------------------------------------------------------------------------------------

static void land(Fiber* f, const std::vector<CopyAsync>& copies) {
    for (const CopyAsync& c : copies) {
        f->waiting_place = c.place;  // should it meet a guard page
        memcpy(c.target, c.source, c.source_bytes);
        memset(static_cast<char*>(c.target) + c.source_bytes, 0, c.bytes - c.source_bytes);
        mark(f, reinterpret_cast<u64>(c.target), c.bytes, 0, IN_FLIGHT, 0, 0, nullptr);
    }
}
static void require_aligned(const void* pointer, u32 alignment, const char* what, void* place) {
    const u64 address = reinterpret_cast<u64>(pointer);
    if (address % alignment == 0) return;
    report(MISALIGNED, place, address, nullptr, "%s is not %u-byte aligned", what, alignment);
    die(own_block);
}
static void require_whole(int bytes, void* place) {
    if (bytes % 16 == 0) return;
    report(MISALIGNED, place, 0, nullptr, "a bulk copy of %d bytes: the number must be a multiple of 16", bytes);
    die(own_block);
}

// ---- mbarriers ---------------------------------------------------------------------------------------------------

static MBarrier& mbarrier_at(Block* home, void* address, const char* what, void* place, Agent agent = BY_THREAD) {
    auto found = home->mbarriers.find(address);
    if (found == home->mbarriers.end()) {
        report(BARRIER, place, reinterpret_cast<u64>(address), nullptr, "%s an mbarrier that is not initialised%s", what,
               home == own_block ? "" : " in the other block of the cluster (a cluster barrier after its "
               "initialisation is missing)");
        die(own_block);
    }
    if (checking(own_block)) check(current(), reinterpret_cast<u64>(address), 8, ATOMIC_READ, agent, place);
    return found->second;
}
static void complete_if_ready(MBarrier& m) {
    if (m.pending || m.bytes) return;
    m.phase ^= 1;
    m.pending = m.count;
    join(m.complete, m.arriving);
    for (Fiber* f : m.waiting) {
        acquire_from(f, m.complete);
        set_ready(f);
    }
    m.waiting.clear();
}
static void arrive_at(MBarrier& m, void* address, int expect, void* place) {
    m.bytes += expect;
    if (--m.pending < 0) {
        report(BARRIER, place, reinterpret_cast<u64>(address), nullptr, "one arrival too many at an mbarrier of count %d", m.count);
        die(own_block);
    }
    complete_if_ready(m);
}
static Block* home_of(void* address) {
    Block* home = owner_of(own_block, reinterpret_cast<u64>(address));
    return home ? home : own_block;
}
static void* in_block(const void* address, Block* target) {  // the same place in another block's shared memory
    Block* home = home_of(const_cast<void*>(address));
    return target->shared + (static_cast<const char*>(address) - home->shared);
}
static Block* block_of_rank(int rank, void* place) {
    Gang* g = own_block->gang;
    if (rank >= 0 && rank < g->size) return g->blocks[rank];
    report(OUT_OF_BOUNDS, place, 0, nullptr, "there is no block %d in a cluster of %d", rank, g->size);
    die(own_block);
}

// ---- the copy engines ----------------------------------------------------------------------------------------------

static void submit(EngineJob job, u32 alignment, void* place) {
    Fiber* f = current();
    Block* target = home_of(job.shared);
    job.place = place;
    job.issuer = f;
    require_aligned(job.shared, alignment, "the shared memory of a bulk copy", place);
    const MBarrier& m = mbarrier_at(job.barrier_home, job.mbarrier, "a bulk copy signals", place, BY_ASYNC_PROXY);
    if (checking(f->home) && !m.fenced)
        report(MISSING_FENCE, place, reinterpret_cast<u64>(job.mbarrier), nullptr, "a bulk copy signals an mbarrier whose "
               "initialisation was not followed by fence.mbarrier_init or fence.proxy.async");
    if (checking(f->home)) {
        check(f, reinterpret_cast<u64>(job.shared), job.bytes, WRITE, BY_ASYNC_PROXY, place);
        mark(f, reinterpret_cast<u64>(job.shared), job.bytes, IN_FLIGHT, 0, f->id, f->clock, place);
    }
    target->jobs.push_back(std::move(job));
}

static void tensor_pieces(const u8* map_bytes, const void* shared, const int* at, const u16* offsets, Block* home,
                          void* place, bool store, int reduce);

static void run_job(Block* b, EngineJob& job) {
    Gang* g = b->gang;
    MBarrier& m = job.barrier_home->mbarriers[job.mbarrier];
    if (job.kind == EngineJob::ARRIVE) {
        land(job.issuer, job.copies);
        if (checking(b)) join(m.arriving, job.released);
        m.pending--;
        complete_if_ready(m);
        return;
    }
    if (job.kind == EngineJob::BULK) memcpy(job.shared, job.global, job.bytes);
    else if (job.kind == EngineJob::STORE) memcpy(job.shared, &job.value, job.bytes);
    else tensor_pieces(job.map, job.shared, job.at, job.im2col ? job.offsets : nullptr, b, job.place, false, 0);
    if (checking(b)) {
        const u32 clock = ++g->clock, engine = g->engine(b->rank);
        // Fibers' own accesses after this bear later clocks only once they synchronise, as it should be.
        mark(job.issuer, reinterpret_cast<u64>(job.shared), job.bytes, BY_COPY, IN_FLIGHT, engine, clock, nullptr);
        Clocks done(g->total_threads() + g->agents(), 0);
        done[engine] = clock;
        join(m.arriving, done);
    }
    m.bytes -= job.bytes;
    complete_if_ready(m);
}

// Runs one waiting job of some block of the gang; false if there is none.
static bool run_engine(Gang* g) {
    for (Block* b : g->blocks) {
        if (b->jobs.empty()) continue;
        const size_t chosen = g->launch->options.schedule == RANDOM ? random_number(b) % b->jobs.size() : 0;
        EngineJob job = std::move(b->jobs[chosen]);
        b->jobs.erase(b->jobs.begin() + chosen);
        Fiber* before = current();  // whoever drives the engine, a fault is the issuer's
        emu_current = job.issuer;
        void* waits_at = job.issuer->waiting_place;
        job.issuer->waiting_place = job.place;
        run_job(b, job);
        job.issuer->waiting_place = waits_at;
        emu_current = before;
        return true;
    }
    return false;
}

static void for_each_target(int multicast, void* place, const std::function<void(Block*)>& each) {
    if (!multicast) return each(own_block);
    if (multicast >> own_block->gang->size) block_of_rank(31 - __builtin_clz(multicast), place);
    for (Block* target : own_block->gang->blocks)
        if (multicast >> target->rank & 1) each(target);
}

extern "C" {
void emu_copy_async(void* shared, const void* global, int bytes, int source_bytes) {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    require_aligned(shared, bytes, "the target of cp.async", place);
    require_aligned(global, bytes, "the source of cp.async", place);
    if (checking(f->home)) {
        check(f, reinterpret_cast<u64>(shared), bytes, WRITE, BY_THREAD, place);
        check(f, reinterpret_cast<u64>(global), source_bytes, READ, BY_THREAD, place);
        mark(f, reinterpret_cast<u64>(shared), bytes, IN_FLIGHT, 0, f->id, f->clock, place);
    }
    f->copies.push_back({shared, global, bytes, source_bytes, place});
}
void emu_copy_async_commit() {
    Fiber* f = current();
    f->copy_groups.push_back(std::move(f->copies));
    f->copies.clear();
}
void emu_copy_async_wait(int keep) {
    Fiber* f = current();
    while (static_cast<int>(f->copy_groups.size()) > keep) {
        land(f, f->copy_groups.front());
        f->copy_groups.pop_front();
    }
}
void emu_copy_async_arrive(void* mbarrier, int noinc) {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    EngineJob job{};
    job.kind = EngineJob::ARRIVE;
    job.mbarrier = mbarrier;
    job.barrier_home = f->home;
    job.issuer = f;
    job.place = place;
    MBarrier& m = mbarrier_at(f->home, mbarrier, "cp.async signals", place);
    if (!noinc) m.pending++;  // this arrival is one more than the barrier counts on
    for (auto& group : f->copy_groups) job.copies.insert(job.copies.end(), group.begin(), group.end());
    job.copies.insert(job.copies.end(), f->copies.begin(), f->copies.end());
    f->copy_groups.clear();
    f->copies.clear();
    release_to(f, job.released);
    f->home->jobs.push_back(std::move(job));
}

void emu_mbarrier_init(void* mbarrier, int count) {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    require_aligned(mbarrier, 8, "an mbarrier", place);
    if (count < 1 || count >= 1 << 20) {
        report(BARRIER, place, reinterpret_cast<u64>(mbarrier), nullptr, "an mbarrier cannot have the count %d", count);
        die(f->home);
    }
    check_if(mbarrier, 8, WRITE, place);
    MBarrier& m = home_of(mbarrier)->mbarriers[mbarrier];
    m = MBarrier();
    m.count = m.pending = count;
    f->initialised.push_back(mbarrier);
}
void emu_mbarrier_invalidate(void* mbarrier) {
    settle(current());
    mbarrier_at(home_of(mbarrier), mbarrier, "invalidation of", PLACE);
    home_of(mbarrier)->mbarriers.erase(mbarrier);
}
void emu_mbarrier_arrive(void* mbarrier, int expect_bytes, int rank) {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    Block* home = rank < 0 ? home_of(mbarrier) : block_of_rank(rank, place);
    void* address = rank < 0 ? mbarrier : in_block(mbarrier, home);
    MBarrier& m = mbarrier_at(home, address, "arrival at", place);
    release_to(f, m.arriving);
    arrive_at(m, address, expect_bytes, place);
}
void emu_mbarrier_expect(void* mbarrier, int bytes) {
    settle(current());
    mbarrier_at(home_of(mbarrier), mbarrier, "expect_tx at", PLACE).bytes += bytes;
}
void emu_mbarrier_wait(void* mbarrier, int parity) {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    MBarrier& m = mbarrier_at(home_of(mbarrier), mbarrier, "wait at", place);
    if (static_cast<int>(m.phase & 1) != parity) {
        acquire_from(f, m.complete);
        return;
    }
    m.waiting.push_back(f);
    f->argument = &m;
    block_here("a wait for an mbarrier", place);
}
int emu_mbarrier_test(void* mbarrier, int parity) {
    Fiber* f = current();
    void* place = PLACE;
    settle(f);
    MBarrier& m = mbarrier_at(home_of(mbarrier), mbarrier, "test of", place);
    if (static_cast<int>(m.phase & 1) != parity) {
        acquire_from(f, m.complete);
        return 1;
    }
    give_way(f->home, place);
    return 0;
}

static void fence_mbarriers(Fiber* f) {
    for (void* address : f->initialised) {
        auto found = f->home->mbarriers.find(address);
        if (found != f->home->mbarriers.end()) found->second.fenced = true;
    }
    f->initialised.clear();
}
void emu_fence_proxy_async() {
    Fiber* f = current();
    fence_mbarriers(f);
    if (!checking(f->home)) return;
    settle(f);
    f->proxy_fence_clock = f->clock;
    f->proxy_known = f->home->known;
    f->proxy_clocks = f->clocks;
    advance(f);
}
void emu_fence_mbarrier_init() { fence_mbarriers(current()); }
}
