"""Every Python block of the README and the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gpunn

ROOT = Path(__file__).parents[2]


def blocks():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        found = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.S | re.M)
        for number, text in enumerate(found):
            yield pytest.param(text, id=f"{path.name}-{number}")


@pytest.mark.parametrize("text", list(blocks()))
def test_block_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    precision = gpunn.get_matmul_precision()
    try:
        exec(compile(text, "<documentation>", "exec"), {"__name__": "__main__"})
    finally:  # what a page switches on is not for the next test
        gpunn.set_matmul_precision(precision)
        gpunn.kernels.autotune(False)
