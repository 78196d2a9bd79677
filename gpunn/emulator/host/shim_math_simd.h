// "Video" instructions: two 16-bit or four 8-bit lanes in one 32-bit word; and the DPX functions of dynamic
// programming (max and min of sums, of three values). See shim_math.h.
#pragma once

namespace emu {
namespace math {

// The two kinds of word, by the type of a lane: int16_t, uint16_t (2 lanes), int8_t, uint8_t (4 lanes).
template <class Lane, class Function>
EMU_INLINE unsigned by_lane(unsigned a, unsigned b, Function function) {
    constexpr int bits = 8 * sizeof(Lane);
    constexpr unsigned mask = (1u << bits) - 1;
    unsigned result = 0;
    for (int at = 0; at < 32; at += bits)
        result |= ((unsigned)function((int)(Lane)(a >> at & mask), (int)(Lane)(b >> at & mask)) & mask) << at;
    return result;
}

template <class Lane>
EMU_INLINE int clamped(int x) {
    constexpr int low = std::numeric_limits<Lane>::min(), high = std::numeric_limits<Lane>::max();
    return x < low ? low : x > high ? high : x;
}

}  // namespace math
}  // namespace emu

// One function of two words and, from the same expression of the lanes a and b, its forms for 2 and 4 lanes.
#define EMU_LANES(name, lane, expression)                                                         \
    EMU_INLINE unsigned name(unsigned x, unsigned y) {                                            \
        const auto function = [](int a, int b) -> int { return (void)a, (void)b, (expression); }; \
        return emu::math::by_lane<lane>(x, y, function);                                          \
    }
