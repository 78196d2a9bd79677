// bulk.h - bulk copies and tensor copies (TMA), as kernels issue them.
//
// Loads become jobs of a copy engine (copy.h). Stores are the issuing thread's: done at its wait or at the end.
#pragma once
#include "copy.h"

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

// Where a box may begin, as an H100 has it, which stops with "an illegal instruction" otherwise: at whole 16 bytes
// along the innermost dimension, also outside of the tensor; and a store at no negative coordinate.
static void require_beginning(const tensor::Map& map, const int* at, bool store, void* place) {
    const char* what = store ? "the box of a tensor store" : "the box of a tensor load";
    if (static_cast<int64_t>(at[0]) * map.element_bytes % 16) {
        report(TRAP, place, 0, nullptr,
               "%s begins at element %d of %d bytes along the innermost dimension: not a multiple of 16 bytes", what,
               at[0], map.element_bytes);
        die(own_block);
    }
    for (int d = 0; store && d < map.rank; d++)
        if (at[d] < 0) {
            report(TRAP, place, 0, nullptr, "%s begins at %d in dimension %d: a store begins at no negative place",
                   what, at[d], d);
            die(own_block);
        }
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
    f->waiting_place = s.place;  // should it meet a guard page
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
    require_beginning(decoded, at, false, place);
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
    require_beginning(decoded, at, true, place);
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
