"""Q2N: scale every output row so that the quantization error moves towards the inputs' null space.

With ``P`` the projector onto the (approximate) null space of the layer's inputs, the paper wants the
weight ``B = W (I - P) + Q P``: the original on the inputs' range, the quantized one where inputs do not
reach. Storing ``B`` would cost full precision; instead each row of ``Q`` gets one factor

    alpha = argmin ||B - diag(alpha) Q||^2 + lambda ||alpha - 1||^2

which has a closed form and folds into scales that are stored anyway (arXiv 2506.11044).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from q2n.corrections.base import RowwiseCorrection, free_rows
from q2n.corrections.nullspace.alpha import (
    adam_row_scale,
    adam_to_convergence,
    closed_form,
    reached,
    row_norms,
)
from q2n.corrections.nullspace.estimator import Estimator, NullSpace, Signs
from q2n.corrections.nullspace.moments import Decomposition, Moment, Precision
from q2n.corrections.nullspace.rank import RankFields
from q2n.options import ReadUnless, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@option
class NullSpaceScale(RankFields, RowwiseCorrection):
    """The row scale towards the inputs' null space, every choice of the paper, its released code and its
    reviewers being a field.

    ``statistic`` is whose null space is meant and ``decomposition`` how it is computed, in ``precision``.
    Where the null space begins say the fields of :class:`RankFields`. ``alpha`` is the
    solver; ``lam_scale='relative'`` multiplies ``lam`` by the row's squared norm.
    ``reference`` is the weight the error is measured from, ``skip`` lists patterns of layer names that are
    left alone. Columns kept in full precision are not scaled; ``kept_columns='exclude'`` therefore leaves
    them out of what is fitted (their errors still count through the projection), ``'include'`` fits as if
    they were scaled.
    """

    lam: Annotated[float, Field(ge=0)]
    lam_scale: Annotated[Literal["absolute", "relative"], ReadUnless(lam=0)] = "absolute"
    statistic: Moment = "gram"
    decomposition: Decomposition = "auto"
    precision: Precision = "float64"
    # singular values have no sign
    eigenvalues: Annotated[Signs, ReadUnless(decomposition="svd")] = "clamp"
    alpha: Literal["closed", "adam20", "adam"] = "closed"
    reference: Literal["original", "compensated"] = "original"
    kept_columns: Literal["include", "exclude"] = "exclude"
    skip: list[str] = Field(default_factory=lambda: ["*down_proj"])

    @model_validator(mode="after")
    def _smallest_is_known(self) -> NullSpaceScale:
        if self.rank_rule == "adam_nscl" and self.decomposition == "partial":
            raise ValueError(
                "rank_rule=adam_nscl compares with the smallest eigenvalue, which decomposition=partial does "
                "not compute; use decomposition=eigh, svd or auto"
            )
        return self

    @property
    def estimator(self) -> Estimator:
        """How the null space is estimated."""
        return Estimator(self.statistic, self.decomposition, self.precision, self.rule, self.eigenvalues)

    @property
    def requires(self) -> frozenset[Statistic]:
        return self.estimator.requires

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        free = free_rows(problem, self.skip)
        if free is None:
            return quantized
        null_space = self.estimator.estimate(problem.stats)
        spectrum = null_space.spectrum
        asked = ("reached", self.reference, self.kept_columns, null_space.rank)
        fitted = quantized.recall(asked, (spectrum.vectors,), lambda: self._products(quantized, null_space))
        alpha, notes = self._solve(*fitted)
        return quantized.scaled_rows(
            alpha.masked_fill(~free, 1),
            null_rank=null_space.dimension,
            decomposition=spectrum.method,
            decomposition_residual=spectrum.residual,
            extra=notes,
        )

    def _products(self, quantized: QuantizedLinear, null_space: NullSpace) -> tuple[Tensor, Tensor]:
        """``<E_r (I - P), Q_r>`` and ``||Q_r||^2``, ``(R,)`` each: whatever ``lam`` is."""
        reference = quantized.original if self.reference == "original" else quantized.compensated
        scaled = quantized.weight
        if quantized.kept is not None and self.kept_columns == "exclude":
            scaled = scaled.masked_fill(quantized.kept, 0)
        error = reference - quantized.weight
        return reached(error, scaled, null_space.spectrum.vectors, null_space.rank), row_norms(scaled)

    def _solve(self, shared: Tensor, norms: Tensor) -> tuple[Tensor, dict[str, float]]:
        """``alpha`` of ``<E_r (I - P), Q_r>`` and ``||Q_r||^2``, and notes for the record."""
        lam = self.lam * norms if self.lam_scale == "relative" else self.lam
        if self.alpha == "closed":
            return closed_form(shared, norms, lam), {}
        fit = closed_form(shared, norms, 0.0)
        if self.alpha == "adam20":
            return adam_row_scale(fit, norms, lam), {}
        descent = adam_to_convergence(fit, norms, lam)
        return descent.alpha, {"alpha_steps": descent.steps, "alpha_distance": descent.distance}
