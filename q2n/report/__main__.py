"""``python -m q2n.report``: tables, figures and the page of a results folder, or two folders side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from q2n.exceptions import Q2NError
from q2n.report.figures.of_study import write_figures, write_overview
from q2n.report.overview import StudyReport, gather
from q2n.report.page.html import write_page
from q2n.report.render.files import leftovers, write_tables
from q2n.report.render.formats import print_tables
from q2n.report.studies.study import FOLDER, load_experiments
from q2n.report.tables.pairs import counted
from q2n.report.tables.sides import DEFAULT_FILE, compare_folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; ``arguments`` defaults to ``sys.argv``."""
    options = _options(arguments)
    console, complaints = Console(), Console(stderr=True)
    try:
        if options.compare:
            a, b = options.compare
            return _compare(a, b, Path(options.out), console, complaints)
        return _report(options, console, complaints)
    except Q2NError as error:
        complaints.print(str(error), style="red", markup=False, soft_wrap=True)
        return error.exit_code


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m q2n.report", description="tables, figures and a page from records"
    )
    default = "(default: %(default)s)"
    option = parser.add_argument
    option("--results", default="results", help=f"folder of the records {default}")
    option("--experiments", default=FOLDER, help=f"folder of the studies' descriptions {default}")
    option("--name", help="one study; then neither overview nor page (default: each in the folder)")
    option("--png", action="store_true", help="figures as PNG too, beside the SVG")
    both = "two results folders: the same cells side by side, B minus A"
    option("--compare", nargs=2, metavar=("A", "B"), help=both)
    option("--out", default=DEFAULT_FILE, help=f"Markdown file of --compare {default}")
    return parser.parse_args(arguments)


def _report(options: argparse.Namespace, console: Console, complaints: Console) -> int:
    results = Path(options.results)
    report = gather(results, load_experiments(Path(options.experiments)), options.name)
    _complain(report.faults, complaints)
    if not report.studies:
        where = results if options.name is None else results / options.name
        complaints.print(f"no finished cell under {where}; run.py makes them", markup=False, soft_wrap=True)
        return 1
    studies = tuple(_written(study, results, options.png, console) for study in report.studies)
    if options.name is None:
        overview = write_overview(report.lines, results, options.png)
        whole = replace(report, studies=studies, overview=overview)
        drawn = [results / file for file in overview.files] if overview else []
        for path in (*drawn, write_page(whole, results)):
            _say(console, f"wrote {path}")
        for path in leftovers(whole, results):
            _say(console, f"superfluous: {path} (nothing here makes it any more; delete it)")
    _say(console, report.currency("today's code (python -m q2n.explain says why one is not)"))
    return 0


def _written(study: StudyReport, results: Path, png: bool, console: Console) -> StudyReport:
    """Print the study, write its files, and return the study with its figures."""
    console.rule(study.name)
    print_tables(study.all_tables, console)
    if study.study is not None:
        for line in counted(study.pairs):
            _say(console, f"  {line}")
    figures = write_figures(study, results, png)
    drawn = [results / path for item in figures for path in item.files]
    for path in (*write_tables(study, results), *drawn):
        _say(console, f"wrote {path}")
    return replace(study, figures=figures)


def _compare(a: str, b: str, out: Path, console: Console, complaints: Console) -> int:
    sides = compare_folders(Path(a), Path(b), (a, b))
    _complain(sides.faults, complaints)
    print_tables(sides.tables, console)
    for line in sides.lines:
        _say(console, line)
    sides.write(out)
    _say(console, f"wrote {out}")
    return 0


def _complain(faults: Sequence[str], complaints: Console) -> None:
    for fault in faults:
        complaints.print(f"left out: {fault}", style="yellow", markup=False, soft_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
