"""gpunn behind the interface `onnx.backend.base.Backend`, by which ONNX's own tests run it."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, shape_inference
from onnx.backend.base import Backend, BackendRep

from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor
from gpunn.device import to_numpy
from gpunn.onnx.load import OnnxModule, load

DEVICES = {"CPU": "cpu", "CUDA": "cuda"}


class GpunnRep(BackendRep):
    """A loaded model: ``run(inputs)`` takes and gives NumPy arrays."""

    def __init__(self, module: OnnxModule):
        self.module = module

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs for `inputs`, arrays in the order of the graph's inputs."""
        with no_grad():
            made = self.module(*inputs)
        return tuple(map(_plain, made if isinstance(made, tuple) else (made,)))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return to_numpy(value.array) if isinstance(value, Tensor) else value


class GpunnBackend(Backend):
    """Runs ONNX models on the CPU, or with device "CUDA" on a GPU."""

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> GpunnRep:
        """A model ready to run; errors as of `gpunn.onnx.load`."""
        return GpunnRep(load(model, device=_device(device)))

    @classmethod
    def run_model(
        cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """The outputs of a model."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The outputs of one node of the newest operator set, or of ``opset_version=…``."""
        arrays = [np.asarray(value) for value in inputs]
        named = list(dict.fromkeys(name for name in node.input if name))
        given = dict(zip([name for name in node.input if name], arrays, strict=True))
        values = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(given[name].dtype), given[name].shape
            )
            for name in named
        ]
        results = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], "node", values, results)
        version = kwargs.get("opset_version")
        imports = [helper.make_opsetid(node.domain, version)] if version else None
        model = shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports))
        return cls.run_model(model, [given[name] for name in named], device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether there is such a device here."""
        name = device.partition(":")[0].upper()
        if name == "CUDA":
            from gpunn import cuda

            return cuda.is_available()
        return name in DEVICES


def _device(name: str) -> str:
    kind, colon, number = name.partition(":")
    return DEVICES.get(kind.upper(), kind.lower()) + colon + number


prepare, run_model, run_node = GpunnBackend.prepare, GpunnBackend.run_model, GpunnBackend.run_node
supports_device = GpunnBackend.supports_device
