// hooks.h - the calls that -fsanitize=thread and -fsanitize=undefined compile into a kernel; the
// sanitizers' own libraries are not linked.
#pragma once
#include "checker.h"

// Registers of wgmma (its accumulators lie on the thread's stack): touched while wgmma may still use them?
static bool in_tile(u64 address, u32 bytes, const void* tile, u32 tile_bytes) {
    const u64 start = reinterpret_cast<u64>(tile);
    return address < start + tile_bytes && start < address + bytes;
}
static void check_tile(Fiber* f, u64 address, u32 bytes, Mode mode, void* place) {
    if (in_tile(address, bytes, f->tile, f->tile_bytes)) f->tile_touched = true;
    const auto touched = [&](const std::vector<WgmmaStep>& steps) {
        for (const WgmmaStep& s : steps) {
            const bool accumulator = in_tile(address, bytes, s.d, s.n * 2);
            const bool fragment = writes(mode) && s.a_registers && in_tile(address, bytes, s.a_registers, 16);
            if (!accumulator && !fragment) continue;
            const Access issued = {f->home->gang->tag, f->clock, f->id, place_of(f->home->launch, s.place)};
            report(MISSING_WAIT, place, 0, &issued, "%s of registers that a wgmma still uses: no wgmma.wait_group between",
                   verb(mode));
            return true;
        }
        return false;
    };
    if (touched(f->steps)) return;
    for (auto& group : f->step_groups)
        if (touched(group)) return;
}

static inline void hook(const void* pointer, u32 bytes, Mode mode, void* place) {
    Block* b = own_block;
    if (!b || !emu_current || b->dead || b->in_callback) return;
    Fiber* f = current();
    const u64 address = reinterpret_cast<u64>(pointer);
    if (address - reinterpret_cast<u64>(b->stacks) < b->stack_size * b->stack_count) {
        if (f->tile_bytes) check_tile(f, address, bytes, mode, place);
        return;
    }
    if (address - reinterpret_cast<u64>(b->fibers) < sizeof(Fiber) * b->fiber_capacity) return;  // threadIdx …
    if (pointer == static_cast<void*>(&emu_current)) return;
    settle(f);
    if (b->launch->options.preempt && --b->countdown <= 0) {
        b->countdown = 1 + random_number(b) % (2 * b->launch->options.preempt);
        switch_to(b, pick(b));
    }
    if ((address & (bytes - 1)) && (bytes & (bytes - 1)) == 0 && bytes <= 16) {
        report(MISALIGNED, place, address, nullptr, "%u-byte %s at an address that is no multiple of %u", bytes, verb(mode),
               bytes);
        die(b);
    }
    check(f, address, bytes, mode, BY_THREAD, place);
    if (mode < ATOMIC_WRITE) return;
    // A volatile access: a flag between threads.
    if (mode == VOLATILE_WRITE) {
        release_at(f, address, false);
    } else {
        give_way(b, place);
        f->acquire_later = address;
    }
}

