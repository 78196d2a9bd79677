// checker.h - every access of a kernel in checked mode: is it inside, aligned, ordered, initialised?
//
// The compiler's -fsanitize=thread turns each load and store into a call (hooks.h); copies by the runtime on
// a kernel's behalf are checked by `check` directly. Memory has a cell for each 1 to 16 bytes that says who
// wrote and read it last. If an access is smaller than a cell the launch is run again with smaller ones.
#pragma once
#include <algorithm>
#include "clocks.h"

enum Mode { READ, WRITE, ATOMIC_WRITE, ATOMIC_MODIFY, ATOMIC_READ, VOLATILE_WRITE, VOLATILE_READ };
enum Agent { BY_THREAD, BY_ASYNC_PROXY };

static bool writes(Mode mode) { return mode == WRITE || mode == ATOMIC_WRITE || mode == ATOMIC_MODIFY || mode == VOLATILE_WRITE; }
static const char* verb(Mode mode) {
    if (mode >= ATOMIC_WRITE && mode <= ATOMIC_READ) return "atomic access";
    return writes(mode) ? "write" : "read";
}

static u32 place_of(Launch* launch, void* place) {
    return place ? static_cast<u32>(reinterpret_cast<u64>(place) - launch->image_start) : 0;
}

struct Where {  // an address in shadow memory
    Cell* cells = nullptr;
    u64 offset = 0;
    int granule = 0;
    bool shared = false;
    Block* owner = nullptr;  // of shared memory
    Memory* memory = nullptr;
};

static Block* owner_of(Block* b, u64 address) {
    if (address - reinterpret_cast<u64>(b->shared) < b->shared_size) return b;
    if (b->gang->size > 1)
        for (Block* other : b->gang->blocks)
            if (address - reinterpret_cast<u64>(other->shared) < other->shared_size) return other;
    return nullptr;
}

// Cells of global memory are shared by threads of the operating system.
constexpr u64 NO_LOCK = ~0ull;
static std::atomic_flag cell_locks[1024];
struct CellLock {
    std::atomic_flag* flag;
    explicit CellLock(u64 cell) : flag(cell == NO_LOCK ? nullptr : &cell_locks[cell % 1024]) {
        if (flag)
            for (int spins = 0; flag->test_and_set(std::memory_order_acquire); spins++)
                if (spins > 100) sched_yield();
    }
    ~CellLock() {
        if (flag) flag->clear(std::memory_order_release);
    }
};

// ---- one access against one cell --------------------------------------------------------------------

static void remember_overwrite(Fiber* f, u64 address, u32 bytes, const Access& other, void* place) {
    auto& o = f->overwrite;
    if (bytes > sizeof o.before || o.bytes) return;
    o.address = reinterpret_cast<const char*>(address);
    o.bytes = bytes;
    memcpy(o.before, o.address, bytes);
    o.other = other;
    o.place = place;
}

// The write went over another thread's without order. If the value stayed, it was the same: no harm.
static void judge_overwrite(Fiber* f) {
    auto& o = f->overwrite;
    const u32 bytes = o.bytes;
    o.bytes = 0;
    if (memcmp(o.before, o.address, bytes) == 0) return;
    report(RACE, o.place, reinterpret_cast<u64>(o.address), &o.other,
           "two threads write different values to the same place, with nothing that orders them");
}

// What is left over from a thread's last access: to be done before its next one.
static void judge_held(Fiber* f) {
    const auto held = f->held;
    f->held.address = 0;
    report(RACE, held.place, held.address, &held.other, "read of what another thread changes by atomics, with nothing that "
           "orders them; if that is meant, read through a volatile pointer");
}
static inline void settle(Fiber* f) {
    if (f->overwrite.bytes) judge_overwrite(f);
    if (f->acquire_later) {  // the flag has been read by now, and what it announced may be used
        const u64 address = f->acquire_later;
        f->acquire_later = 0;
        acquire_at(f, address);
    }
}

// Was a generic write made visible to the asynchronous proxy: by the writer, or by the reader after it knew?
static bool proxy_fenced(Fiber* f, const Access& w) {
    Block* b = f->home;
    const u32 threads = b->threads, rank = w.thread / threads;
    if (rank >= static_cast<u32>(b->gang->size)) return true;
    const Fiber& writer = b->gang->blocks[rank]->fibers[w.thread % threads];
    if (w.clock <= writer.proxy_fence_clock) return true;
    if (w.thread == f->id) return false;
    if (rank < f->proxy_known.size() && w.clock <= f->proxy_known[rank]) return true;
    return w.thread < f->proxy_clocks.size() && w.clock <= f->proxy_clocks[w.thread];
}

