// Integer intrinsics, bit casts, dot products, loads and stores with cache hints. See shim_math.h.
#pragma once

namespace emu {

// The same bits as another type of the same size.
template <class To, class From>
EMU_INLINE To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "same_bits needs types of one size");
    To result;
    __builtin_memcpy(&result, &value, sizeof(To));
    return result;
}

// T, but not deduced from this parameter: lets __stcg(double*, 1.0f) convert as a plain store would.
template <class T>
struct Undeduced {
    typedef T type;
};

}  // namespace emu

// ---- bit casts --------------------------------------------------------------------------------------------

EMU_INLINE int __float_as_int(float x) { return emu::same_bits<int>(x); }
EMU_INLINE unsigned __float_as_uint(float x) { return emu::same_bits<unsigned>(x); }
EMU_INLINE float __int_as_float(int x) { return emu::same_bits<float>(x); }
EMU_INLINE float __uint_as_float(unsigned x) { return emu::same_bits<float>(x); }
EMU_INLINE long long __double_as_longlong(double x) { return emu::same_bits<long long>(x); }
EMU_INLINE double __longlong_as_double(long long x) { return emu::same_bits<double>(x); }
EMU_INLINE int __double2hiint(double x) { return (int)(emu::same_bits<uint64_t>(x) >> 32); }
EMU_INLINE int __double2loint(double x) { return (int)emu::same_bits<uint64_t>(x); }
EMU_INLINE double __hiloint2double(int high, int low) {
    return emu::same_bits<double>((uint64_t)(uint32_t)high << 32 | (uint32_t)low);
}

// ---- counting and moving bits -----------------------------------------------------------------------------

EMU_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_INLINE int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
EMU_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }

EMU_INLINE unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
EMU_INLINE unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)__brev((unsigned)x) << 32 | __brev((unsigned)(x >> 32));
}

// The low three bits of each of the selector's four nibbles name one byte of (y, x).
EMU_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned byte = selector >> (4 * i) & 7;
        result |= ((unsigned)(bytes >> (8 * byte)) & 255) << (8 * i);
    }
    return result;
}

// (high, low) as one 64-bit word, shifted; the plain forms take the count modulo 32, _lc and _rc clamp it.
EMU_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned count) {
    return (unsigned)((((uint64_t)high << 32 | low) << (count & 31)) >> 32);
}
EMU_INLINE unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned count) {
    return (unsigned)((((uint64_t)high << 32 | low) << (count < 32 ? count : 32)) >> 32);
}
EMU_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned count) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (count & 31));
}
EMU_INLINE unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned count) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (count < 32 ? count : 32));
}

EMU_INLINE unsigned short __nv_bswap16(unsigned short x) { return __builtin_bswap16(x); }
EMU_INLINE unsigned __nv_bswap32(unsigned x) { return __builtin_bswap32(x); }
EMU_INLINE unsigned long long __nv_bswap64(unsigned long long x) { return __builtin_bswap64(x); }

// The n-th set bit at or above (n > 0) or at or below (n < 0) the base; n == 0 asks for the base bit itself.
EMU_INLINE unsigned __fns(unsigned mask, unsigned base, int n) {
    if (n == 0) return base < 32 && (mask >> base & 1) ? base : 0xffffffffu;
    int left = n > 0 ? n : -n;
    for (int at = (int)base; at >= 0 && at < 32; at += n > 0 ? 1 : -1)
        if ((mask >> at & 1) && --left == 0) return (unsigned)at;
    return 0xffffffffu;
}

// ---- products, averages, differences ----------------------------------------------------------------------

EMU_INLINE int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
EMU_INLINE long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
// Low 32 bits of the product of the low 24 bits.
EMU_INLINE unsigned __umul24(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)(a & 0xffffffu) * (b & 0xffffffu));
}
EMU_INLINE int __mul24(int a, int b) {
    const int low_a = (int)((unsigned)a << 8) >> 8, low_b = (int)((unsigned)b << 8) >> 8;
    return (int)((int64_t)low_a * low_b);
}

