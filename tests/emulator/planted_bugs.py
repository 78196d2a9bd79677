"""The planted-bug suite: faults that a macro switches on in kernels/*.cu, and who catches them.

The line to be blamed carries a comment ``// FAULT: NAME`` (or stands below such comments). Both
accesses of a race are marked, and all places where threads can hang in a deadlock.

    python tests/emulator/planted_bugs.py        prints the table of the manual
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpunn import emulator
from gpunn.emulator import (
    BarrierError,
    ConstWriteError,
    DeadlockError,
    DivergenceError,
    EmulatorError,
    LifetimeError,
    MisalignedAccessError,
    MissingFenceError,
    MissingWaitError,
    OutOfBoundsError,
    RaceError,
    StackOverflowError,
    TrapError,
    UninitializedReadError,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_kernels import CASES, Case

# A missing barrier before the first use, where the reader may not live to see the writer come (it
# works on with a poisoned index) or the writer is in another block.
UNORDERED = (RaceError, UninitializedReadError)
# A slot given back too early: the next data may still be under way, or already be there.
OVERWRITTEN = (RaceError, MissingWaitError)
# Read without a wait: the copy is under way, or not even started, or has landed unbeknown.
NOT_WAITED = (MissingWaitError, UninitializedReadError, RaceError)

# Case -> fault -> the error (or errors) that must be raised. None: the result must be wrong.
TABLE: dict[str, dict[str, type | tuple[type, ...] | None]] = {
    "matmul_tiled": {
        "BUG_NO_BARRIER_AFTER_LOAD": RaceError,
        "BUG_NO_BARRIER_BEFORE_REUSE": RaceError,
        "BUG_NO_ROW_GUARD": OutOfBoundsError,
        # Writes into the next row, which another block owns, and behind the last row.
        "BUG_NO_COLUMN_GUARD": (RaceError, OutOfBoundsError),
        "BUG_ONE_STEP_TOO_FAR": OutOfBoundsError,
    },
    "block_sum": {
        "BUG_SHORT_BLOCK_UNFILLED": UninitializedReadError,
        "BUG_NO_BARRIER_IN_TREE": RaceError,
        "BUG_NO_SYNCWARP_BEFORE_WRITE": RaceError,
        "BUG_NO_SYNCWARP_AFTER_WRITE": RaceError,
        "LAUNCH_NULL_POINTER": OutOfBoundsError,
    },
    "softmax": {
        "BUG_NO_BARRIER_AFTER_SCRATCH": RaceError,
        "BUG_NO_BARRIER_BEFORE_REUSE": RaceError,
        "BUG_SCRATCH_OVERREAD": OutOfBoundsError,
        "BUG_BARRIER_IN_ONE_LANE": DivergenceError,
    },
    "transpose": {
        "BUG_NO_BARRIER": RaceError,
        "BUG_FIRST_COLUMN_SHIFTED": OutOfBoundsError,
        "BUG_EDGE_UNFILLED": UninitializedReadError,
        "BUG_WRONG_PITCH": OutOfBoundsError,
    },
    "histogram": {
        "BUG_NO_CLEAR": UninitializedReadError,
        "BUG_NO_BARRIER_AFTER_CLEAR": RaceError,
        "BUG_ONE_FALLS_OUTSIDE": OutOfBoundsError,
        "BUG_PLAIN_INCREMENT": RaceError,
        "BUG_NO_BARRIER_BEFORE_MERGE": RaceError,
        "BUG_PLAIN_MERGE": RaceError,
        "BUG_CLEARED_BY_FIRST_BLOCK": RaceError,
    },
    "scan": {
        "BUG_ONE_BUFFER": RaceError,
        "BUG_NO_BARRIER_BEFORE_CARRY": RaceError,
        "BUG_BARRIER_IN_UNEVEN_LOOP": DivergenceError,
    },
    "stencil": {
        "BUG_BLOCKS_OVERLAP": RaceError,
        "BUG_IN_PLACE": RaceError,
        "BUG_LEFT_EDGE": OutOfBoundsError,
        "BUG_NO_RIGHT_NEIGHBOUR": UninitializedReadError,
        "BUG_NO_BARRIER": RaceError,
        "BUG_TILE_TOO_FAR": OutOfBoundsError,
        "LAUNCH_TOO_LITTLE_SHARED": OutOfBoundsError,
        "BUG_FOURTH_WEIGHT": OutOfBoundsError,
        "LAUNCH_OUTPUT_IS_INPUT": RaceError,
    },
    "vector_reverse": {
        "BUG_SOURCE_NOT_ALIGNED": MisalignedAccessError,
        "BUG_SHARED_NOT_ALIGNED": MisalignedAccessError,
        "BUG_VECTORS_ROUNDED_UP": OutOfBoundsError,
        "BUG_TAIL_TOO_LONG": OutOfBoundsError,
        "BUG_CLEARS_SOURCE": ConstWriteError,
    },
    "warp_filter": {
        "BUG_LANE_NOT_IN_MASK": DivergenceError,
        "BUG_FULL_MASK_IN_BRANCH": DivergenceError,
        "BUG_MASK_OF_EACH_LANE": DivergenceError,
        # The start comes from a lane that does not take part: poison, an index of -1 or so.
        "BUG_FIRST_LANE_LEADS": (OutOfBoundsError, RaceError),
        "BUG_SHIFT_BY_32": TrapError,
    },
    "warp_sum_tail": {"BUG_LANES_RETURNED": None},
    "last_block": {
        "BUG_NO_THREADFENCE": RaceError,
        "BUG_PLAIN_COUNTER": RaceError,
        "BUG_NO_BARRIER_BEFORE_BRANCH": RaceError,
        "BUG_FENCE_OF_THE_BLOCK": RaceError,
    },
    "look_back": {
        "BUG_FLAG_WITHOUT_RELEASE": RaceError,
        "BUG_PREFIX_AFTER_FLAG": RaceError,
        "BUG_TICKET_NOT_SHARED": UNORDERED,
        "BUG_NO_BARRIER_IN_SCAN": RaceError,
    },
    "bucket": {
        "BUG_SHIFT_BY_KEY": TrapError,
        "BUG_DIVISION_BY_ZERO": TrapError,
        "BUG_ASSERT": TrapError,
        "BUG_TRAP": TrapError,
        "BUG_BIG_LOCAL_ARRAY": StackOverflowError,
        "BUG_DEEP_RECURSION": StackOverflowError,
        "BUG_SPIN_FOREVER": DeadlockError,
        "BUG_LOCAL_INDEX": OutOfBoundsError,
    },
    "gemm_cp_async": {
        "BUG_NO_WAIT": MissingWaitError,
        "BUG_WAIT_COUNT": MissingWaitError,
        # Whether the other threads' copies are under way or landed, nothing orders them.
        "BUG_NO_BARRIER_AFTER_WAIT": OVERWRITTEN,
        "BUG_WAIT_AFTER_BARRIER": OVERWRITTEN,
        "BUG_LOAD_BEFORE_BARRIER": OVERWRITTEN,
        "BUG_PITCH_NOT_ALIGNED": MisalignedAccessError,
        "BUG_PREFETCH_BEYOND_END": OutOfBoundsError,
        "BUG_NOT_WAITED_AT_EXIT": MissingWaitError,
    },
    "gemm_wgmma": {
        "BUG_NO_FULL_WAIT": NOT_WAITED,
        "BUG_CONSUMER_PARITY": NOT_WAITED,
        "BUG_FULL_WAIT_AFTER_WGMMA": NOT_WAITED,
        # The second round finds the slot in use, or its barrier's phase still open.
        "BUG_NO_EMPTY_WAIT": (*OVERWRITTEN, BarrierError),
        "BUG_RELEASED_BEFORE_WAIT": OVERWRITTEN,
        "BUG_PRODUCER_PARITY": DeadlockError,
        "BUG_EMPTY_COUNT_TOO_HIGH": DeadlockError,
        "BUG_ARRIVES_TWICE": (BarrierError, MissingWaitError),
        "BUG_ONE_BARRIER_NOT_INITIALISED": BarrierError,
        "BUG_NO_BARRIER_AFTER_INIT": (BarrierError, RaceError),
        "BUG_EXPECTS_TOO_MUCH": DeadlockError,
        "BUG_EXPECTS_TOO_LITTLE": (MissingWaitError, BarrierError),
        "BUG_SLOTS_NOT_ALIGNED": MisalignedAccessError,
        "BUG_NO_WGMMA_WAIT": MissingWaitError,
        "BUG_NO_WGMMA_FENCE": MissingFenceError,
        "BUG_SCALED_IN_FLIGHT": MissingWaitError,
        "BUG_SLOT_CLEARED_IN_FLIGHT": OVERWRITTEN,
        "BUG_ONE_WARP_LEAVES": (DivergenceError, DeadlockError),
        "LAUNCH_TOO_LITTLE_SHARED": OutOfBoundsError,
    },
    "wgmma_registers": {
        "BUG_NO_PROXY_FENCE": MissingFenceError,
        "BUG_NO_BARRIER": RaceError,
        "BUG_NO_WGMMA_FENCE": MissingFenceError,
        "BUG_ONE_FRAGMENT_FOR_ALL": MissingWaitError,
        "BUG_SLICE_NOT_WAITED_FOR": OVERWRITTEN,
        "BUG_NO_COMMIT": MissingWaitError,
        "BUG_BIAS_IN_FLIGHT": MissingWaitError,
    },
    "tma_scale": {
        "BUG_NO_PROXY_FENCE": MissingFenceError,
        "BUG_NO_BARRIER_BEFORE_STORE": RaceError,
        "BUG_NO_READ_WAIT": MissingWaitError,
        "BUG_NO_WAIT_AT_EXIT": MissingWaitError,
        "BUG_NO_COMMIT": MissingWaitError,
        "BUG_PHASE_NOT_FLIPPED": OVERWRITTEN,
        "BUG_NOTHING_EXPECTED": OVERWRITTEN,
        "BUG_NO_INIT": BarrierError,
    },
    "bulk_rows": {
        "BUG_NO_WAIT": MissingWaitError,
        "BUG_NO_READ_WAIT": MissingWaitError,
        "BUG_NO_WAIT_AT_EXIT": MissingWaitError,
        "BUG_NO_PROXY_FENCE": MissingFenceError,
        "BUG_EXPECTS_MORE_THAN_COMES": DeadlockError,
        "BUG_ROW_TOO_LONG": OutOfBoundsError,
        "BUG_STORED_A_ROW_FURTHER": OutOfBoundsError,
        "BUG_BYTES_NOT_16": MisalignedAccessError,
        "BUG_SOURCE_NOT_ALIGNED": MisalignedAccessError,
    },
    "cluster_normalise": {
        "BUG_BLOCK_BARRIER_ONLY": UNORDERED,
        "BUG_PEER_MAY_HAVE_EXITED": LifetimeError,
        "BUG_NO_SUCH_RANK": OutOfBoundsError,
        "BUG_CLUSTER_BARRIER_BY_ONE_THREAD": (DivergenceError, DeadlockError),
        "BUG_ARRIVES_WITHOUT_WAIT": (*UNORDERED, BarrierError),
        "BUG_WRITTEN_AFTER_ARRIVAL": RaceError,
    },
    "multicast": {
        "BUG_NO_CLUSTER_BARRIER_AFTER_INIT": (BarrierError, RaceError),
        "BUG_NO_INIT_FENCE": MissingFenceError,
        "BUG_PEER_NOT_ASKED": OVERWRITTEN,
        "BUG_PEER_MAY_HAVE_EXITED": LifetimeError,
        "BUG_EXPECTS_OWN_HALF": (MissingWaitError, BarrierError),
        "BUG_MASK_OF_ONE_BLOCK": DeadlockError,
        "BUG_NO_SYNCWARP_BEFORE_RELEASE": OVERWRITTEN,
    },
    "exchange_async": {
        "BUG_NO_WAIT": NOT_WAITED,
        "BUG_NO_CLUSTER_BARRIER": (BarrierError, RaceError),
        "BUG_EXPECTS_TOO_MANY": DeadlockError,
        "BUG_EXPECTS_TOO_FEW": (MissingWaitError, BarrierError),
    },
    "ring_mbarrier": {
        "BUG_FULL_COUNT_TOO_HIGH": DeadlockError,
        "BUG_FULL_COUNT_TOO_LOW": OVERWRITTEN,
        "BUG_ARRIVES_BEFORE_DATA": MissingWaitError,
        "BUG_NO_EMPTY_WAIT": (*OVERWRITTEN, BarrierError),
        "BUG_RELEASED_BEFORE_READ": OVERWRITTEN,
        "BUG_PARITY_NEVER_FLIPS": OVERWRITTEN,
    },
    "ring_named": {
        "BUG_COUNTS_DIFFER": DivergenceError,
        "BUG_COUNT_IS_NO_MULTIPLE_OF_32": BarrierError,
        "BUG_CONSUMER_LEFT": DeadlockError,
        "BUG_RELEASED_BEFORE_READ": RaceError,
        "BUG_ARRIVES_BEFORE_WRITE": RaceError,
        "BUG_ARRIVES_WHERE_IT_WAITS": RaceError,
        "BUG_NO_SUCH_BARRIER": BarrierError,
    },
    "epilogue_stmatrix": {
        "BUG_NO_PROXY_FENCE": MissingFenceError,
        "BUG_NO_BARRIER": RaceError,
        "BUG_NO_COMMIT": MissingWaitError,
        "BUG_COLUMN_NOT_ALIGNED": MisalignedAccessError,
        # One row too low is the next warp's first row, and for the last warp beyond the tile.
        "BUG_ROW_TOO_LOW": (OutOfBoundsError, RaceError),
    },
    "broadcast": {
        "BUG_WARP_BARRIER_BEFORE_USE": RaceError,
        "BUG_WARP_BARRIER_BEFORE_REUSE": RaceError,
    },
    "handoff": {
        "BUG_FLAG_NOT_AWAITED": RaceError,
        "BUG_WAITED_FOR_READ_ONLY": OVERWRITTEN,
        "BUG_FLAG_BEFORE_WAIT": OVERWRITTEN,
    },
    "bulk_sum": {
        "BUG_PLAIN_START": RaceError,
        "BUG_BARRIER_OVERWRITTEN": (BarrierError, *OVERWRITTEN),
        "BUG_INITIALISED_EACH_ROUND": (BarrierError, *OVERWRITTEN),
    },
    "warp_tiles": {
        "BUG_NO_SYNCWARP": RaceError,
        "BUG_SHUFFLE_FOR_BARRIER": RaceError,
        "BUG_NO_SYNCWARP_BEFORE_REFILL": RaceError,
    },
    "grid_normalise": {"BUG_BLOCK_BARRIER_ONLY": RaceError},
    "lock": {
        "BUG_NO_LOCK": RaceError,
        "BUG_UNLOCKED_WITHOUT_FENCE": RaceError,
        "BUG_NEVER_UNLOCKED": DeadlockError,
    },
}
# Faults of the launch, not of the source: other shared memory, or a change of the arguments.
SHARED = {
    ("stencil", "LAUNCH_TOO_LITTLE_SHARED"): 65 * 4,
    ("gemm_wgmma", "LAUNCH_TOO_LITTLE_SHARED"): 3 * 64 * 64 * 2 + 64,
}
ARGUMENTS = {
    ("stencil", "LAUNCH_OUTPUT_IS_INPUT"): lambda arguments: [arguments[1], *arguments[1:]],
    ("block_sum", "LAUNCH_NULL_POINTER"): lambda arguments: [None, *arguments[1:]],
}
# Faults that only the clock can tell: they get little time.
ENDLESS = {("bucket", "BUG_SPIN_FOREVER"), ("lock", "BUG_NEVER_UNLOCKED")}


@dataclass(frozen=True)
class Fault:
    """One planted fault. `errors` is empty where only the result shows it."""

    case: Case
    name: str
    errors: tuple[type, ...]

    @property
    def id(self) -> str:
        return f"{self.case.name}-{self.name.removeprefix('BUG_')}"

    @property
    def lines(self) -> frozenset[int]:
        return marked_lines(self.case.path)[self.name]


def _errors(value) -> tuple[type, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


FAULTS = [
    Fault(CASES[case], name, _errors(errors))
    for case, faults in TABLE.items()
    for name, errors in faults.items()
]


@functools.cache
def marked_lines(path: Path) -> dict[str, frozenset[int]]:
    """Fault -> numbers of the lines that may be blamed for it."""
    marked: dict[str, set[int]] = {}
    waiting: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        code, _, comment = line.partition("// FAULT:")
        waiting += re.findall(r"\w+", comment)
        if waiting and code.strip() and not code.lstrip().startswith("#"):
            for name in waiting:
                marked.setdefault(name, set()).add(number)
            waiting = []
    return {name: frozenset(lines) for name, lines in marked.items()}


def launch(case: Case, fault: str = "", *, check: bool, schedule: str, seed: int = 0):
    """Run the kernel, with the fault if one is named. True if the result is right."""
    options = (f"-D{fault}",) if fault.startswith("BUG_") else ()
    module = emulator.RawModule(
        path=case.path, options=options, enable_cooperative_groups=case.cooperative
    )
    arguments, expected = case.prepare(np.random.default_rng(seed))
    arguments = ARGUMENTS.get((case.name, fault), list)(arguments)
    shared_mem = SHARED.get((case.name, fault), case.shared_mem)
    timeout = 2.0 if (case.name, fault) in ENDLESS else 30.0
    with emulator.settings(check=check, schedule=schedule, seed=seed, timeout=timeout):
        function = module.get_function(case.function)
        function(case.grid, case.block, arguments, shared_mem=shared_mem)
    return all(
        np.allclose(np.asarray(got, np.float64), np.asarray(right, np.float64), case.tolerance, 0.0)
        for got, right in expected
    )


MODES = {
    "fast, in order": {"check": False, "schedule": "in order"},
    "fast, random": {"check": False, "schedule": "random"},
    "checked": {"check": True, "schedule": "random"},
}


def outcome(fault: Fault, **mode) -> str:
    """'RaceError', 'wrong result' or '' (not caught) of one launch."""
    try:
        return "" if launch(fault.case, fault.name, **mode) else "wrong result"
    except EmulatorError as error:
        return type(error).__name__


def outcome_apart(fault: Fault, **mode) -> str:
    """The same in a process of its own: unchecked, a fault may take the process with it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(outcome(fault, **mode)))
    process.start()
    process.join()
    return ours.recv() if ours.poll() else "crash"


def summary() -> str:
    """The table fault x mode, in Markdown."""
    rows = [f"| kernel | fault | {' | '.join(MODES)} |", "| --- | --- |" + " --- |" * len(MODES)]
    caught = dict.fromkeys(MODES, 0)
    for fault in FAULTS:
        found = {name: outcome_apart(fault, **mode) for name, mode in MODES.items()}
        for name in MODES:
            caught[name] += bool(found[name])
        text = re.sub(r"^(BUG|LAUNCH)_", "", fault.name).lower().replace("_", " ")
        cells = " | ".join(found[name] or "–" for name in MODES)
        rows.append(f"| {fault.case.name} | {text} | {cells} |")
    totals = " | ".join(f"{caught[name]} of {len(FAULTS)}" for name in MODES)
    rows.append(f"| all {len(TABLE)} | | {totals} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(summary())
