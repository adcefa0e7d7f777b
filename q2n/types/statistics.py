"""What is measured of a layer's calibration inputs, and how it moves with the weight."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.linalg.dense import Spectrum

T = TypeVar("T")


class Statistic(StrEnum):
    """What can be measured of a layer's calibration inputs ``X_s`` (sequence ``s``, ``(T, C)``)."""

    GRAM = "gram"
    """``H = (2/n) sum_s X_s^T X_s``, ``(C, C)`` float32; ``n`` counts sequences (GPTQ's convention)."""
    TRIANGLE = "triangle"
    """The lower triangle of that, packed by :func:`q2n.linalg.gram.triangle`: enough to measure errors
    with."""
    HALF_GRAM = "half_gram"
    """The Gram matrix of every other sequence, from the first, normalised by their number."""
    POSITION_MEAN = "position_mean"
    """``A = (1/n) sum_s X_s``, ``(T, C)`` float32: what the official release uses in place of ``X``."""
    SQRT_POSITION_MEAN = "sqrt_position_mean"
    """``A = (1/n) sum_k sqrt(2/k) X_k``, ``(T, C)``: the weighting of the release's PB-LLM."""
    MEAN = "mean"
    """Mean input over all tokens, ``(C,)`` float32."""
    ABS_MEAN = "abs_mean"
    """mean ``|x|`` per channel, ``(C,)`` float32."""
    ABS_MAX = "abs_max"
    """max ``|x|`` per channel, ``(C,)`` float32."""
    TOKEN_SAMPLE = "token_sample"
    """Evenly spaced input rows, ``(m, C)`` float32."""


QUADRATIC = frozenset({Statistic.GRAM, Statistic.HALF_GRAM})
"""Statistics that move as ``H -> R H R^T``."""


@dataclass(frozen=True)
class Statistics:
    """What was measured of one input shared by one or more linear layers.

    Statistics move only together with the weight (:class:`LinearProblem`), so that a weight and the
    statistics it is solved with are always in the same basis.

    ``heldout``, if any, is the same of sequences that were kept from all this: nothing may be fitted to it,
    but choices may be judged by it.
    """

    values: Mapping[Statistic, Tensor]
    sequences: int
    tokens: int
    heldout: Statistics | None = None
    decompose: Callable[[Tensor], Spectrum] | None = field(default=None, repr=False, compare=False)
    """How a symmetric ``(C, C)`` float64 matrix is decomposed; None: by
    ``q2n.linalg.dense.symmetric_spectrum``."""

    def __getitem__(self, statistic: Statistic) -> Tensor:
        return self.values[statistic]

    def __contains__(self, statistic: Statistic) -> bool:
        return statistic in self.values

    @property
    def gram(self) -> Tensor:
        """``(C, C)``."""
        return self.values[Statistic.GRAM]

    @property
    def output_form(self) -> Tensor:
        """The Gram matrix, or its packed triangle where that is all there is, for
        :func:`q2n.linalg.dense.quadratic_rows`."""
        return self.values[Statistic.GRAM if Statistic.GRAM in self.values else Statistic.TRIANGLE]

    @property
    def centred_gram(self) -> Tensor:
        """``H - (2 N / n) m m^T`` with ``m`` the mean input: the Gram matrix of ``x - m`` over the same ``N``
        tokens, in Gram's normalisation; ``(C, C)`` float64.

        Directions with hardly any variance have only the digits that the float32 sums leave them: where the
        mean dominates, eigenvalues near ``1e-7`` of the largest of ``H`` are round-off of either sign.
        """
        mean = self.values[Statistic.MEAN].double()
        return self.gram.double() - 2 * self.tokens / self.sequences * mean[:, None] * mean

    @property
    def covariance(self) -> Tensor:
        """``(1/N) sum (x - m)(x - m)^T`` over all ``N`` tokens; ``(C, C)`` float64."""
        return self.centred_gram * (self.sequences / (2 * self.tokens))

    @cached_property
    def _cache(self) -> dict[Hashable, Any]:
        return {}

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` returned the first time it was asked for under ``key``: work that follows from
        the statistics is done once for all layers that share the input."""
        if key not in self._cache:
            self._cache[key] = compute()
        value: T = self._cache[key]
        return value

    def spectrum(self, statistic: Statistic) -> Spectrum:
        """Full eigendecomposition of the statistic's ``(C, C)`` second moment in float64, computed once.

        Raises:
            NumericalError: the statistic is not finite.
        """
        from q2n.linalg.dense import symmetric_spectrum

        def compute() -> Spectrum:
            value = self.values[statistic].double()
            matrix = value if statistic is Statistic.GRAM else value.T @ value
            return (self.decompose or symmetric_spectrum)(matrix)

        return self.cached((statistic.value, "eigh", "float64", "full"), compute)

    def mapped(self, right: Tensor) -> Statistics:
        """Statistics of ``x' = R x``, ``R = right`` ``(C', C)``: ``H -> R H R^T``, rows ``A -> A R^T``,
        mean ``m -> R m``.

        The element-wise statistics (absolute mean and maximum) have no image under a general matrix and
        are dropped; asking for one afterwards is a ``KeyError``, never a wrong number.
        """
        return self.mapped_by(lambda rows: rows @ right.to(rows).T)

    def mapped_by(self, rotate: Callable[[Tensor], Tensor]) -> Statistics:
        """:meth:`mapped` with ``right`` given as what it does to rows, ``rotate(A) = A R^T``: for maps that
        are applied faster than they can be written down."""
        images: dict[Statistic, Tensor] = {}
        for statistic, value in self.values.items():
            if statistic in QUADRATIC:
                images[statistic] = rotate(rotate(value).T)
            elif statistic is Statistic.MEAN:
                images[statistic] = rotate(value[None])[0]
            elif value.ndim == 2:
                images[statistic] = rotate(value)
        heldout = self.heldout.mapped_by(rotate) if self.heldout else None
        return replace(self, values=images, heldout=heldout)

    def damped(self, fraction: float) -> Statistics:
        """The same with ``fraction`` of the mean diagonal added to the Gram matrix."""
        gram = self.gram.clone()
        gram.diagonal().add_(fraction * gram.diagonal().mean())
        return replace(self, values={**self.values, Statistic.GRAM: gram})

    def scaled(self, factor: Tensor) -> Statistics:
        """Statistics of ``x' = factor * x`` (``factor`` of shape ``(C,)``, positive)."""
        images: dict[Statistic, Tensor] = {}
        for statistic, value in self.values.items():
            if statistic is Statistic.TRIANGLE:
                continue
            moved = factor.to(value)
            images[statistic] = value * moved
            if statistic in QUADRATIC:
                images[statistic] = images[statistic] * moved[:, None]
        heldout = self.heldout.scaled(factor) if self.heldout else None
        return replace(self, values=images, heldout=heldout)
