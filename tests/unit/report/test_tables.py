"""Tables: nothing is averaged but seeds, no column mixes protocols, differences have the right sign."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from helpers.records import make_metric, make_protocol, make_record, seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from q2n.exceptions import RecordError
from q2n.records import store as record_files
from q2n.records.kept_code import keep
from q2n.records.provenance import Provenance
from q2n.records.schema import Metric, RunRecord
from q2n.records.source_code import CHECKOUT
from q2n.records.store import save
from q2n.report import print_report
from q2n.report.__main__ import main
from q2n.report.overview import study_report
from q2n.report.render.files import write_tables
from q2n.report.tables.select import Unfinished, code_notes, code_versions, latest, of_today
from q2n.report.tables.settings import distinguishing
from q2n.report.tables.table import Table, build_table, build_tables
from q2n.report.tables.text import EMPTY, amount, difference


def cell(value: float, reference: float | None = 5.0, **changes: Any) -> RunRecord:
    return make_record(metrics=(make_metric(value, reference=reference),), **changes)


def value(table: Table, line: str, bits: int = 3, **where: str) -> float:
    """The one number of a line in the first metric's column of ``bits``."""
    rows = [
        item.row
        for item in table.lines
        if item.row.line == line and all(where[name] in item.row.key for name in where)
    ]
    columns = [column for column in table.columns if column.bits == bits and column.protocol]
    assert len(rows) == 1, lines(table)
    return table.numbers[rows[0], columns[0]].value


def lines(table: Table) -> list[tuple[str, str, str, str]]:
    return [line.row.key for line in table.lines]


class Shown(NamedTuple):
    """A line as it is printed."""

    labels: list[str]
    texts: tuple[str, ...]
    bold: list[bool]


def shown(table: Table) -> list[Shown]:
    return [
        Shown(labels, tuple(number.text for number in numbers), [number.bold for number in numbers])
        for labels, numbers, _ in table.printed()
    ]


def seeds(table: Table) -> list[int]:
    return [number.seeds for number in table.numbers.values()]


def test_the_main_table_has_the_reference_on_top_and_signed_differences() -> None:
    grid = itertools.product((2, 3), (("on", 10.0), ("off", 12.0)))
    table = build_table([cell(v + bits, bits=bits, correction=c) for bits, (c, v) in grid])
    assert [key[3] for key in lines(table)] == ["unquantized", "off", "on", "on - off"]
    assert [column.bits for column in table.columns] == [2, 2, 3, 3]
    assert value(table, "unquantized", 2) == value(table, "unquantized", 3) == 5.0
    assert value(table, "off", 2) == 14.0
    assert value(table, "on - off", 3) == -2.0
    assert not table.compared, "there are no windows to compare by"
    texts = [row.texts for row in shown(table)]
    assert texts[3] == ("-2.00 better", EMPTY, "-2.00 better", EMPTY)
    assert texts[2][1] == "2.25", "bits per weight"


def test_a_worse_correction_is_called_worse_and_higher_may_be_better() -> None:
    table = build_table([cell(12.0), cell(10.0, correction="off")])
    assert shown(table)[3].texts[0] == "+2.00 worse"
    accuracy = {"name": "accuracy", "lower_is_better": False, "unit": "share"}
    table = build_table(
        [
            make_record(correction=c, metrics=(make_metric(v, **accuracy),))
            for c, v in (("on", 0.6), ("off", 0.5))
        ]
    )
    assert shown(table)[2].texts[0] == "+0.10 better"
    assert "↑" in "".join(table.heads[0][1])


def test_what_was_allowed_is_said_beneath_the_table_once_per_model() -> None:
    records = [
        make_record(correction=c, notes=("a note",), metrics=(make_metric(5.0),)) for c in ("on", "off")
    ]
    assert build_table(records).notes.count("m: a note") == 1


@pytest.mark.parametrize(("kind", "relative"), [("ratio", True), ("unit", False)])
def test_the_metric_says_whether_its_differences_are_ratios(kind: str, relative: bool) -> None:
    """Its values do not: the exponential of a mean and a mean may be the same number."""

    def of(correction: str, seed: int, shift: float) -> RunRecord:
        parts = tuple(0.01 * (window % 3) + shift for window in range(12))
        metric = make_metric(1.0, difference=kind, per_window=parts)
        return make_record(correction=correction, seed=seed, metrics=(metric,))

    shifts = {"on": 0.1, "off": 0.0}
    records = [of(correction, seed, shift) for correction, shift in shifts.items() for seed in (0, 1)]
    (found,) = build_table(records).compared
    assert found.relative == relative
    assert found.estimate == pytest.approx(100 * math.expm1(0.1) if relative else 0.1)


