"""A results folder and the report of it, for the tests of the HTML page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.records import make_record, make_ref, seeded

from q2n.records import failure as failures
from q2n.records.failure import Failure
from q2n.records.store import RunRecord, save
from q2n.report.overview import Drawn, Report, gather
from q2n.report.render.files import write_tables
from q2n.report.studies.study import Experiments, Study

HOSTILE = "</script><script>alert('&\"1\"')</script><img src=x onerror=alert(2)>"
FIGURE = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 viewBox="0 0 10 30" onload="alert(1)"><script>alert(1)</script>
 <defs><clipPath id="p1"><rect width="1.23456" height="9"/></clipPath></defs>
 <g id="axes"><path d="M 0.123456 1 &#10; L 2 3" clip-path="url(#p1)" style="fill: #ffffff; mask: url(http://x)"/>
 <use xlink:href="#p1"/><use xlink:href="http://x/#y"/><image href="data:image/png;base64,AA"/>
 <text>a&lt;b</text></g></svg>"""


def study(**changes: Any) -> Study:
    fields: dict[str, Any] = {
        "name": "main",
        "title": "Does it help?",
        "kind": "paper",
        "heading": "Does it help?",
        "question": "Does **it** help?\n\nMore of the question.",
        "verdict": "It *does* not. See [how](../../docs/statistics.md).",
    }
    return Study(**{**fields, **changes})


def failed(**changes: Any) -> Failure:
    lost = make_record(**changes)
    ref = make_ref(lost, label="lost")
    return Failure(
        ref=ref,
        error_type="NumericalError",
        message="not <positive> definite",
        log=failures.log_of(ref),
        created="2026-01-01T00:00:00+00:00",
    )


def folder(tmp_path: Path, records: list[RunRecord], *lost: Failure, **kwargs: Any) -> tuple[Report, Path]:
    """A results folder beside a folder of experiments, with tables and two figures that have the same ids."""
    results = tmp_path / "results"
    for record in records:
        save(record, results)
    for item in lost:
        failures.save(item, results)
    (results / "figures").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        (results / f"figures/{name}.svg").write_text(FIGURE)
        (results / f"figures/{name}.png").touch()
    drawn = tuple(Drawn("layers", HOSTILE, f"figures/{n}.svg", f"figures/{n}.png") for n in ("a", "b"))
    report = gather(results, Experiments({"main": kwargs.pop("study", study())}, **kwargs))
    studies = tuple(replace(item, figures=drawn) for item in report.studies)
    for item in studies:
        write_tables(item, results)
    return replace(report, studies=studies, overview=drawn[0]), results


def pairs() -> list[RunRecord]:
    """One method over three seeds, one of one seed."""
    return [
        *seeded(
            "off",
            0.0,
            metric_fields={"reference": 7.0},
            config_fields={"results_dir": "/home/somebody/results"},
        ),
        *seeded("on", -0.2, overrides=("q2n=on", "results_dir=/home/somebody/results")),
        *seeded("off", 0.0, 1, baseline="rtn"),
        *seeded("on", 0.1, 1, baseline="rtn"),
    ]
