"""Primitives as a user would write them in NumPy or CuPy: `PEERS`, filled by a file a family."""

import importlib

from gpunn.bench.array_peers.common import PEERS

FAMILIES = (
    "convolution", "images", "normalization", "recurrent", "attention", "embedding", "ctc",
    "augment", "mixed_precision", "mlp",
)  # fmt: skip

for _family in FAMILIES:
    importlib.import_module(f"gpunn.bench.array_peers.{_family}")

__all__ = ["PEERS"]
