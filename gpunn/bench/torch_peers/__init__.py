"""Primitives by PyTorch's own functions: `PEERS` and `PREPARED`, filled by a file a family."""

from gpunn.bench.torch_peers.common import COMPILED, PEERS, PREPARED, compiled

__all__ = ["COMPILED", "PEERS", "PREPARED", "compiled"]
