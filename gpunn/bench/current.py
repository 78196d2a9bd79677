"""What result files still say: measurements of the present sources, each from its newest file.

A run of some stages makes a file with only these, and what has no time left is not in it, so that
each row of the tables comes from the newest file that has it; and a run begins with what no file
says yet. Of two files the one that has more peers beside a row counts: a run may have had no time
for those that take long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpunn.bench import candidates, results
from gpunn.bench.cases import Case
from gpunn.bench.measure import Row
from gpunn.bench.results import Results

Files = Sequence[tuple[Path, Results]]
Digests = dict[str, dict[str, str]]

# What is behind a product of the sweep, by its `fused`.
_PRODUCTS = {
    "backward": "matmul_activation_backward", "weight gradient": "linear_weight_gradient",
}  # fmt: skip


def result_files(folder: Path, skip: list[str] | None = None) -> list[tuple[Path, Results]]:
    """The results of runs on GPUs below a folder, the newest first.

    ResultError for a file that cannot be read; with `skip` its message is put there instead.
    """
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            result = results.read(path)
        except (results.ResultError, OSError) as error:
            if skip is None:
                raise
            skip.append(str(error))
            continue
        if result.gpu and not result.dry_run and not result.scaling:
            found.append((path, result))
    return sorted(found, key=lambda one: (one[1].environment["date"], one[0].name), reverse=True)


def is_current(result: Results, names: Iterable[str], digests: Digests) -> bool:
    """Whether a file measured the present CUDA sources of all these primitives."""
    return all(
        name in digests and result.sources.get(name, {}).get("cuda") == digests[name].get("cuda")
        for name in names
    )


def product_is_current(result: Results, row: dict[str, Any], digests: Digests) -> bool:
    """Whether a row of the products measured the present kernels."""
    return is_current(result, [_PRODUCTS.get(row.get("fused", ""), "matmul")], digests)


def job_is_current(result: Results, rows: Sequence[dict], digests: Digests) -> bool:
    """Whether every primitive behind our steps of a job is still what was measured."""
    return is_current(result, {n for row in rows for n in row.get("primitives", ())}, digests)


def rows(files: Files, name: str, implementation: str, digests: Digests) -> list[tuple[Row, Path]]:
    """Of each case of a primitive our row by an implementation, with its present sources."""
    found: dict[tuple, tuple[Row, Path]] = {}
    for path, result in files:
        if result.sources.get(name, {}).get(implementation) != digests[name][implementation]:
            continue
        for row in result.rows:
            if (row.primitive, row.implementation) != (name, implementation):
                continue
            if row.key not in found or len(row.peers) > len(found[row.key][0].peers):
                found[row.key] = row, path
    return list(found.values())


def tests(same: Sequence[Results]) -> list[dict[str, Any]]:
    """Of each checked item the verdict of the first of the results, which have equal sources."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for result in same:
        mine = {(test["stage"], test["item"]): test for test in result.tests}
        found = mine | found
    return list(found.values())


def products(files: Files, digests: Digests) -> list[tuple[dict[str, Any], Path]]:
    """Of each product the row of the newest file that timed its present kernels."""
    found: dict[str, tuple[dict, Path]] = {}
    for path, result in files:
        for row in result.products:
            if "seconds" in row and product_is_current(result, row, digests):
                found.setdefault(row["key"], (row, path))
    return list(found.values())


def training(files: Files, digests: Digests) -> dict[tuple[str, int], tuple[list[dict], Path]]:
    """Of each job and batch the rows of the newest file that measured its present kernels."""
    found: dict[tuple[str, int], tuple[list[dict], Path]] = {}
    for path, result in files:
        for key, mine in _by_job(result).items():
            if not job_is_current(result, mine, digests):
                continue
            if key not in found or _timed(mine) > _timed(found[key][0]):
                found[key] = mine, path
    return found


def _timed(rows: Sequence[dict]) -> int:
    """How many contestants have a time."""
    return sum("median" in row for row in rows)


def _by_job(result: Results) -> dict[tuple[str, int], list[dict]]:
    found: dict[tuple[str, int], list[dict]] = {}
    for row in result.training:
        found.setdefault((row["job"], row["batch"]), []).append(row)
    return found


