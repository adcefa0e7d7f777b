"""Statistics of a layer's calibration inputs, and their transformation together with the weight."""

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
    """Statistics of a layer's calibration inputs ``X_s`` (sequence ``s``, ``(T, C)``)."""

    GRAM = "gram"
    """``H = (2/n) sum_s X_s^T X_s``, ``(C, C)`` float32; ``n`` counts sequences (GPTQ's convention)."""
    TRIANGLE = "triangle"
    """Lower triangle of ``GRAM``, packed by :func:`q2n.linalg.gram.triangle`; enough for output errors."""
    HALF_GRAM = "half_gram"
    """Gram matrix of sequences 1, 3, 5, ..., normalised by their number."""
    POSITION_MEAN = "position_mean"
    """``A = (1/n) sum_s X_s``, ``(T, C)`` float32: the official code uses ``A`` in place of ``X``."""
    SQRT_POSITION_MEAN = "sqrt_position_mean"
    """``A = (1/n) sum_k sqrt(2/k) X_k``, ``(T, C)``: the weights of PB-LLM in the official code."""
    MEAN = "mean"
    """Mean input over all tokens, ``(C,)`` float32."""
    ABS_MEAN = "abs_mean"
    """Mean ``|x|`` per channel, ``(C,)`` float32."""
    ABS_MAX = "abs_max"
    """Maximum ``|x|`` per channel, ``(C,)`` float32."""
    TOKEN_SAMPLE = "token_sample"
    """Evenly spaced input rows, ``(m, C)`` float32."""


QUADRATIC = frozenset({Statistic.GRAM, Statistic.HALF_GRAM})
"""Statistics that transform as ``H -> R H R^T``."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of one input shared by one or more linear layers.

    Statistics are transformed only together with the weight (:class:`LinearProblem`), so a weight and its
    statistics are always in the same basis.

    Attributes:
        values: tensors by statistic.
        sequences: number of sequences, ``n``.
        tokens: number of tokens, ``N``.
        heldout: statistics of held-out sequences, or None without any. Nothing may be fitted to them;
            choices may be made by them.
    """

    values: Mapping[Statistic, Tensor]
    sequences: int
    tokens: int
    heldout: Statistics | None = None
    decompose: Callable[[Tensor], Spectrum] | None = field(default=None, repr=False, compare=False)
    """Eigendecomposition of a symmetric ``(C, C)`` float64 matrix, or None if it is
    ``q2n.linalg.dense.symmetric_spectrum``."""

    def __getitem__(self, statistic: Statistic) -> Tensor:
        return self.values[statistic]

    def __contains__(self, statistic: Statistic) -> bool:
        return statistic in self.values

    @property
    def gram(self) -> Tensor:
        """Gram matrix ``(C, C)``."""
        return self.values[Statistic.GRAM]

    @property
    def output_form(self) -> Tensor:
        """Gram matrix, or its packed triangle if only that was measured.

        Both are inputs of :func:`q2n.linalg.dense.quadratic_rows`.
        """
        return self.values[Statistic.GRAM if Statistic.GRAM in self.values else Statistic.TRIANGLE]

    @property
    def centred_gram(self) -> Tensor:
        """Gram matrix of ``x - m``, ``H - (2 N / n) m m^T`` with the mean input ``m``; ``(C, C)`` float64.

        It has the normalisation of the Gram matrix over the same ``N`` tokens. Its precision is that of the
        float32 sums: if the mean dominates, eigenvalues near ``1e-7`` of the largest of ``H`` are round-off
        of either sign.
        """
        mean = self.values[Statistic.MEAN].double()
        return self.gram.double() - 2 * self.tokens / self.sequences * mean[:, None] * mean

    @property
    def covariance(self) -> Tensor:
        """Covariance ``(1/N) sum (x - m)(x - m)^T`` over all ``N`` tokens; ``(C, C)`` float64."""
        return self.centred_gram * (self.sequences / (2 * self.tokens))

    @cached_property
    def _cache(self) -> dict[Hashable, Any]:
        return {}

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return ``compute()``, cached under ``key`` for all layers that share the input."""
        if key not in self._cache:
            self._cache[key] = compute()
        value: T = self._cache[key]
        return value

    def spectrum(self, statistic: Statistic) -> Spectrum:
        """Return the full eigendecomposition of the statistic's ``(C, C)`` second moment in float64; cached.

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
        """Return the statistics of ``x' = R x`` with ``R = right`` ``(C', C)``.

        ``H -> R H R^T``, rows ``A -> A R^T``, mean ``m -> R m``. Element-wise statistics (absolute mean and
        maximum) have no image under a general matrix and are dropped; reading one afterwards raises a
        ``KeyError``.
        """
        return self.mapped_by(lambda rows: rows @ right.to(rows).T)

    def mapped_by(self, rotate: Callable[[Tensor], Tensor]) -> Statistics:
        """Return :meth:`mapped` for ``R`` given as the function ``rotate(A) = A R^T``.

        It serves transforms that are faster than a product with ``R`` (Kronecker products).
        """
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
        """Return the statistics with ``fraction`` of the mean diagonal added to the Gram matrix."""
        gram = self.gram.clone()
        gram.diagonal().add_(fraction * gram.diagonal().mean())
        return replace(self, values={**self.values, Statistic.GRAM: gram})

    def scaled(self, factor: Tensor) -> Statistics:
        """Return the statistics of ``x' = factor * x`` with ``factor`` ``(C,)``, positive."""
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
