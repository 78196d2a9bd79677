"""Conversions and the loss scale of mixed precision by PyTorch."""

from __future__ import annotations

import torch

from gpunn.bench.torch_peers.common import peer, put


@peer
def cast(x, dtype, *, out=None):
    return put(x.to(getattr(torch, dtype)), out)


@peer
def unscale_gradients(gradients, state):
    inverse = state[0].double().reciprocal().float()
    torch._amp_foreach_non_finite_check_and_unscale_([gradients], state[2], inverse)


@peer
def update_loss_scale(state):
    tracker = state[1].int()
    torch._amp_update_scale_(state[0], tracker, state[2], 2.0, 0.5, 2000)
    state[1] = tracker
    state[3] += state[2]
    state[2] = 0