@pytest.mark.parametrize(
    ("name", "difference"),
    [("perplexity", "ratio"), ("perplexity (rule)", "ratio"), ("acc", "unit"), ("KL divergence", "unit")],
)
def test_a_metric_of_before_the_field_has_it_from_its_name(name: str, difference: str) -> None:
    old = make_metric(10.0, name=name).model_dump()
    del old["difference"]
    assert Metric.model_validate(old).difference == difference
    said = {**old, "difference": "unit"}
    assert Metric.model_validate(said).difference == "unit"


def test_a_field_that_one_option_reads_is_no_label_of_the_others() -> None:
    """New records have just the fields that their cells read; the field that decides says the rest."""
    target = {"_target_": "q2n.corrections.null_space.NullSpaceScale"}

    def record(**fields: Any) -> RunRecord:
        config = {**make_record().config, "q2n": {**target, "lam": 0.2, **fields}}
        return make_record(config=config)

    fixed, other = record(rank_rule="fixed", rank=0.5), record(rank_rule="prefix_suffix", t=0.1)
    labels = [found.correction for found in distinguishing([fixed, other])]
    assert labels == [("q2n.rank_rule=fixed",), ("q2n.rank_rule=prefix_suffix",)]
    old = record(rank_rule="fixed", rank=0.5, t=0.3, energy=0.7).model_copy(update={"created": "2020"})
    assert latest([old, fixed]) == ([fixed], 1), "what it did not read does not keep it apart"
    defaults = record(rank_rule="prefix_suffix").model_copy(update={"created": "2020"})
    assert latest([defaults, other]) == ([other], 1)


def test_the_group_size_of_a_row_is_the_baselines_and_old_records_are_the_same_cells() -> None:
    new = [make_record(group_size=size) for size in (32, 64)]
    assert [found.cell for found in distinguishing(new)] == [("group_size=32",), ("group_size=64",)]
    # as early records have it: at the top as well, and there whatever the baseline reads
    top = {"bits": 3, "group_size": 64}
    old = make_record(created="2020", config={**new[1].config, **top})
    assert latest([old, new[1]]) == ([new[1]], 1)
    whole = {**make_record(baseline="quip", group_size=-1).config}
    twice = [
        make_record(
            baseline="quip", group_size=size, created=f"202{size}", config={**whole, "group_size": size}
        )
        for size in (32, 64)
    ]
    assert latest(twice) == ([twice[1]], 1)


@pytest.mark.parametrize(
    "change",
    [
        {"windows": 16},
        {"bos": "text"},
        {"text_sha256": "b" * 64},
        {"stride": 64},
        {"positions": 64},
        {"calibrated": True},
    ],
)
def test_two_protocols_never_share_a_column(change: dict[str, Any]) -> None:
    protocols = [make_protocol(), make_protocol(**change)]
    records = [
        make_record(correction=c, metrics=(make_metric(v, protocol=protocol),))
        for (c, v), protocol in zip((("on", 10.0), ("off", 12.0)), protocols, strict=True)
    ]
    records[0] = records[0].model_copy(update={"config": {**records[0].config, "evaluation": {"changed": 1}}})
    # one model links both protocols: one table, two columns, and no difference across them
    (table,) = build_tables(records)
    assert sum(column.protocol is not None for column in table.columns) == 2
    assert sum(number.seeds for number in table.lines[-1].numbers) == 0
    assert not table.compared
    heads = [head for head in table.heads if "bits per" not in head[1]]
    assert len(set(heads)) == 2, "the printed headers tell them apart"


def test_the_header_carries_unit_protocol_and_windows() -> None:
    head = " ".join(build_table([cell(1.0)]).heads[0][1])
    assert head == "wiki perplexity ↓ per token 32 windows x 512 tokens BOS none float32"


def test_models_that_share_no_protocol_get_tables_of_their_own() -> None:
    def of(model: str, tokenizer: str) -> RunRecord:
        metric = make_metric(1.0, protocol=make_protocol(tokenizer=tokenizer))
        return make_record(model=model, metrics=(metric,))

    tables = build_tables([of("a", "x"), of("b", "y"), of("c", "x")])
    assert [list(table.models) for table in tables] == [["a", "c"], ["b"]]


