"""Choices as tables: which ways there are, what the clock says, and what the rules should say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpunn.bench.choices.fitting import (
    SIZES,
    Choices,
    Factor,
    factors,
    regrets,
    suggestions,
    tile,
)
from gpunn.bench.tables import markdown as markdown_table
from gpunn.bench.tables import seconds_text, significant
from gpunn.text import table

WORTH_TELLING, MOST_ROWS = 1.05, 40  # regrets in documents from here on, and how many at most


# ---- without times -------------------------------------------------------------------------------


def listing(described: Sequence[dict[str, Any]], brief: bool = False) -> str:
    """Problems with their ways and estimates, a line each; brief: only what is chosen."""
    lines = []
    for one in described:
        options = sorted(one["options"], key=lambda option: option["estimate"])
        least = options[0]["estimate"]
        shown = options[:1] if brief else options
        for number, option in enumerate(shown):
            note = option.get("reason", "chosen" if option["name"] == one["chosen"] else "")
            if len(options) == 1:
                note = "the only way"
            lines.append((
                "" if number else one["key"], "" if number else where_text(one["where"]),
                str(len(options)) if number == 0 else "", option["name"],
                seconds_text(option["estimate"]),
                f"{option['estimate'] / least:.2f}" if least else "", note,
            ))  # fmt: skip
    heads = ["problem", "in", "ways", "way", "estimate", "x least", ""]
    return table(heads, lines, right=(2, 4, 5))


def where_text(where: dict[str, int]) -> str:
    """``{"gpt-2-124M": 12, "sweep": 1}`` as "gpt-2-124M x12, sweep"."""
    return ", ".join(f"{name} x{n}" if n > 1 else name for name, n in where.items())


# ---- with times ----------------------------------------------------------------------------------


_ADVICE = """What to do with them:
- A problem whose fastest way is slow beside its peer (products of the result file) needs a better
  kernel, whatever the rule says. One with a regret of more than 1.05 needs a better estimate.
- The factors need not be 1, only alike: the rule compares ways. Write fitted numbers into the rule
  where the last table says that they lessen the regret: a factor for each kernel into
  matmul_option._MEASURED, for each tile into the rates of its menu. Where a kernel's factor falls
  from small estimates to large ones, what is too low is its start (_START, LAUNCH, _LAUNCH), and
  not its rate.
- Then run this again: it estimates anew by the changed rules, and the regret with "as the rules
  are" must have become less, also of the steps (gain), before a GPU is asked."""


def text(choices: Choices, arch: str) -> str:
    """All that measured choices say."""
    if not choices:
        return "there are no choices: the run had no stage of that name, or no time for it"
    parts = [
        table(*_regret_rows(choices), right=(3, 5, 6)),
        "all problems of a step, each as often as it is in one:",
        table(*_gain_rows(choices), right=range(1, 6)),
        "times over estimates, geometric mean and spread, and by the estimate (how many):",
        table(*_factor_rows(factors(choices)), right=range(1, 4 + len(SIZES))),
        "the same for each tile:",
        table(*_factor_rows(factors(choices, tile)), right=range(1, 4 + len(SIZES))),
    ]  # fmt: skip
    rows = [
        (one.place, significant(one.now), significant(one.fitted), str(one.count))
        for one in suggestions(choices, arch)
    ]
    if rows:
        heads = ["a number of the rules", "now", "fitted", "ways"]
        parts.append(table(heads, rows, right=(1, 2, 3)))
    means = [(name, f"{mean:.3f}") for name, mean in regrets(choices).items()]
    parts += ["the choice's time over the fastest way's, geometric mean of all problems:"]
    parts += [table(["estimates", "regret"], means, right=(1,))] if means else []
    return "\n\n".join([*parts, *_reasons(choices), _ADVICE])


def _regret_rows(choices: Choices) -> tuple[list[str], list[tuple]]:
    lines = []
    for one in sorted(choices, key=lambda one: -(one["regret"] or 0.0)):
        times = {o["name"]: o["median"] for o in one["options"] if "median" in o}
        own, best = times.get(one["chosen"]), times.get(one["fastest"])
        lines.append((
            one["key"], f"{len(times)} of {len(one['options'])}", one["chosen"],
            seconds_text(own) if own else "", one["fastest"] or "",
            seconds_text(best) if best else "", f"{one['regret']:.2f}" if one["regret"] else "",
            where_text(one["where"]),
        ))  # fmt: skip
    return ["problem", "timed", "chosen", "takes", "fastest", "takes", "regret", "in"], lines


