"""Published numbers stand beside ours, and are only compared where the protocols agree. Every number that is
called published here is invented."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.records import make_record, seeded

from q2n.exceptions import ConfigurationError
from q2n.report.overview import study_report
from q2n.report.render.files import write_tables
from q2n.report.studies.published import beside
from q2n.report.studies.study import PublishedValue, load_published

SHIPPED = Path(__file__).resolve().parents[3] / "experiments"

INVENTED = """values:
- study: main
  table: Table 99 (invented)
  row: {model: m, baseline: gptq, q2n: "on"}
  column: {bits: 3, metric: perplexity, dataset: wiki}
  value: 1234.5
  protocol: {seqlen: 512, calibration.nsamples: 32}
"""


def load(folder: Path, text: str, studies: tuple[str, ...] | None = None) -> tuple[PublishedValue, ...]:
    (folder / "published.yaml").write_text(text)
    return load_published(folder, studies)


def test_none_are_shipped() -> None:
    assert load_published(SHIPPED) == ()
    text = (SHIPPED / "published.yaml").read_text()
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["values: []"]


def test_the_example_in_the_shipped_file_is_right(tmp_path: Path) -> None:
    lines = (SHIPPED / "published.yaml").read_text().splitlines()
    start = lines.index("# values:")
    example = "\n".join(line.removeprefix("# ") for line in lines[start:] if line.startswith("#"))
    (value,) = load(tmp_path, example)
    assert value.row.q2n == "on"
    assert "invented" in value.note


def test_a_number_of_the_same_protocol_is_compared(tmp_path: Path) -> None:
    records = [*seeded("off", 0.0, 2), *seeded("on", -0.2, 2)]
    report = study_report("main", records, (), None, load(tmp_path, INVENTED))
    (line,) = report.published
    (pair,) = report.pairs
    assert line.measured is not None
    assert line.measured.value == pair.corrected
    assert line.difference == pytest.approx(pair.corrected - 1234.5)
    assert set(line.measured.cells) == set(pair.corrected_cells)
    text = write_tables(report, tmp_path)[0].read_text()
    assert "1,234 |" in text or "1,235 |" in text or "1234.5" in text
    assert "Table 99 (invented)" in text


def test_a_number_of_another_protocol_is_shown_and_not_compared(tmp_path: Path) -> None:
    text = INVENTED.replace("seqlen: 512", "seqlen: 2048, group_size: 128, few: 1")
    report = study_report("main", seeded("on", 0.0, 1), (), None, load(tmp_path, text))
    (line,) = report.published
    assert line.measured is not None
    assert line.difference is None
    assert line.differs == (
        "seqlen is 512 here, 2048 there",
        "group_size is 64 here, 128 there",
        "few is not known here",
    )
    assert "not comparable: seqlen is 512 here, 2048 there" in write_tables(report, tmp_path)[0].read_text()


def test_a_number_without_a_cell_is_not_measured_and_settings_have_lines_of_their_own(tmp_path: Path) -> None:
    values = load(tmp_path, INVENTED)
    off = study_report("main", seeded("off", 0.0, 1))
    (line,) = beside(values, "main", off.tables, off.records)
    assert (line.measured, line.remark) == (None, "not measured here")
    assert beside(values, "another", off.tables, off.records) == ()
    both = study_report("main", [make_record(), make_record(group_size=128)], (), None, values)
    assert [item.row.settings for item in both.published if item.row] == [
        ("group_size=64",),
        ("group_size=128",),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("numbers: []", "one key 'values'"),
        ("values: 3", "one key 'values'"),
        ("values: [3]", "values.0=3: must have keys"),
        (INVENTED.replace("value: 1234.5", "value: high"), "values.0.value='high'"),
        (INVENTED.replace("value: 1234.5", "value: .nan"), "values.0.value=nan"),
        (INVENTED.replace('"on"', "on"), "values.0.row.q2n=true: .*string"),
        (INVENTED.replace("bits: 3, ", ""), "values.0.column.bits: is required"),
        (INVENTED.replace("  table:", "  tabel:"), "values.0.tabel: no such key; did you mean 'table'"),
        (INVENTED.replace("study: main", "study: mian"), "values.0.study='mian': .*did you mean 'main'"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"published\.yaml: .*{complaint}"):
        load(tmp_path, text, ("main",))
