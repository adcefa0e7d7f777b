"""Before the first cell starts, every cell of the sweep is composed and validated.

A mistake in the fortieth cell of a sweep then costs a second, not a day. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from q2n.config import RunConfig


def preflight(config_dir: Path, arguments: Sequence[str]) -> int:
    """Validate what the command line asks for and return the number of cells (0: none will run).

    Raises:
        ConfigurationError: a cell cannot be run.
        HydraException: a key or an option does not exist, or an override cannot be parsed.
    """
    parsed = get_args_parser().parse_args(list(arguments))
    if any(getattr(parsed, flag, None) for flag in ("help", "hydra_help", "cfg", "info", "shell_completion")):
        return 0
    overrides = list(parsed.overrides)
    with initialize_config_dir(config_dir=str(parsed.config_dir or config_dir), version_base="1.3"):
        cells = _cells(overrides) if parsed.multirun else [overrides]
        for cell in cells:
            composed = _compose(cell)
            choices = composed.hydra.runtime.choices
            with open_dict(composed):
                del composed["hydra"]
            RunConfig.from_hydra(composed, choices, tuple(cell))
    return len(cells)


def _cells(overrides: list[str]) -> list[list[str]]:
    """The override lists of a grid sweep, experiment files' ``hydra.sweeper.params`` included."""
    base = _compose([item for item in overrides if not _is_sweep(item)])
    sweeper = base.hydra.sweeper
    if not sweeper.get("_target_", "").endswith("BasicSweeper"):
        return [[item for item in overrides if not _is_sweep(item)]]
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    given = {item.split("=", 1)[0].lstrip("+~") for item in overrides}
    params = [item for item in params if item.split("=", 1)[0] not in given]
    parsed = OverridesParser.create().parse_overrides(params + overrides)
    return [list(cell) for batch in BasicSweeper.split_arguments(parsed, None) for cell in batch]


def _is_sweep(override: str) -> bool:
    return OverridesParser.create().parse_override(override).is_sweep_override()


def _compose(overrides: list[str]) -> DictConfig:
    return compose("config", overrides=overrides, return_hydra_config=True)
