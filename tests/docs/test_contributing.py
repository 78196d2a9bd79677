"""The op that CONTRIBUTING.md adds in four steps is added, as the page has it, and must work.

Its sources go into a folder beside gpunn's own; the rest of the page runs block by block. What the
page promises to come by itself is then asked for: the emulator and Numba's simulator agree with
the reference on its samples.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpunn import emulator
from gpunn.device import probe, sources
from gpunn.primitives import parity
from gpunn.primitives.registry import TABLE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
SNAKE = ("snake_forward", "snake_backward")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """(what the page's blocks leave behind, what they print), with the op's kernels in place."""
    folder = tmp_path / "kernels"
    for kind in ("cuda", "numba"):
        (folder / kind).mkdir(parents=True)
        for file in (ROOT / "kernels" / kind).iterdir():
            (folder / kind / file.name).symlink_to(file)
    blocks = re.findall(r"^```(cuda|python)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    for _, text in blocks:
        named = re.match(r"(?://|#) kernels/(\S+)\n", text)
        if named:
            (folder / named[1]).write_text(text)
    monkeypatch.setattr(sources, "kernels_folder", lambda: folder)
    before, namespace, printed = dict(TABLE), {"__name__": "contributing"}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for language, text in blocks:
            if language == "python":  # each a file of its own, that sees those before
                namespace = dict(namespace)
                exec(compile(text, PAGE.name, "exec"), namespace)
    yield namespace, printed.getvalue(), folder
    TABLE.clear()
    TABLE.update(before)


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
def test_the_op_of_the_page_works(page):
    namespace, printed, _ = page
    x = np.linspace(-3, 3, 25)
    np.testing.assert_allclose(namespace["snake_forward"](x, a=2.0), x + np.sin(2 * x) ** 2 / 2)
    assert printed == "True\n"
    assert re.findall(r"^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S) == [printed]
    with emulator.settings(check=True, threads=1):
        for name in SNAKE:
            for sample, dtype in parity.cases(TABLE[name], "emulator"):
                if dtype not in (np.float32, np.float16):  # each is a build of its own
                    continue
                result = parity.check(TABLE[name], sample, dtype, "emulator")
                assert result.passed, str(result)


SIMULATED = """
import re
import sys
from pathlib import Path
from gpunn.device import sources
from gpunn.primitives import parity
from gpunn.primitives.registry import TABLE
folder = Path(sys.argv[1])
sources.kernels_folder = lambda: folder
text = Path(sys.argv[2]).read_text("utf-8")
block = re.search(r"^```python\\n(# gpunn/primitives/snake.py\\n.*?)^```", text, re.M | re.S)[1]
exec(block)
for name in ("snake_forward", "snake_backward"):
    for sample, dtype in parity.cases(TABLE[name], "numba"):
        if sample.args[0].size == 37:  # the simulator is slow
            print(parity.check(TABLE[name], sample, dtype, "numba"))
"""


def test_its_numba_kernels_do_too(page, tmp_path):
    _, _, folder = page
    found = subprocess.run(
        [sys.executable, "-c", SIMULATED, str(folder), str(PAGE)],
        capture_output=True, text=True, cwd=ROOT, env={"NUMBA_ENABLE_CUDASIM": "1", "PATH": ""},
    )  # fmt: skip
    lines = found.stdout.splitlines()
    assert len(lines) == 4 and all(line.endswith("ok") for line in lines), found.stderr
