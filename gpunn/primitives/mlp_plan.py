"""`mlp_train` on the GPU: what fits, where everything lies, and how many blocks share the work.

A step has two phases (kernels/cuda/mlp_train.cu): first blocks own rows of the batch, then tiles of
the weights, and all blocks meet after each. More blocks shorten the phases, but blocks that meet
through memory pay for it, and one block alone need not. `choose` estimates both in clock cycles and
takes the least. The numbers behind the estimates are from data sheets, and all of it is scaled to
what three networks took on an H100.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from gpunn.primitives.activation import ACTIVATIONS, DEFAULT_ALPHA

# As in mlp_train.cu: threads of a block, rows of the batch that it owns at a time, the tile of a
# weight's gradient, and what the sums of a product take of shared memory.
THREADS, ROWS, TILE_N, TILE_K = 256, 8, 32, 64
SUMS_BYTES = 4 * ROWS * (THREADS + 1) * 4
FIELDS = 16  # of a layer in the table
COUNT_STRIDE = 32  # numbers from one count of meetings to the next

MOST_INPUTS, MOST_OUTPUTS, MOST_BATCH = 1024, 512, 1024
_MOST_LAYERS = 64
_MEMBERS = (1, 2, 4, 8, 16)  # of a team
_STATIC = 2048  # bytes of shared memory that the kernel has beside what it is given

# Clock cycles and rates of one multiprocessor: multiply-adds a cycle (of 128; the machine code has
# 32 of them among 44 instructions), bytes a cycle from the second-level cache and from its own
# memory, the latency of a product's start and end, of a tile's, and of a meeting of blocks through
# memory. `_L2_ALL` bytes a cycle are what the cache has for all multiprocessors together.
_FMA, _L2, _NEAR, _L2_ALL = 96, 48, 96, 3700
_PRODUCT, _TILE, _MEET, _STEP = 700, 1200, 2200, 900
_TEAM = 2600  # a meeting of a team, and taking what the others have made
_MEASURED = 2.6  # 2.5 to 3.1 times the sum of these, for 784-256-128-10 and 64-128-128-10


class Layer(NamedTuple):
    """A linear layer of the network and what follows it."""

    inputs: int
    outputs: int
    weight: int  # where the weight (outputs, inputs) starts in the parameters
    bias: int | None = None  # and the bias; None, or -1 once complete, where there is none
    activation: str = "identity"
    alpha: float | None = None
    dropout: float = 0.0

    def complete(self) -> Layer:
        """The same with numbers for what is None."""
        alpha = DEFAULT_ALPHA.get(self.activation, 0.0) if self.alpha is None else self.alpha
        bias = -1 if self.bias is None else self.bias
        return self._replace(bias=bias, alpha=float(alpha), dropout=float(self.dropout))


class Network(NamedTuple):
    """The layers, all of them complete."""

    layers: tuple[Layer, ...]


class Plan(NamedTuple):
    """How a launch is made."""

    blocks: int
    resident: bool  # one block holds all that it makes in its own memory
    shared: int  # bytes of dynamic shared memory of a block
    scratch: int  # floats: copies of the weights, activations, slopes, losses of rows
    members: int  # blocks of a team, which take the same rows
    tiles: int  # of all weights
    table: np.ndarray  # (layers, FIELDS) int64, see mlp_train.cu
    buffers: tuple[int, int]  # floats of the two buffers of a block's rows
    clocks: float  # estimated, of one step


def why_not(network: Network, batch: int) -> str:
    """Why the kernel does not take this network, in one sentence; "" if it does."""
    for i, layer in enumerate(network.layers):
        most = MOST_INPUTS if i == 0 else MOST_OUTPUTS
        if not 1 <= layer.inputs <= most:
            return f"layer {i} has {layer.inputs} inputs, and it takes 1 to {most} there"
        if not 1 <= layer.outputs <= MOST_OUTPUTS:
            return f"layer {i} has {layer.outputs} outputs, and it takes 1 to {MOST_OUTPUTS}"
    if len(network.layers) > _MOST_LAYERS:
        return f"it has {len(network.layers)} layers, and {_MOST_LAYERS} are the most"
    if not 1 <= batch <= MOST_BATCH:
        return f"the batch has {batch} samples, and it takes 1 to {MOST_BATCH}"
    return ""


def quads(width: int) -> int:
    """`width` rounded up to a multiple of 4: the rows of copies start at multiples of 16 bytes."""
    return -(-width // 4) * 4


class _Places:
    """Hands out places in the scratch memory, each at a multiple of 16 bytes."""

    def __init__(self):
        self.used = 0

    def take(self, count: int) -> int:
        start, self.used = self.used, self.used + quads(count)
        return start


@functools.lru_cache(maxsize=256)
def _layout(network: Network, batch: int, in_place: bool) -> tuple[np.ndarray, int, int]:
    """(the table, floats of scratch, tiles); `in_place`: weights may be read where they are."""
    rows = -(-batch // ROWS) * ROWS
    places, tiles, dropouts = _Places(), 0, 0
    losses = places.take(2 * rows)  # at 0: of each row its loss, then whether it was right
    assert losses == 0
    table = np.zeros((len(network.layers), FIELDS), np.int64)
    below = -1
    for i, layer in enumerate(network.layers):
        forward = places.take(layer.inputs * quads(layer.outputs))
        backward = -1  # the weight itself, whose rows are multiples of 16 bytes, or a copy
        if i and (layer.inputs % 4 or not in_place):
            backward = places.take(layer.outputs * quads(layer.inputs))
        last = i + 1 == len(network.layers)
        wide = rows * quads(layer.outputs)
        pre, out = (-1, -1) if last else (places.take(wide), places.take(wide))
        slope = places.take(wide)
        threshold, scale = 0, np.float32(0)
        if layer.dropout > 0:
            threshold = int(np.ceil(layer.dropout * 2**24))
            scale = np.float32(1 / (1 - layer.dropout) if layer.dropout < 1 else 0)
        table[i] = (
            layer.inputs, layer.outputs, layer.weight, layer.bias,
            ACTIVATIONS.index(layer.activation), _bits(layer.alpha), threshold, _bits(scale),
            dropouts if layer.dropout > 0 else -1, tiles, forward, backward, below, pre, slope, 0,
        )  # fmt: skip
        dropouts += layer.dropout > 0
        tiles += -(-layer.outputs // TILE_N) * -(-layer.inputs // TILE_K)
        below = out
    table.setflags(write=False)
    return table, places.used, tiles


def _bits(value) -> int:
    return int(np.float32(value).view(np.int32))


def dropouts(network: Network) -> int:
    """How many layers have dropout: offsets that a step takes."""
    return sum(layer.dropout > 0 for layer in network.layers)


@functools.lru_cache(maxsize=256)
def choose(
    network: Network, batch: int, clip: bool, aligned: bool, multiprocessors: int,
    shared_limit: int, blocks: int | None = None, team: int | None = None,
) -> Plan:  # fmt: skip
    """The plan with the least estimate; with `blocks`, for so many at the most.

    With `team`, teams of so many share out every product that can be.
    `aligned` says that the parameters start at a multiple of 16 bytes.
    """
    (*_, tiles), groups = _layout(network, batch, aligned), -(-batch // ROWS)
    whole_teams = -(-max(_MEMBERS[-1] * groups, tiles) // _MEMBERS[-1]) * _MEMBERS[-1]
    most = min(multiprocessors, whole_teams)
    counts = {1, most, min(groups, most), min(tiles, most), *(2**k for k in range(1, 8))}
    options = [min(blocks, most)] if blocks else sorted(n for n in counts if n <= most)
    buffers = _buffers(network)
    base = SUMS_BYTES + 4 * sum(buffers) + 8 * FIELDS * len(network.layers)
    inside = base + 4 * _layout(network, batch, False)[1]
    found = []
    for count in options:
        resident = count == 1 and inside + _STATIC <= shared_limit
        for members in (m for m in ((team,) if team else _MEMBERS) if m <= count):
            made = count // members * members
            clocks = estimate(network, batch, clip, made, resident, members)
            found.append((clocks, made, members, resident))
    clocks, count, members, resident = min(found)
    table, scratch, _ = _layout(network, batch, aligned and not resident)
    table = table.copy()
    table[:, -1] = _splits(network, members, always=team is not None)
    shared = inside if resident else base
    return Plan(count, resident, shared, scratch, members, tiles, table, buffers, clocks)


def _splits(network: Network, members: int, always: bool = False) -> list[int]:
    """For each layer what a team shares out: 1 its product forward, 2 the one backward.

    What gains more than the team's meeting costs; the first one backward costs another meeting.
    """
    found = []
    for i, layer in enumerate(network.layers):
        weights = layer.inputs * quads(layer.outputs)
        gained = max(ROWS * weights / _FMA, 4 * weights / _L2) * (1 - 1 / members)
        forward = i + 1 < len(network.layers) and (always or gained > _TEAM)
        backward = i > 0 and (always or gained > 2 * _TEAM)
        found.append((forward + 2 * backward) * (members > 1))
    return found


def _buffers(network: Network) -> tuple[int, int]:
    """Floats of the two buffers of a block's rows, which take turns from layer to layer."""
    widths = [network.layers[0].inputs, *(layer.outputs for layer in network.layers)]
    return ROWS * quads(max(widths[::2])), ROWS * quads(max(widths[1::2]))


