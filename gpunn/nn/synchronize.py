"""Batch norm over all ranks of a job: `synchronize_batch_norm`."""

from __future__ import annotations

from typing import Any, TypeVar

from gpunn.nn.module import Module
from gpunn.nn.normalization import _BatchNorm

ModuleT = TypeVar("ModuleT", bound=Module)


class _Shared:
    """The group of a layer: its copies share it, and what pickles it leaves it out."""

    def __init__(self, group: Any):
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def synchronize_batch_norm(model: ModuleT, group: Any) -> ModuleT:
    """Let all batch norm layers of a model normalise by the batches of all ranks, in training.

    A model then trains alike on any number of ranks, however small the part of a batch that each
    has; parts may differ in length and be empty. (Where a row stands in for none, it must not
    count: see `gpunn.distributed.Group.counting`. The Trainer sees to it.) As PyTorch's
    SyncBatchNorm, but the layers stay what they are, with their weights, buffers, names in files,
    `activation` and `channels_last`. All ranks must run the same layers, forward and backward: in
    each a layer sends the others three numbers for each channel, and then two. Evaluation is as
    before. Copies of a layer keep the group, files do not.

    Parameters
    ----------
    model : a Module, which is changed; it may be a batch norm itself
    group : what `gpunn.distributed.init` gave. None, as for a process that is alone, ends it.

    Returns
    -------
    `model`
    """
    shared = None if group is None else _Shared(group)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.shared = shared
    return model
