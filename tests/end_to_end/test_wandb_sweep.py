"""A sweep whose cells are run by other processes too, tracked offline: what is logged against the records."""

from __future__ import annotations

import importlib.util
import math

import pytest
from helpers.commands import records, run
from helpers.wandb_files import read_back

pytestmark = pytest.mark.slow

SWEEP = ["-m", "model=tiny_llama", "q2n=off,on", "q2n.t=0.05,0.2", "q2n.lam=0,0.5", "tracking=wandb_offline"]
SECRET = "a-key-that-nobody-may-see"


@pytest.mark.parametrize("engine", ["basic", "joblib"])
def test_a_sweep_is_tracked_once_whoever_ran_its_cells(engine, tmp_path):
    if importlib.util.find_spec("joblib") is None and engine == "joblib":
        pytest.skip("joblib is not installed: make launchers")
    arguments = [f"hydra/launcher={engine}", *(["hydra.launcher.n_jobs=2"] if engine == "joblib" else [])]
    said = run(tmp_path, tmp_path / "cache", *SWEEP, *arguments, WANDB_API_KEY=SECRET)
    assert "was not logged" not in said
    found = records(tmp_path / "results")
    assert len(found) == 5, "off once, and on with each pair"

    runs = read_back(tmp_path / "wandb")
    cells = [item for item in runs if item["run"].job_type == "cell"]
    (sweep,) = [item for item in runs if item["run"].job_type == "sweep"]
    assert {item["config"]["fingerprint"] for item in cells} == found.keys()
    assert {item["run"].run_group for item in runs} == {sweep["run"].run_group} != {""}

    results = sweep["tables"]["sweep/results"]
    rows = [dict(zip(results["columns"], row, strict=True)) for row in results["data"]]
    assert {row["fingerprint"]: row["value"] for row in rows} == {
        key: record["metrics"][0]["value"] for key, record in found.items()
    }
    _layers(sweep, found)
    _figures(sweep)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in written

    again = run(tmp_path, tmp_path / "cache", *SWEEP, *arguments)
    assert "5 reused" in again
    added = [item for item in read_back(tmp_path / "wandb") if item["run"].run_id not in _ids(runs)]
    assert [item["run"].job_type for item in added] == ["sweep"], "no cell was computed"
    assert added[0]["tables"]["sweep/results"] == results


def _ids(runs):
    return {item["run"].run_id for item in runs}


def _layers(sweep, found):
    table = sweep["tables"]["sweep/layers"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {(row["fingerprint"], row["block"], row["layer"]): row["error_after"] for row in rows} == {
        (fingerprint, layer["block"], layer["name"]): layer["error_after"]
        for fingerprint, record in found.items()
        for layer in record["layers"]
    }
    assert all(math.isfinite(row["error_after"]) for row in rows)
    assert {row["q2n_settings"] for row in rows if row["correction"] == "on"} == {
        f"q2n.lam={record['config']['q2n']['lam']}, q2n.t={record['config']['q2n']['t']}"
        for record in found.values()
        if record["cell"]["correction"] == "on"
    }


def _figures(sweep):
    names = ("heat_map-q2n_t-q2n_lam", "layers")  # so short a text leaves no interval for a forest plot
    assert sweep["images"].keys() == {f"figures/{name}" for name in names}
    assert all(image.startswith(b"\x89PNG") for image in sweep["images"].values())
