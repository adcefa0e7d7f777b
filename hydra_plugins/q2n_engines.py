"""Launchers and sweepers of q2n, in the one namespace from which Hydra takes plugins.

The classes are those of ``q2n/launchers`` and ``q2n/command/grid.py``.
"""

from q2n.command import grid
from q2n.launchers import joblib, optuna, ray, submitit


class JoblibLauncher(joblib.JoblibLauncher):
    """``hydra/launcher=joblib``."""


class RayLauncher(ray.RayLauncher):
    """``hydra/launcher=ray``."""


class LocalLauncher(submitit.LocalLauncher):
    """``hydra/launcher=submitit_local``."""


class SlurmLauncher(submitit.SlurmLauncher):
    """``hydra/launcher=submitit_slurm``."""


class GridSweeper(grid.GridSweeper):
    """``hydra/sweeper=grid``."""


class OptunaSweeper(optuna.OptunaSweeper):
    """``hydra/sweeper=optuna``."""
