"""CTC by PyTorch's own functions (its native kernels; float32 and float64)."""

from __future__ import annotations

import torch

from gpunn.bench.torch_peers.common import peer


def _arguments(log_probs, targets, input_lengths, target_lengths):
    return log_probs, targets, input_lengths.tolist(), target_lengths.tolist(), 0, False


@peer
def ctc_forward(log_probs, targets, input_lengths, target_lengths, *, out=None):
    arguments = _arguments(log_probs, targets, input_lengths, target_lengths)
    return torch.ops.aten._ctc_loss(*arguments)


@peer
def ctc_backward(
    grad_loss, log_probs, targets, input_lengths, target_lengths, neg_log_likelihood, log_alpha, *,
    out=None,
):  # fmt: skip
    arguments = _arguments(log_probs, targets, input_lengths, target_lengths)[:-2]
    return torch.ops.aten._ctc_loss_backward(
        grad_loss, *arguments, neg_log_likelihood, log_alpha, 0, False
    )
