"""Intervals and paired tests for the difference of two cells measured on the same windows or items.

The number of seeds decides which question is answered:

* one seed: do *these two quantized models* differ on text like this? The windows (items) are the sample.
* several seeds: do the two *methods* differ? Another calibration sample gives another model, so windows and
  seeds are both samples. With windows alone, two identical pipelines with different seeds would differ
  significantly far too often.

Only the second question is about methods, so only it can decide on a difference (:attr:`Comparison.seeds`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

LEVEL = 0.95
"""Confidence level of every interval."""
RESAMPLES = 4999
"""Resamples of a bootstrap or permutation test."""
FEWEST = 5
"""Fewest windows with an interval: a bootstrap of four values has next to no information."""
_BATCH = 2**22
"""float64 values in one batch of resamples: 32 MiB."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Mean difference ``a - b`` with its 95 % interval and two-sided p-value.

    ``units`` is the number of windows or items, ``seeds`` that of seeds. The interval and ``p_value`` are NaN
    if the sample does not allow any.
    """

    difference: float
    low: float
    high: float
    p_value: float
    units: int
    seeds: int


def compare(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], weights: Sequence[int] = ()
) -> Comparison:
    """Compare two methods, paired by seed and by window.

    Several seeds use :func:`over_seeds`. One seed uses :func:`paired_answers` for right or wrong answers and
    :func:`paired_windows` for other values.

    Args:
        a: values of one method per seed and window (or item), ``(S, W)``.
        b: values of the other method for the same seeds and windows, ``(S, W)``.
        weights: number of predictions per window, ``(W,)``; empty if it is the same for all windows.

    Returns:
        The comparison; interval and p-value are NaN if a value is not finite.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    scale = np.asarray(weights, dtype=float) if len(weights) else np.ones(first.shape[1])
    scale = scale / scale.mean()
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return _unknown(float("nan"), first.shape)
    if first.shape[0] > 1:
        return over_seeds(_linear(first - second, scale))
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        return paired_answers(first[0], second[0])
    return paired_windows(first[0], second[0], scale)


def paired_windows(a: Array, b: Array, scale: Array | None = None) -> Comparison:
    """Compare two models by a BCa bootstrap interval and a paired permutation test of the mean difference.

    The permutation exchanges the two models' values within a window. For perplexities the values are mean
    log-likelihoods, so the difference is one of log-perplexity. Windows are assumed to be independent.

    Args:
        a: one model's value per window, ``(W,)``.
        b: the other model's value per window, ``(W,)``.
        scale: weight per window with mean 1, ``(W,)``, or None for equal weights.
    """
    differences = a - b if scale is None else _linear((a - b)[None], scale)[0]
    mean = float(differences.mean())
    if len(differences) < FEWEST:
        return _unknown(mean, (1, len(differences)))
    if np.ptp(differences) < 1e-12 * max(
        1.0, abs(mean)
    ):  # nothing varies, mostly because the models are equal
        return Comparison(mean, mean, mean, float(mean == 0), len(differences), 1)
    low, high = _bootstrap(differences)
    test = stats.permutation_test(
        (differences,),
        lambda sample, axis: sample.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(differences)),
        rng=np.random.default_rng(0),
    )
    return Comparison(mean, low, high, float(test.pvalue), len(differences), 1)


def paired_answers(a: Array, b: Array) -> Comparison:
    """Compare two models' right (1) and wrong (0) answers to the same items, ``(W,)`` each.

    The interval of the difference in accuracy is a percentile bootstrap: BCa took seconds per comparison of
    12,000 answers (docs/LOG.md). The test is McNemar's exact one: a binomial test on the items that only one
    model gets right.
    """
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    mean = float((a - b).mean())
    if only_a + only_b == 0:
        return Comparison(mean, mean, mean, 1.0, len(a), 1)
    draws = np.random.default_rng(0).multinomial(
        len(a), np.array([only_a, only_b, len(a) - only_a - only_b]) / len(a), size=RESAMPLES
    )
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / len(a), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue)
    if len(a) < FEWEST or len(a) in (only_a, only_b):  # too little variation to resample: test only
        return Comparison(mean, math.nan, math.nan, p_value, len(a), 1)
    return Comparison(mean, float(low), float(high), p_value, len(a), 1)


def over_seeds(differences: Array) -> Comparison:
    """Compare two methods with seeds and windows both random: ``d_sw = mean + seed_s + window_w + rest_sw``.

    The mean squares of the two-way layout split the variance of the grand mean into the contribution of the
    seeds (with the rest), ``V_seed``, and that of the windows, ``V_window``. The interval's half width is
    ``sqrt(t_(S-1)^2 V_seed + t_(W-1)^2 V_window)``: each part has the quantile of its own degrees of
    freedom. Pooled degrees of freedom (Satterthwaite) reject too many true hypotheses for two seeds
    (benchmarks/significance.py), and a bootstrap over two to five seeds would resample next to nothing. This
    interval keeps its level from two seeds on (tests/unit/report/test_significance.py).

    Args:
        differences: paired differences per seed and window, ``(S, W)``, with ``S`` at least 2.
    """
    seeds, windows = differences.shape
    mean = float(differences.mean())
    if windows < FEWEST:
        return _unknown(mean, (seeds, windows))
    by_seed, by_window = differences.mean(axis=1), differences.mean(axis=0)
    rest = differences - by_seed[:, None] - by_window[None, :] + mean
    of_seed = float(by_seed.var(ddof=1)) / seeds
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (windows - 1)) / (seeds * windows)
    of_window = max(float(by_window.var(ddof=1)) / windows - of_rest, 0.0)
    if of_seed + of_window <= 1e-24 * max(1.0, mean * mean):
        return Comparison(mean, mean, mean, float(mean == 0), windows, seeds)

    def half_width(level: float) -> float:
        quantiles = np.asarray(stats.t.ppf((1 + level) / 2, [seeds - 1, windows - 1]))
        return math.sqrt(quantiles[0] ** 2 * of_seed + quantiles[1] ** 2 * of_window)

    half = half_width(LEVEL)
    return Comparison(mean, mean - half, mean + half, _p_value(abs(mean), half_width), windows, seeds)


def _p_value(size: float, half_width: Callable[[float], float]) -> float:
    """One minus the level whose interval just reaches zero, at least 1e-12."""
    smallest = 1e-12
    if half_width(1 - smallest) <= size:
        return smallest
    return 1 - float(brentq(lambda level: half_width(level) - size, 0.0, 1 - smallest, xtol=1e-12))


def _linear(differences: Array, scale: Array) -> Array:
    """Values ``(S, W)`` whose plain mean is the weighted mean; ``scale`` ``(W,)`` has mean 1.

    A weighted mean is a ratio of two sums, and ``mean + scale * (d - mean)`` has the variance of that ratio
    to first order; ``scale * d`` would count the spread of the weights as uncertainty.
    """
    mean = float((differences * scale).mean())
    return mean + scale * (differences - mean)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; NaN stays NaN and does not count as a test."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def _bootstrap(differences: Array) -> tuple[float, float]:
    result: Any = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(differences)),
        method="BCa",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _unknown(difference: float, shape: tuple[int, ...]) -> Comparison:
    nan = float("nan")
    return Comparison(difference, nan, nan, nan, shape[1], shape[0])