// Returns false if something was reported, so that an access of several cells reports once.
// An agent's access is ordered as its fiber's, but recorded as the agent's own (`as`).
static bool check_cell(Fiber* f, Cell& c, const Where& at, u64 address, u32 bytes, Mode mode, Agent agent, void* place,
                       const Access* as) {
    Block* b = f->home;
    Launch* launch = b->launch;
    const u32 own = b->gang->tag;
    const bool write = writes(mode), atomic = mode >= ATOMIC_WRITE;
    const Access record = as ? *as : Access{own, f->clock, f->id, place_of(launch, place)};
    const bool here = c.write.gang == own;
    const bool elsewhere = !here && !at.shared && c.write.gang >= launch->first_tag;
    if (at.shared && here && (c.flags & IN_FLIGHT)) {
        report(MISSING_WAIT, place, address, &c.write, "%s while an asynchronous copy into it is in flight: "
               "it was not waited for", verb(mode));
        return false;
    }
    if (write && here && (c.flags & BEING_READ)) {
        Access reader = c.write;
        reader.place = c.reader_place;
        report(MISSING_WAIT, place, address, &reader, "written while an asynchronous copy still reads it: "
               "it was not waited for");
        return false;
    }
    if (at.shared && (!write || mode == ATOMIC_MODIFY) && !here) {
        report(UNINITIALIZED, place, address, nullptr, "read of shared memory that nothing has written so far");
        c.read[c.read[0].gang == own] = record;  // if another thread writes it later, that is a race
        return false;
    }
    // Volatile accesses are taken for flags, but not between lanes of a warp: since Volta they run apart, and code
    // that counted on their step needs __syncwarp().
    const bool both_atomic = atomic && (c.flags & (ATOMIC | VOLATILE));
    const bool same_warp = at.shared && here && mode == VOLATILE_READ && (c.flags & VOLATILE) &&
                           c.write.thread / b->threads == static_cast<u32>(b->rank) &&
                           c.write.thread % b->threads / WARP == static_cast<u32>(f->warp);
    if (!both_atomic || same_warp) {
        const bool unordered = here        ? !knows(f, c.write.thread, c.write.clock)
                               : elsewhere ? !knows_foreign(f, c.write)
                                           : false;
        if (unordered) {
            if (mode == WRITE && !(c.flags & (ATOMIC | VOLATILE)) && agent == BY_THREAD) {
                remember_overwrite(f, address, bytes, c.write, place);
            } else if (mode == READ && (c.flags & ATOMIC) && bytes >= 4 && agent == BY_THREAD) {
                if (f->held.address && f->held.address != address) judge_held(f);
                f->held = {address, c.write, place};  // perhaps the first line of a loop of atomicCAS
            } else {
                report(RACE, place, address, &c.write, "%s of what %s wrote, with nothing that orders them", verb(mode),
                       elsewhere ? "another block" : "another thread");
                return false;
            }
        }
    }
    if (agent == BY_ASYNC_PROXY && mode == READ && here && !(c.flags & BY_COPY) && !proxy_fenced(f, c.write)) {
        report(MISSING_FENCE, place, address, &c.write,
               "read by the asynchronous proxy (TMA, bulk copy, wgmma) after an ordinary write without "
               "fence.proxy.async between");
        return false;
    }
    if (!write) {
        if (atomic && !(at.shared && mode == VOLATILE_READ)) return true;
        // Keep the two latest readers that matter: replace one's own, or one that is known, or any.
        int slot = -1;
        for (int i = 0; i < 2 && slot < 0; i++) {
            const Access& r = c.read[i];
            if (r.gang < launch->first_tag || (r.gang == own && knows(f, r.thread, r.clock))) slot = i;
        }
        if (slot < 0) slot = random_number(b) & 1;
        c.read[slot] = record;
        if (slot == 1) c.flags &= ~PLAIN_KEPT;
        c.flags = (c.flags & ~(VOLATILE_READER << slot)) | (mode == VOLATILE_READ ? VOLATILE_READER << slot : 0);
        return true;
    }
    for (const Access& r : c.read) {
        const bool plain_write = &r == &c.read[1] && (c.flags & PLAIN_KEPT);
        // A reader may be on its way to an atomic: see HeldRead.
        if (mode == ATOMIC_MODIFY && bytes >= 4 && !plain_write) continue;
        if (r.gang < launch->first_tag || (at.shared && r.gang != own)) continue;
        if (c.flags & (VOLATILE_READER << (&r - c.read)) && r.thread / WARP != f->id / WARP) continue;  // a flag
        if (r.gang == own ? knows(f, r.thread, r.clock) : knows_foreign(f, r)) continue;
        report(RACE, place, address, &r, "%s of what %s %s, with nothing that orders them", verb(mode),
               r.gang == own ? "another thread" : "another block", plain_write ? "wrote" : "read");
        return false;
    }
    Access kept = {};
    if (atomic && (c.flags & PLAIN_KEPT)) kept = c.read[1];
    else if (atomic && !(c.flags & (ATOMIC | VOLATILE)) && (here || elsewhere)) kept = c.write;
    c.write = record;
    c.flags = mode == ATOMIC_WRITE || mode == ATOMIC_MODIFY ? u32(ATOMIC) : mode == VOLATILE_WRITE ? u32(VOLATILE) : 0;
    if (agent == BY_ASYNC_PROXY) c.flags |= BY_COPY;
    c.read[0].gang = 0;
    c.read[1] = kept;
    if (kept.gang) c.flags |= PLAIN_KEPT;
    return true;
}

