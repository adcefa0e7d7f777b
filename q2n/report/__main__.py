"""``python -m q2n.report``: prints and writes the tables of every experiment in the results folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from q2n import failure as failures
from q2n.exceptions import Q2NError
from q2n.record import RunRecord, read_all
from q2n.report import print_report, write_report
from q2n.report.figures.of_study import write_figures
from q2n.report.overview import study_report
from q2n.report.unfinished import failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser("python -m q2n.report", description="tables from finished records")
    parser.add_argument("--results", default="results", help="folder of the records (default: %(default)s)")
    parser.add_argument("--name", default=None, help="one experiment (default: each in the folder)")
    options = parser.parse_args(arguments)
    console, complaints = Console(), Console(stderr=True)
    records, faults = read_all(options.results, options.name)
    for fault in faults:
        complaints.print(f"left out: {fault}", style="yellow", markup=False, soft_wrap=True)
    if not records:
        where = options.results if options.name is None else f"{options.results}/{options.name}"
        complaints.print(f"no finished cell under {where}; run.py makes them", markup=False, soft_wrap=True)
        return 1
    try:
        for name, group in _by_name(records).items():
            console.rule(name)
            unfinished = failed(failures.read_all(options.results, name)[0])
            print_report(group, console, unfinished)
            drawn = write_figures(study_report(name, group, unfinished), Path(options.results))
            figures = [Path(options.results) / path for item in drawn for path in (item.svg, item.png)]
            for path in (*write_report(group, options.results, name, unfinished), *figures):
                console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    except Q2NError as error:
        complaints.print(str(error), style="red", markup=False, soft_wrap=True)
        return error.exit_code
    return 0


def _by_name(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    return groups


if __name__ == "__main__":
    sys.exit(main())