def test_seeds_are_averaged_and_differences_paired_by_seed() -> None:
    values = {("on", 0): 10.0, ("on", 1): 12.0, ("off", 0): 11.0, ("off", 1): 14.0, ("off", 2): 90.0}
    table = build_table([cell(v, correction=c, seed=s) for (c, s), v in values.items()])
    assert value(table, "on") == 11.0
    assert value(table, "on - off") == -1.5, "seed 2 has no partner"
    assert table.lines[3].numbers[0].spread == pytest.approx(math.sqrt(0.5))
    texts = [row.texts[0] for row in shown(table)]
    assert texts[2] == "11.00 ± 1.41 (n=2)"
    assert texts[1] == "38.33 ± 44.77"


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"group_size": 128}, "group_size=128"),
        ({"config_fields": {"calibration": {"_target_": "q2n.data.news.News"}}}, "calibration=News"),
        (
            {"config_fields": {"calibration": {"_target_": "q2n.data.wiki", "nsamples": 8}}},
            "calibration.nsamples=8",
        ),
        ({"baseline_fields": {"act_order": True}}, "baseline.act_order=true"),
        ({"config_fields": {"dtype": "float32"}}, "dtype=float32"),
        ({"config_fields": {"a_new_key": 1}}, "a_new_key=1"),
    ],
)
def test_cells_that_differ_in_anything_have_lines_of_their_own(changes: dict[str, Any], label: str) -> None:
    def pair(value: float, **fields: Any) -> list[RunRecord]:
        return [cell(value, **fields), cell(value + 1, correction="off", **fields)]

    table = build_table([*pair(10.0), *pair(20.0, **changes)])
    marked = [key for key in lines(table) if label in key[2]]
    assert [key[3] for key in marked] == ["off", "on", "on - off"]
    assert value(table, "on", settings=marked[0][2]) == 20.0
    assert max(seeds(table)) == 1, "nothing was averaged"


def test_settings_of_the_correction_share_one_line_without_it() -> None:
    swept = [cell(10.0 - t, q2n_fields={"t": t, "lam": 0.2}) for t in (0.1, 0.05, 0.01)]
    table = build_table([*swept, cell(12.0, correction="off"), cell(11.0, correction="released")])
    named = [f"{line} (q2n.t={t})" for t in (0.01, 0.05, 0.1) for line in ("on", "on - off")]
    assert [key[3] for key in lines(table)] == ["unquantized", "off", *named, "released", "released - off"]
    assert value(table, "on - off (q2n.t=0.05)") == pytest.approx(-2.05)


def test_echoes_of_bits_seed_and_group_size_are_not_repeated() -> None:
    records = [
        cell(1.0, bits=b, seed=s, group_size=g, baseline_fields={"group_size": g, "levels": {"bits": b}})
        for b, s, g in itertools.product((2, 3), (0, 1), (64, 128))
    ]
    assert {key[2] for key in lines(build_table(records))} == {"", "group_size=64", "group_size=128"}


def test_a_setting_that_follows_bits_only_by_chance_is_still_shown() -> None:
    table = build_table([cell(1.0, bits=2, group_size=64), cell(2.0, bits=3, group_size=128)])
    assert {key[2] for key in lines(table)} == {"", "group_size=64", "group_size=128"}


def without_t_if_off(choice: tuple[Any, ...]) -> tuple[Any, ...]:
    return choice if choice[1] == "on" else (*choice[:5], None)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["gptq", "rtn"]),
            st.sampled_from(["on", "off"]),
            st.sampled_from([2, 3]),
            st.sampled_from([64, 128]),
            st.integers(0, 1),
            st.sampled_from([0.1, 0.2]),
        ),
        min_size=1,
        max_size=10,
        unique_by=without_t_if_off,
    )
)
def test_every_value_stands_in_the_table_exactly_once(cells: list[tuple[Any, ...]]) -> None:
    records = [
        cell(float(i + 1), baseline=b, correction=c, bits=n, group_size=g, seed=s)
        if c == "off"
        else cell(float(i + 1), baseline=b, correction=c, bits=n, group_size=g, seed=s, q2n_fields={"t": t})
        for i, (b, c, n, g, s, t) in enumerate(cells)
    ]
    table = build_table(records)
    measured = [
        number
        for (row, column), number in table.numbers.items()
        if row.kind == "value" and column.protocol and number.seeds
    ]
    assert sum(number.seeds for number in measured) == len(records)
    assert sum(number.value * number.seeds for number in measured) == pytest.approx(
        len(records) * (len(records) + 1) / 2
    )


