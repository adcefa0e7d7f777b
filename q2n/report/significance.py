"""How sure one can be of a difference between two cells measured on the same windows or items.

Two questions are kept apart:

* one seed: do *these two quantized models* differ on text like this? The windows (items) are the sample.
* several seeds: do the two *methods* differ? Another calibration sample gives another model, so both the
  windows and the seeds are samples; with windows alone two identical pipelines with different seeds would
  be told apart far too often.

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
RESAMPLES = 4999
FEWEST = 5
"""Windows below which no interval is given: a bootstrap of four values knows next to nothing."""
_BATCH = 2**22
"""Values of one batch of resamples: 32 MB."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A mean difference ``a - b``, its interval, and the p-value of there being none.

    ``units`` windows or items and ``seeds`` stand behind it; the interval and ``p_value`` are NaN where
    nothing can be said.
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
    """Compare two methods seed by seed and window by window.

    Args:
        a: for each seed, the value of every window or item; ``(S, W)``.
        b: the same seeds and windows of the other method.
        weights: predictions behind each window; empty: equally many.

    Several seeds: :func:`over_seeds`. One seed: right or wrong answers by :func:`paired_answers`, other
    values by :func:`paired_windows`.
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
    """Two models on the same windows: BCa bootstrap interval of the mean difference, and the permutation
    test that exchanges the two models' values window by window.

    For perplexities the values are mean log-likelihoods, so the difference is one of log-perplexity. Windows
    are taken to be independent draws of the text.
    """
    differences = a - b if scale is None else _linear((a - b)[None], scale)[0]
    mean = float(differences.mean())
    if len(differences) < FEWEST:
        return _unknown(mean, (1, len(differences)))
    if np.ptp(differences) < 1e-12 * max(1.0, abs(mean)):  # nothing varies: equal models, most of the time
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
    """Two models' right (1) and wrong (0) answers to the same items: bootstrap interval (percentiles) of the
    difference of the shares, and McNemar's exact test: a binomial test on the items only one of them gets
    right."""
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    mean = float((a - b).mean())
    if only_a + only_b == 0:
        return Comparison(mean, mean, mean, 1.0, len(a), 1)
    draws = np.random.default_rng(0).multinomial(
        len(a), np.array([only_a, only_b, len(a) - only_a - only_b]) / len(a), size=RESAMPLES
    )
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / len(a), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue)
    if len(a) < FEWEST or len(a) in (only_a, only_b):  # nothing to resample: the test stands alone
        return Comparison(mean, math.nan, math.nan, p_value, len(a), 1)
    return Comparison(mean, float(low), float(high), p_value, len(a), 1)


def over_seeds(differences: Array) -> Comparison:
    """Seeds and windows both random: ``d_sw = mean + seed_s + window_w + rest_sw``.

    The variance of the grand mean is split by the mean squares of the two-way layout into what seeds (and
    the rest) contribute and what windows add; the interval's half width is
    ``sqrt(t_(S-1)^2 V_seed + t_(W-1)^2 V_window)``, each part with the quantile of its own degrees of
    freedom. Pooling them (Satterthwaite) rejects too many true hypotheses for two seeds
    (benchmarks/significance.py), and a bootstrap over two to five seeds would resample next to nothing; this
    one keeps its level from two seeds on (tests/unit/report/test_significance.py).

    Args:
        differences: ``(S, W)``, ``S`` at least 2.
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
    """One minus the level whose interval just reaches zero."""
    smallest = 1e-12
    if half_width(1 - smallest) <= size:
        return smallest
    return 1 - float(brentq(lambda level: half_width(level) - size, 0.0, 1 - smallest, xtol=1e-12))


def _linear(differences: Array, scale: Array) -> Array:
    """``(S, W)`` values whose plain mean is the weighted one, ``scale`` ``(W,)`` having mean 1.

    ``mean + scale * (d - mean)``: a weighted mean is a ratio of two sums, and this has the ratio's variance
    to first order; ``scale * d`` would count the spread of the weights as uncertainty.
    """
    mean = float((differences * scale).mean())
    return mean + scale * (differences - mean)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment; values that are not numbers stay so and do not count."""
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
