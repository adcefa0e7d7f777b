"""What a sweep came to, in Weights & Biases: an offline run read back and held against the records."""

from __future__ import annotations

import itertools
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

from q2n.command.outcomes import Command, track
from q2n.records.notes import State, group_of, new_id
from q2n.records.outcome import Outcome
from q2n.records.store import RunRecord
from q2n.report.figures.of_study import figures_of_sweep, write_figures
from q2n.report.overview import study_report
from q2n.report.studies.study import load_studies
from q2n.tracking.sweep import sweep_content
from q2n.tracking.wandb import WandbTracking, _of_sweep
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
    _figures_are_the_reports(run["images"], tmp_path / "again")


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
    written = {(row["fingerprint"], row["block"], row["layer"]): row for row in rows}
    assert len(rows) == len(written) == sum(len(record.layers) for record in records())
    assert {row["q2n_settings"] for row in rows} >= {"", "q2n.lam=0.5, q2n.t=0.1"}
    for record in records():
        for layer in record.layers:
            row = written[record.fingerprint, layer.block, layer.name]
            assert (row["error_before"], row["error_after"]) == (layer.error_before, layer.error_after)
            assert (row["seed"], row["correction"]) == (record.cell.seed, record.cell.correction)
            assert row["heldout_error_after"] is None


def _figures_are_the_reports(images: dict[str, bytes], folder: Path) -> None:
    drawn = write_figures(
        study_report("main", records()), folder, png=True, plain=figures_of_sweep(records())
    )
    names = ["differences", "heat_map-q2n_t-q2n_lam", "layers"]
    expected = [(folder / item.files[1]).read_bytes() for item in drawn]
    assert images == {f"figures/{name}": image for name, image in zip(names, expected, strict=True)}


def test_a_study_is_drawn_as_its_file_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    (study,) = [item for item in load_studies().values() if item.name == "ablation_t_lambda"]
    cells = [record.model_copy(update={"name": study.name}) for record in records()]
    drawn = sweep_content(cells, tmp_path).figures
    assert [item.kind for item in drawn] == [item.kind for item in study.figures]


@pytest.mark.parametrize("changes", [{}, {"name": "another"}])
def test_no_description_of_studies_is_needed(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "main").mkdir(parents=True)
    (tmp_path / "experiments" / "main" / "study.yaml").write_text("titel: misspelt")
    cells = [_record(2.0, correction="off"), _record(2.1, **changes)]
    content = sweep_content(cells, tmp_path)
    assert content.config["names"] == sorted({"main", *changes.values()})
    assert {item.kind for item in content.figures} == {"differences", "layers"}


def test_the_two_numbers_with_the_most_values_are_the_axes_of_the_map() -> None:
    def swept(**values: Sequence[float]) -> list[RunRecord]:
        grid = [dict(zip(values, place, strict=True)) for place in itertools.product(*values.values())]
        return [_record(2.0, q2n_fields={**place, "rank_rule": f"r{n % 2}"}) for n, place in enumerate(grid)]

    def over(cells: list[RunRecord]) -> list[tuple[str, ...]]:
        found = [item.model_dump(exclude={"metric"}) for item in figures_of_sweep(cells)]
        return [tuple(item.values()) for item in found if item["kind"] in ("heat_map", "lines")]

    bits = ("lines", "bits")
    heat_map = ("heat_map", "q2n.t", "q2n.lam")
    assert over(swept(t=T, lam=LAM, eps=(1, 2), seed=(0,))) == [("heat_map", "q2n.t", "q2n.eps"), bits]
    assert over(swept(t=T, lam=(0, 1, 2), eps=(1, 2))) == [heat_map, bits]
    assert over([*swept(t=T, lam=(0, 1)), _record(2.0, correction="off")]) == [heat_map, bits]
    assert over(swept(t=T)) == [("lines", "q2n.t"), bits]
    assert over([_record(2.0)]) == [bits]


def test_what_diverged_is_an_empty_place_and_not_an_error(tmp_path: Path) -> None:
    cells = [_record(2.0, correction="off"), make_record(metrics=(make_metric(float("inf")),))]
    content = sweep_content(cells, tmp_path)
    logged = _of_sweep(content, tmp_path)
    table = logged["sweep/results"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert {row["correction"]: row["value"] for row in rows} == {
        "off": cells[0].metrics[0].value,
        "on": None,
    }


def test_secrets_that_were_swept_over_are_not_told(tmp_path: Path) -> None:
    cells = [_record(2.0 + place, q2n_fields={"api_key": f"secret-{place}"}) for place in (0, 1)]
    cells.append(_record(2.5, correction="off"))
    content = sweep_content(cells, tmp_path)
    told = [repr(content), *(table.to_csv() for table in content.tables.values())]
    told += [path.read_text() for path in tmp_path.rglob("*.svg")]
    assert len(told) > 4
    assert "secret-" not in "".join(told)


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
