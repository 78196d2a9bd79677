"""Profiling: how long each kernel and each layer of a step takes, and which memory is in use.

>>> with gpunn.profile(model=model, memory=True) as report:
...     step()
>>> print(report.table(by="layer"))
>>> report.save_trace("trace.json")  # for https://ui.perfetto.dev

`explain` says beforehand, without running anything, which kernels a training step launches on a
GPU, how fast each can be there at best, and what limits it.
"""

import importlib as _importlib

from gpunn.profiling.context import paused, profile, region
from gpunn.profiling.report import Report
from gpunn.profiling.trainer import StepProfiler

__all__ = ["Explanation", "Report", "StepProfiler", "explain", "paused", "profile", "region"]

_LAZY = {"explain": "explainer", "Explanation": "explanation"}  # they import gpunn.train


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(_importlib.import_module(f"gpunn.profiling.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'gpunn.profiling' has no attribute {name!r}")
