"""Figures show the numbers of the records: every test reads them back from what was drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.records import make_metric, seeded

from q2n.records.store import RunRecord
from q2n.report.figures import cost_gain, curves, differences, heat_map, layers
from q2n.report.figures.of_study import write_figures, write_overview
from q2n.report.figures.style import style
from q2n.report.figures.values import seed_means
from q2n.report.overview import StudyReport, study_report
from q2n.report.page.cells import layer_summary
from q2n.report.studies.study import CostGain, Differences, HeatMapFigure, Layers, Lines, Study
from q2n.report.tables.every_difference import main_lines, over_all
from q2n.types import LayerReport


def report(records: list[RunRecord], *figures: Any) -> StudyReport:
    study = Study(name="s", title="Title", kind="paper", heading="S", question="Why?", figures=figures)
    return study_report("s", [record.model_copy(update={"name": "s"}) for record in records], (), study)


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def test_the_forest_has_a_line_a_difference_with_its_interval_and_its_certainty() -> None:
    records = [*seeded("off", 0.0), *seeded("on", -0.2), *seeded("released", 0.0)]
    records += [*seeded("off", 0.0, 1, bits=2), *seeded("on", 0.1, 1, bits=2)]
    whole = report(records)
    (axes,) = differences.draw(whole.pairs, "t").axes
    assert labels(axes) == ["2 bit", "on", "3 bit", "on", "released"], "a head a number of bits"
    found = {(pair.column.bits, pair.row.correction): pair.found for pair in whole.pairs}
    marks = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == [
        (found[2, "on"].estimate, 1), (found[3, "on"].estimate, 3), (found[3, "released"].estimate, 4),
    ]  # fmt: skip
    spans = [
        list(line.get_xdata())
        for line in axes.lines
        if line.get_marker() == "None" and len(line.get_xdata()) == 2
    ]
    assert [found[3, "on"].low, found[3, "on"].high] in spans
    hollow = [line.get_markerfacecolor() == "white" for line in marks]
    assert hollow == [True, False, True], "one seed, significant, nothing there"
    assert [line.get_marker() for line in marks] == ["D", "o", "o"]
    assert "← better" in axes.get_xlabel()


def test_a_difference_between_models_of_no_use_is_marked() -> None:
    def cells(bits: int, loss: float) -> list[RunRecord]:
        fields = {"bits": bits, "metric_fields": {"reference": 6.0}}
        return [*seeded("off", loss + 0.2, **fields), *seeded("on", loss, **fields)]

    whole = report([*cells(2, 3.0), *cells(3, 0.1)])
    assert [pair.useless for pair in whole.pairs] == [True, False]
    figure = differences.draw(whole.pairs, "t")
    assert labels(figure.axes[0]) == ["2 bit †", "3 bit"]
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["significant across seeds", "† over 10 times the unquantized perplexity"]


def test_long_labels_are_broken_and_settings_of_the_correction_lose_their_prefix() -> None:
    settings = (
        {"rank_rule": "prefix_suffix", "decomposition": "eigh"},
        {"rank_rule": "fixed", "decomposition": "svd"},
    )
    records = [record for fields in settings for record in seeded("on", -0.1, 1, q2n_fields=fields)]
    (axes,) = differences.draw(report([*seeded("off", 0.0, 1), *records]).pairs, "t").axes
    assert labels(axes) == [
        "decomposition=eigh,\nrank_rule=prefix_suffix",
        "decomposition=svd,\nrank_rule=fixed",
    ]


def test_metrics_have_panels_of_their_own_and_shares_their_unit() -> None:
    def cell(correction: str, marks: str) -> RunRecord:
        share = make_metric(
            marks.count("1") / len(marks), name="acc", unit="share", lower_is_better=False, per_item=marks
        )
        (base,) = seeded(correction, -0.1 * (correction == "on"), 1)
        return base.model_copy(update={"metrics": (*base.metrics, share)})

    whole = report([cell("off", "0011" * 9), cell("on", "0111" * 9)])
    perplexity, share = differences.draw(whole.pairs, "t").axes
    assert "difference in %" in perplexity.get_xlabel()
    assert share.get_xlabel().startswith("← worse")
    assert "share" in share.get_xlabel()
    assert [line.get_xdata()[0] for line in share.lines if line.get_marker() == "D"] == [pytest.approx(0.25)]
    (only,) = differences.draw(whole.pairs, "t", "wiki acc").axes
    assert only.get_title() == share.get_title()
    assert differences.draw(whole.pairs, "t", "news acc") is None


def grid() -> list[RunRecord]:
    cells = [
        record
        for t, lam in product((0.1, 0.01), (0, 0.5))
        if (t, lam) != (0.01, 0.5)
        for record in seeded("on", -t - lam, 2, q2n_fields={"t": t, "lam": lam})
    ]
    return [*cells, *seeded("off", 0.0, 2)]


def test_the_map_has_the_mean_at_its_place_and_a_gap_where_nothing_was_measured() -> None:
    whole = report(grid())
    (axes,) = heat_map.draw(whole, "q2n.t", "q2n.lam").axes
    (image,) = axes.images
    values = np.ma.filled(image.get_array(), np.nan)
    means = {item.place: item.mean for item in seed_means(whole, ("q2n.t", "q2n.lam"), None)}
    assert values[0].tolist() == [means[0.01, 0], means[0.1, 0]]
    assert math.isnan(values[1][0])
    assert values[1][1] == means[0.1, 0.5]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1"]
    assert f"off: {means[None, None]:.3g}" in axes.get_title()
    (pair,) = (p for p in whole.pairs if p.row.correction_settings == ("q2n.lam=0.5", "q2n.t=0.1"))
    assert f"{pair.found.estimate:+.1f} %" in [text.get_text() for text in axes.texts]
    assert heat_map.draw(whole, "q2n.t", "q2n.absent") is None


def test_curves_are_means_over_their_key_and_the_uncorrected_cell_is_level() -> None:
    whole = report([record for record in grid() if record.config["q2n"].get("lam", 0) == 0])
    (axes,) = curves.draw(whole, "q2n.t").axes
    drawn = {line.get_label(): line for line in axes.lines}
    means = {item.place[0]: item.mean for item in seed_means(whole, ("q2n.t",), None)}
    assert list(drawn["on"].get_xdata()) == [0.01, 0.1]
    assert list(drawn["on"].get_ydata()) == [means[0.01], means[0.1]]
    assert set(drawn["off"].get_ydata()) == {means[None]}
    assert drawn["off"].get_linestyle() == "--"
    assert curves.draw(whole, "q2n.lam") is None, "all have the same"
    assert curves.draw(whole, "model.path") is None, "no number"


def test_an_axis_and_its_echoes_are_no_settings_of_a_line() -> None:
    records = [
        record
        for size, correction in product((32, 64), ("off", "on"))
        for record in seeded(correction, 0.0, 1, group_size=size, baseline_fields={"group_size": size})
    ]
    for key in ("group_size", "baseline.group_size"):
        (axes,) = curves.draw(report(records), key).axes
        assert [line.get_label() for line in axes.lines] == ["off", "on"]
        assert all(line.get_markerfacecolor() == "white" for line in axes.lines), "one seed"


def measured(correction: str, seed: int, **changes: Any) -> RunRecord:
    found = [
        LayerReport(block, name, (8, 8), 3.25, 0.1 * (block + 1), 0.1 * (block + 1) * (1.0 + 0.1 * block))
        for block in range(3)
        for name in ("mlp.up_proj", "mlp.down_proj")
    ]
    (_, record) = seeded(correction, -0.1 * (correction == "on"), 2, layers=tuple(found), **changes)
    return record


def test_layers_are_drawn_before_and_by_what_the_correction_changed() -> None:
    whole = report([measured("off", 1), measured("on", 1)])
    before, after = layers.draw(whole).axes
    assert list(before.lines[0].get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    changes = [line for line in after.lines if len(line.get_xdata()) == 3]
    assert list(changes[0].get_ydata()) == pytest.approx([0.0, 10.0, 20.0])
    assert {line.get_label() for line in before.lines} == {"up_proj", "down_proj"}
    assert layers.draw(report([measured("off", 1)])) is None


def test_layers_without_a_relative_error_are_left_out() -> None:
    item = measured("on", 1)
    first, *rest = item.layers
    gone = replace(first, error_before=None, error_after=None)
    before, _ = layers.draw(report([item.model_copy(update={"layers": (gone, *rest)})])).axes
    assert list(before.lines[0].get_xdata()) == [1, 2]
    assert layer_summary([gone]) == [["mlp.up_proj", 1, None, None, 0]]
    assert layer_summary([gone, first])[0][1:3] == [2, 0.1]


def test_cost_is_a_share_of_quantization_and_gain_has_the_sign_of_better() -> None:
    times = {"seconds": {"quantize": 40.0}, "work_seconds": {"correct": 3.0}}
    whole = report([measured("off", 1), measured("on", 1, **times)])
    (axes,) = cost_gain.draw(whole).axes
    (pair,) = whole.pairs
    (mark,) = (line for line in axes.lines if line.get_marker() == "D")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (7.5, -pair.found.estimate)
    assert pair.found.estimate < 0
    assert cost_gain.draw(report([measured("off", 1), measured("on", 1)])) is None, "no times"


def test_a_study_gets_the_figures_it_asks_for_and_the_same_bytes_again(tmp_path: Path) -> None:
    figures = (HeatMapFigure(x="q2n.t", y="q2n.lam"), Differences(), Lines(x="q2n.t"), Layers(), CostGain())
    whole = report(grid(), *figures)
    written = write_figures(whole, tmp_path)
    names = ["heat_map-q2n.t-q2n.lam", "differences", "lines-q2n.t"]
    assert [item.svg for item in written] == [f"figures/s/{name}.svg" for name in names], (
        "no layers, no times"
    )
    assert all(item.caption and item.png is None for item in written)
    assert not list(tmp_path.rglob("*.png"))
    first = [(tmp_path / item.svg).read_bytes() for item in written]
    assert b"/tmp" not in b"".join(first)
    again = write_figures(whole, tmp_path, png=True)
    assert [(tmp_path / item.svg).read_bytes() for item in again] == first
    assert all((tmp_path / path).is_file() for item in again for path in (item.svg, item.png))


def test_the_overview_has_the_papers_correction_at_the_usual_settings_only(tmp_path: Path) -> None:
    usual = [
        *seeded("off", 0.0),
        *seeded("on", -0.2),
        *seeded("released", 0.1),
        *seeded("off", 0.0, baseline="quip"),
    ]
    usual += seeded("on", 0.1, baseline="quip")
    other = [*seeded("off", 0.0, 1, group_size=128), *seeded("on", 0.2, 1, group_size=128)]
    whole = report([*usual, *other])
    lines = over_all(whole.pairs, whole.records)
    (axes,) = differences.draw_overview(lines).axes
    assert labels(axes) == ["gptq", "quip"]
    drawn = write_overview(lines, tmp_path)
    assert drawn is not None
    assert (tmp_path / drawn.svg).is_file()
    assert write_overview((), tmp_path) is None


def test_the_overview_takes_the_study_with_the_most_seeds_and_the_usual_text() -> None:
    held = {"config_fields": {"calibration": {"_target_": "q2n.data.wiki", "nsamples": 32, "heldout": 8}}}
    plain = {"config_fields": {"calibration": {"_target_": "q2n.data.wiki", "nsamples": 32, "heldout": None}}}
    news = {"metric_fields": {"dataset": "news"}, **plain}
    studies = [
        report([*seeded("off", 0.0, 1, **plain), *seeded("on", 0.2, 1, **plain)]),
        report([*seeded("off", 0.0, 3, bits=2, **plain), *seeded("on", 0.2, 3, bits=2, **plain)]),
        report([*seeded("off", 0.0, 3, **held), *seeded("on", -0.2, 3, **held)]),
        report([*seeded("off", 0.0, 1, bits=4, **plain), *seeded("on", 0.2, 1, bits=4, **plain)]),
        report([*seeded("off", 0.0, 1, **news), *seeded("on", 0.2, 1, **news)]),
    ]
    lines = over_all(
        [pair for study in studies for pair in study.pairs],
        [record for study in studies for record in study.records],
    )
    shown = [(line.pair.column.bits, line.pair.column.dataset, line.pair.seeds) for line in main_lines(lines)]
    assert sorted(shown) == [(2, "wiki", 3), (3, "wiki", 3), (4, "wiki", 1)]


def test_a_users_own_matplotlib_settings_do_not_matter() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 40, "axes.spines.top": True}), style():
        assert matplotlib.rcParams["font.size"] == 10
        assert not matplotlib.rcParams["axes.spines.top"]
