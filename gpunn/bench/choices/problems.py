"""Problems that a rule chooses a kernel for, with every way that it chooses among.

A *problem* is a product, a pass of a convolution, some steps of `mlp_train` or a recurrent layer,
of fixed sizes. It makes its arrays (`inputs`) and lists its ways (`options`): each has a name, the
rule's estimate in seconds, and a function that launches just this way, whatever the rule prefers.
The least estimate is what the rule chooses.

Nothing here needs a GPU: with `gpunn.device.launch.RecordingLauncher` the ways are those that an
H200 would be given, and running one notes its kernels.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gpunn.bench.cases import precision
from gpunn.bench.choices.plans import Mlp, Recurrent
from gpunn.bench.choices.products import Convolution, Product
from gpunn.bench.choices.ways import Maker, Way
from gpunn.device.launch import RecordingLauncher

Problem = Product | Convolution | Mlp | Recurrent
KINDS: dict[str, type] = {made.kind: made for made in (Product, Convolution, Mlp, Recurrent)}


def to_json(problem: Problem) -> dict[str, Any]:
    """A problem as a JSON object."""
    return {"kind": problem.kind, **asdict(problem)}


def from_json(value: dict[str, Any]) -> Problem:
    """The inverse of `to_json`."""
    fields = {name: _tuples(one) for name, one in value.items()}
    return KINDS[fields.pop("kind")](**fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def ways_of(problem: Problem, launch: Any = None) -> tuple[list[Way], Any]:
    """The ways of a problem on the chip of a launcher, by default an H200, and inputs that suit
    launchers that launch nothing. Within `precision` the ways can be run."""
    with precision(problem.dtype):
        inputs = problem.inputs(Maker(None))
        return problem.options(inputs, launch or RecordingLauncher(problem.source)), inputs


# ---- in result files -----------------------------------------------------------------------------


def described(problem: Problem, ways: list[Way], reasons: dict[str, str]) -> dict[str, Any]:
    """A problem and its ways without times, as in result files."""
    options: list[dict[str, Any]] = []
    for way in ways:
        options.append({"name": way.name, "estimate": rounded(way.estimate)})
        if way.parts:
            options[-1]["parts"] = {name: rounded(value) for name, value in way.parts.items()}
        options[-1] |= {"reason": reasons[way.name]} if way.name in reasons else {}
    chosen = min(ways, key=lambda way: way.estimate)
    return {
        "kind": problem.kind, "key": problem.key, "primitive": problem.primitive,
        "dtype": problem.dtype, "options": options, "chosen": chosen.name,
    }  # fmt: skip


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """The fastest way, and the chosen one's time over its; None where nothing was timed."""
    timed = {one["name"]: one["median"] for one in found["options"] if "median" in one}
    if not timed:
        return {"fastest": None, "regret": None}
    fastest = min(timed, key=lambda name: timed[name])
    own = timed.get(found["chosen"])
    return {"fastest": fastest, "regret": own / timed[fastest] if own else None}


def estimated_anew(one: dict[str, Any], chip: Any) -> dict[str, Any]:
    """A measured problem with what the present rules estimate, and so choose, on a chip.

    With it a changed rule is judged by times that are there already.
    """
    problem = from_json(one["problem"])
    launch = RecordingLauncher(problem.source, chip.arch, chip.multiprocessors, chip.shared_limit)
    ways, _ = ways_of(problem, launch)
    before = {option["name"]: option for option in one["options"]}
    found = one | described(problem, ways, {})
    for option in found["options"]:
        old = before.get(option["name"], {"reason": "the rule did not have it when it was timed"})
        option |= {name: old[name] for name in ("median", "quartiles", "reason") if name in old}
    return found | verdict(found)


def rounded(seconds: float) -> float:
    """With 5 digits: there are thousands of them in a result file, and no clock knows more."""
    return float(f"{seconds:.5g}")
