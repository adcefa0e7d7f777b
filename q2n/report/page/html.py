"""One self-contained HTML page about a results folder, ``<results_dir>/index.html``.

The page opens from a file, its policy forbids any network access, and its text depends on records, study
files and figures alone. Template, style and script are in ``q2n/report/page/``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from q2n.records.schema import Cell
from q2n.report.overview import Drawn, Report, StudyReport
from q2n.report.page.answer import answer
from q2n.report.page.by_bits import by_bits
from q2n.report.page.cells import embedded
from q2n.report.page.drawing import inline, tallness
from q2n.report.page.prose import Prose
from q2n.report.tables.pairs import count
from q2n.runtime.files import write_text_atomic

FILE_NAME = "index.html"
PARTS = Path(__file__).parent
"""Folder of template, style and script."""
TITLES = {
    "paper": "The paper\u2019s own tables",
    "reviewers": "What its reviewers asked",
    "beyond": "Beyond the paper",
    None: "Other records",
}
"""Heading per kind of study, in the page's order; None for records without a study."""
_FIXED = frozenset({"heat_map"})
"""Kinds of figure with letters on coloured ground, whose colours stay the same in the dark theme."""
_LARGE = frozenset({"null_space"})
"""Kinds of figure that are folded until the reader opens them."""
_TALL = 1.5
"""Height over width above which any figure of a study is folded."""


def write_page(report: Report, results_dir: str | Path) -> Path:
    """Write the page and return its path.

    Args:
        report: the report of the folder; its figures are files below ``results_dir``.
        results_dir: folder the page is written to.

    Raises:
        OSError: a figure cannot be read or the folder cannot be written.
    """
    path = Path(results_dir) / FILE_NAME
    write_text_atomic(path, render(report, Path(results_dir)))
    return path


def render(report: Report, results_dir: Path) -> str:
    """HTML text of the page; the same for the same arguments and files."""
    style, script = ((PARTS / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    cells = embedded(report.studies)
    axes: list[Cell] = []
    for study in report.studies:
        axes += [record.cell for record in study.records]
        axes += [left.cell for left in study.unfinished]
    environment = Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,  # everything from records is untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # hyphens before digits become minus signs
    environment.filters.update(minus=partial(re.sub, r"-(?=\d)", "\u2212"), verdicts=count)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("page.html").render(
        policy=policy(style, script),
        style=style,
        script=script,
        answer=answer(report),
        overview=report.overview and _figure(report.overview, results_dir, "overview"),
        kinds=_by_kind(report),
        sections=[_section(item, results_dir) for item in report.studies],
        prose=Prose(),
        cells=cells,
        files={
            key: tree["files"][0][1] for part in ("cells", "failures") for key, tree in cells[part].items()
        },
        # choices of the filters, models in the order of the studies
        choices={
            "model": list(dict.fromkeys(cell.model for cell in axes)),
            "baseline": sorted({cell.baseline for cell in axes}),
        },
        of_today=report.currency("the code that made this page"),
        faults=[fault.replace(f"{results_dir}/", "") for fault in report.faults],
    )


def policy(style: str, script: str) -> str:
    """Content security policy that allows this style, this script and pictures in figures, and no network."""

    def allowed(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; style-src {allowed(style)}; script-src {allowed(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _by_kind(report: Report) -> list[tuple[str, list[StudyReport]]]:
    """Studies by the title of their kind; kinds without studies are left out."""
    kinds: dict[str | None, list[StudyReport]] = {kind: [] for kind in TITLES}
    for item in report.studies:
        kinds[item.study.kind if item.study else None].append(item)
    return [(TITLES[kind], items) for kind, items in kinds.items() if items]


def _section(item: StudyReport, results_dir: Path) -> dict[str, Any]:
    """Data of a study for the template."""
    figures = [_figure(drawn, results_dir, f"{item.name}-{i}") for i, drawn in enumerate(item.figures)]
    return {
        "report": item,
        "tables": [table if table.title else by_bits(table, item.pairs) for table in item.all_tables],
        "first": next((figure for figure in figures if not figure["folded"]), None),
        "figures": figures,
    }


def _figure(drawn: Drawn, results_dir: Path, prefix: str) -> dict[str, Any]:
    fixed = drawn.kind in _FIXED
    svg = inline(results_dir / drawn.svg, prefix, themed=not fixed)
    return {
        "drawn": drawn,
        "svg": svg,
        "fixed": fixed,
        "folded": drawn.kind in _LARGE or tallness(svg) > _TALL,
    }
