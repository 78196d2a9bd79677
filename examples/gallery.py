"""Run the examples with several seeds and rebuild the table and the pictures that show them.

    python examples/gallery.py                    all of them, three seeds each
    python examples/gallery.py weather finance    some of them
    python examples/gallery.py --table            only the table, from the results that are there
    python examples/gallery.py --quick            a few steps of each, into a temporary folder

Each example is trained by `gpunn train` in a process of its own, two at a time. What came out is
kept in docs/gallery/results/NAME.json, the pictures of the first seed in docs/gallery/; the pages
examples/README.md and docs/gallery.md are made of these.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import gpunn
from gpunn.io import write_text
from gpunn.text import known
from gpunn.train import Job, find_job
from gpunn.train.scripts import examples_folder, script_paths

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
RESULTS, PICTURES = DOCS / "gallery" / "results", DOCS / "gallery"
# The pages with the table, and where from there the examples and the pictures are.
PAGES = {
    HERE / "README.md": ("", "../docs/gallery/"),
    DOCS / "gallery.md": ("../examples/", "gallery/"),
}
BEGIN, END = "<!-- gallery: begin -->", "<!-- gallery: end -->"
# The order of the table: as one reads of the uses of neural networks.
USES = (
    "image recognition", "speech recognition", "text generation", "translation", "sentiment",
    "medical diagnosis", "finance", "weather", "process control", "robotics", "games",
)  # fmt: skip
_WIDEST = 1100  # pixels of a picture


def gallery_jobs() -> dict[str, Job]:
    """The jobs of the examples, in the order of their uses; not those of ``GPUNN_JOBS``."""
    paths = script_paths()
    found = {name: find_job(name) for name in paths if paths[name].parent == examples_folder()}
    for name, job in found.items():
        if job.use not in USES:
            raise ValueError(f"{name}: its use {job.use!r} is none of {', '.join(USES)}")
    return dict(sorted(found.items(), key=lambda item: (USES.index(item[1].use), item[0])))


# ---- running -------------------------------------------------------------------------------------


def run_once(name: str, variant: str, seed: int, device: str, quick: bool, folder: Path) -> Path:
    """Train one example once in a process of its own; returns its run folder."""
    job = find_job(name)
    settings = {**(job.quick if quick else {}), **job.variants[variant]}
    output = folder / f"{label(name, variant)}-{seed}"
    command = [
        sys.executable, "-m", "gpunn", "train", name, "--quiet", "--seed", str(seed),
        "--device", device, "--output", str(output),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={toml(value)}")),
    ]  # fmt: skip
    # One process a core: threads of BLAS would only get into each other's way.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} {variant} with seed {seed} failed:\n{done.stderr[-2000:]}")
    return output


def label(name: str, variant: str) -> str:
    """What files of an example are called."""
    return re.sub(r"\W+", "-", f"{name} {variant}".strip())


def toml(value: Any) -> str:
    """A setting as `gpunn train --set` reads it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def summarise(job: Job, variant: str, runs: list[Path]) -> dict[str, Any]:
    """What the runs of one example measured, the first of them being of the first seed."""
    measured = [json.loads((run / "metrics.json").read_text("utf-8")) for run in runs]
    first = measured[0]
    if any(set(one["baselines"]) != set(first["baselines"]) for one in measured):
        raise RuntimeError(f"{job.name} {variant}: its baselines have other names with other seeds")
    return {
        "job": job.name,
        "variant": variant,
        "title": job.title,
        "use": job.use,
        "data": job.data,
        **{name: first[name] for name in ("metric", "higher_is_better", "unit", "what", "device")},
        "samples": first["samples"],
        "values": [one["value"] for one in measured],
        "baselines": {
            name: [one["baselines"][name] for one in measured] for name in first["baselines"]
        },
        "more": {name: [one["more"].get(name) for one in measured] for name in first["more"]},
        "notes": first["notes"],
        "seconds": [one["seconds"] for one in measured],
        "cpu_seconds": [one["cpu_seconds"] for one in measured],
        "made_with": {
            "gpunn": gpunn.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "processor": processor(),
        },
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def keep_pictures(name: str, variant: str, run: Path) -> None:
    """Copy the pictures of a run, no wider than a page."""
    from PIL import Image

    PICTURES.mkdir(exist_ok=True)
    prefix = f"{label(name, variant)}-"
    for old in pictures_of(name, variant):
        old.unlink()
    for path in one_curve(sorted(run.glob("*.png"))):
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            if picture.width > _WIDEST:
                height = round(picture.height * _WIDEST / picture.width)
                picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
            # 128 colours are plenty for curves and bars, and a third of the bytes.
            picture.quantize(128).save(PICTURES / f"{prefix}{path.name}", optimize=True)


def pictures_of(name: str, variant: str) -> list[Path]:
    """The pictures that are kept of an example, without those of one with a longer name."""
    mine = label(name, variant)
    named = {label(job.name, each) for job in gallery_jobs().values() for each in job.variants}
    longer = tuple(f"{other}-" for other in named if other.startswith(f"{mine}-"))
    found = sorted(PICTURES.glob(f"{mine}-*.png"))
    return [path for path in found if not path.name.startswith(longer)]


def one_curve(pictures: list[Path]) -> list[Path]:
    """The pictures with the curves of only the first of several trainings."""
    curves = [path for path in pictures if "curves-" in path.name]
    return [path for path in pictures if path not in curves[1:]]


def run_all(names: list[str], seeds: int, processes: int, device: str, quick: bool) -> None:
    """Run examples, and keep the results and the pictures of each as soon as it is done."""
    from tqdm import tqdm

    jobs = gallery_jobs()
    kinds = [(name, variant) for name in names for variant in jobs[name].variants]
    with (
        tempfile.TemporaryDirectory() as place,
        concurrent.futures.ThreadPoolExecutor(processes) as pool,
        contextlib.ExitStack() as stack,
        tqdm(total=len(kinds) * seeds, unit="run", disable=not sys.stderr.isatty()) as bar,
    ):
        # After Ctrl-C, which the runs under way hear as well, no more are begun.
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting = {
            kind: [
                pool.submit(run_once, *kind, seed, device, quick, Path(place))
                for seed in range(seeds)
            ]
            for kind in kinds
        }
        for futures in waiting.values():
            for future in futures:
                future.add_done_callback(lambda _: bar.update())
        failed = []
        for (name, variant), futures in waiting.items():
            try:
                runs = [future.result() for future in futures]
                result = summarise(jobs[name], variant, runs)
            except RuntimeError as error:
                failed.append(str(error))
                continue
            bar.write(line_of(result))
            if not quick:
                RESULTS.mkdir(parents=True, exist_ok=True)
                text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
                write_text(RESULTS / f"{label(name, variant)}.json", text)
                keep_pictures(name, variant, runs[0])
    if failed:
        raise RuntimeError("\n".join(failed))


def line_of(result: dict[str, Any]) -> str:
    """A result in a line, for the terminal."""
    name = f"{result['job']} {result['variant']}".strip()
    best = next(iter(result["baselines"]))
    return (
        f"{name}: {result['metric']} {spread(result['values'], result['unit'])}; {best} "
        f"{spread(result['baselines'][best], result['unit'])}; "
        f"{statistics.mean(result['cpu_seconds']):.0f} s"
    )


# ---- the page ------------------------------------------------------------------------------------


def spread(values: list[float], unit: str = "") -> str:
    """The mean, and how far the seeds lie apart: "0.9913 ± 0.0021 °C"."""
    mean = statistics.mean(values)
    digits = 4 if abs(mean) < 1 else 3 if abs(mean) < 10 else 1 if abs(mean) < 1000 else 0
    text = f"{mean:.{digits}f}"
    if len(values) > 1 and max(values) > min(values):
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return f"{text} {unit}".rstrip()


def results() -> list[dict[str, Any]]:
    """The results that are there, in the order of the table."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return sorted(found, key=lambda one: (USES.index(one["use"]), one["job"]))


def table(found: list[dict[str, Any]], to_examples: str) -> str:
    """The table of the gallery in Markdown."""
    lines = [
        "| use | example | measured on data held out | network | compared with | time |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for one in found:
        name = f"[{one['job']}]({to_examples}{one['job']}.py)"
        if one["variant"]:
            name += f", {one['variant']}"
        better = "" if one["higher_is_better"] else " (lower is better)"
        compared = "; ".join(
            f"{other} {spread(values, one['unit'])}" for other, values in one["baselines"].items()
        ).replace("|", "\\|")
        lines.append(
            f"| {one['use']} | {name} | {one['metric']}{better}, {one['samples']:,} {one['what']} "
            f"| {spread(one['values'], one['unit'])} | {compared} "
            f"| {statistics.mean(one['cpu_seconds']):.0f} s |"
        )
    machines = sorted({
        one["made_with"]["processor"] + ("" if one["device"] == "cpu" else f", on {one['device']}")
        for one in found
    })  # fmt: skip
    seeds = sorted({len(one["values"]) for one in found})
    lines += [
        "",
        f"Mean ± standard deviation over {' or '.join(map(str, seeds))} seeds; a lead no larger "
        "than that may be chance. The time is that of one CPU core, training and measuring "
        f"together ({'; '.join(machines)}). What is said and shown below is of the run with seed "
        "0 alone.",
    ]
    return "\n".join(lines)


def sections(found: list[dict[str, Any]], to_pictures: str) -> str:
    """Of each example what its data are, what is to be said, and its pictures, in Markdown."""
    lines = []
    for one in found:
        variant = f": {one['variant']}" if one["variant"] else ""
        lines += [f"## {one['title']}{variant}", "", f"Data: {one['data'].rstrip('.')}.", ""]
        if one["notes"]:
            lines += ["With seed 0:", "", *(f"- {note}" for note in one["notes"]), ""]
        for path in one_curve(pictures_of(one["job"], one["variant"])):
            what = path.stem.removeprefix(f"{label(one['job'], one['variant'])}-")
            what = what.replace("_", " ").replace("-", " ")
            lines += [f"![{one['title']}: {what}]({to_pictures}{path.name})", ""]
    return "\n".join(lines).rstrip()


def block(to_examples: str, to_pictures: str) -> str:
    """What the results make of a page."""
    found = results()
    return f"{table(found, to_examples)}\n\n{sections(found, to_pictures)}"


def rebuild_pages() -> None:
    """Put the table and the pictures into the pages."""
    for page, places in PAGES.items():
        text = page.read_text("utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise RuntimeError(f"{page} has no lines {BEGIN} and {END} for the table")
        write_text(page, f"{before}{BEGIN}\n{block(*places)}\n{END}{after}")


def main(arguments: list[str] | None = None) -> int:
    """Run the gallery; returns 0, or 1 if an example failed: the others are kept all the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="the examples to run (default: all)")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    add("--processes", type=int, default=min(2, os.cpu_count() or 1), metavar="N",
        help="how many at a time (default: 2); 1 with a GPU")  # fmt: skip
    add("--device", default="auto", help="cpu or cuda (default: a GPU if one is usable)")
    add("--quick", action="store_true", help="a few steps of each; nothing is kept")
    add("--table", action="store_true", help="only rebuild the table")
    args = parser.parse_args(arguments)
    jobs = gallery_jobs()
    for name in args.names:
        if name not in jobs:
            parser.error(f"there is no example {name!r}{known(name, jobs)}")
    if args.seeds < 1 or args.processes < 1:
        parser.error("--seeds and --processes must be 1 or more")
    failed = 0
    try:
        if not args.table:
            run_all(args.names or list(jobs), args.seeds, args.processes, args.device, args.quick)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        failed = 1
    if not args.quick and RESULTS.is_dir():
        rebuild_pages()
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
