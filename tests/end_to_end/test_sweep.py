"""Sweeps through the real run.py on models of random weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers.commands import ROOT, SMALL, numbers, records, run, start

from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.plan.memory import predict
from q2n.plan.workload import workload
from q2n.records.identity import identify


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_sweep_over_models_records_reports_and_is_reused(tmp_path, cache):
    sweep = ["-m", "model=tiny_llama,tiny_qwen2,tiny_qwen3", "bits=2,3", "q2n=on,off"]
    first = run(tmp_path, cache, *sweep)
    found = records(tmp_path / "results")
    cells = {(r["cell"]["model"], r["cell"]["bits"], r["cell"]["correction"]) for r in found.values()}
    models = ("tiny_llama", "tiny_qwen2", "tiny_qwen3")
    assert cells == {(model, bits, q2n) for model in models for bits in (2, 3) for q2n in ("on", "off")}
    assert "12 computed" in first
    for kind in ("md", "csv", "tex"):
        assert (tmp_path / "results" / "tables" / f"main.{kind}").stat().st_size > 0
    for record in found.values():
        (metric,) = record["metrics"]
        assert metric["count"] == 4 == len(metric["per_window"])
        assert metric["reference"] > 0
        assert len(record["layers"]) == 14
        corrected = [layer["alpha_min"] is not None for layer in record["layers"]]
        assert any(corrected) == (record["cell"]["correction"] == "on")
    for config in preflight(CONFIG_DIR, [*sweep, *SMALL]).cells:
        predicted = predict(workload(config, config.model.shapes(), identify(config)["hardware"])).host
        for measured in (record["peak_memory_bytes"] for record in found.values()):
            assert abs(predicted / measured - 1) < 0.25, "a plan's memory is that of any of these small cells"
    modified = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/main/*/record.json")}
    assert "12 reused" in run(tmp_path, cache, *sweep)
    assert modified == {path: path.stat().st_mtime_ns for path in modified}


@pytest.mark.slow
def test_two_runs_of_a_cell_are_bitwise_equal_and_force_runs_again(tmp_path, cache):
    cell = ["model=tiny_llama", "results_dir=one"]
    run(tmp_path, cache, *cell)
    ((key, before),) = records(tmp_path / "one").items()
    assert "1 forced" in run(tmp_path, cache, *cell, "force=true")
    ((again, after),) = records(tmp_path / "one").items()
    assert key == again
    assert numbers(before) == numbers(after)


@pytest.mark.slow
def test_kill_in_the_middle_of_a_sweep_loses_no_finished_cell(tmp_path, cache):
    sweep = ["-m", "model=tiny_llama", "bits=2,3,4,5", "q2n=on,off"]
    process = start(tmp_path, cache, *sweep)
    deadline = time.monotonic() + 120
    while len(records(tmp_path / "results")) < 2:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = records(tmp_path / "results")
    assert 2 <= len(kept) < 8
    out = run(tmp_path, cache, *sweep)
    assert f"{len(kept)} reused" in out
    assert f"{8 - len(kept)} computed" in out
    after = records(tmp_path / "results")
    assert len(after) == 8
    assert {key: after[key] for key in kept} == kept


def test_cells_whose_parts_do_not_fit_are_listed_and_the_others_run(tmp_path, cache):
    out = run(
        tmp_path, cache, "-m", "model=tiny_llama", "baseline=rtn", "q2n=off,released", "group_size=32,128"
    )
    assert re.search("not run: tiny_llama rtn q2n=released 3 bit group_size=32.*: UnsupportedError", out)
    assert re.search("all 4 cells: .*calibration=news calibration.nsamples=4", out)
    assert out.count("calibration.nsamples") == 1, "what all cells have in common is said once"
    assert "baseline.group_size=128: self_attn.q_proj has only 64 columns" in out
    assert "1 computed" in out
    assert "3 unsupported" in out
    assert len(records(tmp_path / "results")) == 1
    assert "[1/4]" in out
    assert "[2/4]" not in out, "no job is started for a cell that cannot run"


def test_a_lone_cell_that_does_not_fit_ends_before_anything_is_loaded(tmp_path, cache):
    out = run(tmp_path, cache, "model=tiny_llama", "group_size=128", code=2)
    assert out.startswith("UnsupportedError: baseline.group_size=128")
    assert not (tmp_path / "results" / "main").exists()


def test_a_cell_that_fails_leaves_the_others_and_an_exit_code(tmp_path, cache):
    out = run(tmp_path, cache, "-m", "model=tiny_llama", "calibration.nsamples=4,10000000", code=1)
    assert "FAILED: tiny_llama gptq q2n=on 3 bit calibration.nsamples=10000000: DataError" in out
    assert "need 640000000" in out
    assert len(records(tmp_path / "results")) == 1
    (left,) = (tmp_path / "results" / "main").glob("*/failure.json")
    assert json.loads(left.read_text())["stage"] == "load", "before the weights"
    assert "need 640000000" in (left.parent / "cell.log").read_text()


@pytest.mark.slow
def test_two_sweeps_on_one_folder_compute_no_cell_twice(tmp_path, cache):
    sweep = ["-m", "model=tiny_llama", "bits=2,3,4", "q2n=on,off"]
    both = [start(tmp_path, cache, *sweep) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    computed = [int((re.findall(r"(\d+) computed", out) or ["0"])[0]) for out, _ in outputs]
    assert sum(computed) == 6 == len(records(tmp_path / "results"))
    logs = [path.read_text() for path in (tmp_path / "results" / "main").glob("*/cell.log")]
    assert [log.count("begun by process") for log in logs] == [1] * 6
    assert not list((tmp_path / "results" / "main").glob("*/lease.*"))


@pytest.mark.slow
def test_retry_runs_just_the_cells_that_failed(tmp_path, cache):
    sweep = ["-m", "model=tiny_llama", "calibration.nsamples=4,10000000"]
    run(tmp_path, cache, *sweep, code=1)
    out = run(tmp_path, cache, *sweep, "q2n=on,off", "retry=failed", code=1)
    assert "1 reused, 2 skipped, 1 failed" in out or "1 reused, 1 failed, 2 skipped" in out


@pytest.mark.slow
def test_explain_says_why(tmp_path, cache):
    run(tmp_path, cache, "model=tiny_llama")
    run(tmp_path, cache, "model=tiny_llama", "q2n.t=0.2")
    done = subprocess.run(
        [sys.executable, "-m", "q2n.explain", "last"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "config.q2n.t: 0.1 -> 0.2" in done.stdout
