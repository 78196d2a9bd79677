"""Scaled dot-product attention, forward and backward, without ever holding all scores.

For every batch b and head h, with query i and key j (of head h // (H / Hkv))

    s[i, j] = scale q[i] · k[j] + mask[i, j]        the score; -inf where key j is not seen
    l[i]    = log sum_j exp(s[i, j])                `log_sum_exp`
    p[i, j] = exp(s[i, j] - l[i])                   the weights: a softmax over the keys
    out[i]  = sum_j d[i, j] p[i, j] v[j]            d = 1, or with dropout 0 or 1 / (1 - p)

and in backward, with g the gradient of out and delta[i] = g[i] · out[i]

    ds[i, j]  = p[i, j] (d[i, j] g[i] · v[j] - delta[i])
    grad_q[i] = scale sum_j ds[i, j] k[j]           grad_k[j] = scale sum_i ds[i, j] q[i]
    grad_v[j] = sum_i d[i, j] p[i, j] g[i]

Sources: Vaswani et al., "Attention is all you need", 2017; that tiles of scores suffice: Rabe and
Staats, 2021; as kernels: Dao et al., FlashAttention, 2022, Dao, FlashAttention-2, 2023, Shah et
al., FlashAttention-3, 2024; queries that share keys: Ainslie et al., GQA, 2023.

Which keys a query sees
-----------------------
All, less those that one of these rules hides:

causal      query i sees the keys j <= i + causal_offset. 0 is PyTorch's ``is_causal``: both begin
            at one position. Tk - Tq is for queries that are the last of the keys, as when decoding
            with a cache; an array (B,) for sequences of different lengths.
window      with causal: only the last `window` of these, i + causal_offset - window < j
mask        True: may be seen; or a number that is added to the score, -inf to hide it
kv_lengths  keys from kv_lengths[b] on are not seen, nor even read: they may be anything
q_lengths   queries from q_lengths[b] on see nothing

A query that sees no key gives 0 and has no gradient; its log_sum_exp is -inf. NaN and inf travel to
every query that sees them; a key that only the mask or `causal` hides has weight 0, which makes NaN
of a value that is NaN or infinite.

Dropout takes word ((b H + h) Tq + i) 4 ceil(Tk / 4) + j of the project's generator for weight
(b, h, i, j) under (seed, offset), and drops it as `dropout` does, so that backward and all
implementations agree on the mask to the bit and nothing is stored. With a `counter` the two numbers
are read in device memory (`gpunn.primitives.random_counter`), as a captured step needs it.
"""

from __future__ import annotations

from gpunn.primitives import attention_launch as launches
from gpunn.primitives import attention_reference as reference
from gpunn.primitives import attention_samples as samples
from gpunn.primitives.attention_problem import (
    check_inputs,
    check_options,
    heads_array,
    heads_output,
)
from gpunn.primitives.matmul_checks import refuse_overlap
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import accumulator_dtype

_FILES = {
    "family": "attention",
    "cuda": "attention.cu",
    "numba": "attention.py",
    "siblings": (
        "attention_backward.cu", "attention_mma.cu", "attention_mma_backward.cu",
        "attention_wgmma.cu",
    ),
}


@primitive(**_FILES)
def attention_forward(
    call,
    q,
    k,
    v,
    *,
    mask=None,
    causal: bool = False,
    causal_offset=0,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    counter=None,
    q_lengths=None,
    kv_lengths=None,
    keep: bool = True,
    out=None,
):
    """Attention: ``out = softmax(scale q k^T + mask) v`` for every head, and its normaliser.

    The formulas and the rules which keys a query sees stand at the top of this file. Computed in
    float32 for 16-bit types (their weights are rounded to 16 bits before they meet v, as tensor
    cores need them) and rounded once.

    Parameters
    ----------
    q : (B, Tq, H, D), float16, bfloat16, float32 or float64, 1 <= D <= 256
    k, v : (B, Tk, Hkv, D) of its dtype; H is a multiple of Hkv, and the query heads
        h G … h G + G - 1 share head h, G = H / Hkv. Only the last dimension needs to be
        contiguous: slices of one array (B, T, 3, H, D) are taken as they are.
    mask : a boolean array (True: may be seen) or one of q's dtype (added to the scores), of a shape
        that broadcasts to (B, H, Tq, Tk); read through its strides, never expanded
    causal, causal_offset, window : see above; the offset is an int or an integer array (B,)
    scale : factor of the products; None for 1 / sqrt(D)
    dropout_p, seed, offset : probability of dropping a weight, and the numbers of the generator
    counter : None, or a uint64 array (2,), [seed, offset], on the device of `q`: then its seed
        counts and not `seed`, and `offset` is added to its offset, when the kernel runs
    q_lengths, kv_lengths : integer arrays (B,), at most Tq and Tk (looked at on the CPU; on a GPU
        longer ones are cut); None for whole sequences
    keep : whether log_sum_exp is made, which `attention_backward` needs
    out : array to write, of q's shape and dtype; only its last dimension must be contiguous. It
        shares no memory with the inputs.

    Returns
    -------
    out : (B, Tq, H, D)
    log_sum_exp : (B, H, Tq), float32 (float64 for float64), or None without `keep`

    Raises
    ------
    TypeError, ValueError : dtypes or shapes that do not suit each other, a head dimension above
        256, H no multiple of Hkv, a mask that does not broadcast, a length beyond the sequence, a
        window or an offset without causal, a probability outside [0, 1], a counter that is no such
        array, an `out` that overlaps an input
    """
    q, k, v = check_inputs(call, q, k, v)
    problem = check_options(
        call, q, k, mask=mask, causal=causal, causal_offset=causal_offset, window=window,
        scale=scale, dropout_p=dropout_p, seed=seed, offset=offset, counter=counter,
        q_lengths=q_lengths, kv_lengths=kv_lengths,
    )  # fmt: skip
    given, out = out, heads_output(call, "out", out, q.shape, q.dtype)
    if given is not None:
        refuse_overlap(call, "out", out, q=q, k=k, v=v, mask=problem.mask)
    log_sum_exp = None
    if keep:
        shape = (q.shape[0], q.shape[2], q.shape[1])
        log_sum_exp = call.empty(shape, accumulator_dtype(q.dtype))
    call.run(q, k, v, out, log_sum_exp, problem)
    return out, log_sum_exp


