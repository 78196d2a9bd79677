"""Result files: JSON with a version, written whole or not at all.

The format is described in ``benchmarks/results/README.md``; a field is added with the same
version, and a field that changes its meaning makes a new one.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpunn.bench import machine
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import NotTimed, Row
from gpunn.device.device import Device
from gpunn.io.atomic import write_text

FORMAT, VERSION = "gpunn-benchmark", 1


class ResultError(ValueError):
    """A file is not a result file that this version can read."""


@dataclass
class Results:
    """Everything that one run found.

    `environment` holds machine, versions, commit, clean, date, command; `sources` the digests of
    the code behind every primitive; `ceilings` one entry a device; `tests` and `stages` are there
    in files of the run on hardware; `training` has a row a job and contestant, and `launches` what
    `gpunn.bench.launch.measure` gives, `step_kernels`, `choices`, `candidates` and `products` what
    the modules of these names give; `scaling`, what `gpunn.bench.scaling.measure` gives, is in
    files of that benchmark.
    """

    environment: dict[str, Any]
    sources: dict[str, dict[str, str]]
    ceilings: list[Ceilings] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    not_timed: list[NotTimed] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    tests: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    step_kernels: list[dict[str, Any]] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    products: list[dict[str, Any]] = field(default_factory=list)
    scaling: list[dict[str, Any]] = field(default_factory=list)
    dry_run: bool = False

    @property
    def made_on(self) -> str:
        """The date and the commit, for people."""
        commit = (self.environment["commit"] or "unknown commit")[:7]
        changed = ", with uncommitted changes" if self.environment["clean"] is False else ""
        return f"{self.environment['date'][:10]}, {commit}{changed}"

    def libraries(self, *names: str) -> str:
        """Those of the named libraries that were there, with their versions."""
        versions = self.environment["versions"]
        return ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dry_run": self.dry_run,
            **self.environment,
            "sources": self.sources,
            "ceilings": [c.to_json() for c in self.ceilings],
            "rows": [row.to_json() for row in self.rows],
            "not_timed": [asdict(one) for one in self.not_timed],
            **{name: getattr(self, name) for name in LISTS},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Results:
        """The inverse of `to_json`. ResultError if it is something else."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ResultError("not a benchmark result of gpunn")
        if value["version"] > VERSION:
            raise ResultError(
                f"written in version {value['version']} of the format; this gpunn reads up to "
                f"{VERSION}: update it"
            )
        # Fields that older files have not are empty.
        lists = {name: value.get(name, []) for name in LISTS}
        return cls(
            environment={name: value[name] for name in ENVIRONMENT},
            sources=value["sources"],
            ceilings=[Ceilings.from_json(c) for c in value["ceilings"]],
            rows=[Row.from_json(row) for row in value["rows"]],
            not_timed=[NotTimed(**one) for one in value["not_timed"]],
            dry_run=value["dry_run"],
            **lists,
        )

    def write(self, path: str | Path) -> None:
        """Write the file whole."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")

    @property
    def gpu(self) -> str | None:
        """The GPU's name, or None for a run on a CPU."""
        return self.environment["machine"].get("gpu")


ENVIRONMENT = ("machine", "versions", "commit", "clean", "date", "command")
# Fields that are lists of JSON objects, as their stages made them.
LISTS = (
    "stages", "tests", "training", "launches", "step_kernels", "choices", "candidates", "products",
    "scaling",
)  # fmt: skip


def new(device: Device, dry_run: bool = False) -> Results:
    """Results of a run that begins now."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    environment = {
        "machine": machine.machine(device),
        "versions": machine.versions(),
        **machine.commit(),
        "date": now,
        "command": machine.command_line(),
    }
    return Results(environment, machine.source_digests(), dry_run=dry_run)


def read(path: str | Path) -> Results:
    """Read a result file. ResultError names the file and what is wrong with it."""
    try:
        return Results.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        text = f"has no {error}" if isinstance(error, KeyError) else str(error)
        if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            text = f"this is not JSON ({text})"
        raise ResultError(f"{path}: {text}") from error


def file_name(results: Results) -> str:
    """``2026-11-23-413a65b.json``: the day and the commit."""
    commit = results.environment["commit"] or "unknown"
    return f"{results.environment['date'][:10]}-{commit[:7]}.json"


def folder_name(gpu: str) -> str:
    """A GPU's name as a folder: ``"NVIDIA H200"`` is ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "gpu"
