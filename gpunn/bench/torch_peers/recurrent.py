"""An LSTM by PyTorch: cuDNN on a GPU. A layer there takes its input, where ours takes the gates."""

from __future__ import annotations

import torch

from gpunn.bench.torch_peers.common import prepared
from gpunn.primitives.recurrent_samples import INPUTS


def _layer(x, weight_ih, weight_hh, bias_hh, states):
    """What makes (output, h_n, c_n) of one layer with everything kept for its gradients."""
    weights = [weight_ih, weight_hh]
    if weight_ih.is_cuda:  # cuDNN wants all of them in one piece of memory
        shape = (x.shape[-1], weight_hh.shape[1])
        module = torch.nn.LSTM(*shape, device=x.device, dtype=x.dtype, bias=bias_hh is not None)
        module.requires_grad_(False)
        module.weight_ih_l0.copy_(weight_ih)
        module.weight_hh_l0.copy_(weight_hh)
        if bias_hh is not None:
            module.bias_ih_l0.zero_()
            module.bias_hh_l0.copy_(bias_hh)
        module.flatten_parameters()
        weights = list(module._flat_weights)
    elif bias_hh is not None:
        weights += [torch.zeros_like(bias_hh), bias_hh]
    states = [state[None] for state in states]
    options = (bias_hh is not None, 1, 0.0, True, False, False)
    return lambda: torch._VF.lstm(x, states, weights, *options)


@prepared
def recurrent_forward(gates, weight_hh, bias_hh, h0, c0, *, mode):
    """The benchmark's gates are products of their first columns: these are the layer's input, so
    that the product with it, which is not part of our primitive, costs next to nothing."""
    if mode != "lstm":
        raise TypeError(f"no peer for {mode}")
    columns = gates.shape[-1]
    x = gates[..., : min(INPUTS, columns)].contiguous()
    rows, flat = x.reshape(-1, x.shape[-1]).double(), gates.reshape(-1, columns).double()
    weight_ih = torch.linalg.lstsq(rows, flat).solution.T.to(gates.dtype).contiguous()
    return _layer(x, weight_ih, weight_hh, bias_hh, (h0, c0))


@prepared
def recurrent_backward(
    grad_output, grad_h_n, grad_c_n, output, activated, inner, weight_hh, h0, c0, *, mode
):
    """PyTorch gives the gradient by the layer's input. It is that by the gates where the input's
    weight is an identity: one product more than ours, (T B, 4 H) by (4 H, 4 H).
    """
    if mode != "lstm":
        raise TypeError(f"no peer for {mode}")
    before = torch.cat([h0[None], output[:-1]]).double()
    edge = 1e-3 if output.element_size() == 2 else 1e-6  # a gate may be rounded to 0 or 1
    i, f, g, o = activated.double().chunk(4, -1)
    g = (g + 1) / 2  # tanh(x) = 2 s(2 x) - 1
    i, f, g, o = (gate.logit(edge) for gate in (i, f, g, o))
    logits = torch.cat([i, f, g / 2, o], -1)
    x = (logits - before @ weight_hh.double().T).to(output.dtype).requires_grad_()
    weight_ih = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    with torch.enable_grad():
        made = _layer(x, weight_ih, weight_hh, None, (h0, c0))()
    grads = (grad_output, grad_h_n[None], grad_c_n[None])
    return lambda: torch.autograd.grad(made, x, grads, retain_graph=True)[0]
