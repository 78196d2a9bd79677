"""What to say where the names of a state are not those of a model."""

from __future__ import annotations

import difflib

_SHOWN, _HINTS = 20, 8  # names of a kind, and guesses
_SOUGHT = 50  # among so many the nearest name is looked for


def mismatches(missing: list[str], unexpected: list[str]) -> list[str]:
    """Clauses about missing and unexpected names, with what may have been meant."""
    found = [f"missing: {_listed(missing)}"] if missing else []
    found += [f"unexpected: {_listed(unexpected)}"] if unexpected else []
    if not missing or not unexpected:
        return found
    if hint := _prefix(missing, unexpected):
        return [*found, hint]
    pairs = []
    for name in unexpected[:_SOUGHT]:
        near = difflib.get_close_matches(name, missing[:_SOUGHT], 1, cutoff=0.7)
        pairs += [f"{name} is perhaps {near[0]}"] if near else []
    return found + (["; ".join(pairs[:_HINTS])] if pairs else [])


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _prefix(missing: list[str], unexpected: list[str]) -> str:
    """A sentence if all differ by one beginning, such as DataParallel's "module."."""
    for longer, shorter, whose in ((unexpected, missing, "state"), (missing, unexpected, "model")):
        ends = [name for name in longer if name.endswith("." + shorter[0])]
        for prefix in sorted({name.removesuffix(shorter[0]) for name in ends}, key=len):
            if all(prefix + name in longer for name in shorter):
                how = "name.removeprefix(prefix)" if whose == "state" else "prefix + name"
                return (
                    f"the names of the {whose} begin with {prefix!r}; load "
                    f"{{{how}: value for name, value in state.items()}} with that prefix"
                )
    return ""