@primitive(**_FILES)
def attention_backward(
    call,
    grad_out,
    q,
    k,
    v,
    out,
    log_sum_exp,
    *,
    mask=None,
    causal: bool = False,
    causal_offset=0,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    counter=None,
    q_lengths=None,
    kv_lengths=None,
    grad_q=None,
    grad_k=None,
    grad_v=None,
):
    """The gradients of attention by q, k and v; the scores are made again, tile by tile.

    Deterministic: no atomics; every sum is taken in one order. The mask has no gradient.

    Parameters
    ----------
    grad_out : (B, Tq, H, D), the gradient of `out`
    q, k, v, out, log_sum_exp : what `attention_forward` took and returned; of grad_out's dtype but
        for log_sum_exp. Of grad_out, q, k, v and out only the last dimension must be contiguous.
    mask … kv_lengths : what the forward was given
    grad_q, grad_k, grad_v : arrays to write, of the shapes and dtype of q, k and v; only their last
        dimension must be contiguous, so that they may be slices of one array. They share no memory
        with the inputs.

    Returns
    -------
    grad_q, grad_k, grad_v

    Raises
    ------
    TypeError, ValueError : as `attention_forward`; arrays that are not those of one forward
    """
    grad_out = heads_array(call, "grad_out", grad_out)
    q, k, v = check_inputs(call, q, k, v)
    out = heads_array(call, "out", out)
    call.same_dtype(q=q, grad_out=grad_out, out=out)
    call.same_shape(q=q, grad_out=grad_out, out=out)
    real = accumulator_dtype(q.dtype)
    shape = (q.shape[0], q.shape[2], q.shape[1])
    log_sum_exp = call.array("log_sum_exp", log_sum_exp, dtypes=(real,), shape=shape)
    problem = check_options(
        call, q, k, mask=mask, causal=causal, causal_offset=causal_offset, window=window,
        scale=scale, dropout_p=dropout_p, seed=seed, offset=offset, counter=counter,
        q_lengths=q_lengths, kv_lengths=kv_lengths,
    )  # fmt: skip
    grad_q = heads_output(call, "grad_q", grad_q, q.shape, q.dtype)
    grad_k = heads_output(call, "grad_k", grad_k, k.shape, q.dtype)
    grad_v = heads_output(call, "grad_v", grad_v, v.shape, q.dtype)
    call.run(grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v, problem)
    return grad_q, grad_k, grad_v


# ---- implementations -----------------------------------------------------------------------------

attention_forward.reference(reference.forward)
attention_backward.reference(reference.backward)
attention_forward.cuda(launches.forward)
attention_backward.cuda(launches.backward)
attention_forward.numba(launches.numba_forward)
attention_backward.numba(launches.numba_backward)

# ---- cost, samples, benchmark inputs -------------------------------------------------------------


def _mask_bytes(p) -> int:
    return 0 if p.mask is None else p.mask.nbytes


@attention_forward.cost
def _(q, k, v, out, log_sum_exp, p):
    pairs = q.shape[0] * q.shape[2] * p.pairs(q, k)
    written = out.nbytes + (0 if log_sum_exp is None else log_sum_exp.nbytes)
    read = q.nbytes + k.nbytes + v.nbytes + _mask_bytes(p)
    return Cost(flops=pairs * (4 * q.shape[3] + 5), read=read, written=written)


@attention_backward.cost
def _(grad_out, q, k, v, out, log_sum_exp, grad_q, grad_k, grad_v, p):
    pairs = q.shape[0] * q.shape[2] * p.pairs(q, k)
    read = 3 * q.nbytes + k.nbytes + v.nbytes + log_sum_exp.nbytes + _mask_bytes(p)
    written = q.nbytes + k.nbytes + v.nbytes
    return Cost(flops=pairs * (10 * q.shape[3] + 5), read=read, written=written)


attention_forward.samples(samples.forward_samples)
attention_backward.samples(samples.backward_samples)
attention_forward.inputs(samples.forward_inputs)
attention_backward.inputs(samples.backward_inputs)
attention_forward.bench_shapes = attention_backward.bench_shapes = samples.BENCH_SHAPES
