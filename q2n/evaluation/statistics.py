"""How sure one can be of a mean over windows or items, and of the difference of two such means.

Two questions are kept apart:

* one seed: do *these two quantized models* differ on text like this? The windows (items) are the sample.
* several seeds: do the two *methods* differ? Another calibration sample gives another model, so both the
  windows and the seeds are samples; with windows alone two identical pipelines with different seeds would
  be told apart far too often.

Only the second question is about methods, so only several seeds can establish a difference
(:attr:`Estimate.established`). docs/statistics.md has the formulas, what they assume, and how they were
calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

LEVEL = 0.95
ALPHA = 1 - LEVEL
RESAMPLES = 4999
FEWEST = 5
"""Windows below which no interval is given: a bootstrap of four values knows next to nothing."""
_BATCH = 2**22
"""Values of one batch of resamples: 32 MB."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean (or a difference of two), its interval, and the p-value of its being zero.

    ``units`` windows or items and ``seeds`` stand behind it. The interval and ``p_value`` are NaN where
    nothing can be said; a plain mean has no p-value.
    """

    value: float
    low: float
    high: float
    p_value: float
    units: int
    seeds: int

    @property
    def established(self) -> bool:
        """Whether the methods, not just two models, are told apart."""
        return self.seeds > 1 and self.p_value < ALPHA


def interval(values: Sequence[Sequence[float]], weights: Sequence[int] = ()) -> Estimate:
    """The mean of a method's values with an interval.

    Args:
        values: for each seed, the value of every window or item; ``(S, W)``.
        weights: predictions behind each window; empty: equally many.
    """
    array = np.asarray(values, dtype=float)
    if array.shape[0] == 1 and np.isin(array, (0, 1)).all():
        wilson = stats.binomtest(int(array.sum()), array.size).proportion_ci(LEVEL, method="wilson")
        return Estimate(float(array.mean()), wilson.low, wilson.high, math.nan, array.shape[1], 1)
    return replace(_mean(array, weights), p_value=math.nan)


def compare(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], weights: Sequence[int] = ()
) -> Estimate:
    """The mean difference ``a - b`` of two methods, seed by seed and window by window.

    Args:
        a: for each seed, the value of every window or item; ``(S, W)``. For perplexities these are mean
            negative log-likelihoods, so that the difference is one of log-perplexity.
        b: the same seeds and windows of the other method.
        weights: predictions behind each window; empty: equally many.

    Several seeds: :func:`over_seeds`. One seed: right or wrong answers (ones and zeros) by
    :func:`over_answers`, other values by :func:`over_windows`.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    with np.errstate(invalid="ignore"):  # inf - inf is a NaN on purpose
        differences = first - second
    answers = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
    if answers and len(differences) == 1:
        return over_answers(differences[0])
    return _mean(differences, weights)


def _mean(values: Array, weights: Sequence[int]) -> Estimate:
    """The weighted mean of ``(S, W)`` values. Each value is replaced by ``mean + w (value - mean)``, ``w``
    of mean 1: that has the same mean, and the variance of a ratio of two sums, which a weighted mean is."""
    scale = np.asarray(weights or [1.0] * values.shape[1], dtype=float)
    scale = scale / scale.mean()
    with np.errstate(invalid="ignore"):
        mean = float((values * scale).mean())
    if values.shape[1] < FEWEST or not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, math.nan, values.shape[1], values.shape[0])
    linear = mean + scale * (values - mean)
    return over_seeds(linear) if len(linear) > 1 else over_windows(linear[0])


def over_windows(values: Array) -> Estimate:
    """One seed, ``(W,)``: BCa bootstrap interval of the mean, and the permutation test of its being zero.

    For a difference of two models on the same windows, flipping a sign exchanges the two models' values of
    that window. Windows are taken to be independent draws of the text.
    """
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)):  # nothing varies: equal models, most of the time
        return Estimate(mean, mean, mean, float(mean == 0), len(values), 1)
    low, high = _bootstrap(values)
    test = stats.permutation_test(
        (values,),
        lambda sample, axis: sample.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(values)),
        rng=np.random.default_rng(0),
    )
    return Estimate(mean, low, high, float(test.pvalue), len(values), 1)


def over_answers(differences: Array) -> Estimate:
    """One seed, ``(N,)``: two models' right (1) minus wrong (0) answers to the same items. Bootstrap interval
    of the difference of the shares, and McNemar's exact test: a binomial test on the items only one of the
    models gets right."""
    only_a, only_b = int((differences == 1).sum()), int((differences == -1).sum())
    mean, units = float(differences.mean()), len(differences)
    if only_a + only_b == 0:
        return Estimate(mean, mean, mean, 1.0, units, 1)
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue)
    if units < FEWEST or units in (only_a, only_b):
        return Estimate(mean, math.nan, math.nan, p_value, units, 1)
    low, high = _bootstrap(differences)
    return Estimate(mean, low, high, p_value, units, 1)


def over_seeds(values: Array) -> Estimate:
    """Seeds and windows both random: ``d_sw = mean + seed_s + window_w + rest_sw``.

    The variance of the grand mean is split by the mean squares of the two-way layout into what seeds (and
    the rest) contribute and what windows add; the interval's half width is
    ``sqrt(t_(S-1)^2 V_seed + t_(W-1)^2 V_window)``, each part with the quantile of its own degrees of
    freedom: pooled degrees of freedom (Satterthwaite) reject too many true hypotheses at two seeds, and a
    bootstrap over two to five seeds covers less than it says (tests/unit/test_statistics.py).

    Args:
        values: ``(S, W)``, ``S`` at least 2.
    """
    seeds, windows = values.shape
    mean = float(values.mean())
    by_seed, by_window = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_window[None, :] + mean
    of_seed = float(by_seed.var(ddof=1)) / seeds
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (windows - 1)) / (seeds * windows)
    of_window = max(float(by_window.var(ddof=1)) / windows - of_rest, 0.0)
    if of_seed + of_window <= 1e-24 * max(1.0, mean * mean):
        return Estimate(mean, mean, mean, float(mean == 0), windows, seeds)

    def half_width(level: float) -> float:
        quantiles = stats.t.ppf((1 + level) / 2, [seeds - 1, windows - 1])
        return math.sqrt(quantiles[0] ** 2 * of_seed + quantiles[1] ** 2 * of_window)

    half = half_width(LEVEL)
    return Estimate(mean, mean - half, mean + half, _p_value(abs(mean), half_width), windows, seeds)


def _p_value(size: float, half_width: Callable[[float], float]) -> float:
    """One minus the level whose interval just reaches zero."""
    smallest = 1e-12
    if half_width(1 - smallest) <= size:
        return smallest
    return 1 - float(brentq(lambda level: half_width(level) - size, 0.0, 1 - smallest, xtol=1e-12))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment; values that are not numbers stay so and do not count."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def _bootstrap(values: Array) -> tuple[float, float]:
    result: Any = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(values)),
        method="BCa",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
