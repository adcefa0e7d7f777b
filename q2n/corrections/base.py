"""Defaults and helpers that corrections share, and the description of the official code's steps.

:class:`ReleasedRecipe` describes, as data, what the Q2N step of the official code does after each baseline.
"""

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
    """Base class of corrections that are the same after every baseline; by default without statistics."""

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics the correction needs; none by default."""
        return frozenset()

    @property
    def heldout(self) -> int:
        """Number of held-out sequences the correction needs; 0 by default."""
        return 0

    def bind(self, baseline: Baseline) -> Correction:
        """Return the correction itself: it does not depend on the baseline."""
        return self

    @abstractmethod
    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Return the corrected layer; ``quantized`` is not modified."""
        ...


def skips(name: str, patterns: Sequence[str]) -> bool:
    """Return True if the layer ``name`` matches one of the patterns (``*down_proj``) of skipped layers."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def free_rows(problem: LinearProblem, skip: Sequence[str]) -> Tensor | None:
    """Return the mask ``(R,)`` of rows whose layer matches no pattern of ``skip``, or None if all match."""
    import torch

    free = [not skips(name, skip) for name in problem.names]
    if not any(free):
        return None
    device = problem.weight.device
    return torch.repeat_interleave(
        torch.tensor(free, device=device), torch.tensor(problem.rows, device=device)
    )


def scaled_part(quantized: QuantizedLinear) -> Tensor:
    """Return the dequantized weight ``(R, C)`` with zeros in FP16 outlier columns, which are not scaled."""
    weight = quantized.weight
    return weight if quantized.kept is None else weight.masked_fill(quantized.kept, 0)


@dataclass(frozen=True)
class ReleasedRecipe:
    """Choices, right or wrong, of the official code's Q2N step after one baseline.

    A baseline has its recipe in the class variable ``released``; :mod:`q2n.corrections.released` applies it.

    Attributes:
        statistic: source of the null space, or None if the official code never accumulates it and its index
            function returns nothing, so that every row scale is exactly one.
        aligned: True if the projector is in the solver's column order, as the weights are.
        alpha: closed form, or 20 steps of Adam.
        reference: weight the error is measured from.
        kept_columns: ``"zero"`` if FP16 outlier columns still hold zeros when the step runs.
        skip: patterns of the names of skipped layers.
    """

    statistic: Statistic | None = Statistic.POSITION_MEAN
    aligned: bool = True
    alpha: Literal["closed", "adam20"] = "closed"
    reference: Literal["original", "compensated"] = "compensated"
    kept_columns: Literal["filled", "zero"] = "filled"
    skip: tuple[str, ...] = ("*mlp.down_proj",)


INERT = ReleasedRecipe(statistic=None)
"""Recipe of QuIP: the step runs and changes nothing, for either of the two reasons given at ``statistic``."""
