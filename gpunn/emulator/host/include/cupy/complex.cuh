// Stands in for CuPy's <cupy/complex.cuh>: complex<Type> in the global namespace, here the host library's.
#pragma once

#include <complex>

namespace thrust {
using std::abs;
using std::acos;
using std::arg;
using std::asin;
using std::atan;
using std::complex;
using std::conj;
using std::cos;
using std::cosh;
using std::exp;
using std::log;
using std::log10;
using std::norm;
using std::polar;
using std::pow;
using std::proj;
using std::sin;
using std::sinh;
using std::sqrt;
using std::tan;
using std::tanh;
}  // namespace thrust
using std::arg;
using std::complex;
using std::conj;
using std::polar;
using std::proj;
using std::norm;

namespace emu {
template <class Real, class Type>
using OtherReal =
    typename std::enable_if<std::is_arithmetic<Real>::value && !std::is_same<Real, Type>::value>::type;
}

// CuPy also lets a complex number meet a real one of the other precision.
template <class Type, class Real, class = emu::OtherReal<Real, Type>>
EMU_INLINE complex<Type> operator*(const complex<Type>& z, Real x) {
    return z * (Type)x;
}
template <class Type, class Real, class = emu::OtherReal<Real, Type>>
EMU_INLINE complex<Type> operator*(Real x, const complex<Type>& z) {
    return (Type)x * z;
}
template <class Type, class Real, class = emu::OtherReal<Real, Type>>
EMU_INLINE complex<Type> operator/(const complex<Type>& z, Real x) {
    return z / (Type)x;
}
template <class Type, class Real, class = emu::OtherReal<Real, Type>>
EMU_INLINE complex<Type> operator+(const complex<Type>& z, Real x) {
    return z + (Type)x;
}
template <class Type, class Real, class = emu::OtherReal<Real, Type>>
EMU_INLINE complex<Type> operator-(const complex<Type>& z, Real x) {
    return z - (Type)x;
}