// Averages without overflow: rounded down, or (r) up.
EMU_INLINE int __hadd(int a, int b) { return (int)(((int64_t)a + b) >> 1); }
EMU_INLINE int __rhadd(int a, int b) { return (int)(((int64_t)a + b + 1) >> 1); }
EMU_INLINE unsigned __uhadd(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a + b) >> 1); }
EMU_INLINE unsigned __urhadd(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a + b + 1) >> 1); }

// |a - b| + c
EMU_INLINE unsigned __sad(int a, int b, unsigned c) {
    return (a > b ? (unsigned)a - (unsigned)b : (unsigned)b - (unsigned)a) + c;
}
EMU_INLINE unsigned __usad(unsigned a, unsigned b, unsigned c) { return (a > b ? a - b : b - a) + c; }

// ---- dot products of bytes (dp4a) and of halfwords with bytes (dp2a) --------------------------------------

namespace emu {

// Sum over four bytes; BYTE says whether they are signed. The sum wraps, as on the GPU.
template <class BYTE, class WORD>
EMU_INLINE WORD dot4(WORD a, WORD b, WORD c) {
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 4; i++)
        sum += (unsigned)((int)(BYTE)((unsigned)a >> (8 * i)) * (int)(BYTE)((unsigned)b >> (8 * i)));
    return (WORD)sum;
}

// Sum over the two halfwords of a and two bytes of b, from byte FIRST on.
template <class SHORT, class BYTE, int FIRST, class WORD>
EMU_INLINE WORD dot2(WORD a, WORD b, WORD c) {
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 2; i++)
        sum += (unsigned)((SHORT)((unsigned)a >> (16 * i)) * (BYTE)((unsigned)b >> (8 * (FIRST + i))));
    return (WORD)sum;
}

}  // namespace emu

EMU_INLINE int __dp4a(int a, int b, int c) { return emu::dot4<signed char>(a, b, c); }
EMU_INLINE unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return emu::dot4<unsigned char>(a, b, c); }
EMU_INLINE int __dp4a(char4 a, char4 b, int c) {
    return __dp4a(emu::same_bits<int>(a), emu::same_bits<int>(b), c);
}
EMU_INLINE unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
    return __dp4a(emu::same_bits<unsigned>(a), emu::same_bits<unsigned>(b), c);
}
#define EMU_DP2A(name, first)                                                                          \
    EMU_INLINE int name(int a, int b, int c) { return emu::dot2<short, signed char, first>(a, b, c); } \
    EMU_INLINE unsigned name(unsigned a, unsigned b, unsigned c) {                                     \
        return emu::dot2<unsigned short, unsigned char, first>(a, b, c);                               \
    }                                                                                                  \
    EMU_INLINE int name(short2 a, char4 b, int c) {                                                    \
        return name(emu::same_bits<int>(a), emu::same_bits<int>(b), c);                                \
    }                                                                                                  \
    EMU_INLINE unsigned name(ushort2 a, uchar4 b, unsigned c) {                                        \
        return name(emu::same_bits<unsigned>(a), emu::same_bits<unsigned>(b), c);                      \
    }
EMU_DP2A(__dp2a_lo, 0)
EMU_DP2A(__dp2a_hi, 2)
#undef EMU_DP2A

// ---- loads and stores with cache hints: ordinary ones here, and checked like ordinary ones ----------------

#define EMU_LOAD(name)                                             \
    template <class T>                                             \
    EMU_INLINE typename std::remove_cv<T>::type name(T* address) { \
        return *address;                                           \
    }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
#undef EMU_LOAD

// "Fetch again": a volatile load, for what others change meanwhile.
template <class T>
EMU_INLINE typename std::remove_cv<T>::type __ldcv(T* address) {
    if constexpr (std::is_scalar<T>::value)
        return *const_cast<const volatile T*>(address);
    else
        return *address;
}

