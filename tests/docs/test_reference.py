"""Every public name stands in the API reference: in a list of its page, or described by hand."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {
    "gpunn": "tensors",
    "gpunn.autograd": "tensors",
    "gpunn.cuda": "tensors",
    "gpunn.nn": "nn",
    "gpunn.nn.utils.rnn": "nn",
    "gpunn.nn.functional": "functional",
    "gpunn.optim": "optim",
    "gpunn.optim.lr_scheduler": "optim",
    "gpunn.data": "data",
    "gpunn.io": "io",
    "gpunn.train": "train",
    "gpunn.train.metrics": "train",
    "gpunn.models": "models",
    "gpunn.kernels": "kernels",
    "gpunn.amp": "amp",
    "gpunn.compiled": "steps",
    "gpunn.profiling": "steps",
    "gpunn.emulator": "emulator",
    "gpunn.onnx": "onnx",
    "gpunn.sklearn": "sklearn",
    "gpunn.extend": "extend",
    "gpunn.report": "report",
}


@pytest.mark.parametrize("module", PAGES)
def test_every_public_name_is_in_the_reference(module):
    page = REFERENCE / f"{PAGES[module]}.rst"
    words = set(re.findall(r"\w+", page.read_text("utf-8")))
    found = importlib.import_module(module)
    names = {name for name in found.__all__ if not isinstance(getattr(found, name), ModuleType)}
    missing = sorted(names - words)
    assert not missing, f"add them to a list of {page.name}: {' '.join(missing)}"
