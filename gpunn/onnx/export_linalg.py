"""Matrix products: MatMul and Gemm."""

from __future__ import annotations

from gpunn.onnx.export_activation import activate
from gpunn.onnx.table import converts


@converts("Matmul")
def _matmul(graph, call):
    return graph.op("MatMul", *map(graph.edge, call.arguments))


@converts("Linear")
def _linear(graph, call):
    """Gemm of a matrix; else a product with the transposed weight, which runtimes fold."""
    x, weight, bias, activation, alpha = call.arguments
    edge, factor = graph.edge(x), graph.edge(weight)
    offset = None if bias is None else graph.edge(bias)
    if len(x.shape) == 2:
        edge = graph.op("Gemm", edge, factor, offset, transB=1)
    else:
        edge = graph.op("MatMul", edge, graph.transpose(factor, (1, 0)))
        edge = edge if offset is None else graph.op("Add", edge, offset)
    return activate(graph, edge, x.dtype, activation, alpha)
