"""The examples of docs/adding_a_*.md and record.md, taken from the pages and run."""

from __future__ import annotations

import csv
import re
import subprocess
import sys

import pytest
from helpers.commands import ROOT, records
from helpers.examples import SMALL_CALIBRATION, added, blocks, run


@pytest.fixture
def metric(tmp_path):
    return added("adding_a_metric.md", tmp_path)


def test_the_metric_reaches_record_and_table(metric, tmp_path):
    done = run(tmp_path, metric, "-m", "evaluation=next_token", "q2n=on,off", "baseline=rtn")
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "results").values()
    assert len(found) == 2
    for record in found:
        (measured,) = record["metrics"]
        assert (measured["name"], measured["dataset"], measured["count"]) == ("accuracy", "news", 4)
        assert 0 <= measured["value"] <= 1
        assert measured["value"] == pytest.approx(sum(measured["per_window"]) / 4)
        assert measured["reference"] is not None
    assert "accuracy ↑" in done.stdout
    rows = list(csv.DictReader((tmp_path / "results/tables/main.csv").read_text().splitlines()))
    assert {row["metric"] for row in rows} == {"accuracy"}


@pytest.mark.slow
def test_the_metric_stands_beside_others(metric, tmp_path):
    parts = ["evaluation=paper_bundled", "+evaluation@evaluation.parts.accuracy=next_token"]
    limits = [
        *("~evaluation.parts.tasks", "~evaluation.parts.divergence"),
        *("evaluation.parts.accuracy.windows=2", "evaluation.parts.accuracy.seqlen=64"),
        *("evaluation.parts.perplexity.windows=2", "evaluation.parts.perplexity.seqlen=64"),
    ]
    done = run(tmp_path, metric, *parts, *limits, small=SMALL_CALIBRATION)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "results").values()
    assert {metric["name"] for metric in record["metrics"]} == {"perplexity", "accuracy"}


def test_the_metrics_settings_write_out_every_field(metric):
    from q2n.evaluation.windows import WindowedText

    _, conf = metric
    text = (conf / "evaluation" / "next_token.yaml").read_text()
    assert set(re.findall(r"^(\w+):", text, re.MULTILINE)) == {"_target_", *WindowedText.__dataclass_fields__}


@pytest.mark.slow
def test_the_task_is_scored(tmp_path):
    files = blocks("adding_a_task.md")
    items, task = tmp_path / "capitals.jsonl", tmp_path / "capitals.yaml"
    items.write_text(files["capitals.jsonl"])
    task.write_text(files["capitals.yaml"].replace("/data/tasks/capitals.jsonl", str(items)))
    (tmp_path / "none").mkdir()
    places = tmp_path / "none", tmp_path / "none"
    asked = ["evaluation=zero_shot", f"evaluation.tasks=[{task}]"]
    done = run(tmp_path, places, *asked, small=SMALL_CALIBRATION)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "results").values()
    (measured,) = record["metrics"]
    assert (measured["dataset"], measured["name"], measured["count"]) == ("capitals", "acc", 4)
    assert len(measured["per_item"]) == 4


def test_records_are_read_as_the_page_says():
    page = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout


def test_the_page_of_the_record_has_every_field():
    from q2n.records.schema import Metric, RunRecord

    page = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(\w+)`", page))
    elsewhere = {"layers", "per_window", "per_item", "weights", "reference_per_window", "reference_per_item"}
    assert ({*RunRecord.model_fields, *Metric.model_fields} - elsewhere) <= told


def test_the_correction_is_swept_beside_off(tmp_path):
    places = added("adding_a_correction.md", tmp_path)
    done = run(tmp_path, places, "-m", "q2n=off,same_size", "baseline=rtn", "bits=2")
    assert done.returncode == 0, done.stderr
    off, on = sorted(records(tmp_path / "results").values(), key=lambda record: record["cell"]["correction"])
    assert on["cell"]["correction"] == "same_size"
    assert on["bits_per_weight"] == off["bits_per_weight"]
    changed = [layer for layer in on["layers"] if layer["alpha_max"] > 1.001]
    assert len(changed) == len(on["layers"]), "rounding to nearest loses some of every row's norm"
