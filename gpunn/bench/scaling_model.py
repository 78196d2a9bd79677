"""A model of what a data-parallel step costs on 8, 64 or 1024 GPUs. Nothing here is measured.

An all-reduce takes ``latency + bytes / bandwidth``, with the constants by which NCCL itself chooses
between its algorithms (ring, tree) and protocols (LL, LL128, Simple): `src/graph/tuning.cc` and
`topo.h` of NCCL, github.com/NVIDIA/nccl, as of June 2026, for Hopper. A step is that of one GPU and
the reductions, in buckets, each begun when backward has made its gradients:

    forward | backward ............ | update
             bucket 1 | bucket 2 | .. | last |

What goes into it stands in `assumptions`, which is printed beneath every table.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpunn.bench.results import Results
from gpunn.bench.training_jobs import JOBS, Job
from gpunn.distributed.gradients import BUCKET_BYTES

GPUS = (8, 64, 1024)
NCCL = "NCCL's src/graph/tuning.cc and topo.h"
US = 1e-6
LL, LL128, SIMPLE = range(3)  # NCCL's protocols, in the order of its tables
# baseLatencies: before the first byte moves, in microseconds, by protocol.
_BASE = {"tree": (6.8, 14.0, 8.4), "ring": (6.6, 14.0, 8.4)}
# hwLatencies: of a step over NVLink and over the network.
_NVLINK_HOP = {"tree": (0.6, 1.25, 4.0), "ring": (0.6, 1.9, 3.4)}
_NETWORK_HOP = {"tree": (5.0, 8.5, 14.0), "ring": (2.7, 4.0, 14.0)}
_NETWORK_OVERHEAD = (1.0, 1.0, 3.0)  # of every step of a ring between nodes
_RING_PLATEAU = 1.4  # times the latency of a Simple ring between nodes, from 64 bytes a channel on
_LL_LIMIT = (141e9, 39e9, 20.4e9)  # llMaxBws: bytes/s in 1, in 2 and in more nodes
# treeCorrectionFactor: what trees reach of their bandwidth, for 64 B, 128 B, … by protocol.
_TREE_REACHES = (
    (1, 1, 1, 1, .9, .8, .7, .7, .7, .7, .6, .5, .4, .4, .5, .6, .7, .8, .9, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, .9, .8, .8, .8, .7, .6, .6, .6, .6, .6, .6, .8, .9, .9, .9, .9, 1, 1, 1),
    (.9, .9, .9, .9, .9, .9, .9, .8, .7, .6, .6, .5, .5, .5, .5, .6, .7, .8, .7, .7, .8, .9, .9,
     .9),
)  # fmt: skip
_CHANNELS = 16


@dataclass(frozen=True)
class Fabric:
    """How the GPUs are connected; bandwidths in bytes/s of one GPU and one direction.

    Attributes
    ----------
    node : GPUs of a node
    nvlink : within a node: 18 links of 20.6 GB/s, what NCCL counts on; 25 GB/s each by data sheet
    network : between nodes: one adapter of InfiniBand NDR, 400 Gb/s, for each GPU
    taken : the share of the multiprocessors that NCCL's kernels hold while they run, one block for
        each of 16 channels of 132
    """

    node: int = 8
    nvlink: float = 18 * 20.6e9
    network: float = 50e9
    taken: float = _CHANNELS / 132

    def nodes(self, gpus: int) -> int:
        """The nodes that so many GPUs fill."""
        return -(-gpus // self.node)

    def bus(self, gpus: int) -> float:
        """What each GPU of a ring passes on: a node's rings leave it over all its adapters."""
        if self.nodes(gpus) == 1:
            return self.nvlink
        return min(self.nvlink, self.node * self.network)


H200 = Fabric()


# ---- collectives: seconds for so many bytes on each of so many GPUs ------------------------------


def ring_bytes(size: float, gpus: int) -> float:
    """What each GPU sends in an all-reduce around a ring: each part goes around it twice."""
    return 2 * (gpus - 1) / gpus * size


