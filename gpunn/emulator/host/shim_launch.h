// shim_launch.h - what the generated end of a source says of each kernel: how to call it, and its signature.
#pragma once

namespace emu {

constexpr int MAX_PARAMETERS = 64;
constexpr int MAX_DYNAMIC_SHARED = 232448;  // 227 KiB, what a block of sm_90 may have

// What kind of value a parameter or the target of a pointer is.
enum Category { OTHER, BOOLEAN, INTEGER, UNSIGNED, FLOATING };

struct Parameter {
    int size, category;
    int pointer;      // 0 a value, 1 a pointer, 2 a pointer to const
    int target_size;  // of a pointer; 0 for void
    int target_category;
};
struct Signature {
    int count;
    Parameter parameter[MAX_PARAMETERS];
    int max_threads;  // of __launch_bounds__, 0 if there are none
    int cluster[3];   // of __cluster_dims__, 0 if there are none
};

template <class T> constexpr int category_of() {
    using V = std::remove_cv_t<T>;
    if (std::is_same<V, bool>::value) return BOOLEAN;
    if (std::is_integral<V>::value) return std::is_signed<V>::value ? INTEGER : UNSIGNED;
    if (std::is_floating_point<V>::value || std::is_same<V, __half>::value || std::is_same<V, __nv_bfloat16>::value)
        return FLOATING;
    return OTHER;
}
template <class T> constexpr int size_of() {
    if constexpr (std::is_void<T>::value) return 0;
    else return sizeof(T);
}
template <class P> constexpr Parameter parameter_of() {
    using V = std::remove_reference_t<std::remove_cv_t<P>>;
    if constexpr (std::is_pointer<V>::value) {
        using Target = std::remove_pointer_t<V>;
        return {sizeof(V), OTHER, std::is_const<Target>::value ? 2 : 1, size_of<Target>(), category_of<Target>()};
    } else {
        return {sizeof(V), category_of<V>(), 0, 0, OTHER};
    }
}

template <auto K> struct Kernel;
template <class... P, void (*K)(P...)> struct Kernel<K> {
    static_assert(sizeof...(P) <= MAX_PARAMETERS, "the emulator takes kernels of at most 64 parameters");
    template <size_t... I> EMU_NOSAN static void unpack(void** arguments, std::index_sequence<I...>) {
        K(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
    }
    EMU_NOSAN static void call(void** arguments) { unpack(arguments, std::index_sequence_for<P...>{}); }
    static Signature signature(int max_threads, int x, int y, int z) {
        return {sizeof...(P), {parameter_of<P>()...}, max_threads, {x, y, z}};
    }
};

struct Cluster {
    int x = 0, y = 1, z = 1;
};

}  // namespace emu

// The launch bounds and the cluster come as expressions in the words of the source.
#define EMU_KERNEL(number, bounds, cluster_dimensions, ...)                                       \
    extern "C" EMU_NOSAN void emu_kernel_##number(void** arguments) {                             \
        emu::Kernel<__VA_ARGS__>::call(arguments);                                                \
    }                                                                                             \
    extern "C" EMU_NOSAN void emu_signature_##number(emu::Signature* out) {                       \
        const emu::Cluster c = cluster_dimensions();                                              \
        *out = emu::Kernel<__VA_ARGS__>::signature(bounds(), c.x, c.y, c.z);                      \
    }