def test_an_older_record_of_a_cell_is_left_out_and_the_reader_told() -> None:
    old = cell(99.0, identity={"sources": "old"})
    new = cell(1.0, identity={"sources": "new"}, created="2026-02-01T00:00:00+00:00")
    other = cell(2.0, correction="off", identity={"sources": "old"})
    assert latest([new, old, other]) == ([new, other], 1)
    (table,) = build_tables([new, old, other])
    assert value(table, "on") == 1.0
    assert any("1 older record is left out" in note for note in table.notes)
    assert any("2 different versions of the sources" in note for note in table.notes)


def test_only_code_that_cells_share_tells_versions_apart() -> None:
    """Cells with other options depend on other modules, so their codes differ whatever is changed."""
    codes = {
        "a" * 16: {"q2n.pipeline.cell": {"run": "1"}, "q2n.corrections.on": {"": "1"}},
        "b" * 16: {"q2n.pipeline.cell": {"run": "1"}},
        "c" * 16: {"q2n.pipeline.cell": {"run": "2"}},
    }
    on, off, later = (
        cell(1.0, q2n_fields={"_target_": f"q2n.corrections.{name}.X"}, identity={"code": key})
        for name, key in zip(("on", "off", "off"), codes, strict=True)
    )
    assert code_versions([on, off], codes) == 1
    assert code_versions([on, later], codes) == 2
    assert code_versions([on, later], {}) == 1, "no more can be known without the digests"
    assert code_versions([off, later], {}) == 2, "the same options"
    assert code_versions([on, cell(1.0, identity={"sources": "old"})], codes) == 2
    assert code_notes([on, off], 0, codes) == []
    assert code_notes([on, later], 0, codes) == [
        "these records come from 2 different versions of the sources (see python -m q2n.explain)"
    ]


def test_records_of_todays_code_are_counted() -> None:
    config = {"baseline": {"_target_": "q2n.baselines.rtn.RTN"}}
    today, older = (
        cell(1.0, config=config, identity={"code": key}) for key in (CHECKOUT.of_cell(config).key, "0" * 16)
    )
    assert of_today([today, older, cell(1.0)]) == 1


def test_the_report_notices_versions_and_says_how_many_records_are_of_today(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"baseline": {"_target_": "q2n.baselines.rtn.RTN"}}
    code = CHECKOUT.of_cell(config)
    keep(code, tmp_path)
    old = {name: dict(module.parts) for name, module in code.items()}
    old["q2n.pipeline.cell"]["compute"] = "0" * 12
    (tmp_path / "code" / ("0" * 16 + ".json")).write_text(json.dumps(old))
    for correction, key in (("on", code.key), ("off", "0" * 16)):
        tree = {**config, "q2n": {"_target_": f"q2n.corrections.no_{correction}.X"}}
        save(
            cell(1.0, correction=correction, config=tree, identity={"code": key, "of": correction}), tmp_path
        )
    assert main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 different versions of the sources" in out
    assert "1 of the 2 records shown are of today's code" in out
    page = (tmp_path / "index.html").read_text()
    assert '<p id="of-today">1 of the 2 records shown are of the code that made this page.</p>' in page


def test_differences_between_two_kinds_of_processor_are_counted() -> None:
    ours, other = Provenance(device="cpu", cpu="one"), Provenance(device="cpu", cpu="another")
    records = [cell(1.0, bits=bits, correction=q2n) for bits in (2, 3) for q2n in ("on", "off")]
    made = [record.model_copy(update={"provenance": ours}) for record in records]
    assert not any("processor" in note for note in build_table(made).notes)
    for moved, count in (
        ([other, ours, other, other], "1 difference is"),
        ([ours, ours, other, other], "no difference is"),
    ):
        mixed = [
            record.model_copy(update={"provenance": where})
            for record, where in zip(records, moved, strict=True)
        ]
        (note,) = [note for note in build_table(mixed).notes if "processor" in note]
        assert "2 kinds of processor (another, one)" in note
        assert count in note


def test_indistinguishable_records_are_an_error_not_an_average() -> None:
    one = cell(1.0)
    with pytest.raises(RecordError, match=one.fingerprint):
        build_table([one, one.model_copy(update={"fingerprint": "f" * 16})])


