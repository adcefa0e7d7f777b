"""What a sweep came to, in Weights & Biases: an offline run read back and held against the records."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.records import make_metric, make_record, make_ref
from helpers.wandb_files import read_back

from q2n.command.summary import Command, Outcome, track
from q2n.records.notes import State, group_of, new_id
from q2n.records.store import RunRecord
from q2n.report.overview import study_report
from q2n.tracking.sweep import sweep_content
from q2n.tracking.wandb import HEAT_MAP, WandbTracking
from q2n.types import LayerReport

SWEEP = "20260105T101500Z-node-3-4711"
LAYERS = ("self_attn.q_proj", "mlp.up_proj")
T, LAM = (0.05, 0.1, 0.2), (0, 0.5)


def _layers(level: float) -> tuple[LayerReport, ...]:
    return tuple(
        LayerReport(block, name, (4, 4), 3.25, level + block, level + block / 2 + place, 0.9, 1.1, 2)
        for block in (0, 1, 2)
        for place, name in enumerate(LAYERS)
    )


def _record(loss: float, **changes: Any) -> RunRecord:
    windows = tuple(loss + 0.01 * ((7 * place) % 5) for place in range(32))
    value = math.exp(math.fsum(windows) / len(windows))
    metric = make_metric(value, reference=8.0, per_window=windows)
    return make_record(metrics=(metric,), layers=_layers(loss / 10), **changes)


def records() -> list[RunRecord]:
    """A map over t and lambda at two seeds, and the line without correction."""
    cells = [_record(2.3 + seed / 100, correction="off", seed=seed) for seed in (0, 1)]
    return cells + [
        _record(2.3 + t - lam / 10 + seed / 100, seed=seed, q2n_fields={"t": t, "lam": lam})
        for t in T
        for lam in LAM
        for seed in (0, 1)
    ]


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from test_sweep import records
from q2n.tracking.wandb import WandbTracking
print(WandbTracking(project="p", dir={folder!r}).log_sweep(records(), "sweep-1"))
"""


def test_an_offline_run_holds_what_the_records_say(tmp_path: Path) -> None:
    # in a process of its own: the client starts a service and exit hooks that outlive a test
    here = Path(__file__).resolve()
    script = SCRIPT.format(paths=[str(here.parents[level]) for level in (0, 1, 2, 3)], folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "offline"},
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the console stays quiet"
    assert Path(done.stdout.strip()).is_dir()

    (run,) = read_back(tmp_path)
    assert (run["run"].run_group, run["run"].job_type) == ("sweep-1", "sweep")
    assert run["run"].display_name == "sweep-main"
    assert run["config"]["fingerprints"] == sorted(record.fingerprint for record in records())
    assert run["summary"]["cells"] == len(records())

    results = _rows(run["tables"]["sweep/results"])
    assert sorted((row["fingerprint"], row["value"], row["seed"]) for row in results) == sorted(
        (record.fingerprint, record.metrics[0].value, record.cell.seed) for record in records()
    )
    _differences_are_the_reports(_rows(run["tables"]["sweep/differences"]))
    _layers_are_the_records(_rows(run["tables"]["sweep/layers"]))
    _heat_map_is_the_records(run)
    _curves_are_the_records(run)


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def _differences_are_the_reports(rows: Sequence[dict[str, Any]]) -> None:
    pairs = study_report("main", records()).pairs
    assert len(rows) == len(pairs) == len(T) * len(LAM)
    for row, pair in zip(rows, pairs, strict=True):
        assert pair.found is not None
        assert [row[key] for key in ("corrected", "uncorrected", "seeds", "verdict")] == [
            pair.corrected,
            pair.uncorrected,
            2,
            pair.verdict,
        ]
        assert (row["low"], row["high"], row["unit"]) == (pair.found.low, pair.found.high, "%")


def _layers_are_the_records(rows: Sequence[dict[str, Any]]) -> None:
    written = {(row["fingerprint"], row["block"], row["name"]): row for row in rows}
    assert len(rows) == len(written) == sum(len(record.layers) for record in records())
    for record in records():
        for layer in record.layers:
            row = written[record.fingerprint, layer.block, layer.name]
            assert (row["error_before"], row["error_after"]) == (layer.error_before, layer.error_after)
            assert row["heldout_error_after"] is None


