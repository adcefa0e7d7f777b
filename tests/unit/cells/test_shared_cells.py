"""A cell that two studies of one results folder have in common is computed once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.records import make_record

from q2n import explain
from q2n.cells import run
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.exceptions import RecordError
from q2n.pipeline import cell
from q2n.plan import table
from q2n.records import store as record
from q2n.records.fingerprint import fingerprint as digest


def of_study(folder: Path, name: str, *arguments: str):
    cells = ["model=tiny_llama", "calibration=news", f"results_dir={folder}", f"name={name}", *arguments]
    command = preflight(CONFIG_DIR, cells, name)
    command.announce()
    return command


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the studies for which a cell was computed, as they come."""
    names: list[str] = []

    def compute(config, identity, bar, watch=None):
        names.append(config.scalars.name)
        fingerprint = digest(identity)
        created = f"2200-01-0{len(names)}T00:00:00+00:00"
        return make_record(
            fingerprint=fingerprint, config=config.tree, name=config.scalars.name, created=created
        )

    monkeypatch.setattr(cell, "compute", compute)
    return names


def test_a_record_of_another_study_is_taken_and_written_under_this_name(tmp_path: Path) -> None:
    made = make_record(name="first")
    there = record.save(made, tmp_path)
    seen = record.look_up(tmp_path, "second", made.fingerprint)
    assert seen == made.model_copy(update={"name": "second"})
    assert not (tmp_path / "second").exists(), "looking writes nothing"
    assert record.look_up(tmp_path, "second", "0" * 16) is None
    assert record.find(tmp_path, "second", made.fingerprint) == seen
    here = record.path_of(tmp_path, "second", made.fingerprint)
    assert record.load(here) == seen
    first, second = (json.loads(path.read_text()) for path in (there, here))
    assert {**first, "name": "second"} == second
    assert record.load(there) == made, "the other study keeps its own"


def test_the_own_record_comes_first_and_others_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    own = make_record(name="b", created="2027-01-01T00:00:00+00:00")
    for item in (make_record(name="a"), own):
        record.save(item, tmp_path)
    assert record.find(tmp_path, "b", own.fingerprint) == own
    record.path_of(tmp_path, "a", own.fingerprint).write_text("{")
    assert record.find(tmp_path, "c", own.fingerprint) == own.model_copy(update={"name": "c"})
    with pytest.raises(RecordError):
        record.find(tmp_path, "a", own.fingerprint)


def test_the_second_study_reuses_the_first_ones_cell(tmp_path: Path, computed: list[str]) -> None:
    first, second = (of_study(tmp_path, name) for name in ("first", "second"))
    assert run.run_cell(first.cells[0], "first").decision == "computed"
    assert [item.state for item in table.plan(second.cells)] == ["reused"]
    assert not (tmp_path / "second").exists(), "a plan writes nothing"
    outcome = run.run_cell(second.cells[0], "second")
    assert (outcome.decision, outcome.record.name, computed) == ("reused", "second", ["first"])
    assert record.load_all(tmp_path, "second") == [outcome.record]
    assert [item.decision for item in second.outcomes()] == ["reused"]
    told = explain.explain_cell(tmp_path, outcome.record.fingerprint)
    assert "reused: a finished record with the same identity exists" in told


def test_another_cell_of_another_study_is_not_taken(tmp_path: Path, computed: list[str]) -> None:
    run.run_cell(of_study(tmp_path, "first").cells[0], "first")
    outcome = run.run_cell(of_study(tmp_path, "second", "bits=4").cells[0], "second")
    assert (outcome.decision, computed) == ("computed", ["first", "second"])


def test_a_forced_cell_is_computed_whatever_other_studies_have(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = run.run_cell(of_study(tmp_path, "first").cells[0], "first").record
    record.save(old.model_copy(update={"created": "2020-01-01T00:00:00+00:00"}), tmp_path)
    forced = of_study(tmp_path, "second", "force=true")
    assert [item.state for item in table.plan(forced.cells)] == ["forced"]
    outcome = run.run_cell(forced.cells[0], "second")
    assert (outcome.decision, computed) == ("forced", ["first", "second"])
    assert record.load_all(tmp_path, "second") == [outcome.record]
    assert outcome.record.created.startswith("2200-01-02")
