"""gpunn's side of the benchmark of scaling: over MPI on the host, over NCCL between GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gpunn
from gpunn import distributed, optim
from gpunn.bench.scaling_rank import ALONE, WITH, WITHOUT, Ranks
from gpunn.bench.training import our_batches, our_loss, our_model
from gpunn.bench.training_jobs import Job
from gpunn.device import default_device, synchronize, to_device
from gpunn.distributed import GradientSync


@contextlib.contextmanager
def join(plan: dict[str, Any]) -> Iterator[Ranks]:
    """Meet the others that mpirun started."""
    group = distributed.init()
    device = default_device()

    def gather(own: np.ndarray) -> np.ndarray:
        return np.array([own.tolist()] if group is None else group.exchange(own.tolist()))

    yield Ranks(
        group.rank if group else 0, group.size if group else 1, device.type,
        make=lambda job, pairs: make(job, pairs, device, group),
        reducer=lambda count: reducer(group, [filled(count, device)]),
        barrier=group.barrier if group else lambda: None,
        synchronize=lambda: synchronize(device),
        gather=gather,
    )  # fmt: skip


def make(
    job: Job, pairs: list[tuple[np.ndarray, np.ndarray]], device: Any, group: Any
) -> dict[str, Callable[[int], Any]]:
    """See `Ranks.make`. On a GPU steps are compiled, as the Trainer does it there."""
    model = our_model(job, device)
    optimizer = job.update(optim, model.parameters())
    on_device = our_batches(job, device, tuple(zip(*pairs, strict=True)))
    sync = GradientSync(optimizer, group) if group else None
    share, low = len(pairs[0][1]) / job.batch, job.precision == "bf16"

    def training(around: Callable[[], Any]) -> Callable[[int], Any]:
        def train(inputs, labels):
            optimizer.zero_grad()
            with gpunn.autocast("bfloat16") if low else contextlib.nullcontext():
                loss = our_loss(job, model, inputs, labels)
            with around():
                # The sum of the ranks' gradients is that of the mean over the global batch.
                (loss * share if group else loss).backward()
            optimizer.step()
            return loss

        if device.type == "cuda":
            train = gpunn.compile(train, copy_outputs=False, name=job.name)
        return lambda i: train(*on_device[i % len(on_device)])

    alone = training(contextlib.nullcontext)
    if sync is None:
        return {WITH: alone}
    reduced = training(sync.backward)

    def reduction(i: int) -> None:
        if not buckets:
            buckets.extend(filled(one.stop - one.start, device) for one in sync.buckets)
        reduce(i)

    buckets: list[Any] = []
    reduce = reducer(group, buckets)
    return {WITH: reduced, WITHOUT: alone, ALONE: reduction}


def reducer(group: Any, buckets: list[Any]) -> Callable[[int], Any]:
    """A function that adds these up over all ranks, all at once; zeros, which stay zeros."""

    def reduce(_: int) -> None:
        for pending in [group.begin_reduce(bucket) for bucket in buckets]:
            pending.wait()

    return reduce


def filled(count: int, device: Any) -> Any:
    """Zeros in memory that was written to: what is only allocated may be one page, many times."""
    array = to_device(np.ones(count, np.float32), device)
    array[...] = 0
    return array
