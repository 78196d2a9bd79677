"""The page of the manual that lists the kernel table, made from the table itself."""

from __future__ import annotations

from collections.abc import Iterable

from gpunn.primitives.registry import Primitive

HEAD = """# The table of kernels

This page is generated from the kernel table by `make docs-tables`; do not edit it.
[How the kernels work](index.md) is told beside it.

Each is a plain function on arrays in `gpunn.kernels`; `help(gpunn.kernels.NAME)` gives its formula,
shapes, dtypes and errors. *FLOP* and *bytes* are what one call on float32 inputs of the shape named
must do at the least: the floor that `gpunn bench NAME` compares its times with.
"""

LARGEST = 1024  # of an axis: only the counts are wanted


def kernels_page(primitives: Iterable[Primitive]) -> str:
    """The whole page in Markdown, a table for each family."""
    families: dict[str, list[Primitive]] = {}
    for made in primitives:
        families.setdefault(made.family, []).append(made)
    parts = [HEAD]
    for family, members in sorted(families.items()):
        sources = sorted({f"kernels/cuda/{made.cuda_source}" for made in members})
        sources += sorted({f"kernels/numba/{made.numba_source}" for made in members})
        links = ", ".join(f"[{source}](../../{source})" for source in sources)
        parts.append(f"## {family.replace('_', ' ').capitalize()}\n\n{links}\n")
        parts.append(family_table(members))
    return "\n".join(parts)


def family_table(members: Iterable[Primitive]) -> str:
    """The rows of some primitives in Markdown."""
    head = ["| kernel | what it computes | shape | FLOP | bytes |",
            "| --- | --- | --- | ---: | ---: |"]  # fmt: skip
    return "\n".join([*head, *map(_row, members), ""])


def _row(made: Primitive) -> str:
    shape = tuple(min(extent, LARGEST) for extent in made.bench_shapes[0])
    args, kwargs = made.benchmark_inputs(shape)
    cost = made.cost_of(*args, **kwargs)
    summary = (made.__doc__ or "").strip().split("\n\n")[0].replace("``", "`").replace("|", "\\|")
    size = " x ".join(map(str, shape))
    return (
        f"| `{made.name}` | {' '.join(summary.split())} | {size} | {cost.flops:,.0f} | "
        f"{cost.bytes:,.0f} |"
    )
