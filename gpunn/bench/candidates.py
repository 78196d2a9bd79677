"""Candidates on a device: whether a patch is right there, and how much faster than without it.

``benchmarks/candidates/README.md`` says what a candidate is, `gpunn.bench.candidate_patch` reads
one. Here each is applied to a copy of the tree, in a folder of its own. Children that run from that
copy compile its kernels and check its primitives, many at a time. Then each of its cases is timed
in two processes, one from either tree, that make the same inputs and give a sample in turns, so
that a change of clock speed meets both alike; of all these processes one works at a time.
"""

from __future__ import annotations

import math
import os
import tempfile
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpunn.kernels
from gpunn.bench import candidate_patch, compile_stage, supervise
from gpunn.bench.candidate_patch import Candidate, CandidateError
from gpunn.bench.candidate_times import NO_TIME, time_candidates
from gpunn.bench.machine import checkout
from gpunn.bench.results import Results
from gpunn.bench.tables import markdown as markdown_table
from gpunn.bench.tables import seconds_text
from gpunn.bench.timing import Timing
from gpunn.primitives.registry import reachable_kernels
from gpunn.text import table

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

# Of the stage's seconds what is over when kernels must be compiled, and checks done.
COMPILED_BY, CHECKED_BY = 0.35, 0.65
KERNELS_A_CHILD = 8  # at most: a child takes as long to start as a kernel to compile
MAX_FAILURES = 10


def folder() -> Path:
    """Where the patches are; it may be missing (in an installed package)."""
    return checkout() / "benchmarks" / "candidates"


def candidates(run: Run, seconds: float) -> str:
    """The stage: every candidate of the checkout. Adds to ``run.found.candidates``.

    Those that files hold judged on this GPU come last, so that a second run goes on.
    """
    chosen, unread = candidate_patch.read_folder(folder())
    chosen.sort(key=lambda one: run.known.level("candidate", one.name, one.digest))
    return judge(run, seconds, chosen, unread)


def judge(run: Run, seconds: float, chosen: Sequence[Candidate], unread: dict[str, str]) -> str:
    """Check and time `chosen`; those of `unread` are noted with the reason. A sentence."""
    begin = time.monotonic()
    found = {
        one.name: {"name": one.name, "digest": one.digest, "idea": one.idea,
                   "prediction": one.prediction,
                   "parity": {"passed": None, "checked": 0, "failures": []}, "cases": []}
        for one in (chosen[:1] if run.tiny else chosen)
    }  # fmt: skip
    for name, reason in unread.items():
        found[name] = {"name": name, "digest": "", "idea": "", "prediction": "", "parity": None,
                       "cases": [], "reason": reason}  # fmt: skip
    if not found:
        return "there are no candidates"
    run.found.candidates += found.values()
    with tempfile.TemporaryDirectory(prefix="gpunn-") as scratch:
        trees = _make_trees([one for one in chosen if one.name in found], found, Path(scratch))
        fitting = [one for one in chosen if one.name in trees]
        _compile(run, fitting, trees, begin + COMPILED_BY * seconds)
        right = _check(run, fitting, trees, found, begin + CHECKED_BY * seconds)
        cases = time_candidates(
            right, trees, run.device, begin + seconds, Path(scratch), tiny=run.tiny
        )
    for name, one in found.items():
        one["cases"] = cases.get(name, [])
        run.left_out |= {name: one["reason"]} if "reason" in one else {}
        run.left_out |= {f"{name} {case['case']}": case["reason"]
                         for case in one["cases"] if "reason" in case}  # fmt: skip
    return sentence(list(found.values()))


def _make_trees(chosen: Sequence[Candidate], found: dict, scratch: Path) -> dict[str, Path]:
    """The patched trees of those that fit, by name; `found` gets the reason of the others."""

    def make(one: Candidate) -> Path | str:
        try:
            return candidate_patch.make_tree(one, checkout(), scratch / one.name)
        except (CandidateError, OSError, UnicodeError) as error:
            return str(error)

    trees: dict[str, Path] = {}
    with ThreadPoolExecutor(8) as pool:  # of a thousand files each
        for one, made in zip(chosen, pool.map(make, chosen), strict=True):
            if isinstance(made, Path):
                trees[one.name] = made
            else:
                found[one.name]["reason"] = made
    return trees


def sentence(found: Sequence[dict[str, Any]]) -> str:
    """How many were judged, what each gave, and which are wrong."""
    timed = {one["name"]: ratios for one in found if (ratios := _ratios(one))}
    parts = [f"{len(timed)} of {len(found)} candidates timed"]
    for name, ratios in timed.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        parts.append(
            f"{name} {mean:.2f}" + (f" (worst {min(ratios):.2f})" if len(ratios) > 1 else "")
        )
    wrong = [one["name"] for one in found if one["parity"] and one["parity"]["failures"]]
    text = ", ".join(parts)
    return text + (f"; not right on the device: {', '.join(wrong)}" if wrong else "")


