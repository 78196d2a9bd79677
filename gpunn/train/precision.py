"""`Precision`: what a training step does differently in bf16, fp16 and tf32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from gpunn.amp import GradScaler
from gpunn.autograd.autocast import autocast
from gpunn.autograd.dtypes import bfloat16, float16, float32
from gpunn.device import Device
from gpunn.optim.optimizer import Optimizer
from gpunn.primitives.matmul_precision import get_matmul_precision, set_matmul_precision

NAMES = ("fp32", "tf32", "bf16", "fp16")

_LOW = {"bf16": bfloat16, "fp16": float16}
_PRODUCTS = {"fp32": "highest", "tf32": "high"}  # of float32 matrices


class Precision:
    """Mixed precision of a step, in the order in which it calls this:

    >>> with precision.products():
    ...     with precision.forward():
    ...         loss = loss_function(model(x), y)
    ...     precision.scaled(loss).backward()
    ...     precision.unscale()  # then clip
    ...     optimizer.step()
    ...     precision.update()

    ======  ================================================================================
    fp32    float32, products as exact as its arithmetic
    tf32    float32, the operands of products rounded to TF32 (`gpunn.set_matmul_precision`)
    bf16    products in bfloat16 (`gpunn.autocast`), float32 parameters
    fp16    products in float16, float32 parameters, a loss scale on the device
            (`gpunn.amp.GradScaler`): a step whose gradients overflow changes nothing
    ======  ================================================================================

    None leaves everything as it is set outside. Nothing here waits for the device but `skipped` and
    `state_dict`.

    Parameters
    ----------
    name : one of the four, or None
    device : where the model is
    optimizer : what updates it. Its ``skip_flag`` is set; with fp16 to the flag of an overflow.

    Raises ValueError for another name, and for parameters that are not float32 with tf32, bf16 and
    fp16; TypeError for fp16 with an optimizer that is not gpunn's.
    """

    def __init__(self, name: str | None, device: Device | str, optimizer: Any):
        if name is not None and name not in NAMES:
            raise ValueError(
                f"precision is {name!r}; expected one of {', '.join(map(repr, NAMES))}, or None"
            )
        self.name, self._optimizer = name, optimizer
        if name not in (None, "fp32"):
            _check_parameters(name, optimizer)
        self._scaler = GradScaler(device, enabled=name == "fp16")
        self._flag = self._scaler.flag_on(Device(device)) if name == "fp16" else None
        if isinstance(optimizer, Optimizer):
            optimizer.skip_flag = self._flag
            if name in _LOW:
                optimizer.prepare_low(_LOW[name])
        elif name == "fp16":
            raise TypeError(
                f"precision 'fp16' needs an optimizer of gpunn.optim, which can skip a step; got "
                f"{type(optimizer).__name__}"
            )

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Multiplies float32 matrices as the precision says, backward pass and all."""
        before = get_matmul_precision()
        set_matmul_precision(_PRODUCTS.get(str(self.name), before))
        try:
            yield
        finally:
            set_matmul_precision(before)

    def forward(self) -> contextlib.AbstractContextManager[Any]:
        """The context of model and loss, in training and in evaluation."""
        if self.name in _LOW:
            return autocast(_LOW[self.name])
        return self.products()

    def scaled(self, loss: Any) -> Any:
        """The Tensor to call ``backward`` on."""
        self._scaler.begin()  # the step before may have been broken off, by Ctrl-C perhaps
        return self._scaler.scale(loss)

    def unscale(self) -> None:
        """Give the gradients their true size; before they are clipped, or else before the step."""
        if self._flag is not None:
            self._optimizer.skip_flag = self._flag  # another Precision may have set its own
        self._scaler.unscale_(self._optimizer)

    def update(self) -> None:
        """After the optimizer's step: what follows for the loss scale."""
        self._scaler.update()

    @property
    def skipped(self) -> int:
        """How many steps were skipped, because a gradient overflowed; waits for the device."""
        return self._scaler.skipped

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by now; waits for the device."""
        return self._scaler.get_scale()

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on exactly."""
        return {"name": self.name, "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned. A loss scale from another precision is left out."""
        if self.name == "fp16" and state_dict["scaler"]:
            self._scaler.load_state_dict(state_dict["scaler"])


def _check_parameters(name: str, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.dtype != float32:
                raise ValueError(
                    f"precision {name!r} keeps the parameters in float32 and converts them for the "
                    f"products; one of shape {parameter.shape} has dtype {parameter.dtype}. Call "
                    "model.float(), or leave precision out to train the model in its own dtype."
                )
