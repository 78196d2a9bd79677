"""Primitives as a user would write them in NumPy or CuPy: `PEERS`, filled by a file a family."""

from gpunn.bench.array_peers.common import PEERS

__all__ = ["PEERS"]
