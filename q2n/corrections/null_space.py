"""Q2N: scale every output row so that the quantization error moves towards the inputs' null space.

With ``P`` the projector onto the (approximate) null space of the layer's inputs, the paper wants the
weight ``B = W (I - P) + Q P``: the original on the inputs' range, the quantized one where inputs do not
reach. Storing ``B`` would cost full precision; instead each row of ``Q`` gets one factor

    alpha = argmin ||B - diag(alpha) Q||^2 + lambda ||alpha - 1||^2

which has a closed form and folds into scales that are stored anyway (arXiv 2506.11044).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from q2n.corrections.base import RowwiseCorrection
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor

IndexRule = Literal["released", "textbook"]


@option
class NullSpaceScale(RowwiseCorrection):
    """The closed-form row scale, every choice the paper and its released code make being a field.

    ``statistic`` is whose null space is meant, ``drop_first`` leaves the leading eigenvalue out of the
    ratio, ``reference`` is the weight the error is measured from, ``skip`` lists patterns of layer names that
    are left alone. Columns kept in full precision are not scaled; ``kept_columns='exclude'`` therefore leaves
    them out of what is fitted (their errors still count through the projection), ``'include'`` fits as if
    they were scaled.
    """

    t: Annotated[float, Field(ge=0)]
    lam: Annotated[float, Field(ge=0)]
    statistic: Literal["gram", "position_mean"] = "gram"
    index_rule: IndexRule = "released"
    drop_first: bool = True
    eigenvalues: Literal["clamp", "abs"] = "clamp"
    reference: Literal["original", "compensated"] = "original"
    kept_columns: Literal["include", "exclude"] = "exclude"
    skip: list[str] = Field(default_factory=lambda: ["*down_proj"])

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset({Statistic(self.statistic)})

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        if all(self._skips(name) for name in problem.names):
            return quantized
        spectrum = problem.stats.spectrum(Statistic(self.statistic))
        values = spectrum.values.abs() if self.eigenvalues == "abs" else spectrum.values.clamp(min=0)
        rank = range_rank(values, self.t, self.index_rule, self.drop_first)
        reference = quantized.original if self.reference == "original" else quantized.compensated
        error = reference.double() - quantized.weight.double()
        scaled = quantized.weight
        if quantized.kept is not None and self.kept_columns == "exclude":
            scaled = scaled.masked_fill(quantized.kept, 0)
        alpha = row_scale(error, scaled, spectrum.vectors, rank, self.lam)
        for name, rows in zip(problem.names, alpha.split(list(problem.rows)), strict=True):
            if self._skips(name):
                rows.fill_(1)
        return quantized.scaled_rows(alpha, null_rank=len(values) - rank)

    def _skips(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.skip)


def range_rank(values: Tensor, t: float, rule: IndexRule = "released", drop_first: bool = True) -> int:
    """Number ``k`` of leading eigenvectors that span the inputs' range; the others span the null space.

    Prefix-suffix ratio: the smallest ``k`` with ``sum(values after k) / sum(values up to k) <= t``, the
    leading eigenvalue left out of both sums with ``drop_first``. The released code's ratio skips one more
    eigenvalue, so that its null space has one direction more (``rule='released'``).

    Args:
        values: non-negative eigenvalues, descending, ``(C,)``.

    Returns:
        ``0`` if everything but the dropped eigenvalue vanishes: all directions are null.
    """
    import torch

    offset = 1 if drop_first else 0
    energies = values.double()[offset:]
    prefix = torch.cumsum(energies, dim=0)
    skipped = 2 if rule == "released" else 1
    suffix = prefix[-1] - prefix[skipped - 1 :] if len(prefix) >= skipped else prefix[:0]
    leading = prefix[: len(suffix)]
    found = torch.nonzero((leading > 1e-12) & (suffix <= t * leading))
    return int(found[0]) + 1 + offset if len(found) else 0


def row_scale(error: Tensor, scaled: Tensor, vectors: Tensor, rank: int, lam: float) -> Tensor:
    """``alpha_r = 1 + <E_r (I - P), Q_r> / (||Q_r||^2 + lambda)`` with ``E = W - Q``; ``(R,)`` float64.

    ``I - P = V V^T`` with ``V`` the ``rank`` leading columns of ``vectors`` ``(C, C)``, so the projector is
    never formed: ``<E (I - P), Q> = <E V, Q V>``, through whichever of range and null basis is thinner.

    Args:
        error: ``E`` ``(R, C)``.
        scaled: what ``alpha`` multiplies, ``(R, C)``: ``Q``, with zeros in columns that are not scaled.
    """
    error, scaled = error.double(), scaled.double()
    null = rank > len(vectors) // 2
    basis = vectors[:, rank:] if null else vectors[:, :rank]
    shared = ((error @ basis) * (scaled @ basis)).sum(dim=1)
    if null:
        shared = (error * scaled).sum(dim=1) - shared
    return 1 + shared / (scaled.square().sum(dim=1) + lam + 1e-8)
