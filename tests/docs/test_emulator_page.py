"""The kernels in docs/emulator.md are run, and must give the very messages that the page shows.

A ``cuda`` block whose first line is ``// launch: …`` is checked as `gpunn check` does it; the
``text`` block after it holds the first finding. To write the messages anew, as after a change of
their words: python tests/docs/test_emulator_page.py
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import pytest

from gpunn import emulator
from gpunn.device import probe
from gpunn.emulator import checking, findings

PAGE = Path(__file__).parents[2] / "docs" / "emulator.md"
PAIR = re.compile(
    r"(?P<head>^```cuda\n// launch: (?P<launch>[^\n]*)\n(?P<rest>.*?)^```\n\s*^```text\n)"
    r"(?P<says>.*?)(?=^```)",
    re.MULTILINE | re.DOTALL,
)

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)


def said(folder: Path, launch: str, rest: str) -> str:
    """What is found in a kernel of the page."""
    source = folder / "kernel.cu"
    source.write_text(f"// launch: {launch}\n{rest}")
    with emulator.settings(threads=1):
        report = checking.check(source, [launch], seeds=2, timeout=1)
    if report.clean:
        return "nothing found\n"
    texts = [f"{found.finding.error.__name__}\n{found.finding}" for found in report.found[:1]]
    return "\n".join(texts) + "\n"


def pairs():
    return [
        pytest.param(found["launch"], found["rest"], found["says"], id=found["says"].split("\n")[0])
        for found in PAIR.finditer(PAGE.read_text("utf-8"))
    ]


@pytest.mark.parametrize(("launch", "rest", "says"), pairs())
def test_the_page_tells_the_truth(launch, rest, says, tmp_path):
    assert said(tmp_path, launch, rest) == says


def test_every_kind_of_error_is_on_the_page():
    shown = {parameters.values[2].split("\n")[0] for parameters in pairs()}
    assert shown == {error.__name__ for error in findings.FAULTS} | {"nothing found"}


def rewrite() -> None:
    """Run all kernels of the page and put in what they give."""

    def fresh(found: re.Match) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return found["head"] + said(Path(folder), found["launch"], found["rest"])

    PAGE.write_text(PAIR.sub(fresh, PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    sys.exit(rewrite())
