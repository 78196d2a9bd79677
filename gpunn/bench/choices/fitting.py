"""What measured choices say of the rules: factors between estimates and times, and what they mean.

A rule is right if it takes the fastest way; for that its estimates need only be wrong by the same
factor. So what matters are the differences of the factors from kernel to kernel, from tile to tile
and from size to size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.bench import mlp_phases
from gpunn.primitives import matmul_option, matmul_wgmma, mlp_plan

Choices = Sequence[dict[str, Any]]  # as in `Results.choices`

# Classes of the estimate, in seconds: below each.
SIZES = {"< 5 us": 5e-6, "5-20 us": 2e-5, "20-100 us": 1e-4, "> 100 us": math.inf}
FEW = 3  # ways of a tile from which its factor is not trusted
_LARGE = 5e-5  # from here on a tile's rate, and not its start, decides


@dataclass(frozen=True)
class Factor:
    """Times over estimates of a group of ways: geometric mean, and the factor by which they spread
    (the exponential of the logarithms' standard deviation); the mean of each size with its count.
    """

    name: str
    count: int
    mean: float
    spread: float
    sizes: dict[str, tuple[float, int]]


def family(kind: str, name: str) -> str:
    """The kernel of a way: "wgmma native", "mma split", "convolution wgmma", "recurrent grid"."""
    words = name.split()
    if kind == "mlp":
        return "mlp_train resident" if words[-1] == "resident" else "mlp_train"
    if kind == "recurrent":
        return f"recurrent {words[0]}"
    first = " ".join(words[:2]) if words[0] == "elements" else words[0]
    if kind == "convolution":
        return f"convolution {first}"
    modes = ("native", "split", "tf32", "bfloat16")
    return " ".join((first, *(word for word in words if word in modes)))


def tile(kind: str, name: str) -> str:
    """A way without its parts of K: the kernel with its tile; of other kinds the family."""
    if kind in ("mlp", "recurrent"):
        return family(kind, name)
    plain = re.sub(r" k\d+$", "", name)
    return f"convolution {plain}" if kind == "convolution" else plain


Group = Callable[[str, str], str]


def timed(choices: Choices) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each way that has a time, with its problem."""
    for one in choices:
        for option in one["options"]:
            if "median" in option and option["estimate"] > 0:
                yield one, option


def factors(choices: Choices, group: Group = family) -> list[Factor]:
    """Times over estimates by groups of ways."""
    logs: dict[str, list[tuple[float, str]]] = {}
    for one, option in timed(choices):
        size = next(name for name, below in SIZES.items() if option["estimate"] < below)
        over = math.log(option["median"] / option["estimate"])
        logs.setdefault(group(one["kind"], option["name"]), []).append((over, size))
    found = []
    for name, some in sorted(logs.items()):
        values = [value for value, _ in some]
        sizes = {}
        for size in SIZES:
            mine = [value for value, its in some if its == size]
            if mine:
                sizes[size] = (_mean(mine), len(mine))
        spread = math.exp(float(np.std(values)))
        found.append(Factor(name, len(values), _mean(values), spread, sizes))
    return found


def _mean(logs: Iterable[float]) -> float:
    return math.exp(float(np.mean(list(logs))))


# ---- what other estimates would choose -----------------------------------------------------------


def regret(one: dict[str, Any], factor: Callable[[str, dict[str, Any]], float]) -> float | None:
    """The time of the way with the least estimate times its factor, over the fastest's."""
    mine = [(option["estimate"] * factor(one["kind"], option), option["median"])
            for _, option in timed([one])]  # fmt: skip
    return min(mine)[1] / min(median for _, median in mine) if len(mine) > 1 else None


def regrets(choices: Choices) -> dict[str, float]:
    """The geometric mean of the regrets as the rules are, and with fitted factors.

    The fit and the mean are of the same ways, so the improvement is the most that can be hoped for.
    """
    by_family = {one.name: one.mean for one in factors(choices)}
    by_size = {
        (one.name, size): mean
        for one in factors(choices)
        for size, (mean, count) in one.sizes.items()
        if count >= FEW
    }
    by_tile = {one.name: one.mean for one in factors(choices, tile) if one.count >= FEW}

    def of_size(kind: str, option: dict) -> float:
        name = family(kind, option["name"])
        size = next(name for name, below in SIZES.items() if option["estimate"] < below)
        return by_size.get((name, size), by_family[name])

    def of_tile(kind: str, option: dict) -> float:
        name = family(kind, option["name"])
        return by_tile.get(tile(kind, option["name"]), by_family[name])

    ways: dict[str, Callable[[str, dict], float]] = {
        "as the rules are": lambda kind, option: 1.0,
        "with a factor for each kernel": lambda kind, o: by_family[family(kind, o["name"])],
        "with a factor for each kernel and size": of_size,
        "with a factor for each tile": of_tile,
    }
    found = {}
    for name, way in ways.items():
        values = [value for one in choices if (value := regret(one, way)) is not None]
        if values:
            found[name] = _mean(map(math.log, values))
    return found


# ---- what to write where -------------------------------------------------------------------------


@dataclass(frozen=True)
class Suggestion:
    """A number of a rule, and what the times make of it."""

    place: str
    now: float
    fitted: float
    count: int


def suggestions(choices: Choices, arch: str) -> list[Suggestion]:
    """Numbers that the rules have, as the times would have them."""
    return [*_kinds(choices, arch), *_rates(choices), *_mlp(choices)]


def _kinds(choices: Choices, arch: str) -> Iterator[Suggestion]:
    """``matmul_option._MEASURED``: by how much the estimates of a kind of kernel are too low."""
    number = matmul_option.number_of(arch)
    products = [one for one in choices if one["kind"] in ("product", "convolution")]

    def kind(_: str, name: str) -> str:
        return name.removeprefix("elements ").split()[0]

    for one in factors(products, kind):
        if one.name in matmul_option._MEASURED:
            now = matmul_option.measured(one.name, arch)
            place = f'matmul_option._MEASURED["{one.name}"][{number}]'
            yield Suggestion(place, now, now * one.mean, one.count)


def _rates(choices: Choices) -> Iterator[Suggestion]:
    """``rate`` of the tiles of `matmul_wgmma`, from products that take long."""
    for menu, planes in (("MENU", False), ("PLANES_MENU", True)):
        for one in getattr(matmul_wgmma, menu):
            logs = [
                math.log(option["median"] / option["estimate"])
                for problem, option in timed(choices)
                if problem["kind"] == "product"
                and option["name"].startswith(f"{one.name} {'split' if planes else 'native'} ")
                and option["estimate"] >= _LARGE
            ]
            if len(logs) >= FEW:
                place = f"matmul_wgmma.{menu} {one.name.removeprefix('wgmma ')} rate"
                yield Suggestion(place, one.rate, one.rate / _mean(logs), len(logs))


def _mlp(choices: Choices) -> Iterator[Suggestion]:
    """``mlp_plan._MEASURED``, for each part of a step."""
    rows = [
        {"parts": option["parts"], "seconds": option["median"], "fitted": True}
        for one, option in timed(choices)
        if one["kind"] == "mlp"
    ]
    if len(rows) < 2 * len(mlp_phases.PARTS):
        return
    for name, factor in mlp_phases.fit(rows)["factors"].items():
        now = mlp_plan._MEASURED
        yield Suggestion(f"mlp_plan._MEASURED, {name}", now, now * factor, len(rows))