def choices(files: Files, digests: Digests) -> list[tuple[dict[str, Any], Path]]:
    """Of each problem with its ways the row of the newest file that measured its present kernels
    and rule."""
    found: dict[str, tuple[dict, Path]] = {}
    for path, result in files:
        for row in result.choices:
            if is_current(result, [row["primitive"]], digests):
                found.setdefault(row["key"], (row, path))
    return list(found.values())


def launches(files: Files) -> tuple[list[dict], Path | None]:
    """The rows of the newest file that has launches of a driver."""
    for path, result in files:
        if rows := [row for row in result.launches if row["driver"]]:
            return rows, path
    return [], None


# ---- what comes first ----------------------------------------------------------------------------

NEVER, CHANGED, ELSEWHERE, HERE = range(4)


@dataclass
class Known:
    """How well each measurement is known: `NEVER` measured, only of sources that `CHANGED`
    since, `ELSEWHERE` on another GPU, or of the present sources `HERE`.

    Keys are tuples that begin with "row", "product", "choice", "step", "step kernels", "candidate"
    or "sanitizer"; what is not there was never measured. `unread`: what is wrong with the files
    that could not be read.
    """

    levels: dict[tuple, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def level(self, *key: Any) -> int:
        """One of the four."""
        return self.levels.get(key, NEVER)

    def note(self, key: tuple, level: int) -> None:
        """The best of several files counts."""
        self.levels[key] = max(level, self.level(*key))

    def first(self, items: Sequence[dict], key: Callable[[dict], tuple]) -> tuple[list[dict], str]:
        """Items with the least known first, else in their order; and a sentence on them."""
        unknown = sum(self.level(*key(item)) != HERE for item in items)
        ordered = sorted(items, key=lambda item: self.level(*key(item)))
        return ordered, f"{unknown} of {len(items)} without a current time came first"


def known(folders: Iterable[Path], gpu: str | None, digests: Digests) -> Known:
    """What the result files below the folders say of a GPU; files that cannot be read say nothing.

    A beside item (a peer that takes long) has keys of its own, which end with the peer's name.
    """
    found = Known()
    for folder in dict.fromkeys(Path(one).resolve() for one in folders):
        for _, result in result_files(folder, skip=found.unread):
            _note_all(found, result, result.gpu == gpu, digests)
    return found


def _note_all(found: Known, result: Results, here: bool, digests: Digests) -> None:
    def level(current: bool) -> int:
        return (HERE if here else ELSEWHERE) if current else CHANGED

    for row in result.rows:
        if row.implementation != "cuda":
            continue
        of = level(is_current(result, [row.primitive], digests))
        key = ("row", Case(row.primitive, tuple(row.shape), row.dtype).key)
        for one in (key, *((*key, peer) for peer in row.peers)):
            found.note(one, of)
    for row in result.products:
        if "seconds" in row:
            found.note(("product", row["key"]), level(product_is_current(result, row, digests)))
    for row in result.choices:
        found.note(("choice", row["key"]), level(is_current(result, [row["primitive"]], digests)))
    for (job, batch), rows in _by_job(result).items():
        of = level(job_is_current(result, rows, digests))
        for row in rows:
            if "median" in row:
                found.note(("step", job, batch), of)
                found.note(("step", job, batch, row["contestant"]), of)
    for step in result.step_kernels:
        of = level(job_is_current(result, [step], digests))
        key = ("step kernels", step["job"], step["batch"])
        if any("seconds" in one for one in step.get("calls") or step.get("experiments", ())):
            found.note(key, of)
        for profile in step.get("profiles", ()):
            found.note((*key, profile["by"]), of)
    for one in filter(candidates.is_judged, result.candidates):
        found.note(("candidate", one["name"], one["digest"]), level(True))
    for test in result.tests:
        if test["stage"] == "sanitizer" and test["passed"]:
            name = test["item"].rpartition(" ")[2]
            of = level(name in digests and is_current(result, [name], digests))
            found.note(("sanitizer", test["item"]), of)
