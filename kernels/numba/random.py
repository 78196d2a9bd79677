"""Random numbers and dropout, the teaching version: one thread a Philox block of four elements.

    random_bits(out, …, first_block)                out[i] = word(i)
    random_uniform_<dtype>(out, …, low, width)      out[i] = low + width * u(i)
    random_normal_<dtype>(out, …, mean, std)        out[i] = mean + std * quantile(i)
    dropout(x, out, …, threshold, scale)            out[i] = x[i] * scale, or 0
    advance_counter(counter, draws)                 counter[1] += draws; one thread

… is seed, offset, counter, given: with `given` the seed is counter[0] and the offset counts from
counter[1]; else that array is not read.

word(i) is word i % 4 of Philox4x32-10 at the counter (i // 4, offset) under the key seed. The
results are those of NumPy bit for bit; gpunn/primitives/random_reference.py explains the quantile.

All integers are uint64 made with np.uint64: Numba adds a uint64 and a Python integer as float64.
"""

import math

import numpy as np
from numba import config, cuda

# ---- operations that are each rounded by themselves ---------------------------------------------
# On a GPU a * b + c would become one fused operation with one rounding; these never do. Numba's
# simulator knows no libdevice and computes with NumPy, which fuses nothing.

if config.ENABLE_CUDASIM:

    @cuda.jit(device=True)
    def add32(a, b):
        return a + b

    @cuda.jit(device=True)
    def multiply32(a, b):
        return a * b

    add64, multiply64 = add32, multiply32
else:
    from numba.cuda import libdevice

    @cuda.jit(device=True)
    def add32(a, b):
        return libdevice.fadd_rn(a, b)

    @cuda.jit(device=True)
    def multiply32(a, b):
        return libdevice.fmul_rn(a, b)

    @cuda.jit(device=True)
    def add64(a, b):
        return libdevice.dadd_rn(a, b)

    @cuda.jit(device=True)
    def multiply64(a, b):
        return libdevice.dmul_rn(a, b)


# ---- Philox4x32-10 ------------------------------------------------------------------------------

LOW = np.uint64(0xFFFFFFFF)
WORD = np.uint64(32)
MULTIPLIER_A, MULTIPLIER_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_A, WEYL_B = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@cuda.jit(device=True)
def philox(block, offset, seed):
    """Four words below 2^32, as uint64."""
    c0, c1 = block & LOW, block >> WORD
    c2, c3 = offset & LOW, offset >> WORD
    k0, k1 = seed & LOW, seed >> WORD
    for _ in range(10):
        a, b = MULTIPLIER_A * c0, MULTIPLIER_B * c2
        c0, c1 = (b >> WORD) ^ c1 ^ k0, b & LOW
        c2, c3 = (a >> WORD) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + WEYL_A) & LOW, (k1 + WEYL_B) & LOW
    return c0, c1, c2, c3


@cuda.jit(device=True)
def origin(seed, offset, counter, given):
    """The seed and the offset that count."""
    if given:
        return counter[0], counter[1] + offset
    return seed, offset


