// shim_atomic.h - atomic functions on any plain type, with the semantics of CUDA's (relaxed order).
//
// emu_atomic_begin checks the access, and locks if other threads of the operating system can see it.
#pragma once

namespace emu {
template <class T> struct Same {  // keeps a second argument out of template deduction
    typedef T type;
};
template <class T, class F> EMU_NOSAN __noinline__ T modify(T* address, F change) {
    emu_atomic_begin(address, sizeof(T), EMU_CALLER);
    T before;
    memcpy(static_cast<void*>(&before), static_cast<const void*>(address), sizeof(T));
    const T after = change(before);
    memcpy(static_cast<void*>(address), static_cast<const void*>(&after), sizeof(T));
    emu_atomic_end();
    return before;
}
}  // namespace emu

#define EMU_ATOMIC(name, expression)                                                     \
    template <class T> __forceinline__ T name(T* address, typename emu::Same<T>::type v) {               \
        return emu::modify(address, [=](T old) EMU_NOSAN -> T { return expression; });   \
    }                                                                                    \
    template <class T> __forceinline__ T name##_block(T* address, typename emu::Same<T>::type v) {       \
        return name(address, v);                                                         \
    }                                                                                    \
    template <class T> __forceinline__ T name##_system(T* address, typename emu::Same<T>::type v) {      \
        return name(address, v);                                                         \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicMax, old < v ? v : old)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicInc, old >= v ? T(0) : T(old + 1))
EMU_ATOMIC(atomicDec, (old == T(0) || v < old) ? v : T(old - 1))
#undef EMU_ATOMIC

template <class T>
__forceinline__ T atomicCAS(T* address, typename emu::Same<T>::type compare, typename emu::Same<T>::type v) {
    return emu::modify(address, [=](T old) EMU_NOSAN -> T { return old == compare ? v : old; });
}
template <class T>
__forceinline__ T atomicCAS_block(T* address, typename emu::Same<T>::type compare, typename emu::Same<T>::type v) {
    return atomicCAS(address, compare, v);
}
template <class T>
__forceinline__ T atomicCAS_system(T* address, typename emu::Same<T>::type compare, typename emu::Same<T>::type v) {
    return atomicCAS(address, compare, v);
}
