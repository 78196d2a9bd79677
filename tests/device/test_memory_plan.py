"""Plans of memory: blocks alive together lie apart, in an arena near the smallest possible."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.device.memory_plan import Block, plan

FOREVER = 10**9


def ends(block):
    return FOREVER if block.dies is None else block.dies


def check(made):
    """No two blocks that are alive together share a byte, all lie in the arena, aligned."""
    placed = [(b, o) for b, o in zip(made.blocks, made.offsets, strict=True) if o >= 0]
    for i, (one, at) in enumerate(placed):
        assert at % made.alignment == 0 and at + one.size <= made.size
        for other, there in placed[:i]:
            if one.born < ends(other) and other.born < ends(one) and one.size and other.size:
                assert at + one.size <= there or there + other.size <= at
    assert made.peak <= made.size <= made.total


@st.composite
def block_lists(draw):
    size = st.one_of(st.just(0), st.integers(1, 300), st.sampled_from([256, 512, 4096, 1 << 40]))
    life = st.one_of(st.none(), st.integers(1, 40))
    rows = draw(st.lists(st.tuples(size, st.integers(0, 40), life), max_size=25))
    return [Block(s, born, None if n is None else born + n) for s, born, n in rows]


@settings(max_examples=150, deadline=None)
@given(block_lists(), st.sampled_from([1, 64, 256]))
def test_blocks_alive_together_lie_apart(blocks, alignment):
    made = plan(blocks, alignment)
    check(made)
    for block, offset in zip(blocks, made.offsets, strict=True):
        assert (offset == -1) == (block.dies is None)
    up = [-(-b.size // alignment) * alignment for b in blocks]
    assert made.escaping == sum(s for s, b in zip(up, blocks, strict=True) if b.dies is None)
    events, alive = made.timeline()
    for event, bytes_ in zip(events.tolist(), alive.tolist(), strict=True):
        now = [s for s, b in zip(up, blocks, strict=True) if b.born <= event < ends(b)]
        assert bytes_ == (sum(now) if event < max(events) else 0)  # the last one ends the step
    inside = [(b, s) for b, s, o in zip(blocks, up, made.offsets, strict=True) if o >= 0]
    alive_at = [sum(s for b, s in inside if b.born <= e < ends(b)) for e in events.tolist()[:-1]]
    assert made.peak == max(alive_at, default=0)


def test_known_plans():
    nothing = plan([])
    assert (nothing.size, nothing.peak, nothing.total, nothing.offsets) == (0, 0, 0, ())
    assert nothing.timeline()[0].size == 0 and "0 blocks" in nothing.describe()
    chain = plan([Block(100, i, i + 2) for i in range(0, 20, 1)], alignment=4)
    assert (chain.size, chain.peak, chain.total) == (200, 200, 2000)
    # A block may take the place of one that dies at the event at which it is born.
    assert plan([Block(8, 0, 1), Block(8, 1, 2)], alignment=8).size == 8
    # Largest first, these would take 20; another order finds the smallest there is.
    rows = [(3, 5, 8), (1, 0, 4), (4, 5, 8), (5, 2, 6), (6, 2, 6), (6, 0, 4)]
    made = plan([Block(*row) for row in rows], alignment=1)
    assert made.size == made.peak == 18
    kept = [Block(10, 0, 2), Block(20, 1, None)]
    assert plan(kept, 1).offsets == (0, -1) and plan(kept, 1).size == 10
    assert "1 blocks of 20 B outlive the step, outside it" in plan(kept, 1).describe()
    events, alive = plan(kept, 1).timeline()
    assert events.tolist() == [0, 1, 2, 3] and alive.tolist() == [10, 30, 20, 0]


def test_what_cannot_be_planned():
    with pytest.raises(ValueError, match="block 1 has size -1"):
        plan([Block(1, 0, 1), Block(-1, 0, 1)])
    with pytest.raises(ValueError, match="lives from 3 to 3"):
        plan([Block(1, 3, 3)])
    with pytest.raises(ValueError, match="power of two, got 48"):
        plan([], alignment=48)


def test_ten_thousand_blocks():
    rng = np.random.default_rng(3)
    born = np.arange(10_000)
    sizes = (2.0 ** rng.uniform(3, 20, len(born))).astype(int)
    dies = born + 1 + rng.geometric(1 / 200, len(born))
    blocks = [Block(*map(int, row)) for row in zip(sizes, born, dies, strict=True)]
    start = time.process_time()
    made = plan(blocks)
    assert time.process_time() - start < 4  # under one second on an idle machine
    assert made.peak <= made.size <= 1.05 * made.peak
    # Apart, for so many: painted event by event into a list of who holds which granule.
    holder = np.full(made.size // 256, -1)
    deaths = sorted((block.dies, i) for i, block in enumerate(blocks))
    gone = 0
    for i, block in enumerate(blocks):
        while deaths[gone][0] <= block.born:
            number = deaths[gone][1]
            first = made.offsets[number] // 256
            part = holder[first : first - (-blocks[number].size // 256)]
            assert (part == number).all()
            part[:] = -1
            gone += 1
        first = made.offsets[i] // 256
        part = holder[first : first - (-block.size // 256)]
        assert (part == -1).all()
        part[:] = i
