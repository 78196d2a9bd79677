"""Primitives by PyTorch's own functions: `PEERS` and `PREPARED`, filled by a file a family."""

import importlib

from gpunn.bench.array_peers import FAMILIES
from gpunn.bench.torch_peers.common import COMPILED, PEERS, PREPARED, compiled

for _family in FAMILIES:
    importlib.import_module(f"gpunn.bench.torch_peers.{_family}")

__all__ = ["COMPILED", "PEERS", "PREPARED", "compiled"]