// ---- where an address lies ----------------------------------------------------------------------------

[[noreturn]] static void refine(Block* b) {
    b->launch->refine = true;
    die(b);
}

[[noreturn]] static void out_of_bounds(Block* b, u64 address, u32 bytes, Mode mode, void* place) {
    const u64 behind_shared = address - reinterpret_cast<u64>(b->shared) - b->shared_size;
    if (behind_shared < 1u << 16) {
        report(OUT_OF_BOUNDS, place, reinterpret_cast<u64>(b->shared) + b->shared_size - 1, nullptr,
               "%u-byte %s %llu bytes behind the end of static shared memory", bytes, verb(mode),
               static_cast<unsigned long long>(behind_shared));
        die(b);
    }
    // Name the argument that is nearest; for a write one that may be written.
    const Memory* nearest = nullptr;
    u64 distance = ~0ull;
    for (auto& m : b->launch->memory) {
        const u64 end = m.base + m.size;
        const u64 d = (address < m.base ? m.base - address : address > end ? address - end : 0) +
                      (writes(mode) && m.read_only ? 1u << 20 : 0);
        if (d < distance) distance = d, nearest = &m;
    }
    distance &= (1u << 20) - 1;
    const u64 end = nearest ? nearest->base + nearest->size : 0;
    const auto n = [](u64 value) { return static_cast<unsigned long long>(value); };
    if (!nearest || address + (1u << 20) < nearest->base || address > end + (1u << 20))
        report(OUT_OF_BOUNDS, place, address, nullptr, "%u-byte %s of memory that belongs to no argument", bytes, verb(mode));
    else if (address < nearest->base)
        report_near(*nearest, place, address, "%u-byte %s %llu bytes before its start", bytes, verb(mode), n(distance));
    else if (address < end)
        report_near(*nearest, place, address, "%u-byte %s that ends %llu bytes behind its end", bytes, verb(mode),
                    n(address + bytes - end));
    else
        report_near(*nearest, place, address, "%u-byte %s %llu bytes behind its end", bytes, verb(mode), n(distance));
    die(b);
}

// Finds the shadow of an access; dies if it is outside. cells stay null where nothing is kept.
static Where find(Fiber* f, u64 address, u32 bytes, Mode mode, void* place) {
    Block* b = f->home;
    Launch* launch = b->launch;
    Where at;
    if (Block* owner = owner_of(b, address)) {
        const u64 in_dynamic = address - reinterpret_cast<u64>(owner->dynamic);
        if (in_dynamic < MAX_DYNAMIC_SHARED && in_dynamic + bytes > launch->options.shared) {
            report(OUT_OF_BOUNDS, place, address, nullptr, "%u-byte %s behind the end of dynamic shared memory: the kernel "
                   "was launched with %u bytes", bytes, verb(mode), launch->options.shared);
            die(b);
        }
        at.shared = true;
        at.owner = owner;
        at.granule = launch->shared_granule;
        at.cells = owner->cells.data();
        at.offset = address - reinterpret_cast<u64>(owner->shared);
        return at;
    }
    auto& memory = launch->memory;
    for (size_t n = 0, i = b->last_memory; n < memory.size(); n++, i = i + 1 < memory.size() ? i + 1 : 0) {
        Memory& m = memory[i];
        if (address - m.base >= m.size || address - m.base + bytes > m.size) continue;
        b->last_memory = i;
        at.granule = m.granule;
        at.cells = m.cells;
        at.offset = address - m.base;
        at.memory = &m;
        return at;
    }
    if (address >= launch->image_start && address + bytes <= launch->image_end) return at;  // tables, __constant__
    out_of_bounds(b, address, bytes, mode, place);
}

