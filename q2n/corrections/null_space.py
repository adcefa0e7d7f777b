"""Q2N (arXiv 2506.11044): scale every output row to move the quantization error into the null space.

Let ``P`` be the projector onto the (approximate) null space of the layer's inputs. The target of the paper is
``B = W (I - P) + Q P``: the original weight in the input subspace, the quantized weight in the null space.
Storing ``B`` would take full precision. Instead, each row of ``Q`` gets one scale

    alpha = argmin ||B - diag(alpha) Q||^2 + lambda ||alpha - 1||^2

which has a closed form and is folded into scales that are stored anyway.
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
    """Row scale towards the null space, with every choice of the paper and the official code as a field.

    The fields of :class:`RankFields` set the rank of the input subspace. FP16 outlier columns are not scaled.

    Attributes:
        lam: weight of the penalty that keeps row scales near one.
        lam_scale: ``'relative'`` multiplies ``lam`` by the squared norm of the row.
        statistic: matrix whose null space is estimated.
        decomposition: method by which the eigenvectors are computed.
        precision: floating-point type of the decomposition.
        eigenvalues: treatment of negative round-off, set to zero (``'clamp'``) or made positive (``'abs'``).
        alpha: solver of the objective.
        reference: weight the error is measured from.
        kept_columns: ``'exclude'`` leaves FP16 outlier columns out of the fit (their errors still count
            through the projection); ``'include'`` fits as if they were scaled.
        skip: patterns of the names of skipped layers.
    """

    lam: Annotated[float, Field(ge=0)]
    lam_scale: Annotated[Literal["absolute", "relative"], ReadUnless(lam=0)] = "absolute"
    statistic: Moment = "gram"
    decomposition: Decomposition = "auto"
    precision: Precision = "float64"
    # Singular values have no sign.
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
        """Estimator of the null space with the settings of these fields."""
        return Estimator(self.statistic, self.decomposition, self.precision, self.rule, self.eigenvalues)

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics that ``statistic`` and ``decomposition`` need."""
        return self.estimator.requires

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Fold ``alpha`` ``(R,)`` into the scales of the format; 1 for skipped layers.

        Raises:
            NumericalError: the statistic or a row scale is not finite.
        """
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
        """Return ``<E_r (I - P), Q_r>`` and ``||Q_r||^2``, ``(R,)`` each; neither depends on ``lam``."""
        reference = quantized.original if self.reference == "original" else quantized.compensated
        scaled = quantized.weight
        if quantized.kept is not None and self.kept_columns == "exclude":
            scaled = scaled.masked_fill(quantized.kept, 0)
        error = reference - quantized.weight
        return reached(error, scaled, null_space.spectrum.vectors, null_space.rank), row_norms(scaled)

    def _solve(self, shared: Tensor, norms: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return ``alpha`` ``(R,)`` for :meth:`_products`, and notes for the record."""
        lam = self.lam * norms if self.lam_scale == "relative" else self.lam
        if self.alpha == "closed":
            return closed_form(shared, norms, lam), {}
        fit = closed_form(shared, norms, 0.0)
        if self.alpha == "adam20":
            return adam_row_scale(fit, norms, lam), {}
        descent = adam_to_convergence(fit, norms, lam)
        return descent.alpha, {"alpha_steps": descent.steps, "alpha_distance": descent.distance}