def test_non_finite_losses_are_shown_and_never_win() -> None:
    table = build_table([cell(math.nan), cell(math.inf, correction="off"), cell(7.0, correction="released")])
    texts = {row.labels[-1]: row.texts[0] for row in shown(table)}
    assert texts == {
        "unquantized": "5.00",
        "off": "inf",
        "on": "nan",
        "on - off": "nan",
        "released": "7.00",
        "released - off": "-inf better",
    }
    assert not any(any(row.bold) for row in shown(table))


def test_a_missing_partner_or_reference_leaves_a_dash() -> None:
    table = build_table([cell(1.0, None, bits=2), cell(2.0, None), cell(3.0, None, correction="off")])
    assert [row.labels[-1] for row in shown(table)] == ["off", "on", "on - off"]
    assert [row.texts[0] for row in shown(table)] == [EMPTY, "1.00", EMPTY]


def test_a_difference_has_its_interval_and_is_bold_only_when_significant() -> None:
    table = build_table([*seeded("off", 0.0), *seeded("on", -0.2)])
    assert [row.labels[-1] for row in shown(table)] == ["off", "on", "on - off", "95 % interval", "p"]
    low, high = map(float, re.findall(r"[-+][\d.]+", shown(table)[3].texts[0]))
    assert high < 0
    assert (low + high) / 2 == pytest.approx(100 * math.expm1(-0.185), abs=0.5)
    assert float(shown(table)[4].texts[0].lstrip("<")) < 0.05
    assert [row.bold[0] for row in shown(table)] == [False, False, True, False, False]
    assert any("bold: significant across seeds" in note and "3 seeds" in note for note in table.legend)


def windows(correction: str, losses: list[float]) -> RunRecord:
    metric = make_metric(10.0, count=len(losses), per_window=tuple(losses))
    return make_record(correction=correction, metrics=(metric,))


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([2.3, 2.4, 2.2, 2.1], "fewer than 5 windows or items"),
        ([], "a metric without a value per window or item"),
        ([2.3, 2.4, 2.2, 2.1, math.inf], "a loss that is not finite"),
        ([2.3, 2.4, 2.2, 2.1, 2.5], None),
    ],
)
def test_a_missing_interval_has_its_reason(losses: list[float], reason: str | None) -> None:
    table = build_table([windows("off", losses), windows("on", [loss + 0.1 for loss in losses])])
    notes = [note for note in table.legend if note.startswith("no 95 % interval")]
    assert notes == ([f"no 95 % interval and no p: {reason}"] if reason else [])
    assert (len(shown(table)) == 3) == bool(reason), "lines of interval and p are left out"


def test_a_spread_that_is_round_off_is_none() -> None:
    one, other = 3.3, math.nextafter(3.3, 4)
    both = [make_record(seed=seed, bits_per_weight=bits) for seed, bits in enumerate((one, other))]
    assert shown(build_table(both))[-1].texts[-1] == "3.30"


def test_one_seed_decides_nothing() -> None:
    table = build_table([*seeded("off", 0.0, 1), *seeded("on", -0.2, 1)])
    assert float(shown(table)[4].texts[0].lstrip("<")) < 0.05
    assert not any(any(row.bold) for row in shown(table))
    assert any(note.startswith("one seed") for note in table.legend)


def test_p_values_are_adjusted_for_the_whole_table() -> None:
    def p_values(*groups: int) -> list[float]:
        records = [
            record
            for group in groups
            for record in (
                *seeded("off", 0.0, 2, group_size=group),
                *seeded("on", -0.02, 2, group_size=group),
            )
        ]
        table = build_table(records)
        return [float(row.texts[0].lstrip("<")) for row in shown(table) if row.labels[-1] == "p"]

    (alone,) = p_values(64)
    both = p_values(64, 128)
    assert both == pytest.approx([min(1.0, 2 * alone)] * 2, abs=2e-3)


def test_shares_of_right_answers_are_compared_in_their_own_unit() -> None:
    def answers(correction: str, marks: str) -> RunRecord:
        share = marks.count("1") / len(marks)
        metric = make_metric(
            share, name="acc", unit="share", lower_is_better=False, per_item=marks, count_unit="items"
        )
        return make_record(correction=correction, metrics=(metric,))

    table = build_table([answers("off", "0011" * 20), answers("on", "0111" * 20)])
    assert shown(table)[2].texts[0] == "+0.25 better"
    low, high = map(float, re.findall(r"[-+][\d.]+", shown(table)[3].texts[0]))
    assert 0 < low < 0.25 < high < 0.5
    assert "%" not in shown(table)[3].texts[0]


