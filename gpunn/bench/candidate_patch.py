"""Candidates: patches that each hold one predicted change, and applying them.

A candidate is a file ``benchmarks/candidates/NAME.patch``: fields as an e-mail has them, then what
``git diff`` prints. A machine with a GPU may have neither git nor patch, so both parts are read
here, and strictly: a patch fits where every line that it removes or keeps stands where it says.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import gpunn.kernels
from gpunn.bench.cases import DTYPES, FIXED, Case, parse_shape
from gpunn.bench.products import SWEEP, Product
from gpunn.bench.training_jobs import JOBS, Job
from gpunn.text import known

TEXTS = ("Idea", "Prediction", "Why", "Risk")
TIMED = {"Case": "case", "Product": "product", "Step": "step"}
FIELDS = (*TEXTS, "Weight", "Parity", *TIMED)
FOLDERS = ("gpunn", "kernels")  # what children need of a tree
_DIFF = "diff --git "
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_PRODUCT = re.compile(
    r"(?:(\d+) x )?(\d+)x(\d+)x(\d+) ([NT]{2}) (bfloat16|float16|float32|tf32)"
    r"(?: (relu|gelu|backward|weight gradient))?"
)


class CandidateError(ValueError):
    """A patch that is not written as it should be, or does not fit the tree."""


@dataclass(frozen=True)
class Timed:
    """What is to be timed: a "case", "product" or "step", by its key."""

    kind: str
    key: str


@dataclass(frozen=True)
class Hunk:
    """Lines of a file, each with its sign (" ", "-" or "+") and its own end; `start` counts from 0.

    `line` is where the hunk stands in the patch.
    """

    start: int
    lines: tuple[tuple[str, str], ...]
    line: int


@dataclass(frozen=True)
class Change:
    """What becomes of one file."""

    path: str
    hunks: tuple[Hunk, ...]
    new: bool = False
    deleted: bool = False


@dataclass(frozen=True)
class Candidate:
    """One patch. `parity` are names of primitives; of its texts paragraphs are lines; `digest` is
    of the whole file, `weight` how much it matters."""

    name: str
    idea: str
    prediction: str
    why: str
    risk: str
    parity: tuple[str, ...]
    timed: tuple[Timed, ...]
    changes: tuple[Change, ...]
    weight: float
    digest: str


# ---- reading -------------------------------------------------------------------------------------


def read(path: Path) -> Candidate:
    """Read a patch file. CandidateError names the file, the line and what is wrong with it."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CandidateError(f"{path.name} is not UTF-8: {error}") from error
    return parse(path.stem, text)


def read_folder(folder: Path) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates of a folder, the weightiest first and else in the order of their names, and
    why others cannot be read."""
    good, bad = [], {}
    for path in sorted(folder.glob("*.patch")):
        try:
            good.append(read(path))
        except CandidateError as error:
            bad[path.stem] = str(error)
    return sorted(good, key=lambda one: -one.weight), bad


def parse(name: str, text: str) -> Candidate:
    """A patch from its text. CandidateError as `read` has it."""
    lines = _Lines(name, _split(text))
    fields: dict[str, list[str]] = {field: [] for field in FIELDS}
    timed: list[Timed] = []
    while lines.more and not lines.next.startswith(_DIFF):
        at = lines.at
        field, words = _field(lines)
        if not field:
            continue
        if field in ("Idea", "Weight") and fields[field]:
            more = ": make it a patch of its own" if field == "Idea" else ""
            lines.fail(f"a second {field}{more}", at)
        try:
            if field == "Parity":
                for word in words.split():
                    _primitive(word)
            elif field == "Weight":
                _weight(words)
            elif field in TIMED:
                words = " ".join(words.split())
                {"Case": case_of, "Product": product_of, "Step": job_of}[field](words)
                timed.append(Timed(TIMED[field], words))
        except ValueError as error:
            lines.fail(f"{field}: {error}", at)
        fields[field].append(words)
    if missing := [field for field in (*TEXTS, "Parity") if not fields[field]]:
        lines.fail(f"before the first '{_DIFF.strip()}' there must be {', '.join(missing)}")
    if not timed:
        lines.fail("nothing is to be timed: name a Case, a Product or a Step")
    changes: dict[str, Change] = {}
    while lines.more:
        at = lines.at
        change = _change(lines)
        if change.path in changes:
            lines.fail(f"{change.path} is changed a second time", at)
        changes[change.path] = change
    if not changes:
        lines.fail("there is no diff: append what git diff prints")
    parity = tuple(dict.fromkeys(" ".join(fields["Parity"]).split()))
    texts = {field.lower(): "\n".join(fields[field]) for field in TEXTS}
    weight = _weight(*fields["Weight"]) if fields["Weight"] else 1.0
    return Candidate(name, **texts, parity=parity, timed=tuple(timed),
                     changes=tuple(changes.values()), weight=weight,
                     digest=hashlib.sha256(text.encode()).hexdigest()[:16])  # fmt: skip


class _Lines:
    """The lines of a patch, and where we are."""

    def __init__(self, name: str, lines: list[str]):
        self.name, self.lines, self.at = name, lines, 0

    @property
    def more(self) -> bool:
        return self.at < len(self.lines)

    @property
    def next(self) -> str:
        """The line to read next, without its end; empty after the last."""
        return self.lines[self.at].rstrip("\r\n") if self.more else ""

    def take(self) -> str:
        line, self.at = self.next, self.at + 1
        return line

    def fail(self, why: str, at: int | None = None):
        raise CandidateError(f"{self.name}.patch line {(self.at if at is None else at) + 1}: {why}")


def _split(text: str) -> list[str]:
    """Lines with their ends; only a line feed ends one."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _field(lines: _Lines) -> tuple[str, str]:
    """One field with the lines that go on with it, each a paragraph's; two empty texts for none."""
    at, line = lines.at, lines.take()
    if not line.strip():
        return "", ""
    field, colon, rest = line.partition(":")
    if field not in FIELDS or not colon:
        what = f"{field!r} is no field{known(field, FIELDS)}" if colon else "this is no field"
        lines.fail(f"{what}. A text goes on in lines that begin with a space", at)
    paragraphs = [[rest.strip()]]
    while lines.more and (lines.next.startswith(" ") or not lines.next.strip()):
        words = lines.take().strip()
        paragraphs[-1:] = [[*paragraphs[-1], words]] if words else [paragraphs[-1], []]
    found = "\n".join(" ".join(filter(None, one)) for one in paragraphs if any(one))
    if not found:
        lines.fail(f"{field} is empty", at)
    return field, found


