"""W&B for real, offline: what was logged is read back from the file the client writes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.records import make_metric, make_protocol, make_record
from helpers.wandb_files import read_back

from q2n.options import build
from q2n.records.store import RunRecord, to_frame
from q2n.tracking.content import history_of, summary_of, table_of, without_secrets
from q2n.tracking.none import NoTracking
from q2n.tracking.wandb import WandbTracking
from q2n.types import LayerReport

LAYERS = tuple(
    LayerReport(block, name, (4, 4), 3.25, 0.2 + block, 0.1 + block, 0.9, 1.1, 2)
    for block in (0, 1)
    for name in ("mlp.up_proj", "self_attn.q_proj")
)


def record(**changes: Any) -> RunRecord:
    metrics = (make_metric(12.5, reference=10.0), make_metric(20.0, "news", reference=18.0))
    return make_record(metrics=metrics, layers=LAYERS, **changes)


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from test_wandb import record
from q2n.tracking.wandb import WandbTracking
config = {{"bits": 3, "hub": {{"hf_token": "secret-in-config"}}}}
print(WandbTracking(project="p", dir={folder!r}).log_run(record(config=config), "sweep-1"))
"""


def test_an_offline_run_holds_config_series_summary_and_table(tmp_path: Path) -> None:
    # in a process of its own: the client starts a service and exit hooks that outlive a test
    here = Path(__file__).resolve()
    script = SCRIPT.format(paths=[str(here.parents[level]) for level in (0, 1, 2, 3)], folder=str(tmp_path))
    environment = {**os.environ, "MY_PASSWORD": "secret-in-environment", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the console stays quiet"
    (where,) = done.stdout.splitlines()
    assert Path(where).is_dir()

    (run,) = read_back(tmp_path)
    assert run["run"].run_group == "sweep-1"
    assert run["run"].project == "p"
    assert run["config"]["cell"]["baseline"] == "gptq"
    assert (
        run["config"]["fingerprint"] == record(config={"bits": 3}).fingerprint or run["config"]["bits"] == 3
    )
    series = [step for step in run["history"] if "block" in step]
    assert [step["block"] for step in series] == [0, 1]
    assert [step["layers/mlp.up_proj/error_before"] for step in series] == [0.2, 1.2]
    assert series[1]["layers/self_attn.q_proj/null_rank"] == 2
    assert run["summary"]["wiki/perplexity"] == 12.5
    assert run["summary"]["news/perplexity/unquantized"] == 18.0
    (table,) = (json.loads(path.read_text()) for path in tmp_path.rglob("*.table.json"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["dataset"], row["value"]) for row in rows] == [("wiki", 12.5), ("news", 20.0)]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret-in-" not in written


@pytest.mark.parametrize("failure", [ImportError("no wandb"), OSError("no space\nleft"), RuntimeError("x")])
def test_whatever_fails_costs_one_line(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise failure

    monkeypatch.setattr(WandbTracking, "_log", fail)
    with caplog.at_level(logging.WARNING):
        assert WandbTracking().log_run(record(), None) is None
    (line,) = caplog.messages
    assert "its record is safe" in line
    assert "\n" not in line


def test_an_absent_client_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert WandbTracking().log_run(record(), None) is None
    assert len(caplog.messages) == 1


def test_online_without_an_account_asks_no_question(tmp_path: Path) -> None:
    script = SCRIPT.replace('project="p"', 'project="p", mode="online"')
    here = Path(__file__).resolve()
    script = script.format(paths=[str(here.parents[level]) for level in (0, 1, 2, 3)], folder=str(tmp_path))
    keep = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment = {**keep, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    environment["WANDB_CONFIG_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "None"
    assert "no API key is configured" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_none_does_nothing() -> None:
    assert NoTracking().log_run(record(), "group") is None


def test_every_option_file_builds() -> None:
    import yaml

    folder = Path(__file__).resolve().parents[3] / "conf" / "tracking"
    built = {path.stem: build(yaml.safe_load(path.read_text()), "tracking") for path in folder.glob("*.yaml")}
    assert isinstance(built["none"], NoTracking)
    assert built["wandb_offline"] == WandbTracking()
    assert built["wandb_online"].mode == "online"


def test_secrets_are_hidden_at_any_depth() -> None:
    tree = {"a": [{"api_key": "x", "token": "y"}], "db_password": "z", "tokens": "kept", "tokenizer": "kept"}
    assert without_secrets(tree) == {
        "a": [{"api_key": "***", "token": "***"}],
        "db_password": "***",
        "tokens": "kept",
        "tokenizer": "kept",
    }


def test_secrets_among_the_overrides_are_hidden() -> None:
    overrides = ["bits=3", "+hub.hf_token=abc", "tracking.api_key=x=y", "text=token=1"]
    assert without_secrets(overrides) == [
        "bits=3",
        "+hub.hf_token=***",
        "tracking.api_key=***",
        "text=token=1",
    ]


def test_one_metric_under_two_protocols_keeps_both_in_the_summary() -> None:
    protocols = [make_protocol(), make_protocol(windows=16)]
    item = make_record(metrics=tuple(make_metric(float(i), protocol=p) for i, p in enumerate(protocols)))
    summary = summary_of(item)
    assert [summary[f"wiki/perplexity/{protocol.key()}"] for protocol in protocols] == [0.0, 1.0]


def test_unknown_quantities_are_left_out_of_series_and_tables() -> None:
    item = make_record(layers=(LayerReport(3, "q", (2, 2), 3.0, None, 0.1),))
    ((step, values),) = history_of(item)
    assert step == 3
    assert "layers/q/alpha_min" not in values
    assert "layers/q/error_before" not in values
    assert values["layers/q/error_after"] == 0.1
    columns, rows = table_of(to_frame([item]))
    assert dict(zip(columns, next(iter(rows)), strict=True))["git_commit"] is None
