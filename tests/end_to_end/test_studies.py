"""Every axis of every study runs on a tiny model, and the study's report has the figures it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.static import write_texts
from helpers.studies import EXPERIMENTS, NAMES, around_the_first, axes

from q2n.cells.run import run_cell
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.plan.fit import misfit
from q2n.records.store import load_all
from q2n.report.__main__ import main as report
from q2n.report.studies.study import load_study

pytestmark = pytest.mark.slow

OWN = {
    "ablation_t_lambda": ["q2n.t=0.01,0.2", "q2n.lam=0,0.5"],
    "corrections": ["seed=1,2", "bits=2,3"],
    "generation": ["evaluation.limit=5"],
    "group_size": ["group_size=16,32,64,-1"],
    "owq": ["baseline.target_bit=3.2", "seed=0,1"],
    "weight_activation": ["seed=0,1"],
    "weight_only": ["seed=0,1"],
}
"""What the tiny model's widths, or the time, make necessary."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings of small cells; one results folder, so that cells studies have in common run once."""
    folder = write_texts(tmp_path_factory.mktemp("studies"))
    return {
        "model": "tiny_llama",
        "device": "cpu",
        "dtype": "float32",
        "group_size": "32",
        "calibration": "text",
        "calibration.paths": f"[{folder}/calibration.txt]",
        "calibration.nsamples": "4",
        "calibration.seqlen": "32",
        "evaluation.datasets": "[text]",
        "evaluation.paths": f"[{folder}/evaluation.txt]",
        "evaluation.windows": "6",
        "evaluation.seqlen": "32",
        "results_dir": str(folder / "results"),
        "cache_dir": str(folder / "cache"),
    }


def arguments(name, small):
    own = OWN.get(name, [])
    said = {item.partition("=")[0] for item in own}
    swept = set(axes(name)) - {"calibration.paths"}
    left_out = said | swept
    if name == "calibration_transfer":  # its texts are what it is about
        left_out |= {"calibration.paths", "evaluation.datasets", "evaluation.paths"}
    if name in ("owq", "weight_activation"):  # their baselines round whole rows
        left_out |= {"group_size"}
    if name == "generation":
        left_out |= {key for key in small if key.startswith("evaluation.")}
    common = [f"{key}={value}" for key, value in small.items() if key not in left_out]
    return ["-m", f"+experiment={name}", *own, *common]


# the tiny model's null spaces begin too late for a partial decomposition, which is said and made whole
@pytest.mark.filterwarnings("ignore::q2n.corrections.nullspace.decompose.FullDecompositionWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_study_runs_and_its_report_is_drawn(name, small, capsys):
    cells = preflight(CONFIG_DIR, arguments(name, small)).cells
    outer = [key for key in axes(name) if key.partition(".")[0] != "q2n"]
    chosen = [config for config in around_the_first(cells, outer) if misfit(config) is None]
    for config in chosen:
        outcome = run_cell(config)
        assert outcome.record is not None, outcome.why
    results = small["results_dir"]
    assert len(load_all(results, name)) == len(chosen)
    asked = {item for config in cells for item in config.overrides}
    assert asked == {item for config in chosen for item in config.overrides}, "every value of every axis"
    assert report(["--results", results, "--experiments", str(EXPERIMENTS), "--name", name]) == 0
    assert name in capsys.readouterr().out
    drawn = [path.stem for path in (Path(results) / "figures" / name).glob("*.svg")]
    for figure in load_study(EXPERIMENTS / name).figures:
        assert any(stem.startswith(figure.kind) for stem in drawn), f"no figure {figure.kind}"
