"""An LSTM as a loop over its steps, in NumPy and CuPy."""

from __future__ import annotations

from gpunn.bench.array_peers.common import peer, wide


@peer
def recurrent_forward(xp, gates, weight_hh, bias_hh, h0, c0, *, mode):
    if mode != "lstm":
        raise TypeError(f"no peer for {mode}")
    dtype, weight, bias = gates.dtype, wide(weight_hh).T, wide(bias_hh)
    h, c, outputs, kept, inner = wide(h0), wide(c0), [], [], []
    for x in gates:
        i, f, g, o = xp.split(wide(x) + h @ weight + bias, 4, axis=-1)
        i, f, o = 1 / (1 + xp.exp(-i)), 1 / (1 + xp.exp(-f)), 1 / (1 + xp.exp(-o))
        g = xp.tanh(g)
        c = f * c + i * g
        outputs.append((o * xp.tanh(c)).astype(dtype))
        h = wide(outputs[-1])
        kept.append(xp.concatenate([i, f, g, o], -1).astype(dtype))
        inner.append(c.astype(dtype))
    return xp.stack(outputs), outputs[-1], inner[-1], xp.stack(kept), xp.stack(inner)


@peer
def recurrent_backward(
    xp, grad_output, grad_h_n, grad_c_n, output, activated, inner, weight_hh, h0, c0, *, mode
):
    if mode != "lstm":
        raise TypeError(f"no peer for {mode}")
    dtype, weight = output.dtype, wide(weight_hh)
    grad_h, grad_c, grads = wide(grad_h_n), wide(grad_c_n), []
    for t in range(len(output) - 1, -1, -1):
        i, f, g, o = xp.split(wide(activated[t]), 4, axis=-1)
        before, bent = wide(inner[t - 1] if t else c0), xp.tanh(wide(inner[t]))
        grad_h = grad_h + wide(grad_output[t])
        grad_c = grad_c + grad_h * o * (1 - bent * bent)
        to_i, to_f = grad_c * g * i * (1 - i), grad_c * before * f * (1 - f)
        to_g, to_o = grad_c * i * (1 - g * g), grad_h * bent * o * (1 - o)
        grads.append(xp.concatenate([to_i, to_f, to_g, to_o], -1).astype(dtype))
        grad_h, grad_c = wide(grads[-1]) @ weight, grad_c * f
    return xp.stack(grads[::-1]), None, grad_h.astype(dtype), grad_c.astype(dtype)