#define EMU_SIGNED(name, expression)        \
    EMU_LANES(name##2, int16_t, expression) \
    EMU_LANES(name##4, int8_t, expression)
#define EMU_UNSIGNED(name, expression)       \
    EMU_LANES(name##2, uint16_t, expression) \
    EMU_LANES(name##4, uint8_t, expression)

EMU_UNSIGNED(__vadd, a + b)  // wrapping
EMU_UNSIGNED(__vsub, a - b)
EMU_LANES(__vaddss2, int16_t, emu::math::clamped<int16_t>(a + b))  // saturating
EMU_LANES(__vaddss4, int8_t, emu::math::clamped<int8_t>(a + b))
EMU_LANES(__vaddus2, uint16_t, emu::math::clamped<uint16_t>(a + b))
EMU_LANES(__vaddus4, uint8_t, emu::math::clamped<uint8_t>(a + b))
EMU_LANES(__vsubss2, int16_t, emu::math::clamped<int16_t>(a - b))
EMU_LANES(__vsubss4, int8_t, emu::math::clamped<int8_t>(a - b))
EMU_LANES(__vsubus2, uint16_t, emu::math::clamped<uint16_t>(a - b))
EMU_LANES(__vsubus4, uint8_t, emu::math::clamped<uint8_t>(a - b))

EMU_SIGNED(__vavgs, (a + b + (a + b >= 0)) >> 1)  // halves away from zero
EMU_UNSIGNED(__vavgu, (a + b + 1) >> 1)
EMU_UNSIGNED(__vhaddu, (a + b) >> 1)

EMU_SIGNED(__vmaxs, a > b ? a : b)
EMU_UNSIGNED(__vmaxu, a > b ? a : b)
EMU_SIGNED(__vmins, a < b ? a : b)
EMU_UNSIGNED(__vminu, a < b ? a : b)

EMU_SIGNED(__vabsdiffs, a > b ? a - b : b - a)
EMU_UNSIGNED(__vabsdiffu, a > b ? a - b : b - a)

// Comparisons: __vcmp* gives all ones or zeros in a lane, __vset* gives 1 or 0.
#define EMU_COMPARE(relation, suffix, operator)                 \
    EMU_SIGNED(__vcmp##relation##suffix, a operator b ? -1 : 0) \
    EMU_SIGNED(__vset##relation##suffix, a operator b ? 1 : 0)
#define EMU_COMPARE_UNSIGNED(relation, operator)             \
    EMU_UNSIGNED(__vcmp##relation##u, a operator b ? -1 : 0) \
    EMU_UNSIGNED(__vset##relation##u, a operator b ? 1 : 0)
EMU_COMPARE(eq, , ==)
EMU_COMPARE(ne, , !=)
EMU_COMPARE(ge, s, >=)
EMU_COMPARE(gt, s, >)
EMU_COMPARE(le, s, <=)
EMU_COMPARE(lt, s, <)
EMU_COMPARE_UNSIGNED(ge, >=)
EMU_COMPARE_UNSIGNED(gt, >)
EMU_COMPARE_UNSIGNED(le, <=)
EMU_COMPARE_UNSIGNED(lt, <)
#undef EMU_COMPARE
#undef EMU_COMPARE_UNSIGNED

// One word: absolute value and negation, wrapping or (ss) saturating.
#define EMU_ONE_WORD(name, lane, expression)                                                 \
    EMU_INLINE unsigned name(unsigned x) {                                                   \
        return emu::math::by_lane<lane>(x, x, [](int a, int) -> int { return expression; }); \
    }
EMU_ONE_WORD(__vabs2, int16_t, a < 0 ? -a : a)
EMU_ONE_WORD(__vabs4, int8_t, a < 0 ? -a : a)
EMU_ONE_WORD(__vabsss2, int16_t, emu::math::clamped<int16_t>(a < 0 ? -a : a))
EMU_ONE_WORD(__vabsss4, int8_t, emu::math::clamped<int8_t>(a < 0 ? -a : a))
EMU_ONE_WORD(__vneg2, int16_t, -a)
EMU_ONE_WORD(__vneg4, int8_t, -a)
EMU_ONE_WORD(__vnegss2, int16_t, emu::math::clamped<int16_t>(-a))
EMU_ONE_WORD(__vnegss4, int8_t, emu::math::clamped<int8_t>(-a))
#undef EMU_ONE_WORD

// Sum of the lanes' absolute differences.
#define EMU_SUM(name, differences, lane)                                                 \
    EMU_INLINE unsigned name(unsigned x, unsigned y) {                                   \
        const unsigned all = differences(x, y);                                          \
        unsigned sum = 0;                                                                \
        for (unsigned at = 0; at < 32; at += 8 * sizeof(lane)) sum += (lane)(all >> at); \
        return sum;                                                                      \
    }
EMU_SUM(__vsads2, __vabsdiffs2, uint16_t)
EMU_SUM(__vsadu2, __vabsdiffu2, uint16_t)
EMU_SUM(__vsads4, __vabsdiffs4, uint8_t)
EMU_SUM(__vsadu4, __vabsdiffu4, uint8_t)
#undef EMU_SUM

// ---- DPX --------------------------------------------------------------------------------------------------
// viaddmax: max(a + b, c); vimax3: max(a, b, c); vimax…relu: not below 0; vibmax: max and which one it was.
// Sums wrap as on the GPU, hence the detour over unsigned.

namespace emu {
namespace math {
EMU_INLINE int wrapping_sum(int a, int b) { return (int)((unsigned)a + (unsigned)b); }
template <class T>
EMU_INLINE T larger(T a, T b) { return a < b ? b : a; }
template <class T>
EMU_INLINE T smaller(T a, T b) { return b < a ? b : a; }
}  // namespace math
}  // namespace emu

#define EMU_DPX_PAIR(name, pick)                                                                               \
    EMU_INLINE int __viadd##name##_s32(int a, int b, int c) { return pick(emu::math::wrapping_sum(a, b), c); } \
    EMU_INLINE unsigned __viadd##name##_u32(unsigned a, unsigned b, unsigned c) { return pick(a + b, c); }     \
    EMU_INLINE int __viadd##name##_s32_relu(int a, int b, int c) {                                             \
        return emu::math::larger(pick(emu::math::wrapping_sum(a, b), c), 0);                                   \
    }                                                                                                          \
    EMU_INLINE int __vi##name##3_s32(int a, int b, int c) { return pick(pick(a, b), c); }                      \
    EMU_INLINE unsigned __vi##name##3_u32(unsigned a, unsigned b, unsigned c) { return pick(pick(a, b), c); }  \
    EMU_INLINE int __vi##name##3_s32_relu(int a, int b, int c) {                                               \
        return emu::math::larger(pick(pick(a, b), c), 0);                                                      \
    }                                                                                                          \
    EMU_INLINE int __vi##name##_s32_relu(int a, int b) { return emu::math::larger(pick(a, b), 0); }
EMU_DPX_PAIR(max, emu::math::larger)
EMU_DPX_PAIR(min, emu::math::smaller)
#undef EMU_DPX_PAIR

#define EMU_DPX_LANES(name)                                                              \
    EMU_INLINE unsigned __viadd##name##_s16x2(unsigned a, unsigned b, unsigned c) {      \
        return __v##name##s2(__vadd2(a, b), c);                                          \
    }                                                                                    \
    EMU_INLINE unsigned __viadd##name##_u16x2(unsigned a, unsigned b, unsigned c) {      \
        return __v##name##u2(__vadd2(a, b), c);                                          \
    }                                                                                    \
    EMU_INLINE unsigned __viadd##name##_s16x2_relu(unsigned a, unsigned b, unsigned c) { \
        return __vmaxs2(__v##name##s2(__vadd2(a, b), c), 0);                             \
    }                                                                                    \
    EMU_INLINE unsigned __vi##name##3_s16x2(unsigned a, unsigned b, unsigned c) {        \
        return __v##name##s2(__v##name##s2(a, b), c);                                    \
    }                                                                                    \
    EMU_INLINE unsigned __vi##name##3_u16x2(unsigned a, unsigned b, unsigned c) {        \
        return __v##name##u2(__v##name##u2(a, b), c);                                    \
    }                                                                                    \
    EMU_INLINE unsigned __vi##name##3_s16x2_relu(unsigned a, unsigned b, unsigned c) {   \
        return __vmaxs2(__v##name##s2(__v##name##s2(a, b), c), 0);                       \
    }                                                                                    \
    EMU_INLINE unsigned __vi##name##_s16x2_relu(unsigned a, unsigned b) {                \
        return __vmaxs2(__v##name##s2(a, b), 0);                                         \
    }
EMU_DPX_LANES(max)
EMU_DPX_LANES(min)
#undef EMU_DPX_LANES

// The predicate says that the first operand was taken (also when both are equal).
#define EMU_DPX_WHICH(name, operator)                                                                       \
    EMU_INLINE int __vib##name##_s32(int a, int b, bool* first) { return (*first = a operator b) ? a : b; } \
    EMU_INLINE unsigned __vib##name##_u32(unsigned a, unsigned b, bool* first) {                            \
        return (*first = a operator b) ? a : b;                                                             \
    }                                                                                                       \
    EMU_INLINE unsigned __vib##name##_s16x2(unsigned a, unsigned b, bool* high_first, bool* low_first) {    \
        *high_first = (int16_t)(a >> 16) operator (int16_t)(b >> 16);                                       \
        *low_first = (int16_t)a operator (int16_t)b;                                                        \
        return __v##name##s2(a, b);                                                                         \
    }                                                                                                       \
    EMU_INLINE unsigned __vib##name##_u16x2(unsigned a, unsigned b, bool* high_first, bool* low_first) {    \
        *high_first = (uint16_t)(a >> 16) operator (uint16_t)(b >> 16);                                     \
        *low_first = (uint16_t)a operator (uint16_t)b;                                                      \
        return __v##name##u2(a, b);                                                                         \
    }
EMU_DPX_WHICH(max, >=)
EMU_DPX_WHICH(min, <=)
#undef EMU_DPX_WHICH

#undef EMU_SIGNED
#undef EMU_UNSIGNED
#undef EMU_LANES
