"""`CompiledStep`: one function, and for each kind of call a `Variant` of it."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpunn.autograd import mode
from gpunn.compiled.reach import Reach
from gpunn.compiled.signature import shown, split
from gpunn.compiled.variant import Variant
from gpunn.device import tracing
from gpunn.device.device import Device, as_device
from gpunn.device.step_memory import SharedArena
from gpunn.errors import StepError
from gpunn.primitives.matmul_precision import get_matmul_precision
from gpunn.text import table

_RENEWALS = 8  # how often a step may be traced anew before a warning says why


def compile(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a `CompiledStep` of a function; also as a decorator, with or without options.

    Options are those of `CompiledStep`.
    """
    if function is None:
        return lambda found: CompiledStep(found, **options)
    return CompiledStep(function, **options)


def _shown(key: tuple[Any, ...]) -> str:
    """A kind of call as text: its arguments, and what of the modes is not as usual."""
    signature, (records, low, _, training, gradients) = key
    modes = ["eval"] if training and not any(training) else []
    modes += [] if records else ["no_grad"]
    modes += [] if low is None else [str(low)]
    modes += ["before any gradient"] if gradients and all(kind & 1 for kind in gradients) else []
    return " ".join([shown(signature), *modes])


def _remade(function: Callable[..., Any], options: dict[str, Any]) -> CompiledStep:
    return CompiledStep(function, **options)