# ---- what is named -------------------------------------------------------------------------------


def case_of(key: str) -> Case:
    """``softmax_forward 4096x1024 float32``. ValueError says what is wrong."""
    parts = key.split()
    if len(parts) != 3:
        raise ValueError(f"{key!r} is no case; write for example softmax_forward 4096x1024 float32")
    if parts[2] not in (*DTYPES, FIXED):
        raise ValueError(f"{parts[2]} is no dtype{known(parts[2], (*DTYPES, FIXED))}")
    return Case(_primitive(parts[0]), parse_shape(parts[1]), parts[2])


def product_of(key: str) -> Product:
    """``4096x4096x4096 NT bfloat16 gelu``, of the sweep or any other. ValueError for no such."""
    for product in SWEEP:
        if product.key == key:
            return product
    if not (found := _PRODUCT.fullmatch(key)):
        raise ValueError(f"{key!r} is no product; write for example 64 x 512x512x64 NT bfloat16")
    batch, M, N, K = (int(number or 1) for number in found.groups()[:4])
    if batch > 1 and found[7]:
        raise ValueError(f"{key!r} is a batch of products: nothing is fused with these")
    return Product("candidate", M, N, K, found[6], found[5], batch, found[7] or "")


def job_of(key: str) -> Job:
    """``mlp-784-256-128-10 128``: a training job and its batch. ValueError for one there is not."""
    jobs = {f"{job.name} {job.batch}": job for job in JOBS}
    if key not in jobs:
        raise ValueError(f"{key!r} is no training job with its batch{known(key, jobs)}")
    return jobs[key]


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"{text!r} is no number of 0 or more")
    return weight


def _primitive(name: str) -> str:
    table = gpunn.kernels.table()
    if name not in table:
        raise ValueError(f"{name} is no primitive{known(name, table)}")
    return name


# ---- the diff ------------------------------------------------------------------------------------


