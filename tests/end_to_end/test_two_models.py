"""Two models in folders of the same name, through the real run.py."""

from __future__ import annotations

import pytest
from helpers.commands import records, run
from helpers.folders import model_folder


@pytest.mark.slow  # tests/unit/report/test_models.py has every table, figure and page
def test_two_folders_of_one_name_are_two_models(tmp_path):
    paths = [model_folder(tmp_path / place / "model", seed=seed) for seed, place in enumerate("ab")]
    sweep = ["-m", "model=path", f"model.path={paths[0]},{paths[1]}", "q2n=off,on", "dtype=float32"]
    out = run(tmp_path, tmp_path / "cache", *sweep)
    assert out.count("unquantized") == 2
    assert "disagree" not in out
    found = list(records(tmp_path / "results").values())
    assert len({record["metrics"][0]["reference"] for record in found}) == 2
    for name in ("a/model", "b/model"):
        assert name in out
        assert f"| {name} |  | unquantized |" in (tmp_path / "results/tables/main.md").read_text()