def ring(size: float, gpus: int, fabric: Fabric = H200, passes: int = 2) -> float:
    """An all-reduce around a ring; with one of its two `passes` an all-gather or reduce-scatter."""
    if gpus == 1:
        return 0.0
    moved = ring_bytes(size, gpus) * passes / 2
    return min(
        _ring_latency(gpus, fabric, protocol, passes, size)
        + moved / _ring_bandwidth(gpus, fabric, protocol)
        for protocol in (LL, LL128, SIMPLE)
    )


def _ring_latency(gpus: int, fabric: Fabric, protocol: int, passes: int, size: float) -> float:
    nodes = fabric.nodes(gpus)
    between = passes * (nodes - 1)  # the steps that leave a node
    within = passes * (gpus - 1) - between
    hop = _NVLINK_HOP["ring"][protocol]
    if nodes > 1:
        hop = max(hop, _NETWORK_OVERHEAD[protocol])
    far = _NETWORK_HOP["tree" if fabric.node == 1 else "ring"][protocol]
    latency = _BASE["ring"][protocol] + within * hop + between * far
    if protocol == SIMPLE and nodes > 1 and passes == 2 and size / (_CHANNELS * gpus) >= 64:
        latency *= _RING_PLATEAU
    return latency * US


def _ring_bandwidth(gpus: int, fabric: Fabric, protocol: int) -> float:
    bus = fabric.bus(gpus)
    return {LL: min(_ll_limit(gpus, fabric), bus / 2), LL128: 0.92 * bus, SIMPLE: bus}[protocol]


def _ll_limit(gpus: int, fabric: Fabric) -> float:
    return _LL_LIMIT[min(fabric.nodes(gpus), 3) - 1]


def tree(size: float, gpus: int, fabric: Fabric = H200) -> float:
    """An all-reduce up and down two binary trees of nodes, chains within the nodes."""
    if gpus == 1:
        return 0.0
    nodes = fabric.nodes(gpus)
    found = []
    for protocol in (LL, LL128, SIMPLE):
        near, far = _NVLINK_HOP["tree"][protocol], _NETWORK_HOP["tree"][protocol]
        hops = (gpus / nodes - 1) * near + math.floor(math.log2(nodes)) * far
        bus = 0.92 * fabric.bus(gpus)
        if protocol == LL:
            bus = min(bus / 3.8, _ll_limit(gpus, fabric))
        elif protocol == LL128:
            bus *= 7 / 9 if nodes == 1 else 120 / 128
        doubling = max(0, math.floor(math.log2(max(size, 64) / 64)))
        if doubling < 23:
            bus *= _TREE_REACHES[protocol][doubling]
        found.append((_BASE["tree"][protocol] + 2 * hops) * US + 2 * size / bus)
    return min(found)


def hierarchical(size: float, gpus: int, fabric: Fabric = H200) -> float:
    """Three steps: reduce-scatter in each node, a ring of the nodes for each part, all-gather."""
    nodes = fabric.nodes(gpus)
    if nodes == 1:
        return ring(size, gpus, fabric)
    inside = gpus // nodes
    between = replace(fabric, node=1, nvlink=fabric.network)
    return 2 * ring(size, inside, fabric, passes=1) + ring(size / inside, nodes, between)


def all_reduce(size: float, gpus: int, fabric: Fabric = H200) -> float:
    """The faster of ring and tree, which NCCL takes by the same formulas."""
    return min(ring(size, gpus, fabric), tree(size, gpus, fabric))


def reduce_to_one(size: float, gpus: int, fabric: Fabric = H200) -> float:
    """A sum that one GPU alone needs: around the ring once, all bytes, as a pipeline."""
    if gpus == 1:
        return 0.0
    hop = (_NVLINK_HOP if fabric.nodes(gpus) == 1 else _NETWORK_HOP)["ring"]
    return min(
        (_BASE["ring"][protocol] + hop[protocol]) * US
        + size / _ring_bandwidth(gpus, fabric, protocol)
        for protocol in (LL, LL128, SIMPLE)
    )