def test_numbers_for_people() -> None:
    shown = [amount(v) for v in (0.0, 12.345, 12345.6, 3.2e7, 0.0123, -0.00001, -1.5)]
    assert shown == ["0.00", "12.35", "12,346", "3.20e+07", "0.0123", "-1.00e-05", "-1.50"]
    assert difference(0.0, True) == "0 same"
    assert difference(-0.004, True) == "-0.0040 better"


def records_with_specials() -> list[RunRecord]:
    weights = Provenance(weights="100% synthetic & made_up #1 | none")
    return [
        cell(v, model="tiny_llama", correction=c, bits=b, provenance=weights)
        for b, c, v in itertools.product((2, 3), ("off", "on"), (10.0,))
    ]


def test_the_terminal_shows_all_columns_whatever_its_width() -> None:
    for width in (60, 80, 200):
        console = Console(file=io.StringIO(), width=width)
        print_report(records_with_specials(), console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        assert text.count("0 same") == 2
        assert {"2.25", "3.25", "tiny_llama", "2 bit", "3 bit"} <= set(re.findall(r"\d bit|[\w.]+", text))
        assert "synthetic & made_up" in " ".join(text.split())


def test_files_are_written_escaped_and_complete(tmp_path: Path) -> None:
    paths = write_tables(study_report("main", records_with_specials()), tmp_path)
    assert [path.name for path in paths] == ["main.md", "main.csv", "main.tex"]
    md, csv, tex = (path.read_text() for path in paths)
    rows = [line for line in md.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1, "every row has as many cells"
    assert r"made\_up #1 \| none" in md
    assert r"100\% synthetic \& made\_up \#1" in tex
    body = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")]
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {6}
    assert tex.isascii()
    frame = pd.read_csv(io.StringIO(csv))
    assert len(frame) == 4
    assert list(frame["difference"].dropna()) == [0.0, 0.0]
    assert list(frame["seconds"]) == [2.0] * 4
    assert list(frame["peak_memory_bytes"]) == [2**30] * 4
    assert frame["protocol"].str.contains("32 x 512 tokens").all()
    assert write_tables(study_report("empty", []), tmp_path) == []


def test_a_report_is_a_function_of_the_records(tmp_path: Path) -> None:
    def written(folder: Path) -> list[Path]:
        return write_tables(study_report("main", records_with_specials()), folder)

    first = [path.read_bytes() for path in written(tmp_path / "a")]
    again = [path.read_bytes() for path in written(tmp_path / "b")]
    assert first == again


def test_the_command_reports_every_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path)]) == 1
    assert "no finished cell" in capsys.readouterr().err
    for name in ("main", "study"):
        for item in (cell(1.0, name=name), cell(2.0, name=name, correction="off")):
            record_files.save(item, tmp_path)
    broken = tmp_path / "main" / "broken" / "record.json"
    broken.parent.mkdir()
    broken.write_text("{")
    assert main(["--results", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "left out" in captured.err
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        f"{name}.{kind}" for name in ("main", "study") for kind in ("csv", "md", "tex")
    ]
    assert "superfluous" not in captured.out
    assert main(["--results", str(tmp_path), "--name", "study"]) == 0
    assert "main.md" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "study")
    assert main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert all(f"superfluous: {tmp_path}/tables/study.{kind}" in out for kind in ("csv", "md", "tex"))


def test_cells_without_a_result_are_marked_in_their_place(tmp_path):
    off, on = make_record(correction="off"), make_record(correction="on")
    lost = make_record(correction="on", bits=2)
    strange = make_record(model="another", baseline="quip", correction="off")
    unfinished = [
        Unfinished(lost.cell, lost.config, "failed"),
        Unfinished(strange.cell, strange.config, "not run"),
    ]
    first, second = build_tables([off, on], unfinished)
    bits = [head.above for head in first.heads]
    texts = {row.labels[-1]: dict(zip(bits, row.texts, strict=True)) for row in shown(first)}
    assert texts["on"]["2 bit"] == "failed"
    assert texts["on"]["3 bit"] != "failed"
    assert texts["off"]["2 bit"] == "\u2013"
    assert [row.labels[0] for row in shown(second)] == ["another"]
    assert shown(second)[0].texts == ("not run",)
    (without,) = build_tables([off, on])
    assert "failed" not in str(shown(without))
    written = [
        path.read_text() for path in write_tables(study_report("main", [off, on], unfinished), tmp_path)
    ]
    assert "failed" in written[0]
    assert "another" in written[0]
    assert "failed" not in written[1], "the csv holds measured values only"
