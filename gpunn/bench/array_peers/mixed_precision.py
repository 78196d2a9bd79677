"""Conversions and the loss scale of mixed precision by array functions."""

from __future__ import annotations

import numpy as np

from gpunn.bench.array_peers.common import peer, put
from gpunn.primitives.samples import BFLOAT16


@peer
def cast(xp, x, dtype, *, out=None):
    return put(x.astype(BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)), out)


@peer
def unscale_gradients(xp, gradients, state):
    state[2] = xp.maximum(state[2], ~xp.isfinite(gradients).all())
    gradients *= 1 / state[0]


@peer
def update_loss_scale(xp, state):
    scale, tracker, found, skipped = (state[i] for i in range(4))
    grows = (found == 0) & (tracker + 1 >= 2000)
    state[0] = xp.where(found != 0, scale * 0.5, xp.where(grows, scale * 2, scale))
    state[1] = xp.where((found != 0) | grows, 0, tracker + 1)
    state[3] = skipped + (found != 0)
    state[2] = 0
