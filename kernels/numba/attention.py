"""Attention, the teaching version: a block of threads for one row of a result.

    attention_forward_<dtype>   a block for (batch, head, query)
    attention_grad_q_<dtype>    the same
    attention_grad_kv_<dtype>   a block for (batch, head of keys, key)

Every kernel goes over what its row meets (keys; queries of the whole group) in runs as long as the
block. First each thread makes the weight of one of them, which goes to shared memory; then each
thread adds the weighted vectors to the columns that it owns, a block apart. The forward rescales
its sums when the largest score grows (online softmax). Formulas: gpunn/primitives/attention.py.
"""

import importlib.util
import math
from pathlib import Path

import numpy as np
from numba import cuda, float32, float64

THREADS = 32  # of a block at most
COLUMNS = 8  # of a thread: heads up to 256
UNLIMITED = 1 << 30  # the window of a causal query that has none


def _neighbour(name):
    """A file beside this one as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_random = _neighbour("random")
philox, origin = _random.philox, _random.origin
EIGHT = np.uint64(8)


@cuda.jit(device=True)
def length_of(lengths, given, b, longest):
    return min(max(lengths[b], 0), longest) if given else longest


@cuda.jit(device=True)
def shift_of(offsets, given, causal_offset, b, queries, keys, window):
    """The last key of a causal query i is i + this; as `Problem.shift_of`."""
    offset = offsets[b] if given else causal_offset
    return max(min(offset, keys + (window if window < UNLIMITED else 0)), -queries)


@cuda.jit(device=True)
def is_seen(i, j, queries, keys, causal, last, window):
    """Whether query i sees key j; `last` is the last key that a causal one may see."""
    if i >= queries or j >= keys:
        return False
    return causal == 0 or (j <= last and j > last - window)


@cuda.jit(device=True)
def is_kept(row, j, keys, threshold, seed, offset):
    """Whether dropout keeps the weight of key j in a row of (B, H, Tq)."""
    words = philox(np.uint64(row * ((keys + 3) // 4) + j // 4), offset, seed)
    k = j % 4
    word = words[0]
    if k == 1:
        word = words[1]
    elif k == 2:
        word = words[2]
    elif k == 3:
        word = words[3]
    return word >> EIGHT >= np.uint64(threshold)


def _kernels(real):
    zero, one, low = real(0), real(1), real(-math.inf)

    @cuda.jit(device=True)
    def dot(a, b, at, i, h, j, g):
        """a[at, i, h] · b[at, j, g]"""
        total = zero
        for d in range(a.shape[3]):
            total += a[at, i, h, d] * b[at, j, g, d]
        return total

    @cuda.jit(device=True)
    def score(q, k, b, i, h, j, g, mask, kind, scale):
        total = dot(q, k, b, i, h, j, g) * scale
        if kind != 0:
            value = mask[
                min(b, mask.shape[0] - 1), min(h, mask.shape[1] - 1), min(i, mask.shape[2] - 1),
                min(j, mask.shape[3] - 1),
            ]  # fmt: skip
            if kind == 2:
                total += real(value)
            elif not value:
                total = low
        return total

    @cuda.jit
    def forward(
        q, k, v, out, log_sum_exp, mask, q_lengths, kv_lengths, offsets, given_q, given_kv,
        given_offsets, causal, causal_offset, window, kind, threshold, seed, offset, counter,
        counted, scale, keep_scale,
    ):  # fmt: skip
        seed, offset = origin(seed, offset, counter, counted)
        scores = cuda.shared.array(THREADS, real)
        weights = cuda.shared.array(THREADS, real)
        sums = cuda.local.array(COLUMNS, real)
        row, t, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        i, heads = row % q.shape[1], q.shape[2]
        h, b = row // q.shape[1] % heads, row // q.shape[1] // heads
        g = h // (heads // k.shape[2])
        queries = length_of(q_lengths, given_q, b, q.shape[1])
        keys = length_of(kv_lengths, given_kv, b, k.shape[1])
        last = i + shift_of(
            offsets, given_offsets, causal_offset, b, q.shape[1], k.shape[1], window
        )  # fmt: skip
        for c in range(COLUMNS):
            sums[c] = zero
        top, total = low, zero
        for run in range(0, keys, threads):
            j, value = run + t, low
            if is_seen(i, j, queries, keys, causal, last, window):
                value = score(q, k, b, i, h, j, g, mask, kind, scale)
            scores[t] = value
            cuda.syncthreads()
            largest, count = top, min(threads, keys - run)
            for n in range(count):
                largest = max(largest, scores[n])
            reference = largest if largest > low else zero
            factor = math.exp(top - reference)
            cuda.syncthreads()
            value = math.exp(value - reference)
            scores[t] = value
            if threshold > 0 and not is_kept(row, j, k.shape[1], threshold, seed, offset):
                value = zero
            weights[t] = value
            cuda.syncthreads()
            top, total = largest, total * factor
            for n in range(count):
                total += scores[n]
            for c in range(COLUMNS):
                d = c * threads + t
                if d < q.shape[3]:
                    sums[c] *= factor
                    for n in range(count):
                        sums[c] += weights[n] * v[b, run + n, g, d]
            cuda.syncthreads()
        share = keep_scale / total if total != zero else zero
        for c in range(COLUMNS):
            d = c * threads + t
            if d < q.shape[3]:
                out[b, i, h, d] = sums[c] * share
        if t == 0:
            log_sum_exp[b, h, i] = top + math.log(total) if total != zero else low

    @cuda.jit(device=True)
    def weight_and_slope(
        grad, q, k, v, out, log_sum_exp, b, i, h, j, g, mask, kind, threshold, seed, offset, scale,
        keep_scale,
    ):  # fmt: skip
        """d p, as the value meets it, and the slope p (d grad · v - grad · out)."""
        norm = log_sum_exp[b, h, i]
        weight = zero
        if norm != low:
            weight = math.exp(score(q, k, b, i, h, j, g, mask, kind, scale) - norm)
        slope = dot(grad, v, b, i, h, j, g) * keep_scale
        kept = one
        if threshold > 0:
            row = (b * q.shape[2] + h) * q.shape[1] + i
            if not is_kept(row, j, k.shape[1], threshold, seed, offset):
                kept = slope = zero
        return weight * kept, weight * (slope - dot(grad, out, b, i, h, i, h))

    @cuda.jit
    def grad_q(
        grad, q, k, v, out, log_sum_exp, result, mask, q_lengths, kv_lengths, offsets, given_q,
        given_kv, given_offsets, causal, causal_offset, window, kind, threshold, seed, offset,
        counter, counted, scale, keep_scale,
    ):  # fmt: skip
        seed, offset = origin(seed, offset, counter, counted)
        slopes = cuda.shared.array(THREADS, real)
        sums = cuda.local.array(COLUMNS, real)
        row, t, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        i, heads = row % q.shape[1], q.shape[2]
        h, b = row // q.shape[1] % heads, row // q.shape[1] // heads
        g = h // (heads // k.shape[2])
        queries = length_of(q_lengths, given_q, b, q.shape[1])
        keys = length_of(kv_lengths, given_kv, b, k.shape[1])
        last = i + shift_of(
            offsets, given_offsets, causal_offset, b, q.shape[1], k.shape[1], window
        )  # fmt: skip
        for c in range(COLUMNS):
            sums[c] = zero
        for run in range(0, keys, threads):
            j, slope = run + t, zero
            if is_seen(i, j, queries, keys, causal, last, window):
                _, slope = weight_and_slope(
                    grad, q, k, v, out, log_sum_exp, b, i, h, j, g, mask, kind, threshold, seed,
                    offset, scale, keep_scale,
                )  # fmt: skip
            slopes[t] = slope
            cuda.syncthreads()
            for c in range(COLUMNS):
                d = c * threads + t
                if d < q.shape[3]:
                    for n in range(min(threads, keys - run)):
                        sums[c] += slopes[n] * k[b, run + n, g, d]
            cuda.syncthreads()
        for c in range(COLUMNS):
            d = c * threads + t
            if d < q.shape[3]:
                result[b, i, h, d] = sums[c] * scale

    @cuda.jit
    def grad_kv(
        grad, q, k, v, out, log_sum_exp, result_k, result_v, mask, q_lengths, kv_lengths, offsets,
        given_q, given_kv, given_offsets, causal, causal_offset, window, kind, threshold, seed,
        offset, counter, counted, scale, keep_scale,
    ):  # fmt: skip
        seed, offset = origin(seed, offset, counter, counted)
        slopes = cuda.shared.array(THREADS, real)
        weights = cuda.shared.array(THREADS, real)
        sums_k = cuda.local.array(COLUMNS, real)
        sums_v = cuda.local.array(COLUMNS, real)
        place, t, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        j, g = place % k.shape[1], place // k.shape[1] % k.shape[2]
        b, group = place // k.shape[1] // k.shape[2], q.shape[2] // k.shape[2]
        queries = length_of(q_lengths, given_q, b, q.shape[1])
        keys = length_of(kv_lengths, given_kv, b, k.shape[1])
        shift = shift_of(
            offsets, given_offsets, causal_offset, b, q.shape[1], k.shape[1], window
        )  # fmt: skip
        for c in range(COLUMNS):
            sums_k[c] = zero
            sums_v[c] = zero
        rows = queries * group
        for run in range(0, rows, threads):
            i, h = (run + t) // group, g * group + (run + t) % group
            weight, slope = zero, zero
            if is_seen(i, j, queries, keys, causal, i + shift, window):
                weight, slope = weight_and_slope(
                    grad, q, k, v, out, log_sum_exp, b, i, h, j, g, mask, kind, threshold, seed,
                    offset, scale, keep_scale,
                )  # fmt: skip
            weights[t] = weight
            slopes[t] = slope
            cuda.syncthreads()
            for n in range(min(threads, rows - run)):
                i, h = (run + n) // group, g * group + (run + n) % group
                for c in range(COLUMNS):
                    d = c * threads + t
                    if d < q.shape[3]:
                        sums_k[c] += slopes[n] * q[b, i, h, d]
                        sums_v[c] += weights[n] * grad[b, i, h, d]
            cuda.syncthreads()
        for c in range(COLUMNS):
            d = c * threads + t
            if d < q.shape[3]:
                result_k[b, j, g, d] = sums_k[c] * scale
                result_v[b, j, g, d] = sums_v[c] * keep_scale

    return forward, grad_q, grad_kv


for _real in (float32, float64):
    attention_forward, attention_grad_q, attention_grad_kv = _kernels(_real)
    globals()[f"attention_forward_{_real}"] = attention_forward
    globals()[f"attention_grad_q_{_real}"] = attention_grad_q
    globals()[f"attention_grad_kv_{_real}"] = attention_grad_kv
