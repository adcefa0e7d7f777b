"""Q2N with ``t`` and ``lambda`` chosen per layer: the pair of a small grid with the least held-out error.

One eigendecomposition and two matrix products serve the whole grid. With ``E V`` and ``Q V`` for all
eigenvectors ``V``, the numerators of all ranks are a cumulative sum. The output error is a quadratic function
of the row scales; its coefficients come from the held-out Gram matrix.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from q2n.corrections.base import RowwiseCorrection, free_rows, scaled_part, skips
from q2n.corrections.nullspace.rank import RankFields
from q2n.exceptions import ConfigurationError
from q2n.options import ReadIf, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.corrections.nullspace.rank import RankRule

NonNegative = Annotated[float, Field(ge=0)]
HELD_OUT = 8
"""Held-out sequences unless ``calibration.heldout`` sets their number."""


@option
class TunedNullSpaceScale(RankFields, RowwiseCorrection):
    """Chooses the row scale of each layer among all pairs of ``t`` and ``lam``.

    A layer that no pair improves on held-out sequences is not changed.

    Attributes:
        t: thresholds tried, with ``rank_rule=prefix_suffix`` (:class:`RankFields`).
        lam: weights of the penalty tried.
        skip: patterns of the names of skipped layers.
    """

    t: Annotated[list[NonNegative], Field(min_length=1), ReadIf(rank_rule="prefix_suffix")]  # type: ignore[assignment]
    lam: Annotated[list[NonNegative], Field(min_length=1)]
    skip: list[str] = Field(default_factory=lambda: ["*down_proj"])
    requires: ClassVar[frozenset[Statistic]] = frozenset({Statistic.GRAM})
    heldout: ClassVar[int] = HELD_OUT

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Fold the chosen row scale of each layer into the scales; the record notes ``t``, ``lam`` and rank.

        Raises:
            ConfigurationError: there are no held-out sequences.
            NumericalError: an input is not finite, or a product overflows.
        """
        import torch

        from q2n.corrections.output_error import row_products

        if free_rows(problem, self.skip) is None:
            return quantized
        if problem.stats.heldout is None:
            raise ConfigurationError("q2n=tuned chooses by held-out sequences: set calibration.heldout")
        judge = row_products(problem, quantized, problem.stats.heldout)
        candidates = self._candidates(problem, quantized.original - quantized.weight, scaled_part(quantized))
        rows = list(problem.rows)
        changes = torch.stack(
            [torch.stack([part.sum() for part in judge.change(alpha).split(rows)]) for alpha, _ in candidates]
        )
        least, best = changes.min(dim=0)
        chosen, notes = [], []
        for index, name in enumerate(problem.names):
            alpha, noted = candidates[int(best[index])]
            taken = bool(least[index] < 0) and not skips(name, self.skip)
            part = alpha.split(rows)[index]
            chosen.append(part if taken else torch.ones_like(part))
            notes.append(noted if taken else {})
        return quantized.scaled_rows(torch.cat(chosen), notes=notes)

    @property
    def _rules(self) -> list[tuple[RankRule, dict[str, float]]]:
        """Rank rules tried, with the notes of each for the record."""
        if self.rank_rule != "prefix_suffix":
            return [(self.rule, {})]
        return [(replace(self.rule, t=t), {"t": t}) for t in self.t]

    def _candidates(
        self, problem: LinearProblem, error: Tensor, scaled: Tensor
    ) -> list[tuple[Tensor, dict[str, float]]]:
        """Return the row scale ``(R,)`` of every pair, with the notes of the pair for the record."""
        from q2n.corrections.nullspace.alpha import closed_form

        spectrum = problem.stats.spectrum(Statistic.GRAM)
        values, vectors = spectrum.values.clamp(min=0), spectrum.vectors
        error, scaled = error.double(), scaled.double()
        shared = ((error @ vectors) * (scaled @ vectors)).cumsum(dim=1)
        norms = scaled.square().sum(dim=1)
        candidates = []
        for (rule, tried), lam in itertools.product(self._rules, self.lam):
            rank = rule.of_whole(values)
            fit = shared[:, rank - 1] if rank else 0 * norms
            noted = {**tried, "lam": lam, "null_rank": float(len(values) - rank)}
            candidates.append((closed_form(fit, norms, lam), noted))
        return candidates