#define EMU_STORE(name)                                                        \
    template <class T>                                                         \
    EMU_INLINE void name(T* address, typename emu::Undeduced<T>::type value) { \
        *address = value;                                                      \
    }
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwb)
EMU_STORE(__stwt)
#undef EMU_STORE

// ---- address spaces ---------------------------------------------------------------------------------------

EMU_INLINE unsigned __isShared(const void* p) { return emu_is_shared(p) != 0; }
EMU_INLINE unsigned __isCtaShared(const void* p) { return __isShared(p); }
EMU_INLINE unsigned __isGlobal(const void* p) { return !__isShared(p); }
EMU_INLINE unsigned __isConstant(const void*) { return 0; }
EMU_INLINE unsigned __isLocal(const void*) { return 0; }
EMU_INLINE unsigned __isGridConstant(const void*) { return 0; }
EMU_INLINE size_t __cvta_generic_to_shared(const void* p) { return emu_shared_address(p); }
EMU_INLINE size_t __cvta_generic_to_global(const void* p) { return (size_t)p; }
EMU_INLINE size_t __cvta_generic_to_local(const void* p) { return (size_t)p; }
EMU_INLINE size_t __cvta_generic_to_constant(const void* p) { return (size_t)p; }
EMU_INLINE void* __cvta_global_to_generic(size_t p) { return (void*)p; }

// ---- clusters of blocks, barriers by number ---------------------------------------------------------------

EMU_INLINE unsigned __clusterRelativeBlockRank() { return (unsigned)emu_cluster_rank(); }
EMU_INLINE unsigned __clusterSizeInBlocks() { return (unsigned)emu_cluster_size(); }
EMU_INLINE bool __clusterDimIsSpecified() { return emu_cluster_size() > 1; }
EMU_INLINE void* __cluster_map_shared_rank(const void* p, unsigned rank) {
    return emu_map_shared(p, (int)rank);
}
EMU_INLINE void __cluster_barrier_arrive() { emu_cluster_arrive(); }
EMU_INLINE void __cluster_barrier_arrive_relaxed() { emu_cluster_arrive(); }
EMU_INLINE void __cluster_barrier_wait() { emu_cluster_wait(); }
EMU_INLINE void __threadfence_cluster() { emu_thread_fence(1); }
EMU_INLINE void __barrier_sync_count(unsigned id, unsigned threads) { emu_named_barrier((int)id, (int)threads, 1); }
EMU_INLINE void __barrier_sync(unsigned id) {
    __barrier_sync_count(id, blockDim.x * blockDim.y * blockDim.z);
}

// ---- clocks, hints to the optimizer, profiling ------------------------------------------------------------

// clock() is the C library's. Nanoseconds stand in for cycles: they go on, and mean nothing else.
EMU_INLINE long long clock64() {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

#if !defined(__clang__)
#define __builtin_assume(condition) ((void)0)
#endif
#define __assume(condition) ((void)0)
#define __nv_is_extended_device_lambda_closure_type(type) false

EMU_INLINE void __prof_trigger(int) {}
EMU_INLINE void __pm0() {}
EMU_INLINE void __pm1() {}
EMU_INLINE void __pm2() {}
EMU_INLINE void __pm3() {}

// ---- what is not emulated, said in words ------------------------------------------------------------------

#define EMU_NO_TEXTURE(name)                                                                       \
    template <class T, class... Arguments>                                                         \
    T name(Arguments...) {                                                                         \
        static_assert(sizeof(T) == 0, "the emulator has no textures: read from an array instead"); \
    }
EMU_NO_TEXTURE(tex1Dfetch)
EMU_NO_TEXTURE(tex1D)
EMU_NO_TEXTURE(tex2D)
EMU_NO_TEXTURE(tex3D)
EMU_NO_TEXTURE(tex2DLayered)
EMU_NO_TEXTURE(tex2DLod)
EMU_NO_TEXTURE(tex3DLod)
#undef EMU_NO_TEXTURE
