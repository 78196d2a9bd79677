// async.h - what a GPU does beside its threads: cp.async, mbarriers, bulk and tensor copies, wgmma.
//
// Each is done as late as its rules allow: cp.async and wgmma at their wait, loads of a copy engine when no
// thread can run, stores at their wait or at the end. What was not waited for is then seen not to be there.
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

// ---- cp.async --------------------------------------------------------------------------------------------------

static void land(Fiber* f, const std::vector<CopyAsync>& copies) {
    for (const CopyAsync& c : copies) {
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
        run_job(b, job);
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

// ---- tensor maps -----------------------------------------------------------------------------------------------------

static tensor::Map decode_map(const void* bytes, int dimensions, void* place) {
    tensor::Map map;
    const char* why = nullptr;
    if (!tensor::decode(bytes, map, &why)) {
        report(TRAP, place, 0, nullptr, "this is no tensor map: %s", why);
        die(own_block);
    }
    if (dimensions && map.rank != dimensions) {
        report(TRAP, place, 0, nullptr, "a %d-dimensional copy with a tensor map of %d dimensions", dimensions, map.rank);
        die(own_block);
    }
    return map;
}

static void store_piece(void* target, const void* source, u32 bytes, int reduce) {
    if (!reduce) {
        memcpy(target, source, bytes);
        return;
    }
    std::lock_guard<FairLock> guard(atomic_mutex);
    tensor::reduce(reduce, target, source, static_cast<int>(bytes));
}

// Moves the pieces of a box between shared memory and the tensor.
static void tensor_pieces(const u8* map_bytes, const void* shared, const int* at, const u16* offsets, Block* home,
                          void* place, bool store, int reduce) {
    const tensor::Map map = decode_map(map_bytes, 0, place);
    char* window = home->shared;
    tensor::walk(map, static_cast<u32>(static_cast<const char*>(shared) - window), at, offsets,
                 [&](const tensor::Piece& p) {
                     char* here = window + p.shared;
                     char* there = reinterpret_cast<char*>(p.global);
                     if (store) store_piece(there, here, p.inside, reduce);
                     else {
                         if (p.inside == 16) memcpy(here, there, 16);  // one instruction
                         else memcpy(here, there, p.inside);
                         tensor::fill(map, here + p.inside, p.bytes - p.inside);
                     }
                 });
}

// ---- bulk stores: shared to global, by the thread that issued them -------------------------------------------------------

// The writes to global memory are the store engine's: the thread knows of them once it has waited for the group.
static void check_global_of(Fiber* f, BulkStore& s, Mode mode) {
    Gang* g = f->home->gang;
    s.clock = ++g->clock;
    const Access as = {g->tag, s.clock, g->store_engine(f->home->rank), place_of(f->home->launch, s.place)};
    if (!s.map) {
        check(f, reinterpret_cast<u64>(s.global), s.bytes, mode, BY_ASYNC_PROXY, s.place, &as);
        return;
    }
    const tensor::Map map = decode_map(s.map_copy, 0, s.place);
    tensor::walk(map, 0, s.at, nullptr, [&](const tensor::Piece& p) {
        if (p.inside) check(f, p.global, p.inside, mode, BY_ASYNC_PROXY, s.place, &as);
    });
}
static void finish_read(Fiber* f, BulkStore& s) {
    if (s.read_done) return;
    s.read_done = true;
    if (s.map) tensor_pieces(s.map_copy, s.shared, s.at, nullptr, f->home, s.place, true, s.reduce);
    else store_piece(s.global, s.shared, s.bytes, s.reduce);
    mark_read(f, reinterpret_cast<u64>(s.shared), s.bytes, s.place);
}
static void submit_store(BulkStore s, void* place) {
    Fiber* f = current();
    settle(f);
    s.place = place;
    s.read_done = false;
    if (checking(f->home)) {
        check(f, reinterpret_cast<u64>(s.shared), s.bytes, READ, BY_ASYNC_PROXY, place);
        check_global_of(f, s, s.reduce ? ATOMIC_WRITE : WRITE);
        mark(f, reinterpret_cast<u64>(s.shared), s.bytes, BEING_READ, 0, 0, 0, place);
    }
    f->stores.push_back(s);
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

void emu_bulk_load(void* shared, const void* global, int bytes, void* mbarrier, int multicast) {
    void* place = PLACE;
    settle(current());
    require_aligned(global, 16, "the source of a bulk copy", place);
    require_whole(bytes, place);
    check_if(const_cast<void*>(global), bytes, READ, place);
    for_each_target(multicast, place, [&](Block* target) {
        EngineJob job{};
        job.kind = EngineJob::BULK;
        job.shared = static_cast<char*>(multicast ? in_block(shared, target) : shared);
        job.global = static_cast<const char*>(global);
        job.bytes = bytes;
        job.barrier_home = target;
        job.mbarrier = multicast ? in_block(mbarrier, target) : mbarrier;
        submit(std::move(job), 16, place);
    });
}
void emu_bulk_to_peer(void* shared_like, const void* source, int bytes, void* mbarrier_like, int rank) {
    void* place = PLACE;
    settle(current());
    Block* target = block_of_rank(rank, place);
    require_aligned(source, 16, "the source of a bulk copy", place);
    check_if(const_cast<void*>(source), bytes, READ, place, BY_ASYNC_PROXY);
    EngineJob job{};
    job.kind = EngineJob::BULK;
    job.shared = static_cast<char*>(in_block(shared_like, target));
    job.global = static_cast<const char*>(source);
    job.bytes = bytes;
    job.barrier_home = target;
    job.mbarrier = in_block(mbarrier_like, target);
    submit(std::move(job), 16, place);
}
void emu_store_async(void* shared_like, const void* value, int bytes, void* mbarrier_like, int rank) {
    void* place = PLACE;
    settle(current());
    Block* target = block_of_rank(rank, place);
    EngineJob job{};
    job.kind = EngineJob::STORE;
    job.shared = static_cast<char*>(in_block(shared_like, target));
    job.bytes = bytes;
    memcpy(&job.value, value, bytes);
    job.barrier_home = target;
    job.mbarrier = in_block(mbarrier_like, target);
    submit(std::move(job), bytes, place);
}
void emu_tensor_load(void* shared, const void* map, void* mbarrier, int dimensions, const int* at,
                     const uint16_t* im2col_offsets, int multicast) {
    void* place = PLACE;
    Fiber* f = current();
    settle(f);
    const tensor::Map decoded = decode_map(map, dimensions, place);
    EngineJob job{};
    job.kind = EngineJob::TENSOR;
    memcpy(job.map, map, sizeof job.map);
    memcpy(job.at, at, dimensions * sizeof(int));
    job.im2col = im2col_offsets;
    if (im2col_offsets) memcpy(job.offsets, im2col_offsets, (dimensions - 2) * sizeof(u16));
    job.bytes = tensor::box_bytes(decoded);
    if (checking(f->home))  // the whole source now; each piece is inside of the tensor by construction
        tensor::walk(decoded, 0, at, im2col_offsets, [&](const tensor::Piece& p) {
            if (p.inside) check(f, p.global, p.inside, READ, BY_THREAD, place);
        });
    for_each_target(multicast, place, [&](Block* target) {
        EngineJob one = job;
        one.shared = static_cast<char*>(multicast ? in_block(shared, target) : shared);
        one.barrier_home = target;
        one.mbarrier = multicast ? in_block(mbarrier, target) : mbarrier;
        submit(std::move(one), tensor::shared_alignment(decoded), place);
    });
}
void emu_tensor_store(const void* map, const void* shared, int dimensions, const int* at, int reduce) {
    void* place = PLACE;
    const tensor::Map decoded = decode_map(map, dimensions, place);
    BulkStore s{};
    s.map = map;
    memcpy(s.map_copy, map, sizeof s.map_copy);
    s.shared = shared;
    s.bytes = tensor::box_bytes(decoded);
    s.dimensions = dimensions;
    memcpy(s.at, at, dimensions * sizeof(int));
    s.reduce = reduce ? tensor::reduction(decoded.type) : tensor::COPY;
    if (s.reduce == tensor::CANNOT_ADD) {
        report(TRAP, place, 0, nullptr, "a tensor store cannot add elements of this type");
        die(own_block);
    }
    require_aligned(shared, tensor::shared_alignment(decoded), "the shared memory of a tensor store", place);
    submit_store(s, place);
}
void emu_bulk_store(void* global, const void* shared, int bytes, int reduce) {
    void* place = PLACE;
    require_aligned(global, 16, "the target of a bulk copy", place);
    require_aligned(shared, 16, "the source of a bulk copy", place);
    require_whole(bytes, place);
    BulkStore s{};
    s.global = global;
    s.shared = shared;
    s.bytes = bytes;
    s.reduce = reduce;
    submit_store(s, place);
}
void emu_bulk_commit() {
    Fiber* f = current();
    f->store_groups.push_back(std::move(f->stores));
    f->stores.clear();
}
void emu_bulk_wait(int keep, int read_only) {
    Fiber* f = current();
    settle(f);
    const int done = static_cast<int>(f->store_groups.size()) - keep;
    for (int i = 0; i < done; i++)
        for (BulkStore& s : f->store_groups[i]) finish_read(f, s);
    for (int i = 0; i < done && !read_only; i++) {
        if (checking(f->home))
            for (BulkStore& s : f->store_groups.front()) {
                u32& known = clocks_of(f)[f->home->gang->store_engine(f->home->rank)];
                known = std::max(known, s.clock);
            }
        f->store_groups.pop_front();
    }
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