static void touch_remote(Fiber* f, Block* owner, Agent agent, void* place) {
    if (owner->exited) {
        report(LIFETIME, place, 0, nullptr, "access to the shared memory of block %d of the cluster, which has ended",
               owner->rank);
        die(f->home);
    }
    if (agent == BY_ASYNC_PROXY) return;  // its end is the mbarrier's to tell
    if (owner->remote.empty()) owner->remote.assign(f->home->gang->total_threads(), 0);
    owner->remote[f->id] = f->clock;
}

static bool is_guard(Launch* launch, u64 offset) {
    const u64* end = launch->options.guards + launch->options.guard_count;
    return std::binary_search(launch->options.guards, end, offset);
}

static void check(Fiber* f, u64 address, u32 bytes, Mode mode, Agent agent, void* place, const Access* as = nullptr) {
    Block* b = f->home;
    if (!bytes) return;
    b->hooks++;
    const Where at = find(f, address, bytes, mode, place);
    if (!at.cells) return;
    if (bytes == 1 && at.shared && is_guard(b->launch, at.offset)) return;
    if (at.owner && at.owner != b) touch_remote(f, at.owner, agent, place);
    if (at.memory && at.memory->read_only && writes(mode)) {
        report(CONST_WRITE, place, address, nullptr, "%s to an argument that the kernel declares const", verb(mode));
        die(b);
    }
    const u64 low = (1u << at.granule) - 1;
    if ((at.offset | bytes) & low) {
        const int finer = __builtin_ctzll(at.offset | bytes);
        if (at.memory) at.memory->finer = std::min(at.memory->finer, finer);
        else b->launch->shared_finer = std::min(b->launch->shared_finer, finer);
        refine(b);
    }
    for (u64 i = at.offset >> at.granule; i <= (at.offset + bytes - 1) >> at.granule; i++) {
        CellLock lock(at.memory && b->launch->options.threads > 1 ? i : NO_LOCK);
        if (!check_cell(f, at.cells[i], at, address, bytes, mode, agent, place, as)) return;
    }
}

// Set or clear a mark on the cells of shared memory of an asynchronous copy.
static void mark(Fiber* by, u64 address, u32 bytes, u32 set, u32 clear, u32 thread, u32 clock, void* place) {
    Block* b = by->home;
    if (!checking(b) || !bytes) return;
    Block* owner = owner_of(b, address);
    if (!owner) return;
    const int granule = b->launch->shared_granule;
    const u64 offset = address - reinterpret_cast<u64>(owner->shared);
    if ((offset | bytes) & ((1u << granule) - 1)) {
        b->launch->shared_finer = std::min(b->launch->shared_finer, __builtin_ctzll(offset | bytes));
        refine(b);
    }
    for (u64 i = offset >> granule; i <= (offset + bytes - 1) >> granule; i++) {
        Cell& c = owner->cells[i];
        if (set & BEING_READ) {
            c.flags |= BEING_READ;
            c.reader_place = place_of(b->launch, place);
            continue;
        }
        c.flags = (c.flags & ~clear) | set;
        if (set & (IN_FLIGHT | BY_COPY)) {
            c.write = {b->gang->tag, clock, thread, place ? place_of(b->launch, place) : c.write.place};
            c.read[0].gang = c.read[1].gang = 0;
        }
    }
}

// An asynchronous copy has read its source on behalf of `by`, who now knows that it is done.
static void mark_read(Fiber* by, u64 address, u32 bytes, void* place) {
    if (!checking(by->home) || !bytes) return;
    mark(by, address, bytes, 0, BEING_READ, 0, 0, nullptr);
    Block* owner = owner_of(by->home, address);
    if (!owner) return;
    const int granule = by->home->launch->shared_granule;
    const u64 offset = address - reinterpret_cast<u64>(owner->shared);
    for (u64 i = offset >> granule; i <= (offset + bytes - 1) >> granule; i++)
        owner->cells[i].read[0] = {by->home->gang->tag, by->clock, by->id, place_of(by->home->launch, place)};
}

static inline void check_if(void* address, u32 bytes, Mode mode, void* place, Agent agent = BY_THREAD) {
    Fiber* f = current();
    if (checking(f->home)) check(f, reinterpret_cast<u64>(address), bytes, mode, agent, place);
}