# ---- steps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A training step on one GPU.

    Attributes
    ----------
    name, batch : the job, and the batch of each GPU
    seconds : of the step on one GPU
    parameters : how many numbers are reduced
    last : those of them whose gradients come when backward ends: an embedding that is the last
        layer's weight too. They are a bucket of their own
    update : seconds of these in which the optimizer reads and writes
    source : where `seconds` is from
    """

    name: str
    batch: int
    seconds: float
    parameters: int
    update: float
    source: str
    last: int = 0


@dataclass(frozen=True)
class Way:
    """How the gradients are reduced.

    Attributes
    ----------
    itemsize : bytes of a gradient: gpunn's are float32, also under autocast
    bucket : bytes of a bucket
    overlap : whether buckets are reduced while backward goes on
    zero : ZeRO stage 1: each sum is made for its owner, who updates and gives parameters to all
    """

    itemsize: int = 4
    bucket: int = BUCKET_BYTES
    overlap: bool = True
    zero: bool = False


USUAL = Way()

BACKWARD = 2 / 3  # of a step without its update
ADAMW_BYTES = 28  # read and written for each parameter: it, its gradient and two moments


def step(work: Work, gpus: int, way: Way = USUAL, fabric: Fabric = H200) -> float:
    """Seconds of a step in which every GPU has the work's batch."""
    if gpus == 1:
        return work.seconds
    backward = BACKWARD * (work.seconds - work.update)
    forward = work.seconds - work.update - backward
    times = bucket_times(work, gpus, way, fabric)
    if way.overlap:
        # While NCCL's kernels run, backward has fewer multiprocessors; the last bucket meets none.
        backward += fabric.taken * min(sum(times[:-1]), backward)
        done, even = 0.0, len(times) - bool(work.last)
        for number, seconds in enumerate(times, start=1):
            done = max(done, backward * min(1.0, number / even)) + seconds
    else:
        done = backward + sum(times)
    if not way.zero:
        return forward + done + work.update
    gathered = ring(4 * work.parameters, gpus, fabric, passes=1)
    return forward + done + work.update / gpus + gathered


def bucket_times(work: Work, gpus: int, way: Way = USUAL, fabric: Fabric = H200) -> list[float]:
    """Seconds that the reduction of each bucket takes, in their order."""
    collective = reduce_to_one if way.zero else all_reduce
    size = (work.parameters - work.last) * way.itemsize
    count = max(1, math.ceil(size / way.bucket))
    times = [collective(size / count, gpus, fabric)] * count
    return times + [collective(work.last * way.itemsize, gpus, fabric)] * bool(work.last)


def efficiency(work: Work, gpus: int, way: Way = USUAL, fabric: Fabric = H200) -> float:
    """Of weak scaling: the time of one GPU's step over that of many."""
    return work.seconds / step(work, gpus, way, fabric)


# ---- what is known of steps on one GPU -----------------------------------------------------------

GPT2_PARAMETERS = 124_439_808
GPT2_LAST = (50_257 + 1_024) * 768
# `gpunn explain gpt2 --batch-size 8 --precision bf16`, 1024 tokens a text: the FLOPs of launches
# that the tensor cores limit, the bytes of all others.
GPT2_FLOPS, GPT2_BYTES = 6.62e12, 14.2e9


def works(result: Results) -> list[Work]:
    """The measured steps of a result file ("gpunn compiled"), and GPT-2 124M as estimated by it."""
    ceilings = result.ceilings[0]
    found = []
    for row in result.training:
        if row["contestant"] == "gpunn compiled" and "median" in row:
            job = next((job for job in JOBS if job.name == row["job"]), None)
            if job is not None and job.name != "gpt-2-124M":
                count = _parameters(job)
                update = min(ADAMW_BYTES * count / ceilings.copy, row["median"] / 3)
                found.append(Work(job.name, row["batch"], row["median"], count, update, "measured"))
    floor = GPT2_FLOPS / ceilings.rate("bfloat16") + GPT2_BYTES / ceilings.copy
    update = ADAMW_BYTES * GPT2_PARAMETERS / ceilings.copy
    for times, said in ((1, "its floor"), (2, "twice its floor")):
        found.append(
            Work("gpt-2-124M", 8, times * floor, GPT2_PARAMETERS, update,
                 f"estimate: {said}", GPT2_LAST)
        )  # fmt: skip
    return found


