// shim_warp.h - shuffles, votes, reductions and matches of a warp.
//
// Each is one emu_collective: the lanes bring the address of what they give and take; the last to come
// runs the function for all of them. What a kernel calls is inlined into it, so that the return address of
// what it calls in turn is a place in the kernel.
#pragma once

namespace emu {

inline bool in(unsigned mask, int lane) { return mask >> lane & 1; }

template <class T> struct Shuffled {
    T value, result;
    int source;
};
template <class T> EMU_NOSAN void shuffle_all(void** arguments, unsigned mask) {
    for (int lane = 0; lane < 32; lane++) {
        if (!in(mask, lane)) continue;
        auto* own = static_cast<Shuffled<T>*>(arguments[lane]);
        if (in(mask, own->source))
            memcpy(static_cast<void*>(&own->result), &static_cast<Shuffled<T>*>(arguments[own->source])->value, sizeof(T));
        else  // undefined on a GPU: make it show
            memset(static_cast<void*>(&own->result), 0xFF, sizeof(T));
    }
}
template <class T> EMU_NOSAN __noinline__ T shuffle(unsigned mask, T value, int source, const char* what) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 16, "a shuffle moves plain values");
    Shuffled<T> own{value, value, source};
    emu_collective_at(mask, &own, shuffle_all<T>, what, EMU_CALLER);
    return own.result;
}

struct Vote {
    int predicate;
    unsigned result;
};
EMU_NOSAN inline void ballot_all(void** arguments, unsigned mask) {
    unsigned result = 0;
    for (int lane = 0; lane < 32; lane++)
        if (in(mask, lane) && static_cast<Vote*>(arguments[lane])->predicate) result |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (in(mask, lane)) static_cast<Vote*>(arguments[lane])->result = result;
}
EMU_NOSAN __noinline__ inline unsigned ballot(unsigned mask, int predicate, const char* what) {
    Vote own{predicate, 0};
    emu_collective_at(mask, &own, ballot_all, what, EMU_CALLER);
    return own.result;
}

template <class T, class Op> EMU_NOSAN void reduce_all(void** arguments, unsigned mask) {
    T total{};
    bool first = true;
    for (int lane = 0; lane < 32; lane++) {
        if (!in(mask, lane)) continue;
        const T value = *static_cast<T*>(arguments[lane]);
        total = first ? value : Op::apply(total, value);
        first = false;
    }
    for (int lane = 0; lane < 32; lane++)
        if (in(mask, lane)) *static_cast<T*>(arguments[lane]) = total;
}
template <class Op, class T> EMU_NOSAN __noinline__ T reduce(unsigned mask, T value, const char* what) {
    emu_collective_at(mask, &value, reduce_all<T, Op>, what, EMU_CALLER);
    return value;
}
struct Add { template <class T> EMU_NOSAN static T apply(T a, T b) { return a + b; } };
struct Min { template <class T> EMU_NOSAN static T apply(T a, T b) { return b < a ? b : a; } };
struct Max { template <class T> EMU_NOSAN static T apply(T a, T b) { return a < b ? b : a; } };
struct And { template <class T> EMU_NOSAN static T apply(T a, T b) { return a & b; } };
struct Or { template <class T> EMU_NOSAN static T apply(T a, T b) { return a | b; } };
struct Xor { template <class T> EMU_NOSAN static T apply(T a, T b) { return a ^ b; } };

template <class T> struct Matched {
    T value;
    unsigned same;
    int all;
};
template <class T> EMU_NOSAN void match_all(void** arguments, unsigned mask) {
    for (int lane = 0; lane < 32; lane++) {
        if (!in(mask, lane)) continue;
        auto* own = static_cast<Matched<T>*>(arguments[lane]);
        own->same = 0;
        for (int other = 0; other < 32; other++)
            if (in(mask, other) && !memcmp(&static_cast<Matched<T>*>(arguments[other])->value, &own->value, sizeof(T)))
                own->same |= 1u << other;
        own->all = own->same == mask;
    }
}

// The lane that a shuffle reads from, within segments of `width` lanes.
inline int segment(int lane, int width) { return lane & ~(width - 1); }

}  // namespace emu

template <class T> __forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = emu_current->lane;
    return emu::shuffle(mask, value, emu::segment(lane, width) | (source & (width - 1)), "__shfl_sync");
}
template <class T> __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int lane = emu_current->lane, source = lane ^ bits;
    const bool outside = emu::segment(source, width) > emu::segment(lane, width);
    return emu::shuffle(mask, value, outside ? lane : source, "__shfl_xor_sync");
}
template <class T> __forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = emu_current->lane, source = lane + static_cast<int>(delta);
    const bool outside = source >= emu::segment(lane, width) + width;
    return emu::shuffle(mask, value, outside ? lane : source, "__shfl_down_sync");
}
template <class T> __forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = emu_current->lane, source = lane - static_cast<int>(delta);
    const bool outside = source < emu::segment(lane, width);
    return emu::shuffle(mask, value, outside ? lane : source, "__shfl_up_sync");
}

__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) { return emu::ballot(mask, predicate, "__ballot_sync"); }
__forceinline__ int __any_sync(unsigned mask, int predicate) { return emu::ballot(mask, predicate, "__any_sync") != 0; }
__forceinline__ int __all_sync(unsigned mask, int predicate) { return emu::ballot(mask, !predicate, "__all_sync") == 0; }

template <class T> EMU_NOSAN __noinline__ unsigned __match_any_sync(unsigned mask, T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "__match_any_sync compares values of 4 or 8 bytes");
    emu::Matched<T> own{value, 0, 0};
    emu_collective_at(mask, &own, emu::match_all<T>, "__match_any_sync", EMU_CALLER);
    return own.same;
}
template <class T> EMU_NOSAN __noinline__ unsigned __match_all_sync(unsigned mask, T value, int* all) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "__match_all_sync compares values of 4 or 8 bytes");
    emu::Matched<T> own{value, 0, 0};
    emu_collective_at(mask, &own, emu::match_all<T>, "__match_all_sync", EMU_CALLER);
    *all = own.all;
    return own.all ? own.same : 0;
}

__forceinline__ unsigned __reduce_add_sync(unsigned m, unsigned v) { return emu::reduce<emu::Add>(m, v, "__reduce_add_sync"); }
__forceinline__ int __reduce_add_sync(unsigned m, int v) {
    return static_cast<int>(emu::reduce<emu::Add>(m, static_cast<unsigned>(v), "__reduce_add_sync"));
}
__forceinline__ unsigned __reduce_min_sync(unsigned m, unsigned v) { return emu::reduce<emu::Min>(m, v, "__reduce_min_sync"); }
__forceinline__ int __reduce_min_sync(unsigned m, int v) { return emu::reduce<emu::Min>(m, v, "__reduce_min_sync"); }
__forceinline__ unsigned __reduce_max_sync(unsigned m, unsigned v) { return emu::reduce<emu::Max>(m, v, "__reduce_max_sync"); }
__forceinline__ int __reduce_max_sync(unsigned m, int v) { return emu::reduce<emu::Max>(m, v, "__reduce_max_sync"); }
__forceinline__ unsigned __reduce_and_sync(unsigned m, unsigned v) { return emu::reduce<emu::And>(m, v, "__reduce_and_sync"); }
__forceinline__ unsigned __reduce_or_sync(unsigned m, unsigned v) { return emu::reduce<emu::Or>(m, v, "__reduce_or_sync"); }
__forceinline__ unsigned __reduce_xor_sync(unsigned m, unsigned v) { return emu::reduce<emu::Xor>(m, v, "__reduce_xor_sync"); }