def _ratios(one: dict[str, Any]) -> list[float]:
    return [case["ratio"] for case in one["cases"] if "ratio" in case]


def is_judged(one: dict[str, Any]) -> bool:
    """Whether an entry of a result file tells all: not right, or each case timed or tried."""
    parity = one["parity"] or {"passed": None}
    if not parity["passed"]:
        return parity["passed"] is False
    reasons = [case.get("reason", "") for case in one["cases"]]
    return bool(reasons) and all(NO_TIME not in reason for reason in reasons)


# ---- compiling and checking ----------------------------------------------------------------------


def kernels_to_compile(item: dict[str, Any]) -> dict[str, Any]:
    """In a child: the kernels that samples of primitives, and large steps, reach, if the cache has
    them not."""
    from gpunn.device import compiler

    arch = item["arch"]
    made = [gpunn.kernels.table()[name] for name in item["primitives"]]
    reached = reachable_kernels(arch, item["multiprocessors"], made)
    for key in item["steps"]:
        job = candidate_patch.job_of(key)
        chip = arch, item["multiprocessors"]
        for source, expression in compile_stage.kernels_of_step(job.name, job.batch, *chip):
            expressions = reached.setdefault(source, [])
            expressions += [expression] if expression not in expressions else []
    missing = [
        (source, expression)
        for source, expressions in reached.items()
        for expression in expressions
        if item["everything"] or not compiler.is_built(source, (expression,), arch)
    ]
    checked = sum(map(len, reached.values()))
    return {"passed": True, "checked": checked, "failures": [], "kernels": missing}


def _compile(run: Run, chosen: Sequence[Candidate], trees: dict[str, Path], until: float) -> None:
    """Compile what the checks reach, of all at once, so that neither they nor times wait for it.

    What does not compile, the check will tell. Where a patch's kernels could not even be listed,
    that is noted as left out: they are compiled when they are needed.
    """
    if run.device.type != "cuda":
        return
    outcome = compile_for(chosen, trees, *compile_stage.chip_of(run), until)
    for one in chosen:
        failures = outcome.results.get(one.name, {}).get("failures", ())
        reasons = [failure["reason"].strip().split("\n")[-1] for failure in failures]
        reasons += [outcome.crashed[one.name]] if one.name in outcome.crashed else []
        if reasons:
            run.left_out[f"the kernels of {one.name}, beforehand"] = "; ".join(reasons)


