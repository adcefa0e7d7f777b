"""``q2n=released``: the Q2N step of the official code for each baseline, faults included.

With it a table compares the official code with the paper; docs/reproduction.md lists the differences. Only
the formulas of the rank and of the row scale are shared with :mod:`q2n.corrections.null_space`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from q2n.corrections.base import ReleasedRecipe, free_rows
from q2n.corrections.nullspace.alpha import adam_row_scale, row_norms, row_scale
from q2n.corrections.nullspace.rank import RankRule
from q2n.exceptions import UnsupportedError
from q2n.options import option
from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@option
class ReleasedScale:
    """Parameters of the official code's step; all else depends on the baseline.

    Attributes:
        t: threshold of the rank rule.
        lam: weight of the penalty that keeps row scales near one.
    """

    t: Annotated[float, Field(ge=0)]
    lam: Annotated[float, Field(ge=0)]
    requires: ClassVar[frozenset[Statistic]] = frozenset()
    heldout: ClassVar[int] = 0

    def bind(self, baseline: Baseline) -> Correction:
        """Return the step of the official code after ``baseline``.

        Raises:
            UnsupportedError: the official code has no step for this baseline or for its settings.
        """
        step = getattr(baseline, "released_step", None)
        recipe = step() if step else None
        if recipe is None:
            known = getattr(baseline, "released", None) is not None
            what = type(baseline).__name__ + (" with these settings" if known else "")
            raise UnsupportedError(f"the official code has no Q2N step for {what}; use q2n=on or q2n=off")
        return BoundRelease(self.t, self.lam, recipe)

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Raise :class:`UnsupportedError`: the step is defined only after :meth:`bind`."""
        raise UnsupportedError("the official step differs between baselines: call bind(baseline) first")


@dataclass(frozen=True)
class BoundRelease:
    """Step of the official code after one baseline."""

    t: float
    lam: float
    recipe: ReleasedRecipe
    heldout: ClassVar[int] = 0

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistic of the recipe, if it has one."""
        return frozenset() if self.recipe.statistic is None else frozenset({self.recipe.statistic})

    def bind(self, baseline: Baseline) -> Correction:
        """Return the step itself: it is bound already."""
        return self

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Fold the row scale ``(R,)`` of the official code into the scales of the format.

        Raises:
            NumericalError: the statistic or a row scale is not finite.
        """
        import torch

        free = free_rows(problem, self.recipe.skip)
        if free is None:
            return quantized
        rows, columns = problem.weight.shape
        if self.recipe.statistic is None:
            # A vector of ones, folded into a format without row scales, would only add storage.
            noted = {"alpha": torch.ones(rows, dtype=torch.float64), "null_rank": columns}
            return replace(quantized, diagnostics={**quantized.diagnostics, **noted})
        alpha, rank = self._alpha(problem, quantized, self.recipe.statistic)
        return quantized.scaled_rows(alpha.masked_fill(~free, 1), null_rank=columns - rank)

    def _alpha(
        self, problem: LinearProblem, quantized: QuantizedLinear, statistic: Statistic
    ) -> tuple[Tensor, int]:
        """Return ``alpha`` ``(R,)`` and the rank of the input subspace."""
        recipe = self.recipe
        spectrum = problem.stats.spectrum(statistic)
        rank = RankRule(t=self.t).of_whole(spectrum.values.clamp(min=0))
        reference = quantized.compensated if recipe.reference == "compensated" else quantized.original
        values = quantized.weight
        if recipe.kept_columns == "zero" and quantized.kept is not None:
            values = values.masked_fill(quantized.kept, 0)
        if not recipe.aligned and quantized.order is not None:
            reference, values = reference[:, quantized.order], values[:, quantized.order]
        error = reference - values
        if recipe.alpha == "closed":
            return row_scale(error, values, spectrum.vectors, rank, self.lam), rank
        fit = row_scale(error, values, spectrum.vectors, rank, lam=0.0)
        return adam_row_scale(fit, row_norms(values), self.lam), rank