@cuda.jit
def random_bits(out, seed, offset, counter, given, first_block):
    seed, offset = origin(seed, offset, counter, given)
    for block in range(cuda.grid(1), (out.size + 3) // 4, cuda.gridsize(1)):
        words = philox(first_block + np.uint64(block), offset, seed)
        for k in range(4):
            if 4 * block + k < out.size:
                out[4 * block + k] = words[k]


@cuda.jit
def dropout(x, out, seed, offset, counter, given, threshold, scale):
    seed, offset = origin(seed, offset, counter, given)
    for block in range(cuda.grid(1), (x.size + 3) // 4, cuda.gridsize(1)):
        words = philox(np.uint64(block), offset, seed)
        for k in range(4):
            i = 4 * block + k
            if i < x.size:
                # u = (word >> 8) / 2^24 >= p, compared as integers
                if words[k] >> np.uint64(8) >= threshold:
                    out[i] = x[i] * scale
                else:
                    out[i] = 0


@cuda.jit
def advance_counter(counter, draws):
    counter[1] += draws


# ---- draws: the word for float32, 53 bits for float64 -------------------------------------------


@cuda.jit(device=True)
def draws32(block, offset, seed):
    return philox(block, offset, seed)


FAR, EXTRA, DROPPED = np.uint64(1 << 63), np.uint64(21), np.uint64(11)


@cuda.jit(device=True)
def draws64(block, offset, seed):
    a0, a1, a2, a3 = philox(block, offset, seed)
    b0, b1, b2, b3 = philox(block | FAR, offset, seed)
    return (
        (a0 << EXTRA) | (b0 >> DROPPED),
        (a1 << EXTRA) | (b1 >> DROPPED),
        (a2 << EXTRA) | (b2 >> DROPPED),
        (a3 << EXTRA) | (b3 >> DROPPED),
    )


# ---- kernels for one dtype ----------------------------------------------------------------------


def _uniform_kernel(real, draws, add, multiply, dropped, unit):
    dropped, unit = np.uint64(dropped), real(unit)

    @cuda.jit
    def random_uniform(out, seed, offset, counter, given, low, width):
        seed, offset = origin(seed, offset, counter, given)
        for block in range(cuda.grid(1), (out.size + 3) // 4, cuda.gridsize(1)):
            bits = draws(np.uint64(block), offset, seed)
            for k in range(4):
                if 4 * block + k < out.size:
                    u = multiply(real(bits[k] >> dropped), unit)
                    out[4 * block + k] = add(multiply(u, width), low)

    return random_uniform


def _quantile(real, integer, add, multiply, half, mantissa, root, artanh, numerator, denominator):
    """A device function: the standard normal quantile of (draw + 1/2) / 2^(half + 1)."""
    artanh, numerator, denominator = (
        tuple(map(real, table)) for table in (artanh, numerator, denominator)
    )
    end, unit = integer((1 << half) - 1), real(2.0**-half)
    one, two, one_half, minus_log_2 = real(1), real(2), real(0.5), real(-math.log(2))
    root, mask, mantissa = integer(root), integer((1 << mantissa) - 1), integer(mantissa)

    @cuda.jit(device=True)
    def polynomial(table, x):
        value = table[len(table) - 1]
        for k in range(len(table) - 2, -1, -1):
            value = add(multiply(value, x), table[k])
        return value

    @cuda.jit(device=True)
    def minus_log(y):
        # y = 2^exponent m with m in [sqrt(1/2), sqrt(2)), found in the bits of the number
        bits = integer(y.view(integer) - root)
        exponent = real(bits >> mantissa)
        m = integer((bits & mask) + root).view(real)
        g = real(add(one, -m) / add(m, one))
        series = multiply(polynomial(artanh, multiply(g, g)), g)
        return add(series, multiply(exponent, minus_log_2))

    @cuda.jit(device=True)
    def quantile(draw):
        # rank: how many draws lie between this one and the nearer end
        centred = np.int64(draw) - np.int64(end) - np.int64(1)
        rank = np.int64(end) - (centred if centred >= 0 else -np.int64(1) - centred)
        x = multiply(add(real(centred), one_half), unit)
        t = multiply(add(real(rank), one_half), unit)
        w = minus_log(multiply(add(two, -t), t))
        ratio = real(polynomial(numerator, w) / polynomial(denominator, w))
        return multiply(ratio, x)

    return quantile


def _normal_kernel(draws, add, multiply, quantile):
    @cuda.jit
    def random_normal(out, seed, offset, counter, given, mean, std):
        seed, offset = origin(seed, offset, counter, given)
        for block in range(cuda.grid(1), (out.size + 3) // 4, cuda.gridsize(1)):
            bits = draws(np.uint64(block), offset, seed)
            for k in range(4):
                if 4 * block + k < out.size:
                    out[4 * block + k] = add(multiply(quantile(bits[k]), std), mean)

    return random_normal


random_uniform_float32 = _uniform_kernel(np.float32, draws32, add32, multiply32, 8, 2.0**-24)
random_uniform_float64 = _uniform_kernel(np.float64, draws64, add64, multiply64, 0, 2.0**-53)

quantile32 = _quantile(
    np.float32, np.int32, add32, multiply32, half=31, mantissa=23, root=0x3F3504F3,
    artanh=[2 / (2 * k + 1) for k in range(4)],
    numerator=[
        1.25331414, 0.447422057, 0.0909955576, 0.0125217028, 0.00113786408, 5.93234145e-05,
        1.91215833e-07,
    ],
    denominator=[
        1.0, 0.0951914936, 0.0346521288, 0.00231108675, 0.000248439435, 3.73882995e-06,
    ],
)  # fmt: skip
quantile64 = _quantile(
    np.float64, np.int64, add64, multiply64, half=52, mantissa=52, root=0x3FE6A09E667F3BCD,
    artanh=[2 / (2 * k + 1) for k in range(10)],
    numerator=[
        1.2533141373155006, 0.63877970561179054, 0.19217785242659166, 0.042690193838295358,
        0.007178990369924752, 0.00095522836974797542, 0.0001019858464871777,
        8.7569920705936494e-06, 6.0826180739714274e-07, 3.4613338941603662e-08,
        1.6095750634235958e-09, 5.0584866753717997e-11, 1.7504548238496434e-12,
        1.3743351609089755e-14, 1.0061442076674791e-17,
    ],
    denominator=[
        1.0, 0.24787307706271727, 0.075410684602502762, 0.013723964447873448,
        0.0019499224593928855, 0.00025473804985444372, 2.1011317575274098e-05,
        1.8985817957889168e-06, 9.8945339204727138e-08, 6.1882117981591238e-09,
        1.908730327534698e-10, 7.6895357009168876e-12, 1.3828353193838616e-13,
        3.9585970883079853e-16,
    ],
)  # fmt: skip
random_normal_float32 = _normal_kernel(draws32, add32, multiply32, quantile32)
random_normal_float64 = _normal_kernel(draws64, add64, multiply64, quantile64)
