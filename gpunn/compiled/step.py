"""`CompiledStep`: one function, and for each kind of call a `Variant` of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from gpunn.autograd import mode
from gpunn.compiled.reach import Reach
from gpunn.compiled.signature import shown, split
from gpunn.compiled.variant import Variant
from gpunn.device import tracing
from gpunn.device.device import Device, as_device
from gpunn.errors import StepError
from gpunn.nn.module import Module
from gpunn.optim.optimizer import Optimizer
from gpunn.primitives.matmul_precision import get_matmul_precision
from gpunn.text import table


def compile(function: Callable | None = None, **options: Any) -> Any:
    """Make a `CompiledStep` of a function; also as a decorator, with or without options.

    Options are those of `CompiledStep`.
    """
    if function is None:
        return lambda found: CompiledStep(found, **options)
    return CompiledStep(function, **options)


class CompiledStep:
    """A step that runs faster the more often it is called: see `gpunn.compiled`.

    The first call of a kind runs as it is, the second records which memory it needs, the third is
    captured, all later ones are replayed. Calls are of one kind if their Tensors have the same
    shapes, dtypes and devices, all other arguments are equal, and the modules are in the same mode
    (training or evaluation). Tensors on the CPU are copied to the step's device.

    What changes between replays lies in device memory: hyperparameters (a schedule may change
    them at any time), step counts, the state of `gpunn.random`, the loss scale. Parameters may be
    loaded or replaced; that is noticed.

    Parameters
    ----------
    function : the step: forward, loss, backward, update …, with Tensors and plain values as
        arguments; what it returns may hold Tensors, which come without a history
    max_signatures : kinds of calls there may be at most, each with its own memory
    side_effects : "error", "warn" or "allow": what to do about things that the function changes by
        Python alone, such as a list that grows, because a replay would not
    copy_outputs : give copies of the results. Without, they lie in the step's own memory and the
        next call of the same kind overwrites them
    uses : modules and optimizers of the step, where they cannot be found in its closure
    name : for messages

    Raises
    ------
    StepError : for reads of values on the host (``.item()``, ``if tensor``), copies from the host,
        shapes that depend on values, side effects, too many kinds of calls; it names the call and
        the line
    """

    def __init__(
        self,
        function: Callable,
        *,
        max_signatures: int = 8,
        side_effects: str = "error",
        copy_outputs: bool = True,
        uses: Iterable[Any] = (),
        name: str | None = None,
    ):
        if not callable(function):
            raise TypeError(f"compile: expected a function, got {type(function).__name__}")
        if side_effects not in ("error", "warn", "allow"):
            raise ValueError(
                f"compile: side_effects is {side_effects!r}; expected 'error', 'warn' or 'allow'"
            )
        if max_signatures < 1:
            raise ValueError(f"compile: max_signatures is {max_signatures}; expected 1 or more")
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.max_signatures, self.side_effects = max_signatures, side_effects
        self.copy_outputs = copy_outputs
        self._uses = tuple(uses)
        self._variants: dict[Any, Variant] = {}
        self._reach: Reach | None = None
        functools.update_wrapper(self, function, updated=())

    def __repr__(self) -> str:
        return f"<compiled step {self.name}, {len(self._variants)} signatures>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if tracing.state.trace is not None:
            raise StepError(
                f"compiled step {self.name} is called inside the compiled step "
                f"{tracing.state.trace.name}; compile only the outer one"
            )
        tensors, signature = split(self.name, args, kwargs)
        if self._reach is None:
            self._find(tensors)
        key = (signature, self._ambient())
        variant = self._variants.get(key)
        if variant is None:
            variant = self._variants[key] = self._new_variant(key)
        return variant.run(args, kwargs, tensors)

    # ---- what the step uses ----------------------------------------------------------------------

    def _find(self, tensors: list) -> None:
        """Look at the step's closure, once: at the first call all of its names are bound."""
        reach = Reach(self.function)
        for value in self._uses:
            kinds = {Module: reach.modules, Optimizer: reach.optimizers}
            for kind, found in kinds.items():
                if isinstance(value, kind) and not any(value is one for one in found):
                    found.append(value)
        self._modules = [part for module in reach.modules for part in module.modules()]
        self.parameters = list(
            dict.fromkeys(
                [p for o in reach.optimizers for group in o.param_groups for p in group["params"]]
                + [p for module in reach.modules for p in module.parameters()]
                + [tensor for tensor in reach.tensors if tensor.requires_grad]
            )
        )
        buffers = [b for module in reach.modules for b in module.buffers()]
        self.fixed = [*self.parameters, *buffers, *reach.tensors]
        first = next((t for t in (*self.fixed, *tensors)), None)
        self.device: Device = as_device(None) if first is None else first.device
        self.reach = self._reach = reach

    def _ambient(self) -> tuple:
        """What else decides what the step does: modes, precision, which gradients there are."""
        return (
            mode.state.enabled,
            mode.state.low,
            get_matmul_precision(),
            tuple([module.training for module in self._modules]),
            tuple([parameter.grad is None for parameter in self.parameters]),
        )

    def _new_variant(self, key: Any) -> Variant:
        if len(self._variants) >= self.max_signatures:
            known = "; ".join(shown(signature) for signature, _ in self._variants)
            raise StepError(
                f"compiled step {self.name}: this call, {shown(key[0])}, would be signature number "
                f"{len(self._variants) + 1}, and max_signatures is {self.max_signatures}. Known: "
                f"{known}. Pad the batches to few shapes, pass changing numbers as Tensors, or "
                "raise max_signatures"
            )
        return Variant(self)

    # ---- for the user ----------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all kinds of calls and their memory."""
        self._variants.clear()
        self._reach = None

    def summary(self) -> str:
        """A table: each kind of call, how far it is, its memory and what a replay does."""
        rows = [[shown(key[0]), *variant.row()] for key, variant in self._variants.items()]
        heads = ["arguments", "state", "calls", "arena", "peak", "unshared", "kernels"]
        where = f" on {self.device}" if self._reach is not None else ""
        notes = [note for variant in self._variants.values() for note in variant.notes()]
        text = table(heads, rows, right=(2, 3, 4, 5, 6)) if rows else "not called yet"
        return "\n".join([f"compiled step {self.name}{where}", text, *dict.fromkeys(notes)])
