// activation.cu - activation functions over arrays of any shape, forward and backward.
//
//   activation_forward    out[i]  = f(x[i])
//   activation_backward   out[i]  = grad[i] f'(x[i])
//
// Who does what, and the limit: see elementwise.cuh. Forward moves 2 n elements, backward 3 n; at
// 4 bytes an element that is 8 or 12 bytes for each of 1 to about 40 operations, so memory is the
// limit on any GPU with fast float32.
// Assumes: nothing of the shape; VECTOR only if all pointers are multiples of 16 bytes.
//
// Spills: activation_backward<double, Gelu: erfc in float64 holds values across the subroutine that
// divides; 8 bytes a thread, beside a hundred float64 operations an element.
#include "activation.cuh"
#include "elementwise.cuh"

template <typename T, typename Activation, bool VECTOR>
__global__ void __launch_bounds__(256)
activation_forward(const T* x, T* out, int64 n, Accumulator<T> alpha) {
    typedef Accumulator<T> A;
    const Inputs<T, 1> in = {{x}};
    elementwise<T, VECTOR>(out, in, n, [=](const A (&v)[1]) { return Activation::value(v[0], alpha); });
}

template <typename T, typename Activation, bool VECTOR>
__global__ void __launch_bounds__(256)
activation_backward(const T* grad, const T* x, T* out, int64 n, Accumulator<T> alpha) {
    typedef Accumulator<T> A;
    const Inputs<T, 2> in = {{grad, x}};
    elementwise<T, VECTOR>(out, in, n, [=](const A (&v)[2]) {
        return v[0] * Activation::derivative(v[1], alpha);
    });
}
