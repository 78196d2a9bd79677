// Stands in for NVIDIA's <mma.h>: nvcuda::wmma. A fragment's elements lie in an order of our own (lane L holds
// elements L * count … of the tile, row by row), which programs may not rely on anyway.
#pragma once

#include "../shim_half.h"

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32 {};
}

namespace details {

// How an element is stored, and read as a number for the arithmetic.
template <class Type>
struct Stored {
    typedef Type type;
};
template <>
struct Stored<precision::tf32> {
    typedef float type;
};
EMU_INLINE double number(__half x) { return __half2float(x); }
EMU_INLINE double number(__nv_bfloat16 x) { return __bfloat162float(x); }
EMU_INLINE double number(double x) { return x; }
template <class Type>
EMU_INLINE double number(Type x) { return (double)x; }
template <class Type>
EMU_INLINE Type rounded(double x) { return (Type)x; }
template <>
EMU_INLINE __half rounded<__half>(double x) { return __double2half(x); }

template <class Use, int M_, int N_, int K_>
struct Shape;
template <int M_, int N_, int K_>
struct Shape<matrix_a, M_, N_, K_> {
    static constexpr int rows = M_, columns = K_;
};
template <int M_, int N_, int K_>
struct Shape<matrix_b, M_, N_, K_> {
    static constexpr int rows = K_, columns = N_;
};
template <int M_, int N_, int K_>
struct Shape<accumulator, M_, N_, K_> {
    static constexpr int rows = M_, columns = N_;
};

}  // namespace details

template <class Use, int M_, int N_, int K_, class Type, class Layout = void>
struct fragment {
    typedef details::Shape<Use, M_, N_, K_> Shape;
    static constexpr int rows = Shape::rows, columns = Shape::columns;
    static constexpr int num_elements = rows * columns / 32;
    static constexpr int num_storage_elements = num_elements;
    typedef typename details::Stored<Type>::type element_type;
    typedef element_type storage_element_type;
    element_type x[num_elements];
};

EMU_INLINE float __float_to_tf32(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    return __uint_as_float((bits + 0x1000u) & 0xffffe000u);  // to nearest, ties away, as cvt.rna.tf32
}

template <class Fragment, class Value>
EMU_INLINE void fill_fragment(Fragment& f, Value value) {
    for (int i = 0; i < Fragment::num_elements; i++) f.x[i] = (typename Fragment::element_type)value;
}

namespace details {

template <class Fragment>
EMU_INLINE unsigned place(int i, unsigned stride, bool by_rows) {
    const int at = emu_current->lane * Fragment::num_elements + i;
    const unsigned row = at / Fragment::columns, column = at % Fragment::columns;
    return by_rows ? row * stride + column : column * stride + row;
}
template <class Fragment, class Type>
EMU_INLINE void load(Fragment& f, const Type* from, unsigned stride, bool by_rows) {
    for (int i = 0; i < Fragment::num_elements; i++) f.x[i] = from[place<Fragment>(i, stride, by_rows)];
}

}  // namespace details

template <class Use, int M_, int N_, int K_, class Type, class Layout, class Element>
EMU_INLINE void load_matrix_sync(fragment<Use, M_, N_, K_, Type, Layout>& f, const Element* from,
                                 unsigned stride) {
    details::load(f, from, stride, std::is_same<Layout, row_major>::value);
}
template <int M_, int N_, int K_, class Type, class Element>
EMU_INLINE void load_matrix_sync(fragment<accumulator, M_, N_, K_, Type>& f, const Element* from, unsigned stride,
                                 layout_t layout) {
    details::load(f, from, stride, layout == mem_row_major);
}
template <int M_, int N_, int K_, class Type, class Element>
EMU_INLINE void store_matrix_sync(Element* to, const fragment<accumulator, M_, N_, K_, Type>& f, unsigned stride,
                                  layout_t layout) {
    typedef fragment<accumulator, M_, N_, K_, Type> Fragment;
    for (int i = 0; i < Fragment::num_elements; i++)
        to[details::place<Fragment>(i, stride, layout == mem_row_major)] = f.x[i];
}

namespace details {

template <class TypeD, class TypeA, class TypeB, class TypeC>
struct Operands {
    TypeD* d;
    const TypeA* a;
    const TypeB* b;
    const TypeC* c;
};
// Runs once for the warp: the elements of all lanes together are the matrices.
template <class TypeD, class TypeA, class TypeB, class TypeC>
EMU_NOSAN void multiply_all(void** arguments, unsigned) {
    constexpr int rows = TypeD::rows, columns = TypeD::columns, inner = TypeA::columns;
    typedef Operands<TypeD, TypeA, TypeB, TypeC> Own;
    auto lane = [&](int at, int count) EMU_NOSAN { return static_cast<Own*>(arguments[at / count]); };
    double a[rows][inner], b[inner][columns];
    for (int i = 0; i < rows * inner; i++)
        a[i / inner][i % inner] = number(lane(i, TypeA::num_elements)->a->x[i % TypeA::num_elements]);
    for (int i = 0; i < inner * columns; i++)
        b[i / columns][i % columns] = number(lane(i, TypeB::num_elements)->b->x[i % TypeB::num_elements]);
    for (int i = 0; i < rows * columns; i++) {
        double sum = number(lane(i, TypeC::num_elements)->c->x[i % TypeC::num_elements]);
        for (int k = 0; k < inner; k++) sum += a[i / columns][k] * b[k][i % columns];
        typedef typename TypeD::element_type Result;
        lane(i, TypeD::num_elements)->d->x[i % TypeD::num_elements] = rounded<Result>(sum);
    }
}

}  // namespace details

template <int M_, int N_, int K_, class TypeA, class LayoutA, class TypeB, class LayoutB, class TypeC,
          class TypeD>
EMU_NOSAN void mma_sync(fragment<accumulator, M_, N_, K_, TypeD>& d,
                        const fragment<matrix_a, M_, N_, K_, TypeA, LayoutA>& a,
                        const fragment<matrix_b, M_, N_, K_, TypeB, LayoutB>& b,
                        const fragment<accumulator, M_, N_, K_, TypeC>& c) {
    typedef fragment<matrix_a, M_, N_, K_, TypeA, LayoutA> FragmentA;
    typedef fragment<matrix_b, M_, N_, K_, TypeB, LayoutB> FragmentB;
    typedef fragment<accumulator, M_, N_, K_, TypeC> FragmentC;
    typedef fragment<accumulator, M_, N_, K_, TypeD> FragmentD;
    details::Operands<FragmentD, FragmentA, FragmentB, FragmentC> own{&d, &a, &b, &c};
    emu_collective(0xffffffffu, &own, details::multiply_all<FragmentD, FragmentA, FragmentB, FragmentC>,
                   "wmma::mma_sync");
}

}  // namespace wmma
}  // namespace nvcuda
