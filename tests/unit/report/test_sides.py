"""Two results folders side by side: the same cells are found, and only what is sure is called so."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.records import make_metric, make_protocol, make_record, seeded

from q2n.records import store as record_files
from q2n.records.store import RunRecord
from q2n.report.__main__ import main
from q2n.report.tables.sides import Sides, compare_records

NAMES = ("old", "new")


def both(a: list[RunRecord], b: list[RunRecord]) -> tuple[Sides, list[dict[str, str]]]:
    sides = compare_records(a, b, NAMES)
    lines = []
    for table in sides.tables:
        heads = [head.lines[0] for head in table.heads]
        for line in table.lines:
            texts = [number.text for number in line.numbers]
            bold = any(number.bold for number in line.numbers)
            lines.append(dict(zip(heads, texts, strict=True), bold=str(bold)))
    return sides, lines


def test_a_significant_improvement_and_cells_that_did_not_change() -> None:
    """Windows that are no different in one cell do not make it harder for another to be significant."""
    same = [record for bits in (4, 5, 6, 8) for record in seeded("off", 0.0, bits=bits)]
    sides, lines = both([*seeded("on", 0.0), *same], [*seeded("on", -0.2), *same])
    assert [line["bold"] for line in lines] == [*["False"] * 4, "True"]
    assert lines[-1]["B - A"].endswith("better")
    assert lines[-1]["p"] == "<0.001"
    assert [line["B - A"] for line in lines[:-1]] == ["0 same"] * 4
    counted = "numbers in both: 5; the same to the last digit: 4; B significantly better: 1, worse: 0"
    assert counted in sides.lines[0]
    assert any("adjusted for the table's 1 differences" in note for note in sides.tables[0].legend)
    worse, _ = both([*seeded("on", -0.2)], [*seeded("on", 0.0)])
    assert "better: 0, worse: 1; different and undecided: 0" in worse.lines[0]


def test_one_seed_is_undecided_however_clear_it_looks() -> None:
    sides, lines = both(seeded("on", 0.0, 1), seeded("on", -0.2, 1))
    assert (lines[0]["bold"], lines[0]["seeds"]) == ("False", "1")
    assert "different and undecided: 1" in sides.lines[0]


def test_only_seeds_that_both_have_are_compared_and_the_others_are_listed() -> None:
    sides, lines = both(seeded("on", 0.0, 3), [*seeded("on", -0.2, 2), *seeded("off", 0.0, 1)])
    assert lines[0]["seeds"] == "2"
    assert "only in old, 1 cell: m, gptq, 3 bit, on, seed 2" in sides.lines
    assert "only in new, 1 cell: m, gptq, 3 bit, off, seed 0" in sides.lines


def test_a_cell_is_the_same_whatever_study_it_is_in_and_its_newest_record_counts() -> None:
    old = [record.model_copy(update={"name": "a"}) for record in seeded("on", 0.0, 1)]
    newer = [*seeded("on", 0.3, 1), *seeded("on", 0.0, 1, created="2027-01-01T00:00:00+00:00")]
    sides, lines = both(old, newer)
    assert [line["B - A"] for line in lines] == ["0 same"]
    assert not any("only in" in line for line in sides.lines)


def test_an_option_that_only_one_side_knows_does_not_count_unless_it_tells_cells_apart() -> None:
    old = seeded("on", 0.0, 1)
    sides, lines = both(old, seeded("on", 0.1, 1, config_fields={"novel": 1}))
    assert len(lines) == 1
    assert "keys that only B has do not count: novel" in sides.lines
    two = [
        *seeded("on", 0.1, 1, config_fields={"novel": 1}),
        *seeded("on", 0.2, 1, config_fields={"novel": 2}),
    ]
    sides, lines = both(old, two)
    assert not lines
    assert sides.lines[0] == "no cell of the same configuration and protocol is in both"


def test_numbers_by_different_protocols_are_not_compared() -> None:
    moved = make_record(metrics=(make_metric(9.0, protocol=make_protocol(windows=16)),))
    sides, lines = both([make_record()], [moved])
    assert not lines
    assert "no cell" in sides.lines[0]


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift in (("a", 0.0), ("b", -0.2)):
        for record in seeded("on", shift):
            record_files.save(record, tmp_path / name)
    out = tmp_path / "c.md"
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert "significantly better: 1" in capsys.readouterr().out
    text = out.read_text()
    assert "**-1.5" in text or "better**" in text
    assert "numbers in both: 1;" in text
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "nothing"), "--out", str(out)]) == 0
    assert "no cell of the same configuration" in capsys.readouterr().out
