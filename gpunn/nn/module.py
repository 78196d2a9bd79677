"""`Module`: a part of a network with its parameters, its buffers and the modules inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.dtypes import bfloat16, float16, float32, float64, is_float
from gpunn.autograd.functions.layout import moved
from gpunn.autograd.functions.moving import parse_to
from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.device import to_device
from gpunn.nn.parameter import Parameter
from gpunn.nn.state_names import mismatches


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Structure:
    """`changes` rises whenever some module gets other attributes, parts or hooks, or moves.

    By it a compiled step, which does not run `forward` again, knows that it has to look.
    """

    changes = 0


structure = _Structure()


class HookHandle:
    """What `register_forward_hook` gives; as a context it removes the hook at the end."""

    def __init__(self, hooks: dict[Any, Any]):
        self._hooks = hooks

    def remove(self) -> None:
        """Take the hook away; nothing happens the second time."""
        self._hooks.pop(self, None)
        structure.changes += 1

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class Module:
    """Base of all layers and networks, as `torch.nn.Module`.

    A subclass calls ``super().__init__()``, assigns Parameters and Modules to attributes, which
    registers them, and writes `forward`. Calling the module runs `forward`.

    Attributes
    ----------
    training : whether layers such as Dropout act as in training; set by `train` and `eval`
    """

    training: bool

    def __init__(self) -> None:
        set_plainly = super().__setattr__
        set_plainly("training", True)
        set_plainly("_parameters", {})
        set_plainly("_buffers", {})
        set_plainly("_modules", {})
        set_plainly("_not_saved", set())
        set_plainly("_forward_hooks", {})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation; every subclass writes its own."""
        raise NotImplementedError(
            f"{type(self).__name__} has no forward; write `def forward(self, ...)` in it"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Any = self.forward(*args, **kwargs)
        if self._forward_hooks:
            for hook in tuple(self._forward_hooks.values()):
                changed = hook(self, args, output)
                output = output if changed is None else changed
        return output

    # ---- attributes are registered ---------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        structure.changes += 1
        if isinstance(value, (Parameter, Module)):
            if "_modules" not in self.__dict__:
                raise AttributeError(
                    f"{type(self).__name__}: call super().__init__() before assigning {name!r}"
                )
            self._forget(name)
            (self._parameters if isinstance(value, Parameter) else self._modules)[name] = value
            return
        registered = self.__dict__
        for kind, allowed in (("_parameters", Parameter), ("_modules", Module)):
            if name in registered.get(kind, ()):
                if value is not None:
                    raise TypeError(
                        f"{type(self).__name__}.{name} holds a {allowed.__name__}; cannot assign "
                        f"{type(value).__name__} (a {allowed.__name__} or None is expected)"
                    )
                registered[kind][name] = None
                return
        if name in registered.get("_buffers", ()):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a buffer; cannot assign "
                    f"{type(value).__name__} (a Tensor or None is expected)"
                )
            self._buffers[name] = value
            return
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        registered = self.__dict__
        for kind in ("_parameters", "_buffers", "_modules"):
            found = registered.get(kind)
            if found is not None and name in found:
                return found[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            super().__delattr__(name)

    def __dir__(self) -> Any:
        return [*super().__dir__(), *self._parameters, *self._buffers, *self._modules]

    def _forget(self, name: str) -> bool:
        """Remove whatever `name` stands for; whether it was registered."""
        structure.changes += 1
        self.__dict__.pop(name, None)
        self._not_saved.discard(name)
        found = [kind.pop(name) for kind in self._registers() if name in kind]
        return bool(found)

    def _registers(self) -> tuple[dict[str, Any], ...]:
        return self._parameters, self._buffers, self._modules

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Register a Parameter under `name`; None keeps the place (a layer without bias)."""
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"register_parameter: {name!r} is {type(param).__name__}; expected nn.Parameter"
            )
        self._forget(name)
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register a Tensor that is no parameter: moved with the module, saved if `persistent`."""
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"register_buffer: {name!r} is {type(tensor).__name__}; expected a Tensor"
            )
        self._forget(name)
        self._buffers[name] = tensor
        if not persistent:
            self._not_saved.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Register a module under `name`."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: {name!r} is {type(module).__name__}; expected a Module")
        self._forget(name)
        self._modules[name] = module

    register_module = add_module

    def register_forward_hook(self, hook: Callable[..., Any]) -> HookHandle:
        """Call ``hook(module, args, output)`` after each forward; a result replaces the output.

        Returns a handle whose ``remove()`` takes the hook away again.
        """
        handle = HookHandle(self._forward_hooks)
        self._forward_hooks[handle] = hook
        structure.changes += 1
        return handle

    # ---- walking over what is inside -------------------------------------------------------------

    def named_modules(self, memo: set[Any] | None = None, prefix: str = "") -> Iterator[Any]:
        """(name, module) for this module and all inside it, each once, parents first."""
        memo = set() if memo is None else memo
        if id(self) in memo:
            return
        memo.add(id(self))
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once, parents first."""
        found: dict[int, Module] = {}
        _collect_modules(self, found)
        return iter(found.values())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) for the modules directly inside."""
        return ((name, module) for name, module in self._modules.items() if module is not None)

    def children(self) -> Iterator[Module]:
        """The modules directly inside."""
        return (module for _, module in self.named_children())

    def _named(self, register: str, prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        for path, module in self.named_modules(prefix=prefix) if recurse else ((prefix, self),):
            for name, tensor in getattr(module, register).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path}.{name}" if path else name, tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter), each parameter once, also where modules share it."""
        return self._named("_parameters", prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, each once."""
        modules = self.modules() if recurse else (self,)
        found = {id(p): p for m in modules for p in m._parameters.values() if p is not None}
        return iter(found.values())

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """(name, buffer), each once."""
        return self._named("_buffers", prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` with every module, the inner ones first; returns itself."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # ---- state -----------------------------------------------------------------------------------

    def state_dict(self, *, prefix: str = "") -> dict[str, Tensor]:
        """name -> Tensor for all parameters and persistent buffers, on the module's own memory."""
        found: dict[str, Tensor] = {}
        self._collect_state(found, prefix, live=False)
        return found

    def _collect_state(self, found: dict[str, Any], prefix: str, live: bool) -> None:
        for register in (self._parameters, self._buffers):
            for name, tensor in register.items():
                if tensor is not None and name not in self._not_saved:
                    found[prefix + name] = tensor if live else tensor.detach()
        for name, module in self.named_children():
            module._collect_state(found, f"{prefix}{name}.", live)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy values into the parameters and buffers, from Tensors or arrays on any device.

        Raises RuntimeError, before anything is written, listing the missing and unexpected names
        (if `strict`) and the wrong shapes. Returns the missing and unexpected names.
        """
        own: dict[str, Tensor] = {}
        self._collect_state(own, "", live=True)
        given = {name: raw_array(value) for name, value in state_dict.items()}
        missing = [name for name in own if name not in given]
        unexpected = [name for name in given if name not in own]
        problems = [
            f"size mismatch for {name}: the state has {given[name].shape}, not {tensor.shape}"
            + (" (it lies transposed)" if given[name].shape == tensor.shape[::-1] else "")
            for name, tensor in own.items()
            if name in given and given[name].shape != tensor.shape
        ]
        if strict:
            problems += mismatches(missing, unexpected)
        if problems:
            raise RuntimeError(
                f"load_state_dict: the state does not fit {type(self).__name__}:\n  "
                + "\n  ".join(problems)
            )
        for name, tensor in own.items():
            if name in given:
                tensor.detach()[...] = Tensor(to_device(given[name], tensor.device))
        return IncompatibleKeys(missing, unexpected)

    # ---- modes, devices, dtypes ------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set `training` here and inside; returns itself."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Act as for evaluation: ``train(False)``."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or fill them with zeros."""
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is None or parameter.grad is None:
                    continue
                if set_to_none:
                    parameter.grad = None
                else:
                    parameter.grad.detach().zero_()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Switch the gradients of all parameters on or off (to freeze a part); returns itself."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device and convert floating parameters to a dtype, in place; returns itself.

        Arguments as in `Tensor.to`. The Parameter objects stay the same, so an optimizer made
        before keeps working.
        """
        kwargs.pop("non_blocking", None)
        # The weights of convolutions always lie channels-last, whatever is asked for.
        kwargs.pop("memory_format", None)
        device, dtype = parse_to(args, **kwargs)
        if dtype is not None and not is_float(dtype):
            raise TypeError(f"Module.to: dtype {dtype} is not floating; parameters need gradients")

        def convert(tensor: Tensor) -> None:
            array = tensor._array
            if dtype is not None and is_float(array.dtype):
                array = array.astype(dtype, copy=False)
            tensor._array = array if device is None else moved(array, device)

        structure.changes += 1
        for module in self.modules():
            for register in (module._parameters, module._buffers):
                for tensor in register.values():
                    if tensor is not None:
                        before = tensor._array
                        convert(tensor)
                        if tensor._array is not before:
                            tensor._grad_slot = None  # it belonged to the old memory
                            if tensor.grad is not None:
                                convert(tensor.grad)
        return self

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Self:
        """Move to a GPU, the first one unless told otherwise."""
        return self.to("cuda" if device is None else device)

    def float(self) -> Self:
        """Convert floating parameters and buffers to float32."""
        return self.to(float32)

    def double(self) -> Self:
        """Convert floating parameters and buffers to float64."""
        return self.to(float64)

    def half(self) -> Self:
        """Convert floating parameters and buffers to float16."""
        return self.to(float16)

    def bfloat16(self) -> Self:
        """Convert floating parameters and buffers to bfloat16."""
        return self.to(bfloat16)

    # ---- showing ---------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands in the parentheses when the module is printed."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"({name}): " + repr(module).replace("\n", "\n  ")
            for name, module in self._modules.items()
        ]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        head = f"{extra}\n  " if extra else "\n  "
        return f"{type(self).__name__}({head}" + "\n  ".join(lines) + "\n)"

    def summary(self, input_shape: Any, *, dtype: DTypeLike = None) -> Any:
        """Print a table of the layers with output shapes and parameter counts, and return it.

        `input_shape` is the shape of one example, without the batch dimension, or a list of
        shapes for a module with several inputs. The module is run once, on zeros, in evaluation
        mode.
        """
        from gpunn.nn.summary import summarize

        table = summarize(self, input_shape, dtype)
        print(table)
        return table


def _collect_modules(module: Module, found: dict[int, Module]) -> None:
    if id(module) not in found:
        found[id(module)] = module
        for child in module._modules.values():
            if child is not None:
                _collect_modules(child, found)
