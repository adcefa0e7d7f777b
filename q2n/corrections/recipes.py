"""What the official release's Q2N step does after each of its baselines, as data.

A baseline names its recipe in the class variable ``released``; :mod:`q2n.corrections.released` follows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from q2n.types import Statistic


@dataclass(frozen=True)
class ReleasedRecipe:
    """The choices, right or wrong, of one released implementation.

    ``statistic`` is what its null space is computed from; ``None``: the statistic is never accumulated and
    the index function returns nothing, so that every row scale is exactly one. ``aligned`` is whether the
    projector is in the solver's column order, as the weights are. ``alpha`` is the closed form, or 20 steps
    of Adam. ``kept_columns`` ``"zero"``: columns in full precision still hold zeros when the step runs.
    ``skip`` are patterns of layer names left alone.
    """

    statistic: Statistic | None = Statistic.POSITION_MEAN
    aligned: bool = True
    alpha: Literal["closed", "adam20"] = "closed"
    reference: Literal["original", "compensated"] = "compensated"
    kept_columns: Literal["filled", "zero"] = "filled"
    skip: tuple[str, ...] = ("*mlp.down_proj",)


INERT = ReleasedRecipe(statistic=None)
"""QuIP: the step runs and changes nothing, for two reasons that would each do."""
