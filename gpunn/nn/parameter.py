"""`Parameter`: a Tensor that a Module trains."""

from __future__ import annotations

from typing import Any

from gpunn.autograd.tensor import Tensor, _fill, raw_array


class Parameter(Tensor):
    """A Tensor that registers itself when it is assigned to an attribute of a Module.

    Shares the memory of `data` where it can. Requires a gradient unless told otherwise.
    """

    def __init__(self, data: Any = (), requires_grad: bool = True):
        _fill(self, raw_array(data))
        self.requires_grad = requires_grad

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()
