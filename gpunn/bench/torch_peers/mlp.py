"""Training of a small network in PyTorch, step by step: relu, labels, its fused Adam."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gpunn.bench.torch_peers.common import prepared


def _parts(flat, layers):
    """The weight and the bias of every layer: views of a flat array."""
    found = []
    for layer in layers:
        weight = flat[layer.weight : layer.weight + layer.inputs * layer.outputs]
        found.append(weight.view(layer.outputs, layer.inputs))
        found.append(flat[layer.bias : layer.bias + layer.outputs])
    return found


@prepared
def mlp_train(x, target, order, parameters, hyper, exp_avg, exp_avg_sq, *, layers, rule):
    lr, beta1, beta2, eps, decay, *_ = hyper[0].tolist()
    own = [torch.nn.Parameter(part) for part in _parts(parameters, layers)]
    optimizer = torch.optim.Adam(own, lr, (beta1, beta2), eps, decay, fused=True)
    means = zip(own, _parts(exp_avg, layers), _parts(exp_avg_sq, layers), strict=True)
    for parameter, mean, square in means:
        step = torch.zeros((), device=x.device)
        optimizer.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    rates, last = hyper[:, 0].tolist(), len(layers) - 1

    def run():
        losses = torch.empty(len(order), dtype=x.dtype, device=x.device)
        correct = torch.empty(len(order), dtype=torch.int32, device=x.device)
        for step, samples in enumerate(order):
            optimizer.param_groups[0]["lr"] = rates[step]
            out, labels = x[samples], target[samples]
            for k in range(len(layers)):
                out = F.linear(out, own[2 * k], own[2 * k + 1])
                out = out if k == last else F.relu(out)
            loss = F.cross_entropy(out, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[step] = loss.detach()
            correct[step] = (out.detach().argmax(1) == labels).sum()
        return losses, correct

    return run