class CompiledStep:
    """A step that runs faster the more often it is called: see `gpunn.compiled`.

    The first call of a kind runs as it is, the second records which memory it needs, the third is
    captured, all later ones are replayed. Calls are of one kind if their Tensors have the same
    shapes, dtypes and devices, all other arguments are equal, and the modules are in the same mode
    (training or evaluation). Tensors on the CPU are copied to the step's device.

    What changes between replays lies in device memory: hyperparameters (a schedule may change
    them at any time), step counts, the state of `gpunn.random`, the loss scale. Parameters may be
    loaded or replaced, gradients assigned, layers frozen or exchanged, and numbers in the step's
    closure set: that is noticed, and where a replay cannot follow, the step is traced anew.

    Decorating a method gives each object a step of its own.

    Parameters
    ----------
    function : the step: forward, loss, backward, update …, with Tensors and plain values as
        arguments; what it returns may hold Tensors, which come without a history
    max_signatures : kinds of calls there may be at most, each with its own memory
    side_effects : "error", "warn" or "allow": what to do about things that the function changes by
        Python alone, such as a list that grows, because a replay would not
    copy_outputs : give copies of the results. Without, they lie in the step's own memory and the
        next call of the same kind overwrites them
    uses : modules, optimizers and other objects of the step, where they cannot be found in its
        closure
    name : for messages

    Raises
    ------
    StepError : for reads of values on the host (``.item()``, ``if tensor``), copies from the host,
        shapes that depend on values, side effects, too many kinds of calls, arguments that need a
        gradient; it names the call and the line
    """

    def __init__(
        self,
        function: Callable[..., Any],
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
        self.name: Any = name or getattr(function, "__name__", type(function).__name__)
        self.max_signatures, self.side_effects = max_signatures, side_effects
        self.copy_outputs = copy_outputs
        self._uses = tuple(uses)
        functools.update_wrapper(self, function, updated=())
        self._begin()

    def _begin(self) -> None:
        self._variants: dict[Any, Variant] = {}
        self.reach: Any = None  # a Reach from the first call on
        self.arena = SharedArena()
        self._renewed: dict[str, int] = {}  # by the name of what was changed
        self._running = threading.Lock()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The step of one object, where a method was decorated; made when it is first asked for."""
        if instance is None:
            return self
        known = vars(instance).get(f"_compiled_{self.name}")
        if known is None:
            method = types.MethodType(self.function, instance)
            known = CompiledStep(method, **self._options)
            vars(instance)[f"_compiled_{self.name}"] = known
        return known

    @property
    def _options(self) -> dict[str, Any]:
        names = ("max_signatures", "side_effects", "copy_outputs", "name")
        return {"uses": self._uses, **{name: getattr(self, name) for name in names}}

    def __reduce__(self) -> Any:
        # Copies and pickles begin anew: captures belong to the arrays that they were made with.
        return _remade, (self.function, self._options)

    def __repr__(self) -> str:
        return f"<compiled step {self.name}, {len(self._variants)} signatures>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if tracing.state.trace is not None:
            raise StepError(
                f"compiled step {self.name} is called inside the compiled step "
                f"{tracing.state.trace.name}; compile only the outer one"
            )
        if not self._running.acquire(blocking=False):
            raise StepError(
                f"compiled step {self.name} is called by two threads at a time, and its memory "
                "serves one; compile it once for each thread"
            )
        try:
            return self._run(args, kwargs)
        finally:
            self._running.release()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors, signature = split(self.name, args, kwargs)
        if self.reach is None:
            self._find(tensors)
        elif changed := self._changed():
            self._renew(changed, tensors)
        key = (signature, self._ambient())
        variant = self._variants.get(key)
        if variant is None:
            variant = self._variants[key] = self._new_variant(key)
        before = variant.state
        try:
            return variant.run(self, args, kwargs, tensors)
        finally:
            if self.device.type != "cpu" and not before == variant.state == "captured":
                self.reach.remember()  # what the step's own Python has changed is no news

    # ---- what the step uses ----------------------------------------------------------------------

    def _find(self, tensors: list[Any]) -> None:
        """Look at the step's closure, once: at the first call all of its names are bound."""
        self.reach = reach = Reach(self.function, self._uses)
        self._modules = [part for module in reach.modules for part in module.modules()]
        optimized = [p for o in reach.optimizers for g in o.param_groups for p in g["params"]]
        others: list[Any] = [p for module in reach.modules for p in module.parameters()]
        others += [tensor for tensor in reach.tensors if tensor.requires_grad]
        self.optimized, self.parameters = set(optimized), list(dict.fromkeys(optimized + others))
        buffers = [b for module in reach.modules for b in module.buffers()]
        self.fixed = [*self.parameters, *buffers, *reach.tensors]
        first = next((t for t in (*self.fixed, *tensors)), None)
        self.device: Device = as_device(None) if first is None else first.device

    def _changed(self) -> list[str]:
        """What others changed since the step was looked at, so that it is not what was traced."""
        if self.device.type != "cpu":
            return self.reach.changed()
        # On the CPU the Python runs each time and sees for itself; but where?
        here = not self.fixed or type(self.fixed[0]._array) is np.ndarray
        return [] if here else ["the device of its tensors"]

    def _renew(self, changed: list[str], tensors: list[Any]) -> None:
        """Begin anew, with what there is now."""
        for name in changed:
            self._renewed[name] = self._renewed.get(name, 0) + 1
        often = [name for name, times in self._renewed.items() if times == _RENEWALS]
        if often:
            warnings.warn(
                f"compiled step {self.name}: it was traced anew {_RENEWALS} times, because "
                f"{', '.join(often)} changed between calls. Pass what changes as an argument, "
                "as a Tensor if it changes at every call",
                stacklevel=4,
            )
        self._variants.clear()
        self.arena = SharedArena()
        self._find(tensors)

    def _ambient(self) -> tuple[Any, ...]:
        """What else decides what the step does: modes, precision, which gradients there are."""
        return (
            mode.state.enabled,
            mode.state.low,
            get_matmul_precision(),
            tuple([module.training for module in self._modules]),
            # As bytes, which are hashed at one go: there may be hundreds.
            bytes([(p.grad is None) if p._requires_grad else (2 if p.grad is None else 3)
                   for p in self.parameters]),
        )  # fmt: skip

    def _new_variant(self, key: Any) -> Variant:
        if len(self._variants) >= self.max_signatures:
            known = "; ".join(map(_shown, self._variants))
            raise StepError(
                f"compiled step {self.name}: this call, {_shown(key)}, would be signature number "
                f"{len(self._variants) + 1}, and max_signatures is {self.max_signatures}. Known: "
                f"{known}. Pad the batches to few shapes, pass changing numbers as Tensors, or "
                "raise max_signatures"
            )
        return Variant(self.device)

    # ---- for the user ----------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all kinds of calls and their memory."""
        self._variants.clear()
        self.arena, self.reach = SharedArena(), None

    def summary(self) -> str:
        """A table: each kind of call, how far it is, its memory and what a replay does."""
        rows = [[_shown(key), *variant.row()] for key, variant in self._variants.items()]
        heads = ["arguments", "state", "calls", "arena", "peak", "unshared", "kernels"]
        where = f" on {self.device}" if self.reach is not None else ""
        notes = [note for variant in self._variants.values() for note in variant.notes()]
        for name, times in self._renewed.items():
            notes.append(f"traced anew ({times} times) because {name} changed")
        text = table(heads, rows, right=(2, 3, 4, 5, 6)) if rows else "not called yet"
        return "\n".join([f"compiled step {self.name}{where}", text, *dict.fromkeys(notes)])