extern "C" {
#define HOOKS(n)                                                                              \
    void __tsan_read##n(void* p) { hook(p, n, READ, PLACE); }                                 \
    void __tsan_write##n(void* p) { hook(p, n, WRITE, PLACE); }                               \
    void __tsan_unaligned_read##n(void* p) { hook(p, n, READ, PLACE); }                       \
    void __tsan_unaligned_write##n(void* p) { hook(p, n, WRITE, PLACE); }                     \
    void __tsan_volatile_read##n(void* p) { hook(p, n, VOLATILE_READ, PLACE); }                 \
    void __tsan_volatile_write##n(void* p) { hook(p, n, VOLATILE_WRITE, PLACE); }               \
    void __tsan_unaligned_volatile_read##n(void* p) { hook(p, n, VOLATILE_READ, PLACE); }       \
    void __tsan_unaligned_volatile_write##n(void* p) { hook(p, n, VOLATILE_WRITE, PLACE); }     \
    void __tsan_read##n##_pc(void* p, void* pc) { hook(p, n, READ, pc); }                     \
    void __tsan_write##n##_pc(void* p, void* pc) { hook(p, n, WRITE, pc); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#undef HOOKS

// Structures that one instruction does not move: in pieces of 16 bytes.
static void hook_range(const void* p, u64 n, Mode mode, void* place) {
    const char* at = static_cast<const char*>(p);
    while (n) {
        u32 piece = 16;
        while (piece > n || (reinterpret_cast<u64>(at) & (piece - 1))) piece /= 2;
        hook(at, piece, mode, place);
        at += piece, n -= piece;
    }
}
void __tsan_read_range(void* p, u64 n) { hook_range(p, n, READ, PLACE); }
void __tsan_write_range(void* p, u64 n) { hook_range(p, n, WRITE, PLACE); }
void* __tsan_memcpy(void* to, const void* from, u64 n) {
    hook_range(from, n, READ, PLACE);
    hook_range(to, n, WRITE, PLACE);
    return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, u64 n) {
    hook_range(from, n, READ, PLACE);
    hook_range(to, n, WRITE, PLACE);
    return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, u64 n) {
    hook_range(to, n, WRITE, PLACE);
    return memset(to, value, n);
}
// clang 14 calls memcpy itself for structures; the kernel's object has one of its own, which comes here.
void* emu_memcpy(void* to, const void* from, u64 n, void* place) {
    hook_range(from, n, READ, place);
    hook_range(to, n, WRITE, place);
    return memmove(to, from, n);
}
void* emu_memset(void* to, int value, u64 n, void* place) {
    hook_range(to, n, WRITE, place);
    return memset(to, value, n);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

// ---- undefined behaviour ------------------------------------------------------------------------------

struct UbsanLocation {
    const char* file;
    u32 line, column;
};
struct UbsanType {
    u16 kind, info;
    char name[1];
};
struct UbsanIndex {
    UbsanLocation location;
    const UbsanType *array, *index;
};
struct UbsanMismatch {
    UbsanLocation location;
    const UbsanType* type;
    u8 log_alignment, check;
};

#define UBSAN(name, fault, address, ...)                            \
    static void name##_found(void* place, void* data, void* value) {            \
        (void)data, (void)value;                                                \
        if (!own_block || !emu_current || own_block->in_callback) return;       \
        report(fault, place, address, nullptr, __VA_ARGS__);                    \
        die(own_block);                                                         \
    }
UBSAN(index, OUT_OF_BOUNDS, 0, "index %lld is outside of the array %s",
      static_cast<long long>(reinterpret_cast<intptr_t>(value)), static_cast<UbsanIndex*>(data)->array->name)
UBSAN(mismatch, MISALIGNED, reinterpret_cast<u64>(value), "access to a %s at an address that is no multiple of %d",
      static_cast<UbsanMismatch*>(data)->type->name, 1 << static_cast<UbsanMismatch*>(data)->log_alignment)
UBSAN(shift, TRAP, 0, "a shift by a negative number, or by as many bits as the type has or more")
UBSAN(division, TRAP, 0, "division by zero, or of the smallest integer by -1")
#undef UBSAN
void __ubsan_handle_out_of_bounds(void* d, void* i) { index_found(PLACE, d, i); }
void __ubsan_handle_out_of_bounds_abort(void* d, void* i) { index_found(PLACE, d, i); }
void __ubsan_handle_type_mismatch_v1(void* d, void* p) { mismatch_found(PLACE, d, p); }
void __ubsan_handle_type_mismatch_v1_abort(void* d, void* p) { mismatch_found(PLACE, d, p); }
void __ubsan_handle_shift_out_of_bounds(void* d, void*, void* r) { shift_found(PLACE, d, r); }
void __ubsan_handle_shift_out_of_bounds_abort(void* d, void*, void* r) { shift_found(PLACE, d, r); }
void __ubsan_handle_divrem_overflow(void* d, void*, void* r) { division_found(PLACE, d, r); }
void __ubsan_handle_divrem_overflow_abort(void* d, void*, void* r) { division_found(PLACE, d, r); }
}
