"""The studies as they are in the project: files, axes, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from helpers.commands import ROOT
from omegaconf import OmegaConf

from q2n.config import RunConfig

EXPERIMENTS = ROOT / "experiments"
EXAMPLES = {"map_t_lambda"}
"""Experiments that are no studies (experiments/README.md says why)."""
NAMES = sorted({path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")} - EXAMPLES)


def axes(name: str) -> dict[str, str]:
    """What the study sweeps: values by key, as the sweeper reads them."""
    tree = OmegaConf.load(ROOT / "conf" / "experiment" / f"{name}.yaml")
    return {str(key): str(value) for key, value in tree.hydra.sweeper.params.items()}


def commands(name: str) -> list[list[str]]:
    """Arguments of every ``python run.py`` of the study's page: bundled scale, then the paper's."""
    text = (EXPERIMENTS / name / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python run\.py (.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def last_cell(name: str) -> list[str]:
    """The overrides of the study's last cell: the last value of every axis."""
    values = {key: value.rpartition(",")[2] for key, value in axes(name).items()}
    return [f"+experiment={name}", *(f"{key}={value}" for key, value in values.items())]


def around_the_first(cells: Sequence[RunConfig], keys: Sequence[str]) -> list[RunConfig]:
    """Cells that differ from the first one in at most one of the axes ``keys``: every value of every axis."""

    def place(config: RunConfig) -> list[str]:
        return [item for item in config.overrides if item.partition("=")[0] in keys]

    first = place(cells[0])
    return [cell for cell in cells if sum(a != b for a, b in zip(place(cell), first, strict=True)) <= 1]
