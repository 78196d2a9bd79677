"""PyTorch's side of the benchmark of scaling: DistributedDataParallel over gloo, or over NCCL."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from gpunn.bench.scaling_rank import ALONE, WITH, WITHOUT, Ranks
from gpunn.bench.training_jobs import Job, initial_state

# Bytes of DistributedDataParallel's buckets, the first of which is small.
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20


@contextlib.contextmanager
def join(plan: dict[str, Any]) -> Iterator[Ranks]:
    """Meet the others by ``RANK``, ``WORLD_SIZE`` and the plan's file."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    on_gpu = plan["device"] == "cuda"
    where = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(where)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # it may try which kernel is the fastest
    if size > 1:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=f"file://{plan['store']}",
            rank=rank, world_size=size,
        )  # fmt: skip

    def gather(own: np.ndarray) -> np.ndarray:
        if size == 1:
            return own[None]
        mine = torch.from_numpy(own).to(where)
        parts = [torch.empty_like(mine) for _ in range(size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts).cpu().numpy()

    yield Ranks(
        rank, size, "cuda" if on_gpu else "cpu",
        make=lambda job, pairs: make(job, pairs, where, size > 1),
        reducer=lambda count: reducer(filled(count, where)),
        barrier=dist.barrier if size > 1 else lambda: None,
        synchronize=torch.cuda.synchronize if on_gpu else lambda: None,
        gather=gather,
    )  # fmt: skip
    if size > 1:
        dist.destroy_process_group()


def reducer(*buckets: Any) -> Callable[[int], Any]:
    """A function that adds these up over all ranks, all at once; zeros, which stay zeros."""

    def reduce(_: int) -> None:
        for work in [dist.all_reduce(bucket, async_op=True) for bucket in buckets]:
            work.wait()

    return reduce


def make(
    job: Job, pairs: list[tuple[np.ndarray, np.ndarray]], where: Any, several: bool
) -> dict[str, Callable[[int], Any]]:
    """See `Ranks.make`."""
    model = job.network(torch.nn)
    model.load_state_dict({n: torch.from_numpy(v) for n, v in initial_state(job).items()})
    layout = torch.channels_last if job.channels_last else torch.preserve_format
    model = model.to(where, memory_format=layout)
    counts = [weight.numel() for weight in model.parameters()]
    if several:
        ids = [where.index] if where.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=ids)
    on_device = [
        (torch.from_numpy(x).to(where, memory_format=layout), torch.from_numpy(y).to(where))
        for x, y in pairs
    ]
    optimizer = job.update(torch.optim, model.parameters(), fused=True)

    def step(i: int) -> Any:
        inputs, labels = on_device[i % len(on_device)]
        optimizer.zero_grad()
        with torch.autocast(where.type, torch.bfloat16, enabled=job.precision == "bf16"):
            scores = model(inputs)
            loss = F.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.detach()

    if not several:
        return {WITH: step}

    def without(i: int) -> Any:
        with model.no_sync():
            return step(i)

    buckets = [filled(count, where) for count in bucket_sizes(counts)]
    return {WITH: step, WITHOUT: without, ALONE: reducer(*buckets)}


def filled(count: int, where: Any) -> Any:
    """Zeros in memory that was written to: what is only allocated may be one page, many times."""
    return torch.ones(count, device=where).zero_()


def bucket_sizes(counts: list[int]) -> list[int]:
    """float32s of DistributedDataParallel's buckets, for parameters of so many; the last first."""
    sizes, limit = [0], FIRST_BUCKET
    for count in reversed(counts):
        if sizes[-1] and 4 * sizes[-1] >= limit:
            sizes.append(0)
            limit = BUCKET
        sizes[-1] += count
    return sizes
