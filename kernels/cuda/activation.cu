// activation.cu - activation functions over arrays of any shape, forward and backward.
//
//   activation_forward    out[i]  = f(x[i])
//   activation_backward   out[i]  = grad[i] f'(x[i])
//
// Who does what, and the limit: see elementwise.cuh. Forward moves 2 n elements, backward 3 n; at
// 4 bytes an element that is 8 or 12 bytes for each of 1 to about 70 instructions, so memory is the
// limit on any GPU with fast float32. 16-bit elements come twice as fast, and their functions are
// computed by quicker instructions (quick.cuh).
// Assumes: nothing of the shape; VECTOR only if all pointers are at one distance from multiples of 16 bytes.
//
// Spills: activation_backward<double, Gelu: erfc in float64 holds values across the subroutine that
// divides; 8 bytes a thread, beside a hundred float64 operations an element.
#include "activation.cuh"
#include "elementwise.cuh"
#include "quick.cuh"

template <typename T, typename Activation, bool VECTOR>
__global__ void __launch_bounds__(256)
activation_forward(const T* x, T* out, int64 n, Accumulator<T> alpha) {
    typedef Accumulator<T> A;
    typedef Functional<T> F;
    const Inputs<T, 1> in = {{x}};
    elementwise<T, VECTOR>(out, in, n, [=](const A (&v)[1]) {
        return static_cast<A>(Activation::value(F(v[0]), F(alpha)));
    });
}

template <typename T, typename Activation, bool VECTOR>
__global__ void __launch_bounds__(256)
activation_backward(const T* grad, const T* x, T* out, int64 n, Accumulator<T> alpha) {
    typedef Accumulator<T> A;
    typedef Functional<T> F;
    const Inputs<T, 2> in = {{grad, x}};
    elementwise<T, VECTOR>(out, in, n, [=](const A (&v)[2]) {
        return v[0] * static_cast<A>(Activation::derivative(F(v[1]), F(alpha)));
    });
}