@functools.cache
def _parameters(job: Job) -> int:
    """How many numbers its network learns."""
    from gpunn import nn

    return sum(math.prod(weight.shape) for weight in job.network(nn).parameters())


def assumptions(gpu: str, date: str, fabric: Fabric = H200) -> list[str]:
    """Sentences; `gpu` and `date` are those of the result file that `works` read."""
    return [
        "This is a model: no step has been run on more than one GPU.",
        f"A step of one GPU, *measured*: the median of `gpunn compiled` on {gpu}, {date}. "
        "*Estimate*: GPT-2 124M has no measured step. Its floor is the FLOPs and bytes of `gpunn "
        "explain gpt2 --batch-size 8 --precision bf16` at the rate and the bandwidth measured "
        "there. No step reaches its floor, and a longer one hides more: so twice that is told too.",
        f"Nodes of {fabric.node} GPUs. NVLink 4 has {18 * 25} GB/s a direction by data sheet, of "
        f"which NCCL counts on {fabric.nvlink / 1e9:.0f} for Hopper. Between nodes InfiniBand NDR, "
        f"{fabric.network / 1e9:.0f} GB/s a direction and an adapter for each GPU, full bisection.",
        f"Latencies, protocols and what they reach of a bandwidth are the constants of {NCCL} "
        "(Hopper, Intel hosts). The sums that NVSwitch and the network's switches can make (NVLS, "
        "SHARP) are left out: they would be faster.",
        f"Gradients are float32 (gpunn's arenas are, under autocast too), in buckets of equal size "
        f"of at most {USUAL.bucket >> 20} MiB. Backward is {BACKWARD:.2f} of the step without its "
        "update and makes gradients at an even pace; the last bucket is ready when it ends. So are "
        "all of GPT-2's embeddings (157 MB), which are the weight of its last layer too. The "
        f"update reads and writes {ADAMW_BYTES} bytes a parameter.",
        f"While NCCL's kernels run beside backward they take {_CHANNELS} of 132 multiprocessors "
        "from it. Nothing waits: no stragglers, no data loading, no other traffic.",
        "ZeRO stage 1: the sum of a bucket goes to its owner, each GPU updates its part, and the "
        "parameters are gathered after that, which nothing hides.",
    ]


def table_rows(
    found: Sequence[Work], gpus: Sequence[int] = GPUS, fabric: Fabric = H200
) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: the step and the efficiency of weak scaling of each work."""
    from gpunn.bench.tables import seconds_text

    ways = (USUAL, Way(overlap=False), Way(itemsize=2), Way(zero=True))
    headers = ["job", "batch of a GPU", "one GPU", "of which", "gradients", "GPUs", "all-reduce",
               "a step", "efficiency", "without overlap", "bf16 gradients", "ZeRO 1"]  # fmt: skip
    cells = []
    for work in found:
        for count in gpus:
            cells.append([
                work.name, str(work.batch), seconds_text(work.seconds), work.source,
                f"{4 * work.parameters / 1e6:.3g} MB", str(count),
                seconds_text(sum(bucket_times(work, count, fabric=fabric))),
                seconds_text(step(work, count, fabric=fabric)),
                *(f"{100 * efficiency(work, count, way, fabric):.0f}%" for way in ways),
            ])  # fmt: skip
    return headers, cells


def collective_rows(gpus: Sequence[int] = GPUS, fabric: Fabric = H200) -> tuple[Any, Any]:
    """Headers and cells: an all-reduce of some sizes by each algorithm."""
    from gpunn.bench.tables import seconds_text

    headers = ["bytes of each GPU", "GPUs", "ring", "tree", "in three steps", "bus bandwidth"]
    cells = []
    for size in (1 << 16, 1 << 20, 25 << 20, 1 << 29):
        for count in gpus:
            best = all_reduce(size, count, fabric)
            cells.append([
                f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB", str(count),
                *(seconds_text(way(size, count, fabric)) for way in (ring, tree, hierarchical)),
                f"{ring_bytes(size, count) / best / 1e9:.0f} GB/s",
            ])  # fmt: skip
    return headers, cells
