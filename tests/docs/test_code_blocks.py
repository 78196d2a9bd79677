"""Every Python block of the README and the documentation runs, and prints what the page shows.

In docs/tutorial the blocks of a page run one after the other in one namespace, everywhere else each
in one of its own. A ``text`` block right after a ``python`` block is what it prints: to the letter,
or as a comment between the two has it:

    <!-- output: numbers within 5% -->    the numbers may differ so far, the words may not
    <!-- output: an example -->           not compared: text drawn at random by a trained model

A block after ``<!-- long -->`` is not run by the tests. Pictures of a tutorial page are made by its
blocks. To write outputs and pictures anew, and to run the long blocks too:

    python tests/docs/test_code_blocks.py [PAGE ...]
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import gpunn
from gpunn.primitives.registry import TABLE

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
BLOCK = re.compile(
    r"(?P<long><!-- long -->\n+)?"
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?P<between>\n*(?:<!-- output: (?P<how>[^\n]*?) -->\n+)?```text\n(?P<shown>.*?)^```)?",
    re.DOTALL | re.MULTILINE,
)
PICTURE = re.compile(r"!\[[^\]]*\]\((pictures/[^)]+)\)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass
class Block:
    """A piece of code, what the page says that it prints (or None), and how far that is exact."""

    code: str
    shown: str | None
    how: str
    long: bool
    line: int

    @property
    def tolerance(self) -> float | None:
        """How far numbers may be off, relatively; 0 for to the letter; None: not compared."""
        if self.how == "an example":
            return None
        found = re.fullmatch(r"numbers within (\d+)%", self.how)
        assert found or not self.how, f"line {self.line}: what does 'output: {self.how}' mean?"
        return int(found[1]) / 100 if found else 0.0


def blocks_of(text: str) -> list[Block]:
    return [
        Block(
            found["code"],
            found["shown"],
            found["how"] or "",
            bool(found["long"]),
            text[: found.start("code")].count("\n") + 1,
        )
        for found in BLOCK.finditer(text)
    ]


def run(block: Block, page: Path, namespace: dict) -> str:
    """What a block prints."""
    printed = io.StringIO()
    lines = "\n" * (block.line - 1)  # so that a traceback names the line of the page
    code = compile(lines + block.code, str(page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines())


def agree(shown: str, printed: str, tolerance: float) -> bool:
    """Whether two texts are the same but for numbers that differ by a little."""
    if not tolerance:
        return shown == printed
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (shown, printed)]
    numbers = [list(map(float, NUMBER.findall(text))) for text in (shown, printed)]
    return words[0] == words[1] and all(
        abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in zip(*numbers, strict=True)
    )


def check(block: Block, printed: str, page: Path) -> None:
    if block.shown is None or block.tolerance is None:
        return
    assert agree(block.shown.rstrip(), printed, block.tolerance), (
        f"{page.relative_to(ROOT)}, line {block.line}: the page shows\n{block.shown}\nbut the code "
        f"prints\n{printed}\nTo write it anew: python tests/docs/test_code_blocks.py "
        f"{page.relative_to(ROOT)}"
    )


@contextlib.contextmanager
def as_before():
    """What a page switches on is not for the next test."""
    precision, table = gpunn.get_matmul_precision(), dict(TABLE)
    try:
        yield
    finally:
        gpunn.set_matmul_precision(precision)
        gpunn.kernels.autotune(False)
        TABLE.clear()
        TABLE.update(table)


def pages() -> list[Path]:
    found = (path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts)
    return [ROOT / "README.md", *found]  # CONTRIBUTING.md: test_contributing.py


def single_blocks():
    for page in pages():
        if page.parent != TUTORIAL:
            for number, block in enumerate(blocks_of(page.read_text("utf-8"))):
                yield pytest.param(page, block, id=f"{page.name}-{number}")


@pytest.mark.parametrize(("page", "block"), list(single_blocks()))
def test_block_runs(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with as_before():
        check(block, run(block, page, {"__name__": "__main__"}), page)


@pytest.mark.parametrize("page", sorted(TUTORIAL.glob("*.md")), ids=lambda page: page.name)
def test_tutorial_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    Path("pictures").mkdir()
    text, namespace = page.read_text("utf-8"), {"__name__": "__main__"}
    with as_before():
        for block in blocks_of(text):
            if block.long:
                compile(block.code, str(page), "exec")
            else:
                check(block, run(block, page, namespace), page)
    for picture in PICTURE.findall(text):
        assert Path(picture).is_file(), f"no block of {page.name} makes {picture}"
        assert (TUTORIAL / picture).is_file()


def rewrite(page: Path) -> None:
    """Run all blocks of a page and put in what they print and draw."""
    text, namespace, outputs = page.read_text("utf-8"), {"__name__": "__main__"}, []
    for block in blocks_of(text):
        namespace = namespace if page.parent == TUTORIAL else {"__name__": "__main__"}
        outputs.append(run(block, page, namespace))

    def fresh(found: re.Match) -> str:
        printed, whole = outputs.pop(0), found[0]
        if found["shown"] is None:
            return whole
        start = found.start("shown") - found.start()
        return whole[:start] + printed + "\n" + whole[start + len(found["shown"]) :]

    assert page.read_text("utf-8") == text, f"{page.name} was changed while its blocks ran"
    page.write_text(BLOCK.sub(fresh, text), "utf-8")
    for picture in PICTURE.findall(text):
        target = page.parent / picture
        target.parent.mkdir(exist_ok=True)
        shutil.copy(picture, target)


def main(names: list[str]) -> None:
    os.environ.update(MPLBACKEND="Agg", SOURCE_DATE_EPOCH="0")  # pictures without today's date
    import matplotlib

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gpunn"})
    for page in pages():
        if page.relative_to(ROOT).as_posix() in names or (not names and page.parent == TUTORIAL):
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), as_before():
                Path("pictures").mkdir()
                rewrite(page)
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
