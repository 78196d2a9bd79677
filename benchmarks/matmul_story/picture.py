"""The picture of docs/kernels/matmul.md: what each step can reach at most, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence

from steps import Chip, Step

COLOURS = {
    "load path": "#d1603d",
    "issue": "#e0a526",
    "L2": "#5b8e7d",
    "arithmetic": "#33658a",
    "memory": "#777777",
}
WORDS = {
    "load path": "load path (L1 and shared memory)",
    "issue": "instructions issued",
    "L2": "second-level cache",
    "arithmetic": "arithmetic",
    "memory": "main memory",
}


def draw(path: str, steps: Sequence[Step], chip: Chip, size, measured: dict[str, dict]) -> None:
    """A bar a step, on a logarithmic axis; a mark where a time was measured."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "gpunn", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.2), layout="constrained")
    seen = set()
    for place, step in enumerate(steps):
        found = step.predict(chip, *size)
        rate = found.flops / 1e12
        label = None if found.limit in seen else WORDS[found.limit]
        seen.add(found.limit)
        axes.barh(place, rate, color=COLOURS[found.limit], height=0.7, label=label)
        axes.text(rate * 1.07, place, f"{rate:.3g}", va="center", fontsize=9)
        row = measured.get(step.file, {})
        if "tflops" in row:
            axes.plot(row["tflops"], place, "k|", markersize=14, markeredgewidth=2)
    names = [f"{step.number}  {step.idea}" for step in steps]
    axes.set_yticks(range(len(steps)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.3, 2500)
    sizes = " x ".join(map(str, size))
    axes.set_xlabel(f"TFLOP/s at most, {sizes}, by the published figures of the {chip.name}")
    for dtype, words in (("float32", "float32 units"), ("bfloat16", "tensor cores, bfloat16")):
        if any(step.dtype == dtype for step in steps):
            peak = chip.peak(dtype) / 1e12
            axes.axvline(peak, color="0.4", linestyle=":", linewidth=1)
            axes.text(peak, -0.9, f"{words}\n{peak:.0f}", ha="center", va="bottom", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="what limits it", loc="upper right", fontsize=8, framealpha=1)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
    pyplot.close(figure)
