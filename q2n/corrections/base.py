"""What corrections share: defaults, which rows and columns they may touch, and as data what the step of the
official release does after each of its baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor


class RowwiseCorrection(ABC):
    """A correction that is the same after every baseline and measures nothing of its own."""

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset()

    @property
    def heldout(self) -> int:
        return 0

    def bind(self, baseline: Baseline) -> Correction:
        return self

    @abstractmethod
    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear: ...


def skips(name: str, patterns: Sequence[str]) -> bool:
    """Whether the layer ``name`` fits one of the patterns (``*down_proj``) of what is left alone."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def free_rows(problem: LinearProblem, skip: Sequence[str]) -> Tensor | None:
    """Rows ``(R,)`` bool of the layers that no pattern of ``skip`` fits; ``None``: there are none."""
    import torch

    free = [not skips(name, skip) for name in problem.names]
    if not any(free):
        return None
    device = problem.weight.device
    return torch.repeat_interleave(
        torch.tensor(free, device=device), torch.tensor(problem.rows, device=device)
    )


def scaled_part(quantized: QuantizedLinear) -> Tensor:
    """What a factor would multiply: the dequantized weight, with zeros in columns kept in full precision."""
    weight = quantized.weight
    return weight if quantized.kept is None else weight.masked_fill(quantized.kept, 0)


@dataclass(frozen=True)
class ReleasedRecipe:
    """The choices, right or wrong, of one released implementation; a baseline names its own in the class
    variable ``released``, and :mod:`q2n.corrections.released` follows it.

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
