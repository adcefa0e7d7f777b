"""Estimator of a layer's null space: second moment, decomposition and rank rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from q2n.corrections.nullspace.moments import Decomposition, Moment, Precision, needed
from q2n.corrections.nullspace.rank import RankRule

if TYPE_CHECKING:
    from q2n.linalg.dense import Spectrum
    from q2n.types import Statistic, Statistics

Signs = Literal["clamp", "abs"]


@dataclass(frozen=True)
class NullSpace:
    """Null space: all directions orthogonal to the first ``rank`` eigenvectors of ``spectrum``.

    These eigenvectors span the input subspace.
    """

    spectrum: Spectrum
    rank: int

    @property
    def dimension(self) -> int:
        """Dimension of the null space, ``C - rank``."""
        return len(self.spectrum.vectors) - self.rank


@dataclass(frozen=True)
class Estimator:
    """Settings by which a null space is estimated; equal settings on one layer share a decomposition."""

    moment: Moment = "gram"
    decomposition: Decomposition = "eigh"
    precision: Precision = "float64"
    rule: RankRule = field(default_factory=RankRule)
    signs: Signs = "clamp"

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics that :meth:`estimate` needs."""
        return needed(self.moment, rows=self.decomposition == "svd")

    def estimate(self, stats: Statistics) -> NullSpace:
        """Estimate the null space of the inputs that ``stats`` were measured on.

        Raises:
            NumericalError: the statistic is not finite.
        """
        spectrum = self.spectrum(stats)
        values = spectrum.values.abs() if self.signs == "abs" else spectrum.values.clamp(min=0)
        rank = self.rule.of(values, len(spectrum.vectors), spectrum.total)
        assert rank is not None  # a partial spectrum is as long as its rule needs
        return NullSpace(spectrum, rank)

    def spectrum(self, stats: Statistics) -> Spectrum:
        """Return the decomposition, computed once for all layers that share the input."""
        from q2n.corrections.nullspace.decompose import decompose

        how = (self.moment, self.decomposition, self.precision)
        whole = self.decomposition in ("eigh", "svd")
        key = how if whole else (*how, self.rule)
        return stats.cached(
            key, lambda: decompose(stats, self.moment, self.decomposition, self.precision, self.rule)
        )
