"""Every file in conf/ composes, validates, and says everything its class can be told."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight

OPTIONS = [
    (path.parent.name, path.stem)
    for path in sorted(CONFIG_DIR.glob("*/*.yaml"))
    if path.parent.name not in ("hydra", "experiment")
]
REQUIRED = {
    ("model", "path"): ["model.path=some/where"],
    ("calibration", "text"): ["calibration.paths=[a.txt]"],
}


def test_there_are_options_of_every_group():
    assert {group for group, _ in OPTIONS} >= {
        "model",
        "baseline",
        "q2n",
        "calibration",
        "evaluation",
        "tracking",
    }


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_composes_and_validates(group, option):
    assert len(preflight(CONFIG_DIR, [f"{group}={option}", *REQUIRED.get((group, option), [])]).cells) == 1


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_writes_out_every_field(group, option):
    tree = OmegaConf.load(CONFIG_DIR / group / f"{option}.yaml")
    module, _, name = tree["_target_"].rpartition(".")
    fields = getattr(importlib.import_module(module), name).__pydantic_fields__
    assert {str(key) for key in tree} - {"_target_", "defaults"} == set(fields)


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.yaml")), ids=lambda path: path.stem)
def test_on_and_off_are_quoted_in_defaults(path: Path):
    """YAML 1.1 reads a bare on/off as a boolean."""
    for entry in OmegaConf.load(path).get("defaults") or []:
        values = entry.values() if hasattr(entry, "values") else [entry]
        assert not any(isinstance(value, bool) for value in values)


def test_a_sweep_counts_its_cells():
    assert len(preflight(CONFIG_DIR, ["-m", "bits=2,3", "q2n=on,off", "baseline=rtn,gptq,quip"]).cells) == 12
