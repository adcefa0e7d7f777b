"""Two models are two lines, whatever they are called: in tables, figures, page, trackers and comparisons."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.records import make_metric, make_record, seeded

from q2n.records import store as record_files
from q2n.records.fingerprint import fingerprint
from q2n.records.known_values import earlier_values
from q2n.records.store import RunRecord
from q2n.report.__main__ import main
from q2n.report.figures import curves, differences
from q2n.report.overview import gather, study_report
from q2n.report.page.html import render
from q2n.report.studies.study import Experiments, PublishedValue
from q2n.report.tables.models import told_apart
from q2n.report.tables.select import Unfinished
from q2n.report.tables.sides import compare_records
from q2n.report.tables.table import build_tables
from q2n.tracking.sweep import sweep_content

A, B = "a" * 64, "b" * 64
COLLAPSED, SOUND = 3.0, 2.0
"""Losses of the unquantized models: at a loss of 5.0 one of them has collapsed, the other has not."""


def of_model(records: list[RunRecord], path: str, weights: str, **section: Any) -> list[RunRecord]:
    """The same cells of a model in a folder: another configuration, identity and fingerprint."""
    found = []
    for record in records:
        model = {"_target_": "q2n.models.spec.HubModel", "path": path, "name": "model", **section}
        config = {**record.config, "model": model}
        identity = {**record.identity, "config": config, "weights": {"folder": weights}}
        changes = {"config": config, "identity": identity, "fingerprint": fingerprint(identity)}
        cell = record.cell.model_copy(update={"model": "model"})
        found.append(record.model_copy(update={**changes, "cell": cell}))
    return found


def pair(path: str, weights: str, reference: float, loss: float = 5.0, **section: Any) -> list[RunRecord]:
    """A cell without and one with the correction, three seeds each."""
    fields = {"metric_fields": {"reference": math.exp(reference)}}
    records = [*seeded("off", loss - 2.0 + 0.1, **fields), *seeded("on", loss - 2.0, **fields)]
    return of_model(records, path, weights, **section)


@pytest.fixture
def two() -> list[RunRecord]:
    return [*pair("/x/a/model", A, COLLAPSED), *pair("/x/b/model", B, SOUND)]


def names(records: list[RunRecord]) -> list[str]:
    return list(dict.fromkeys(record.cell.model for record in told_apart(records)[0]))


def test_each_has_its_own_unquantized_line_and_pairs(two: list[RunRecord]) -> None:
    (table,) = build_tables(two)
    references = {
        line.row.model: line.numbers[0].value for line in table.lines if line.row.kind == "reference"
    }
    assert references == pytest.approx({"a/model": math.exp(COLLAPSED), "b/model": math.exp(SOUND)})
    assert not table.settled, "the path is not said twice"
    assert not any("disagree" in note for note in table.notes)
    report = study_report("main", two)
    assert [(found.row.model, found.useless) for found in report.pairs] == [
        ("a/model", False),
        ("b/model", True),
    ]
    assert len({cell for found in report.pairs for cell in found.cells}) == 12


def test_the_label_is_what_tells_them_apart() -> None:
    one, other = pair("/x/a/model", A, SOUND), pair("/x/b/model", B, SOUND)
    assert names(one) == ["model"], "one model keeps its name"
    assert names([*one, *other]) == ["a/model", "b/model"]
    deep = [*pair("/x/a/c/model", A, SOUND), *pair("/x/b/c/model", B, SOUND)]
    assert names(deep) == ["a/c/model", "b/c/model"]
    assert names([*pair("/x/a", A, SOUND), *pair("/x/b", B, SOUND)]) == ["model (a)", "model (b)"]
    replaced = [*one, *pair("/x/a/model", B, SOUND)]
    assert names(replaced) == [f"model ({A[:12]})", f"model ({B[:12]})"]
    assert names([*replaced, *pair("/x/b/model", "c" * 64, SOUND)]) == [
        f"a/model ({A[:12]})",
        f"a/model ({B[:12]})",
        "b/model",
    ]
    seeds = [*pair("", A, SOUND, weight_seed=0), *pair("", B, SOUND, weight_seed=1)]
    assert names(seeds) == ["model (weight_seed=0)", "model (weight_seed=1)"]
    labelled, _ = told_apart([*one, *other])
    assert told_apart(labelled)[0] == labelled


def test_one_model_at_two_places_is_one(two: list[RunRecord]) -> None:
    copied = [*pair("/x/a/model", A, SOUND), *pair("/y/copy/model", A, SOUND)]
    (table,) = build_tables(copied)
    assert [line.row.model for line in table.lines if line.row.kind == "reference"] == ["model"]
    assert len({line.row.settings for line in table.lines if line.row.kind == "value"}) == 2


def test_weights_replaced_in_place_are_no_newer_record_of_the_same_cell() -> None:
    before = pair("/x/model", A, SOUND)
    after = [record for record in pair("/x/model", B, COLLAPSED) if record.cell.correction == "on"]
    report = study_report("main", [*before, *after])
    assert not any("left out" in note for table in report.tables for note in table.notes)
    assert len(report.pairs) == 1, "the correction of one model is not compared with the other uncorrected"


def test_a_cell_that_failed_is_in_the_lines_of_its_model(two: list[RunRecord]) -> None:
    cell = two[0].cell.model_copy(update={"bits": 2})
    left = [
        Unfinished(cell, {**record.config, "bits": 2}, "failed")
        for record in (two[0], two[-1], *pair("/x/c/model", "c" * 64, SOUND)[:1])
    ]
    _, labelled = told_apart(two, left)
    assert [item.cell.model for item in labelled] == ["a/model", "b/model", "c/model"]


def test_csv_page_and_figures(two: list[RunRecord], tmp_path: Path) -> None:
    for record in two:
        record_files.save(record, tmp_path)
    assert main(["--results", str(tmp_path), "--experiments", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "tables" / "main.csv")
    assert set(frame["model"]) == {"a/model", "b/model"}
    corrected = frame[frame["correction"] == "on"]
    assert corrected["value_off"].notna().all()
    drawn = (tmp_path / "figures" / "main" / "differences.svg").read_text()
    assert "a/model" in drawn
    assert "b/model" in drawn
    page = (tmp_path / "index.html").read_text()
    assert set(re.findall(r'data-model="([^"]*)"', page)) == {"a/model", "b/model"}
    assert page.count("10 times") >= 1, "what collapsed is told by its own model's perplexity"
    report = gather(tmp_path, Experiments())
    assert {line.pair.row.model for line in report.lines} == {"a/model", "b/model"}
    assert render(report, tmp_path) == render(report, tmp_path)


def test_forest_and_curves_have_a_panel_or_head_per_model(two: list[RunRecord]) -> None:
    (axes,) = differences.draw(study_report("main", two).pairs, "t").axes
    texts = [text.get_text() for text in axes.get_yticklabels()]
    assert [text for text in texts if "model" in text] == ["a/model", "b/model †"]
    both = [
        record.model_copy(
            update={
                "cell": record.cell.model_copy(update={"bits": bits}),
                "config": {**record.config, "baseline": {**record.config["baseline"], "bits": bits}},
            }
        )
        for record in two
        for bits in (2, 3)
    ]
    figure = curves.draw(study_report("main", both), "bits")
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == ["a/model", "b/model"]


def test_trackers_are_told_of_two(two: list[RunRecord], tmp_path: Path) -> None:
    content = sweep_content(two, tmp_path)
    assert content.config["models"] == ["a/model", "b/model"]
    unquantized = content.tables["differences"].set_index("model")["unquantized"].to_dict()
    assert unquantized == pytest.approx({"a/model": math.exp(COLLAPSED), "b/model": math.exp(SOUND)})


def test_folders_are_compared_model_by_model() -> None:
    sides = compare_records(pair("/x/model", A, SOUND), pair("/x/model", B, SOUND), ("old", "new"))
    assert sides.tables == ()
    assert "no cell of the same configuration" in sides.lines[0]
    assert f"model ({A[:12]})" in sides.lines[1]


def test_published_numbers_go_by_the_models_own_name(two: list[RunRecord]) -> None:
    value = PublishedValue.model_validate(
        {
            "study": "main",
            "table": "1",
            "row": {"model": "model", "baseline": "gptq", "q2n": "on"},
            "column": {"bits": 3, "metric": "perplexity", "dataset": "wiki"},
            "value": 7.0,
        }
    )
    report = study_report("main", two, (), None, [value])
    assert [line.row.model for line in report.published if line.row] == ["a/model", "b/model"]


def test_what_is_known_of_one_is_not_forgotten_for_the_other(two: list[RunRecord]) -> None:
    values = {value.weights["folder"]: value.value for value in earlier_values(two)}
    assert values == pytest.approx({A: math.exp(COLLAPSED), B: math.exp(SOUND)})


def test_records_without_an_identity_of_the_weights_keep_their_name() -> None:
    records = [make_record(metrics=(make_metric(9.0),)), make_record(correction="off")]
    assert names(records) == ["m"]
