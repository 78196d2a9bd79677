"""Training of a small network as a user would write it in NumPy or CuPy: relu, labels, Adam."""

from __future__ import annotations

from gpunn.bench.array_peers.common import PEERS, peer


def _views(flat, layer):
    weight = flat[layer.weight : layer.weight + layer.outputs * layer.inputs]
    return weight.reshape(layer.outputs, layer.inputs), flat[layer.bias :][: layer.outputs]


@peer
def mlp_train(xp, x, target, order, parameters, hyper, exp_avg, exp_avg_sq, *, layers, rule):
    gradients = xp.zeros_like(parameters)
    shapes = [(_views(parameters, layer), _views(gradients, layer)) for layer in layers]
    losses, correct = xp.empty(len(order), x.dtype), xp.empty(len(order), xp.int32)
    for step, samples in enumerate(order):
        rows, labels = xp.arange(len(samples)), target[samples]
        inputs = [x[samples]]
        for (weight, bias), _ in shapes:
            z = inputs[-1] @ weight.T + bias
            inputs.append(xp.maximum(z, 0))
        z -= z.max(1, keepdims=True)
        slope = xp.exp(z)
        total = slope.sum(1, keepdims=True)
        losses[step] = (xp.log(total[:, 0]) - z[rows, labels]).mean()
        correct[step] = (z.argmax(1) == labels).sum()
        slope /= total
        slope[rows, labels] -= 1
        slope /= len(samples)
        for k in reversed(range(len(layers))):
            (weight, _), (grad_weight, grad_bias) = shapes[k]
            grad_weight[...] = slope.T @ inputs[k]
            grad_bias[...] = slope.sum(0)
            if k:
                slope = (slope @ weight) * (inputs[k] > 0)
        values = hyper[step].tolist()
        PEERS["adam_update"](xp, parameters, gradients, exp_avg, exp_avg_sq, values)
    return losses, correct
