"""The same sweep through every engine: the same records, and what a killed worker costs."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import slurm
from helpers.commands import environment, numbers, records, run, start
from omegaconf import OmegaConf

from q2n.launchers.base import PACKAGES

pytestmark = pytest.mark.slow

SWEEP = ["-m", "model=tiny_llama", "bits=2,3", "q2n=on,off"]
SECRET = "a-key-that-nobody-may-see"
SETTINGS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.n_jobs=2"],
    "ray": [],
    "submitit_slurm": ["hydra.launcher.cpus_per_task=1", "hydra.launcher.poll_s=1"],
}
PACKAGE = {"joblib": "joblib", "submitit_local": "submitit", "ray": "ray", "submitit_slurm": "submitit"}
TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("ADDRESS", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def ray_cluster(cache):
    """The address of a Ray of two nodes with one core each."""
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_NODES],
        env={**environment(cache), "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    yield next(line.split()[1] for line in lines if line.startswith("ADDRESS"))
    process.communicate(timeout=60)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory):
    """The variables by which the commands of a Slurm of one node are found."""
    reason = slurm.missing()
    if reason:
        pytest.skip(reason)
    with slurm.running(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@dataclass(frozen=True)
class Engine:
    """How the tests run a sweep through an engine."""

    name: str
    arguments: list[str]
    variables: dict[str, str]


@pytest.fixture
def engine(request):
    """A function from the name of an engine to it, with whatever cluster it needs; skips where it is not
    installed."""

    def get(name: str) -> Engine:
        package = PACKAGE[name]
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'q2n[{PACKAGES[package]}]'")
        variables = {"WANDB_API_KEY": SECRET}
        arguments = [*SWEEP, f"hydra/launcher={name}", *SETTINGS[name]]
        if name == "ray":
            arguments.append(f"hydra.launcher.address='{request.getfixturevalue('ray_cluster')}'")
        if name == "submitit_slurm":
            variables |= request.getfixturevalue("slurm_cluster")
        return Engine(name, arguments, variables)

    return get


@pytest.fixture(scope="session")
def basic(tmp_path_factory, cache):
    """Folder of the sweep without an engine."""
    folder = tmp_path_factory.mktemp("basic")
    run(folder, cache, *SWEEP)
    return folder


def results(folder: Path) -> dict[str, str]:
    return {key: numbers(record) for key, record in records(folder / "results").items()}


def notes(folder: Path) -> list[dict]:
    """What is known of the cells of all sweeps, unreadable files (just being replaced) left out."""
    found = []
    for path in folder.glob("results/sweeps/*/*.json"):
        if path.name != "sweep.json":
            found.append(json.loads(path.read_text()))
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_every_engine_makes_the_records_and_tables_of_the_basic_launcher(
    name, engine, basic, tmp_path, cache
):
    chosen = engine(name)
    out = run(tmp_path, cache, *chosen.arguments, **chosen.variables)
    assert "4 computed" in out
    assert results(tmp_path) == results(basic)
    for kind in ("md", "tex"):  # csv also has times
        table = Path("results", "tables", f"main.{kind}")
        assert (tmp_path / table).read_text() == (basic / table).read_text()
    if name == "ray":
        nodes = {line.split()[-1] for line in out.splitlines() if " ran on node " in line}
        assert len(nodes) == 2
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("name", "kills", "code"),
    [
        pytest.param("joblib", 1, 0, id="joblib runs it again"),
        pytest.param("joblib", 2, 1, id="joblib gives it up"),
        pytest.param("ray", 1, 0, id="ray runs it again"),
        pytest.param("submitit_local", 1, 1, id="submitit_local"),
        pytest.param("submitit_slurm", 1, 1, id="submitit_slurm"),
    ],
)
def test_a_killed_worker_costs_its_cell_at_most(name, kills, code, engine, basic, tmp_path, cache):
    chosen = engine(name)
    process = start(tmp_path, cache, *chosen.arguments, **chosen.variables)
    label = _kill_the_first_cell(tmp_path, kills, lambda: process.poll() is None)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/main/*/record.json")}
    assert len(before) == 4 - code
    if code:
        assert "1 failed" in out
        assert "Killed" in err
        (failure,) = [json.loads(path.read_text()) for path in tmp_path.glob("results/main/*/failure.json")]
        assert failure["error_type"] == "Killed"
        assert failure["ref"]["label"] == label
        again = run(tmp_path, cache, *chosen.arguments, **chosen.variables)
        assert "3 reused" in again
        assert "1 computed" in again
    assert results(tmp_path) == results(basic)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_slurms_warning_puts_a_cell_back_into_the_queue_and_it_goes_on(engine, tmp_path, cache):
    chosen = engine("submitit_slurm")
    cell = ["bits=2", "q2n=on", "model.num_blocks=24", "calibration.nsamples=64", "checkpoint_every=1"]
    sweep = [item for item in chosen.arguments if not item.startswith(("bits=", "q2n="))]
    process = start(tmp_path, cache, *sweep, *cell, **chosen.variables)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("results/main/*/checkpoint/manifest.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    slurm_says = {**environment(cache), **chosen.variables}
    queue = ["squeue", "--noheader", "--format=%i"]
    job = subprocess.run(queue, env=slurm_says, capture_output=True, text=True, check=True)
    subprocess.run(["scancel", "--signal=USR2", job.stdout.strip()], env=slurm_says, check=True)
    while process.poll() is None:  # or Slurm would let it wait for two minutes
        name = ["scontrol", "update", f"JobId={job.stdout.strip()}", "StartTime=now"]
        subprocess.run(name, env=slurm_says, capture_output=True, check=False)
        time.sleep(1)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "1 computed" in out
    (record,) = records(tmp_path / "results").values()
    assert len(record["resumed_at"]) == 1
    assert record["resumed_at"][0] > 0


def _kill_the_first_cell(folder: Path, times: int, alive: Callable[[], bool]) -> str:
    """SIGKILL whoever computes the cell that was taken up first, and whoever takes it up then; its label."""
    killed: set[int] = set()
    label = ""
    deadline = time.monotonic() + 120
    while len(killed) < times:
        assert alive(), "the sweep ended before its worker could be killed"
        assert time.monotonic() < deadline
        for note in notes(folder):
            fresh = note["decision"] == "started" and note["pid"] not in killed
            if fresh and label in ("", note["ref"]["label"]):
                label = note["ref"]["label"]
                killed.add(note["pid"])
                os.kill(note["pid"], signal.SIGKILL)
                break
        time.sleep(0.02)
    return label


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_search_stops_hopeless_cells_and_finds_the_best_of_the_others(launcher, tmp_path, cache):
    if importlib.util.find_spec("optuna") is None:
        pytest.skip("optuna is not installed: pip install 'q2n[optuna]'")
    search = [
        "-m",
        "model=tiny_llama",
        "hydra/sweeper=optuna",
        f"hydra/launcher={launcher}",
        "baseline=rtn",
        "bits=int(interval(2,8))",
        "q2n.lam=interval(0,0.5)",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.pruner.n_startup_trials=1",
        "hydra.sweeper.pruner.n_warmup_steps=0",
    ]
    out = run(tmp_path, cache, *search)
    found = records(tmp_path / "results")
    stopped = [note for note in notes(tmp_path) if note["decision"] == "stopped"]
    assert len(found) + len(stopped) == 6
    assert len(stopped) >= 1
    assert f"{len(found)} trials complete, {len(stopped)} stopped early" in out
    (best,) = tmp_path.glob("multirun/*/*/optimization_results.yaml")
    values = {record["metrics"][0]["value"] for record in found.values()}
    assert OmegaConf.load(best).best_value == min(values)
    again = run(tmp_path, cache, *search)
    assert f"{len(found)} reused" in again
    assert "computed" not in again