class Part(NamedTuple):
    """What a part of a step is estimated to take of a multiprocessor that has the most to do."""

    name: str  # "rows", "weights", "meetings"
    clocks: float
    limit: str  # "compute", "memory" (the second-level cache, or the block's own), "latency"


def estimate_parts(
    network: Network, batch: int, clip: bool, blocks: int, resident: bool, members: int = 1
) -> tuple[Part, ...]:
    """The parts of a step by `blocks` blocks."""
    groups = -(-batch // ROWS)
    latency, compute, memory, tiles = 0.0, 0.0, 0.0, 0
    splits = _splits(network, members)
    if any(split & 2 for split in splits):
        latency += _TEAM
    for i, (layer, split) in enumerate(zip(network.layers, splits, strict=True)):
        weights = layer.inputs * quads(layer.outputs)
        ways = (1, 2) if i else (1,)  # forward, and for all but the first layer backward
        for way in ways:
            sharing = members if split & way else 1
            share, rate = 1 / sharing, _rate(min(blocks, groups * sharing), resident)
            latency += _PRODUCT + (_TEAM if split & way else 0)
            compute += share * ROWS * weights / _FMA
            memory += share * 4 * weights / rate
        tiles += -(-layer.outputs // TILE_N) * -(-layer.inputs // TILE_K)
    rows = _part("rows", -(-groups * members // blocks), latency, compute, memory)
    rate = _rate(min(blocks, tiles), resident)
    weights = _part(
        "weights", -(-tiles // blocks), _TILE, TILE_N * TILE_K * groups * ROWS / _FMA,
        (4 * (TILE_N + TILE_K) * groups * ROWS + 32 * TILE_N * TILE_K) / rate,
    )  # fmt: skip
    meetings = (3 if clip else 2) * _MEET if blocks > 1 else 0
    return rows, weights, Part("meetings", _MEASURED * (_STEP + meetings), "latency")


def _rate(readers: int, resident: bool) -> float:
    """Bytes a cycle for each of the blocks that read at the same time."""
    return _NEAR if resident else min(_L2, _L2_ALL / readers)


def _part(name: str, times: int, latency: float, compute: float, memory: float) -> Part:
    most = max(latency, compute, memory)
    limit = {latency: "latency", memory: "memory", compute: "compute"}[most]
    return Part(name, _MEASURED * times * (latency + max(compute, memory)), limit)


def estimate(
    network: Network, batch: int, clip: bool, blocks: int, resident: bool, members: int = 1
) -> float:
    """Clock cycles of a step by `blocks` blocks."""
    parts = estimate_parts(network, batch, clip, blocks, resident, members)
    return sum(part.clocks for part in parts)