def compile_for(
    chosen: Sequence[Candidate], trees: dict[str, Path], arch: str, multiprocessors: int,
    until: float, everything: bool = False,
) -> supervise.Outcome:  # fmt: skip
    """Compile what the samples of the candidates' primitives and their large steps reach and the
    cache has not, or `everything` that they reach.

    Some kernels of one source are an item, named by the candidate, the source and a number.
    """
    jobs = max(1, min(16, os.cpu_count() or 2))
    items = [
        {"id": one.name, "tree": str(trees[one.name]), "primitives": one.parity, "arch": arch,
         "multiprocessors": multiprocessors, "everything": everything,
         "steps": [timed.key for timed in one.timed
                   if timed.kind == "step" and timed.key.startswith(compile_stage.LARGE)]}
        for one in chosen
    ]  # fmt: skip
    left = until - time.monotonic()
    outcome = supervise.supervise(
        "candidate kernels", items, device="cpu", seconds=left, item_seconds=left, jobs=jobs
    )
    missing: dict[tuple[str, str], list[str]] = {}
    for name, result in outcome.results.items():
        for source, expression in result.get("kernels", ()):
            missing.setdefault((name, source), []).append(expression)
    count = sum(map(len, missing.values()))
    at_once = max(1, min(KERNELS_A_CHILD, count // (2 * jobs)))
    todo = [
        {"id": f"{name} {source} {start // at_once}", "tree": str(trees[name]), "source": source,
         "arch": arch, "expressions": expressions[start : start + at_once]}
        for (name, source), expressions in missing.items()
        for start in range(0, len(expressions), at_once)
    ]  # fmt: skip
    left = until - time.monotonic()
    outcome.update(supervise.supervise(
        "compile", todo, device="cpu", seconds=left, item_seconds=left, jobs=jobs
    ))  # fmt: skip
    return outcome


def _check(
    run: Run, chosen: Sequence[Candidate], trees: dict[str, Path], found: dict, until: float
) -> list[Candidate]:
    """Parity of each candidate's primitives on the device; returns those that are right."""
    on_gpu = run.device.type == "cuda"
    items = [
        {"id": f"{one.name} {name}", "tree": str(trees[one.name]), "primitive": name,
         "implementation": "cuda" if on_gpu else "numpy"}
        for one in chosen
        for name in (one.parity[:1] if run.tiny else one.parity)
    ]  # fmt: skip
    jobs = 1 if run.tiny else max(4, min(12, (os.cpu_count() or 4) - 2))
    outcome = supervise.supervise(
        "parity", items, device=str(run.device), seconds=until - time.monotonic(), jobs=jobs,
        tiny=run.tiny,
    )  # fmt: skip
    right = []
    for one in chosen:
        parity = found[one.name]["parity"]
        late = []
        for item in (item for item in items if item["tree"] == str(trees[one.name])):
            name, key = item["primitive"], item["id"]
            result = outcome.results.get(key, {})
            parity["checked"] += result.get("checked", 0)
            failures = result.get("failures", [])
            if key in outcome.crashed:
                failures = [{"case": "", "reason": outcome.crashed[key]}]
            parity["failures"] += [
                {"case": f"{name} {failure['case']}".rstrip(), "reason": failure["reason"]}
                for failure in failures
            ]
            late += [f"{name}: {outcome.not_run[key]}"] if key in outcome.not_run else []
        parity["failures"] = parity["failures"][:MAX_FAILURES]
        if parity["failures"]:
            parity["passed"] = False
            found[one.name]["reason"] = "it is not right, so it was not timed"
        elif late:
            found[one.name]["reason"] = f"not checked, so not timed: {'; '.join(late)}"
        else:
            parity["passed"] = True
            right.append(one)
            run.note("candidates", one.name, {"passed": True, "checked": parity["checked"],
                                              "failures": []})  # fmt: skip
    return right


# ---- tables --------------------------------------------------------------------------------------

HEADERS = ("name", "idea", "case", "before", "after", "ratio", "spread", "parity")


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each case of each candidate, or one that says why there is none."""
    rows = []
    for one in found:
        start, end = [one["name"], one["idea"].replace("\n", " ")], _parity_text(one["parity"])
        if not one["cases"] or not one["parity"]["passed"]:
            rows.append([*start, one.get("reason", ""), *[""] * 4, end])
        for case in one["cases"]:
            if "ratio" not in case:
                rows.append([*start, f"{case['case']}: {case['reason']}", *[""] * 4, end])
                continue
            times = (seconds_text(Timing(case[side]).median) for side in ("before", "after"))
            what = f"{case['case']} ({case['mode']})"
            numbers = (f"{case['ratio']:.3f}", f"{100 * case['spread']:.1f}%")
            rows.append([*start, what, *times, *numbers, end])
    return rows


def _parity_text(parity: dict[str, Any] | None) -> str:
    if parity is None or parity["passed"] is None:
        return "not checked"
    return f"{parity['checked']} samples" if parity["passed"] else "FAILED"


def text(found: Sequence[dict[str, Any]]) -> str:
    """The same as an aligned table, without the ideas; failures of a check below it."""
    rows = [[name, textwrap.shorten(case, 90), *rest] for name, _, case, *rest in cells(found)]
    lines = [table((HEADERS[0], *HEADERS[2:]), rows, right=(2, 3, 4, 5))]
    for one in found:
        for failure in (one["parity"] or {}).get("failures", ())[:3]:
            reason = failure["reason"].strip().split("\n")[-1]
            lines.append(f"{one['name']} is not right, {failure['case']}: {reason}"[:400])
    return "\n".join(lines)


def newest(files: Sequence[tuple[Path, Results]]) -> list[dict[str, Any]]:
    """Of each candidate in result files, the newest first, the newest entry that tells most."""
    found: dict[str, dict[str, Any]] = {}
    for least in (is_judged, _ratios, bool):
        for _, result in files:
            for one in filter(least, result.candidates):
                found.setdefault(one["name"], one)
    return list(found.values())


def markdown(files: Sequence[tuple[Path, Results]]) -> str:
    """The candidates of result files, the newest first, as a section of docs/performance.md; empty
    if they have none."""
    entries = newest(files)
    if not entries:
        return ""
    title = "### Candidates\n\n"
    said = "Changes that were tried as patches (`benchmarks/candidates/`): the time without and "
    said += "with the patch in turns, their ratio (above 1 the patch is faster) and spread.\n\n"
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row]
            for row in cells(entries)]  # fmt: skip
    return title + said + markdown_table(HEADERS, rows, 3)
