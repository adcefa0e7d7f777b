"""A baseline that is not in the package: the example of docs/adding_a_baseline.md, taken from the page."""

from __future__ import annotations

import re

import pytest
from helpers.commands import records
from helpers.examples import added as placed
from helpers.examples import blocks, run

PAGE = "adding_a_baseline.md"


@pytest.fixture
def added(tmp_path):
    """The class in one new folder, its settings in another."""
    assert set(blocks(PAGE)) == {"q2n/baselines/plain_ldlq.py", "conf/baseline/plain_ldlq.yaml"}
    return placed(PAGE, tmp_path)


@pytest.mark.slow
def test_the_example_is_swept_beside_the_others(added, tmp_path):
    sweep = ["-m", "baseline=plain_ldlq,rtn", "q2n=on,off"]
    done = run(tmp_path, added, *sweep)
    assert done.returncode == 0, done.stderr
    assert "4 computed" in done.stdout
    found = records(tmp_path / "results").values()
    cells = {(record["cell"]["baseline"], record["cell"]["correction"]): record for record in found}
    assert set(cells) == {(name, q2n) for name in ("plain_ldlq", "rtn") for q2n in ("on", "off")}
    on, off = cells["plain_ldlq", "on"], cells["plain_ldlq", "off"]
    assert off["config"]["baseline"] == {
        "_target_": "q2n.baselines.plain_ldlq.PlainLdlq",
        "bits": 3,
        "group_size": 32,
        "npasses": 0,
        "percdamp": 0.01,
    }
    assert on["metrics"][0]["value"] != off["metrics"][0]["value"]
    for record in (on, off):
        assert record["bits_per_weight"] == 3 + (16 + 3) / 32
    for layer, nearest in zip(off["layers"], cells["rtn", "off"]["layers"], strict=True):
        assert layer["error_after"] < nearest["error_after"]
    for layer in on["layers"]:
        assert (layer["alpha_min"] in (None, 1)) == layer["name"].endswith("down_proj")
    assert "plain_ldlq" in done.stdout
    assert "4 reused" in run(tmp_path, added, *sweep).stdout


def test_its_settings_are_checked_like_all_others(added, tmp_path):
    done = run(tmp_path, added, "-m", "baseline=plain_ldlq", "baseline.npasses=0,-1")
    assert done.returncode == 2
    assert "baseline.npasses=-1: must be greater than or equal to 0" in done.stderr
    done = run(tmp_path, added, "baseline=plain_ldlq", "baseline.percdmp=1")
    assert done.returncode == 2
    assert "did you mean 'percdamp'" in done.stderr
    assert not (tmp_path / "results").exists()


def test_it_has_no_released_step_and_refuses_groups_that_do_not_fit(added, tmp_path):
    done = run(tmp_path, added, "-m", "baseline=plain_ldlq", "baseline.group_size=128", "q2n=released,off")
    assert "no Q2N step for PlainLdlq" in done.stderr
    assert "use a group_size of at most 64" in done.stderr
    assert not list(tmp_path.glob("results/main/*/record.json"))


def test_settings_write_out_every_field():
    files = blocks(PAGE)
    fields = re.findall(r"^    (\w+): ", files["q2n/baselines/plain_ldlq.py"], re.MULTILINE)
    keys = re.findall(r"^(\w+):", files["conf/baseline/plain_ldlq.yaml"], re.MULTILINE)
    assert keys == ["_target_", *fields]