def _heat_map_is_the_records(run: dict[str, Any]) -> None:
    (key,) = [key for key in run["tables"] if key.startswith("heat_map/")]
    table = run["tables"][key]
    assert table["columns"] == ["q2n.t", "q2n.lam", "wiki perplexity"]
    expected = {}
    for t in T:
        for lam in LAM:
            values = [
                record.metrics[0].value
                for record in records()
                if (record.config["q2n"].get("t"), record.config["q2n"].get("lam")) == (t, lam)
            ]
            expected[str(t), str(lam)] = sum(values) / 2
    assert {(x, y): value for x, y, value in table["data"]} == pytest.approx(expected)
    chart = run["config"][f"_wandb/visualize/{key.removesuffix('_table')}"]["panel_config"]
    assert chart["panelDefId"] == HEAT_MAP
    assert chart["fieldSettings"] == {
        "Predicted": "q2n.t",
        "Actual": "q2n.lam",
        "nPredictions": "wiki perplexity",
    }


def _curves_are_the_records(run: dict[str, Any]) -> None:
    for name in LAYERS:
        lines: dict[str, list[tuple[int, float]]] = {}
        for block, line, value in run["tables"][f"layer_errors/{name.replace('.', '_')}_table"]["data"]:
            lines.setdefault(line, []).append((block, value))
        expected = [
            [(layer.block, layer.error_after) for layer in record.layers if layer.name == name]
            for record in records()
        ]
        assert sorted(lines.values()) == sorted(expected)
        assert "off seed 1" in lines
        chart = run["config"][f"_wandb/visualize/layer_errors/{name.replace('.', '_')}"]["panel_config"]
        assert chart["panelDefId"] == "wandb/lineseries/v0"


def test_without_two_numbers_varied_the_map_is_of_lines_and_bits() -> None:
    cells = [
        _record(2 + bits / 10 + (correction == "on") / 100, bits=bits, correction=correction)
        for bits in (2, 3)
        for correction in ("off", "on")
    ]
    (found,) = sweep_content(cells).heat_maps
    assert (found.x, found.y) == ("bits", "line")
    assert {(x, y): value for x, y, value in found.cells} == {
        (f"{cell.cell.bits}", f"gptq {cell.cell.correction}"): cell.metrics[0].value for cell in cells
    }


def test_what_diverged_is_an_empty_place_and_not_an_error() -> None:
    cells = [_record(2.0, correction="off"), make_record(metrics=(make_metric(float("inf")),))]
    content = sweep_content(cells)
    values = {row[content.results.columns.index("correction")]: row for row in content.results.rows}
    assert values["on"][content.results.columns.index("value")] is None
    assert (content.heat_maps[0].cells[1]) == ("3", "gptq on", None)


def test_secrets_that_were_swept_over_are_not_told() -> None:
    cells = [_record(2.0 + place, q2n_fields={"api_key": f"secret-{place}"}) for place in (0, 1)]
    assert "secret-" not in repr(sweep_content(cells))


@pytest.mark.parametrize("failure", [ImportError("no wandb"), OSError("no space\nleft"), RuntimeError("x")])
def test_whatever_fails_costs_one_line(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise failure

    monkeypatch.setattr(WandbTracking, "_run", fail)
    with caplog.at_level(logging.WARNING):
        assert WandbTracking().log_sweep(records(), "group") is None
    (line,) = caplog.messages
    assert "its records are safe" in line
    assert "\n" not in line


class _Heard:
    def __init__(self) -> None:
        self.told: list[tuple[list[str], str]] = []

    def log_sweep(self, records: Sequence[RunRecord], sweep_group: str) -> None:
        self.told.append(([record.fingerprint for record in records], sweep_group))


@pytest.mark.parametrize("multirun", [True, False])
def test_trackers_hear_of_a_sweep_once_and_of_a_single_cell_never(multirun: bool) -> None:
    heard = _Heard()
    cells = cast(Any, [SimpleNamespace(tracking=heard), SimpleNamespace(tracking=heard)])
    item = records()[0]
    outcomes = [
        Outcome(make_ref(), State.COMPUTED, "r", item),
        Outcome(make_ref(), State.REUSED, "r", item),
        Outcome(make_ref(), State.FAILED, "r"),
    ]
    track(Command(SWEEP, cells, multirun=multirun), outcomes)
    assert heard.told == ([([item.fingerprint], "20260105T101500Z-4711")] if multirun else [])


def test_a_group_is_the_sweeps_own_and_does_not_name_the_machine() -> None:
    assert group_of(SWEEP) == "20260105T101500Z-4711"
    assert re.fullmatch(rf"\d{{8}}T\d{{6}}Z-{os.getpid()}", group_of(new_id()))
