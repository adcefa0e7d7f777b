"""The overview counts what is significant, lists every difference once, and knows the records behind each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.records import make_metric, make_protocol, make_record, make_ref, seeded

from q2n.exceptions import NumericalError
from q2n.records import failure as failures
from q2n.records import store as record_files
from q2n.records.store import RunRecord
from q2n.report.overview import StudyReport, gather, study_report
from q2n.report.studies.study import Experiments, Study
from q2n.report.tables.every_difference import Line, over_all
from q2n.report.tables.pairs import Counts, count
from q2n.report.tables.select import Unfinished
from q2n.report.tables.table import build_tables


def four_ways() -> list[RunRecord]:
    shifts = {"off": 0.0, "on": -0.2, "released": 0.3, "lstsq": 0.0}
    reference = {"metric_fields": {"reference": 6.5}}
    return [item for correction, shift in shifts.items() for item in seeded(correction, shift, **reference)]


def named(records: list[RunRecord], name: str) -> list[RunRecord]:
    return [record.model_copy(update={"name": name}) for record in records]


def every_line(*reports: StudyReport) -> tuple[Line, ...]:
    pairs = [pair for report in reports for pair in report.pairs]
    return over_all(pairs, [record for report in reports for record in report.records])


def test_differences_are_counted_by_their_significance() -> None:
    report = study_report("main", four_ways())
    assert count(report.pairs) == {
        "on": Counts(better=1),
        "released": Counts(worse=1),
        "lstsq": Counts(undecided=1),
    }
    on = report.pairs[0]
    assert on.found is not None
    assert on.found.estimate == pytest.approx(100 * math.expm1(-0.185), abs=0.2)
    assert on.found.low <= on.found.estimate <= on.found.high < 0
    assert on.corrected / on.uncorrected == pytest.approx(1 + on.found.estimate / 100, abs=1e-3)
    assert (on.reference, on.seeds) == (6.5, 3)


def test_a_share_that_grows_is_better_and_one_seed_decides_nothing() -> None:
    def answers(correction: str, marks: str) -> list[RunRecord]:
        share = {"name": "acc", "unit": "share", "lower_is_better": False, "count_unit": "items"}
        metric = make_metric(marks.count("1") / len(marks), per_item=marks, **share)
        return [make_record(correction=correction, seed=seed, metrics=(metric,)) for seed in range(2)]

    records = [*answers("off", "0011" * 20), *answers("on", "1111" * 18 + "0011" * 2)]
    assert count(study_report("main", records).pairs)["on"] == Counts(better=1)
    one_seed = [record for record in records if record.cell.seed == 0]
    assert count(study_report("main", one_seed).pairs)["on"] == Counts(undecided=1, single=1)


def test_every_number_knows_its_records() -> None:
    records = [*seeded("off", 0.0, 2), *seeded("on", -0.2, 3)]
    (table,) = build_tables(records)
    by_place = {(record.cell.correction, record.cell.seed): record.fingerprint for record in records}
    numbers = {line.row.line: line.numbers[0] for line in table.lines}
    assert numbers["off"].cells == tuple(by_place["off", seed] for seed in range(2))
    assert numbers["on"].cells == tuple(by_place["on", seed] for seed in range(3))
    assert len(numbers["on - off"].cells) == len(numbers["on - off"].others) == 2
    (pair,) = study_report("main", records).pairs
    assert pair.corrected_cells == (by_place["on", 0], by_place["on", 1]), "seeds that have both"
    assert pair.uncorrected_cells == (by_place["off", 0], by_place["off", 1])


def test_cells_that_studies_share_are_listed_once() -> None:
    shared, wider = (
        [*seeded("off", 0.0, 2), *seeded("on", -0.2, 2)],
        [*seeded("off", 0.0), *seeded("on", -0.2)],
    )
    other = [*seeded("off", 0.0, bits=2), *seeded("on", -0.2, bits=2)]
    reports = [
        study_report(name, named(records, name))
        for name, records in (("a", shared), ("b", shared + other), ("c", wider), ("d", wider))
    ]
    lines = every_line(*reports)
    assert [(line.pair.column.bits, line.pair.seeds, line.studies) for line in lines] == [
        (2, 3, ("b",)),
        (3, 3, ("c", "d")),
    ], "two seeds of three are behind the three already"


def test_a_cell_that_was_evaluated_otherwise_too_is_the_same_one() -> None:
    def pair(**evaluation: object) -> list[RunRecord]:
        changes = {"config_fields": {"evaluation": {"_target_": "q2n.evaluation.E", **evaluation}}}
        return [*seeded("off", 0.0, 1, **changes), *seeded("on", -0.2, 1, **changes)]

    first, second = study_report("a", named(pair(more=1), "a")), study_report("b", named(pair(more=2), "b"))
    (line,) = every_line(first, second)
    assert line.studies == ("a", "b")
    assert not line.pair.cells & second.pairs[0].cells


def test_the_list_says_where_a_cell_departs_from_most() -> None:
    def pair(**fields: object) -> list[RunRecord]:
        return [*seeded("off", 0.0, 1, **fields), *seeded("on", -0.2, 1, **fields)]

    first = study_report("a", named([*pair(), *pair(bits=2)], "a"))
    second = study_report("b", named([*pair(group_size=128), *pair(baseline="quip")], "b"))
    labels = {
        (line.pair.row.baseline, line.pair.column.bits, *line.settings) for line in every_line(first, second)
    }
    assert labels == {
        ("gptq", 3), ("gptq", 2), ("gptq", 3, "group_size=128"), ("quip", 3)
    }  # fmt: skip


def test_what_is_usual_is_what_most_studies_have_not_what_one_large_study_has() -> None:
    def pair(seeds: int, **fields: object) -> list[RunRecord]:
        return [*seeded("off", 0.0, seeds, **fields), *seeded("on", -0.2, seeds, **fields)]

    reports = [
        study_report("large", named(pair(9, group_size=128), "large")),
        study_report("a", named(pair(1), "a")),
        study_report("b", named(pair(1, bits=2), "b")),
    ]
    lines = {(line.pair.column.bits, *line.settings) for line in every_line(*reports)}
    assert lines == {(3, "group_size=128"), (3,), (2,)}


def test_pairs_without_windows_in_common_are_undecided_and_other_protocols_no_pairs() -> None:
    records = [make_record(correction=correction) for correction in ("off", "on")]
    report = study_report("main", records)
    assert (count(report.pairs)["on"], report.pairs[0].found) == (Counts(undecided=1, single=1), None)
    moved = make_record(correction="on", metrics=(make_metric(9.0, protocol=make_protocol(bos="text")),))
    assert study_report("main", [records[0], moved]).pairs == ()


def test_a_folder_is_gathered_study_by_study_with_what_failed_and_what_was_not_run(tmp_path: Path) -> None:
    study = Study(name="b", title="B?", kind="paper", heading="B", question="Why?")
    records = [
        *named(four_ways(), "a"),
        *named(seeded("off", 0.0), "b"),
        *named(seeded("on", 0.1, bits=2), "b"),
    ]
    for record in records:
        record_files.save(record, tmp_path)
    lost = make_record(bits=4)
    failure = failures.Failure(
        ref=make_ref(lost, name="b"), error_type=NumericalError.__name__, message="no",
    )  # fmt: skip
    failures.save(failure, tmp_path)
    (tmp_path / "b" / ("e" * 16)).mkdir()
    (tmp_path / "b" / ("e" * 16) / "record.json").write_text("{")
    report = gather(tmp_path, Experiments({"c": study.model_copy(update={"name": "c"}), "b": study}))
    assert [(item.name, item.title) for item in report.studies] == [("b", "B?"), ("a", "a")]
    b = report.studies[0]
    assert b.unfinished == (Unfinished(lost.cell, lost.config, "failed"),)
    assert b.empty == 3, "off at 2 and 4 bit, on at 3 bit; on at 4 failed"
    assert len(report.faults) == 1
    assert gather(tmp_path, name="a").studies[0].name == "a"
    assert gather(tmp_path / "nowhere").studies == ()
