"""What could make a step faster, by what `explain` found."""

from __future__ import annotations

from typing import Any

from gpunn.bench.tables import seconds_text
from gpunn.primitives.matmul_precision import get_matmul_precision
from gpunn.profiling.chips import LAUNCH_SECONDS, Chip
from gpunn.train.fused import Refusal, fused_plan

_PRODUCTS = ("matmul", "linear_weight_gradient", "convolution")  # what the precision is about


def advice(found, precision: str | None, refusal: str) -> list[str]:
    """Sentences, the most helpful first; `refusal` says why no one kernel trains the network."""
    exact = precision == "fp32" or (precision is None and get_matmul_precision() == "highest")
    return [
        *([f"One kernel for the whole network: no, {refusal}."] if refusal else ()),
        *_launches(found), *(_precision(found) if exact else ()), *_plain(found),
    ]  # fmt: skip


def as_one_kernel(
    model: Any, loss: Any, optimizer: Any, batch_size: int, precision: str | None, chip: Chip
) -> tuple[list, str]:
    """The parts of a step if one persistent kernel trains the network; else none, and why not."""
    if precision not in (None, "fp32"):
        return [], "it computes in float32"
    plan = fused_plan(model, loss, optimizer, batch_size=batch_size)
    if isinstance(plan, Refusal):
        return [], plan.reason
    return plan.explain(chip.multiprocessors, chip.shared_limit, chip.clock), ""


def _launches(found) -> list[str]:
    total = found.launches
    short = sum(row.count * len(row.launches) for row in found.rows if row.limit == "launch")
    if 2 * short < total:
        return []
    return [
        f"{short} of {total} launches need less than {seconds_text(LAUNCH_SECONDS)}, the time that "
        "starting a kernel takes: replay the step as one CUDA graph with gpunn.compile(step) or "
        "Trainer(compile=True), and use a larger batch if the training allows it."
    ]


def _precision(found) -> list[str]:
    """Float32 products that the tensor cores could make with fewer bits."""
    rows = [row for row in found.rows if row.dtype == "float32" and row.limit == "compute"
            and row.primitive.startswith(_PRODUCTS)]  # fmt: skip
    slow = sum(row.count * row.floor for row in rows)
    chip = found.chip
    fast = {
        kind: sum(
            row.count * max(row.flops / chip.rates[kind], part * row.bytes / chip.bandwidth)
            for row in rows
        )
        for kind, part in (("tf32", 1.0), ("bfloat16", 0.5))
    }
    if slow < 0.2 * found.floor or fast["bfloat16"] > 0.9 * slow:
        return []
    return [
        f"Products that are as exact as float32 make {slow / found.floor:.0%} of the floor, "
        f"{seconds_text(slow)}; with precision='tf32' that becomes {seconds_text(fast['tf32'])}, "
        f"with precision='bf16' {seconds_text(fast['bfloat16'])} (Trainer, gpunn.autocast)."
    ]


def _plain(found) -> list[str]:
    if not found.plain:
        return []
    listed = ", ".join(f"{name} ({count})" for name, count in found.plain.items())
    return [
        "Not counted above: operations that CuPy's arithmetic makes, in a launch or more each: "
        f"{listed}."
    ]
