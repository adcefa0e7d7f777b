"""``diagnostics=null_space``: null space of every layer's inputs, and effect of the correction on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypedDict

from pydantic import Field

from q2n.corrections.nullspace.estimator import Estimator
from q2n.corrections.nullspace.rank import RankFields
from q2n.options import option
from q2n.types import LinearProblem, NullSpaceReport, Solution, Statistic, Statistics

if TYPE_CHECKING:
    from q2n.corrections.nullspace.estimator import NullSpace

ANGLES = 17
"""Number of evenly spaced quantiles of the principal angles in the record."""


class _OfInputs(TypedDict, total=False):
    """Measures that are the same for all layers that share an input."""

    spectrum: tuple[float, ...]
    spectrum_places: tuple[int, ...]
    rank: int
    effective_rank: float
    projection_error: float
    heldout_projection_error: float | None
    half_ranks: tuple[int, int]
    half_projection_error: float
    half_angles: tuple[float, ...]


@option
class NullSpaceMeasures(RankFields):
    """Measures spectrum, rank and projection error of the Gram matrix in the layer's own basis.

    The null space is set by these :class:`RankFields`, independent of the correction's settings.

    Attributes:
        points: eigenvalues of each spectrum in the record.
        halves: collect a second Gram matrix, of every other calibration sequence, and compare the null spaces
            of the two halves.
        heldout_sequences: number of held-out sequences if ``calibration.heldout`` is null.
    """

    points: Annotated[int, Field(ge=2, le=1000)] = 32
    halves: bool = True
    heldout_sequences: Annotated[int, Field(ge=0)] = 4

    @property
    def requires(self) -> frozenset[Statistic]:
        """Gram matrix, and with ``halves`` that of every other sequence."""
        return frozenset({Statistic.GRAM, *([Statistic.HALF_GRAM] if self.halves else [])})

    @property
    def heldout(self) -> int:
        """Number of held-out sequences to request."""
        return self.heldout_sequences

    def measure(self, problem: LinearProblem, solution: Solution) -> list[NullSpaceReport | None]:
        """Return the measures of every layer of the problem.

        Raises:
            NumericalError: the Gram matrix is not finite, or a decomposition does not converge.
        """
        from q2n.corrections.nullspace import measures

        estimator = Estimator(rule=self.rule)
        stats = problem.stats
        null_space = estimator.estimate(stats)
        shared = stats.cached(("measures", self), lambda: self._of_inputs(stats, null_space, estimator))
        reports: list[NullSpaceReport | None] = []
        first = 0
        for count in problem.rows:
            rows = slice(first, first + count)
            first += count
            original, base = problem.weight[rows], solution.base.weight[rows]
            corrected = solution.corrected.weight[rows]
            reach, reached = measures.reach(original, base, corrected, null_space)
            reports.append(
                NullSpaceReport(
                    **shared,
                    reach=reach,
                    reached=reached,
                    error_sources=measures.error_sources(original, original - base, null_space),
                    error_sources_after=measures.error_sources(original, original - corrected, null_space),
                )
            )
        return reports

    def _of_inputs(self, stats: Statistics, null_space: NullSpace, estimator: Estimator) -> _OfInputs:
        from q2n.corrections.nullspace import measures

        values = null_space.spectrum.values.clamp(min=0)
        heldout = stats.heldout
        shared: _OfInputs = {
            "spectrum": measures.sampled(values, self.points),
            "spectrum_places": tuple((measures.places(len(values), self.points) + 1).tolist()),
            "rank": null_space.rank,
            "effective_rank": measures.effective_rank(values),
            "projection_error": measures.projection_error(null_space, stats.gram),
            "heldout_projection_error": (
                None if heldout is None else measures.projection_error(null_space, heldout.gram)
            ),
        }
        if Statistic.HALF_GRAM not in stats or stats.sequences < 2:
            return shared
        one, other = measures.halves(stats)
        first, second = estimator.estimate(one), estimator.estimate(other)
        shared["half_ranks"] = (first.rank, second.rank)
        shared["half_projection_error"] = measures.projection_error(first, other.gram)
        shared["half_angles"] = measures.principal_angles(first, second, ANGLES)
        return shared