def _change(lines: _Lines) -> Change:
    """The part of a diff that is about one file."""
    begin = lines.at
    rest = lines.take().removeprefix(_DIFF)
    path = rest[2 : 2 + (len(rest) - 5) // 2]
    if rest != f"a/{path} b/{path}":
        lines.fail("this must be 'diff --git a/FILE b/FILE', twice the same file (git diff "
                   "--no-renames --default-prefix)", begin)  # fmt: skip
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        lines.fail(f"{path} is not a file within the tree", begin)
    new = deleted = False
    while lines.more and not lines.next.startswith(("--- ", _DIFF)):
        at, line = lines.at, lines.take()
        if line.startswith(("new file mode ", "deleted file mode ")):
            new, deleted = line.startswith("new"), line.startswith("deleted")
        elif line.startswith(("Binary files ", "GIT binary patch")):
            lines.fail(f"{path} is not a text file: a candidate changes texts alone", at)
        elif line.strip() and not line.startswith("index "):
            lines.fail(f"{line!r} is not understood: a candidate changes what is in files, "
                       "and no names or rights", at)  # fmt: skip
    if lines.next.startswith("--- "):
        for sign, gone, prefix in (("---", new, "a/"), ("+++", deleted, "b/")):
            wanted = "/dev/null" if gone else prefix + path
            if lines.next.partition("\t")[0] != f"{sign} {wanted}":
                lines.fail(f"this must be '{sign} {wanted}'")
            lines.take()
    elif not (new or deleted):
        lines.fail(f"nothing is changed in {path}", begin)
    hunks: list[Hunk] = []
    while lines.more and not lines.next.startswith(_DIFF):
        if not lines.next.strip():
            lines.take()
            continue
        hunks.append(_hunk(lines))
    for one, two in zip(hunks, hunks[1:], strict=False):
        if two.start < one.start + sum(sign != "+" for sign, _ in one.lines):
            lines.fail("this hunk begins before the one above it ends", two.line)
    return Change(path, tuple(hunks), new, deleted)


def _hunk(lines: _Lines) -> Hunk:
    """``@@ -1,3 +1,4 @@`` and the lines that it counts."""
    begin = lines.at
    head = _HUNK.match(lines.take())
    if not head:
        lines.fail("this must be '@@ -LINE,COUNT +LINE,COUNT @@', or another file's diff", begin)
    left, right = (1 if head[i] is None else int(head[i]) for i in (2, 4))
    start = int(head[1]) - (1 if left else 0)  # of no lines: the line before
    found: list[tuple[str, str]] = []
    while left > 0 or right > 0:
        if not lines.more:
            lines.fail("the patch ends within a hunk", begin)
        text = lines.lines[lines.at]
        # An editor may have taken away the space of an empty line.
        sign, text = (" ", text) if text in ("\n", "\r\n") else (text[0], text[1:])
        if sign not in " -+":
            lines.fail("a line of a hunk begins with ' ', '-' or '+'; or the hunk is too short")
        left, right = left - (sign != "+"), right - (sign != "-")
        found.append((sign, text))
        lines.take()
        if lines.next.startswith("\\ "):  # "\ No newline at end of file"
            lines.take()
            found[-1] = (sign, text.removesuffix("\n"))
    if left or right:
        lines.fail("the hunk has more lines than it counts", begin)
    return Hunk(start, tuple(found), begin)


# ---- applying ------------------------------------------------------------------------------------


def patched(candidate: Candidate, root: Path) -> dict[str, str | None]:
    """The new texts of all files that the patch changes in a tree; None for those it deletes.

    Nothing is written. CandidateError if one line is not what the patch says.
    """
    return {change.path: _applied(candidate.name, change, root) for change in candidate.changes}


def _applied(name: str, change: Change, root: Path) -> str | None:
    path = root / change.path
    start = f"{name}.patch no longer fits {change.path}"
    end = "main changed; rebase it or delete it"
    if path.exists() == change.new:
        what = "exists" if change.new else "is not there"
        raise CandidateError(f"{start}, which {what}: {end}")
    old = [] if change.new else _split(path.read_bytes().decode("utf-8"))
    made: list[str] = []
    at = 0
    for hunk in change.hunks:
        made += old[at : hunk.start]
        at = hunk.start
        for sign, line in hunk.lines:
            if sign != "+":
                if at >= len(old) or old[at] != line:
                    raise CandidateError(f"{start} line {at + 1}: {end}")
                at += 1
            made += [line] if sign != "-" else []
        if at > len(old):
            raise CandidateError(f"{start} line {at}: {end}")
    made += old[at:]
    if change.deleted and made:
        raise CandidateError(f"{start} line {at + 1}: {end}")
    return None if change.deleted else "".join(made)


def apply(candidate: Candidate, root: Path) -> list[str]:
    """Apply a patch to the tree at `root`, all or nothing; return the files that it changed."""
    texts = patched(candidate, root)
    for name, text in texts.items():
        path = root / name
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("utf-8"))
        if path.suffix == ".py":  # it may have been compiled within the same second
            Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)
    return list(texts)


def make_tree(candidate: Candidate, source: Path, target: Path) -> Path:
    """A copy of the package and the kernels of the tree at `source`, patched; returns `target`."""
    patched(candidate, source)  # before anything is copied
    for folder in FOLDERS:
        shutil.copytree(source / folder, target / folder, ignore=_other_bytecode)
    for change in candidate.changes:
        old, new = source / change.path, target / change.path
        if old.exists() and not new.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(old, new)
    apply(candidate, target)
    return target


def _other_bytecode(folder: str, names: list[str]) -> list[str]:
    """What of ``__pycache__`` another Python, or one that writes it just now, has left."""
    if Path(folder).name != "__pycache__":
        return []
    return [name for name in names if not name.endswith(f".{sys.implementation.cache_tag}.pyc")]
