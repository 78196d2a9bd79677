"""``gpunn report``: a run folder or a benchmark result as one HTML file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpunn.cli.arguments import add_command, add_json, print_json

if TYPE_CHECKING:
    from gpunn.report import Page


DESCRIPTION = """\
Write a report as one HTML file that needs no network: of a run folder, with learning curves,
confusion matrix, mistakes, filters and weights; or of a benchmark result, with roofline, bars
beside peers and every measurement.
"""

EXAMPLES = """\
examples:
  gpunn report runs/digits-…                    writes runs/digits-…/report.html
  gpunn report runs/digits-… --open             and shows it in the browser
  gpunn report result.json                      writes result.html here
  gpunn report result.json --output page.html
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = add_command(
        subparsers,
        "report",
        help="write a run or a benchmark result as an HTML page",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("source", metavar="RUN|RESULT.json", help="a run folder, or a result file of gpunn bench")
    default = "default: RUN/report.html, or the result's name in this folder"
    add("--output", metavar="FILE.html", help=f"the page ({default})")
    add("--open", action="store_true", help="show it in the browser")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and say where; returns 0."""
    from gpunn.io import check_target
    from gpunn.report.run import PAGE

    source = Path(args.source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a run folder or a result file")
    default = source / PAGE if source.is_dir() else Path(f"{source.stem}.html")
    output = check_target(args.output or default)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output}: a report is an HTML page; use the suffix .html")
    page = page_of(source)
    page.write(output)
    size = output.stat().st_size
    if args.json:
        sections = [section.title for section in page.sections]
        print_json({"report": output, "title": page.title, "bytes": size, "sections": sections})
    else:
        print(f"report: {output}  ({size / 2**20:.2f} MiB)")
    if args.open:
        import webbrowser

        if not webbrowser.open(output.resolve().as_uri()):
            print("no browser could be started here: open the file in one", file=sys.stderr)
    return 0


def page_of(source: Path) -> Page:
    """The page of a run folder or of a result file."""
    from gpunn.report import result_page, run_page

    return run_page(source) if source.is_dir() else result_page(source)
