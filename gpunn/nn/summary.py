"""The table that `Module.summary` prints: layers, output shapes, parameter counts, totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.creation import zeros
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor

_BATCH = 2  # any size that is not 1, so that no layer takes it for something to broadcast


@dataclass(frozen=True)
class Row:
    """One layer: its name in the model, its class, the shape of its output, its own parameters."""

    name: str
    layer: str
    output_shape: tuple[Any, ...] | None
    parameters: int


@dataclass(repr=False)
class Summary:
    """The rows of the table and the totals; ``str(summary)`` is the table."""

    rows: list[Row] = field(default_factory=list)
    total: int = 0
    trainable: int = 0
    parameter_bytes: int = 0

    def __repr__(self) -> str:
        return f"<Summary: {len(self.rows)} layers, {self.total:,} parameters>"

    def __str__(self) -> str:
        head = ("Layer", "Output shape", "Parameters")
        body = [
            (
                f"{row.name} ({row.layer})" if row.name else row.layer,
                _shape_text(row.output_shape),
                f"{row.parameters:,}" if row.parameters else "-",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in (head, *body)) for i in range(3)]
        rule = "-" * (sum(widths) + 4)
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in (head, *body)
        ]
        return "\n".join(
            [
                lines[0],
                rule,
                *lines[1:],
                rule,
                f"Parameters: {self.total:,} ({self.trainable:,} trainable), "
                f"{self.parameter_bytes / 2**20:.2f} MiB",
            ]
        )


def _shape_text(shape: Any) -> str:
    if shape is None:
        return "not run"
    return "(" + ", ".join(["N", *map(str, shape[1:])]) + ("," if len(shape) == 1 else "") + ")"


def summarize(module: Any, input_shape: Any, dtype: DTypeLike = None) -> Summary:
    """Run `module` once on zeros and collect what each innermost layer gave."""
    several = bool(input_shape) and isinstance(input_shape[0], (tuple, list))
    shapes = input_shape if several else [input_shape]
    first = next(module.parameters(), None)
    options: dict[str, Any] = (
        {} if first is None else {"dtype": first.dtype, "device": first.device}
    )
    if dtype is not None:
        options["dtype"] = dtype
    outputs: dict[int, tuple[Any, ...]] = {}

    def note(layer: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple) and output:
            output = output[0]  # of a layer that also gives states or weights
        if isinstance(output, Tensor):
            outputs[id(layer)] = output.shape

    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if not layer._modules or layer._parameters
    ]
    modes = [(layer, layer.training) for layer in module.modules()]
    hooks = [layer.register_forward_hook(note) for _, layer in layers]
    try:
        module.eval()
        with no_grad():
            module(*(zeros(_BATCH, *shape, **options) for shape in shapes))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes:
            layer.training = training
    counted: set[int] = set()
    rows = []
    for name, layer in layers:
        own = [p for p in layer._parameters.values() if p is not None and id(p) not in counted]
        counted.update(id(p) for p in own)
        count = sum(p.numel() for p in own)
        rows.append(Row(name, type(layer).__name__, outputs.get(id(layer)), count))
    parameters = list(module.parameters())
    return Summary(
        rows,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.nbytes for p in parameters),
    )