def _gain_rows(choices: Choices) -> tuple[list[str], list[tuple]]:
    """What the problems of each source take, and would take by the fastest ways."""
    sums: dict[str, list[float]] = {}
    for one in choices:
        times = {o["name"]: o["median"] for o in one["options"] if "median" in o}
        if one["regret"]:
            for name, count in one["where"].items():
                total = sums.setdefault(name, [0, 0.0, 0.0])
                total[0] += 1
                total[1] += count * times[one["chosen"]]
                total[2] += count * times[one["fastest"]]
    lines = [
        (name, str(number), seconds_text(own), seconds_text(best), seconds_text(own - best),
         f"{own / best:.3f}")
        for name, (number, own, best) in sums.items()
    ]  # fmt: skip
    heads = ["in", "problems", "as chosen", "by the fastest", "gain", "regret"]
    return heads, lines


def _factor_rows(found: Sequence[Factor]) -> tuple[list[str], list[tuple]]:
    lines = []
    for one in found:
        sizes = (one.sizes.get(name) for name in SIZES)
        cells = ("" if size is None else f"{size[0]:.2f} ({size[1]})" for size in sizes)
        lines.append((one.name, str(one.count), f"{one.mean:.2f}", f"{one.spread:.2f}", *cells))
    return ["kernel", "ways", "factor", "spread", *SIZES], lines


def _reasons(choices: Choices) -> list[str]:
    """Why ways have no time, but for those that were not worth it."""
    found: dict[str, list[str]] = {}
    for one in choices:
        for option in one["options"]:
            reason = option.get("reason", "")
            if "median" not in option and reason and not reason.startswith("its estimate"):
                found.setdefault(reason, []).append(f"{one['key']}: {option['name']}")
    lines = [
        f"  {some[0]}{f' and {len(some) - 1} more' if len(some) > 1 else ''}: {reason}"
        for reason, some in found.items()
    ]
    return ["not timed:\n" + "\n".join(lines)] if lines else []


# ---- for documents -------------------------------------------------------------------------------


def markdown(choices: Choices, source: str) -> str:
    """A section for docs/performance.md; "" where there are no choices.

    source : a sentence on the files that they are from
    """
    choices = [one for one in choices if one["regret"]]
    if not choices:
        return ""
    said = "Every way that a rule chooses among, timed in replayed graphs, medians of 5 samples "
    said += "(`python -m gpunn.bench.choices FILE` has all). *Regret*: the chosen way's time over "
    said += f"the fastest one's; the fastest of many is also the luckiest. {source}\n\n"
    kinds = []
    for kind in dict.fromkeys(one["kind"] for one in choices):
        mine = [one for one in choices if one["kind"] == kind]
        worst = max(mine, key=lambda one: one["regret"])
        mean = math.exp(sum(math.log(one["regret"]) for one in mine) / len(mine))
        ways = sum("median" in option for one in mine for option in one["options"])
        kinds.append([kind, worst["key"], len(mine), ways, f"{mean:.3f}", f"{worst['regret']:.2f}"])
    parts = [f"### What the rules chose\n\n{said}" + markdown_table(
        ["kind", "worst problem", "problems", "ways timed", "regret", "worst"], kinds, 2
    )]  # fmt: skip
    gains = _gain_rows(choices)
    parts.append("All problems of a step together, each as often as it is in one:\n")
    parts.append(markdown_table(*gains, 1))
    told = [one for one in choices if one["regret"] >= WORTH_TELLING]
    headers, rows = _regret_rows(told)
    if rows:
        more = f", the {MOST_ROWS} worst of {len(rows)}" if len(rows) > MOST_ROWS else ""
        parts.append(f"Problems with a regret of {WORTH_TELLING:g} and more{more}:\n")
        order = (0, 2, 4, 3, 5, 6)
        cells = [[row[i] for i in order] for row in rows[:MOST_ROWS]]
        heads = ["problem", "chosen", "fastest", "chosen takes", "fastest takes", "regret"]
        parts.append(markdown_table(heads, cells, 3))
    return "\n".join(parts)
