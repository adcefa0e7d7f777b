"""Comparisons of cells: against direct computations, and how often they are wrong when nothing is there."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from helpers.layers import layer
from scipy import stats

from q2n.baselines.quip import QuIP
from q2n.corrections.none import NoCorrection
from q2n.linalg.dense import quadratic_rows
from q2n.report.significance import compare, holm, over_seeds, paired_answers, paired_windows

NOMINAL = 0.05


def rejections(draw, runs):
    """How many of ``runs`` true null hypotheses are rejected at the nominal level."""
    return sum(draw().p_value < NOMINAL for _ in range(runs))


def plausible(rejected, runs, level=NOMINAL):
    """Whether so many rejections are no surprise for a test that keeps its level (not more than it)."""
    return stats.binomtest(rejected, runs, level, alternative="greater").pvalue > 1e-3


def test_a_paired_difference_is_the_mean_difference_with_a_t_like_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3.0, 1.0, 200), rng.normal(2.9, 1.0, 200)
    found = paired_windows(a, b)
    expected = stats.ttest_rel(a, b)
    assert found.difference == pytest.approx(np.mean(a - b))
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert (found.units, found.seeds) == (200, 1)


def test_windows_with_more_predictions_count_more():
    a, b, weights = [[2.0] * 9 + [5.0]], [[1.0] * 10], [1] * 9 + [3]
    assert compare(a, b, weights).difference == pytest.approx((9 * 1 + 3 * 4) / 12)


def test_uneven_weights_are_no_uncertainty():
    """A weighted mean is a ratio: its interval is that of the ratio's bootstrap, and shifting all differences
    shifts the interval without widening it."""
    rng = np.random.default_rng(0)
    b, weights = np.zeros(60), [1, 5] * 30
    a = 2.0 + 0.1 * rng.normal(size=60)
    found = compare([a], [b], weights)
    drawn = rng.integers(0, 60, (4000, 60))
    heavy = np.array(weights, dtype=float)
    ratios = (a * heavy)[drawn].sum(1) / heavy[drawn].sum(1)
    assert (found.low, found.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.01)
    moved = compare([a + 10], [b], weights)
    assert moved.high - moved.low == pytest.approx(found.high - found.low)
    several = compare([a, a + 0.01], [b, b], weights)
    assert several.high - several.low < 0.5


def test_answers_that_all_turned_around_have_a_test_and_no_interval():
    found = compare([[1.0] * 12], [[0.0] * 12])
    assert found.p_value == pytest.approx(2 * 0.5**12)
    assert math.isnan(found.low)


def test_a_task_of_many_items_is_compared_in_bounded_memory():
    """All resamples of single items at once would take half a gigabyte."""
    rng = np.random.default_rng(0)
    a = (rng.random(12_000) < 0.6).astype(float)
    b = np.where(rng.random(12_000) < 0.1, 1 - a, a)
    tracemalloc.start()
    found = compare([a], [b])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    spread = (a - b).std() / math.sqrt(12_000)
    assert (found.low, found.high) == pytest.approx(
        (found.difference - 1.96 * spread, found.difference + 1.96 * spread), abs=0.1 * spread
    )
    assert peak < 200 * 2**20


def test_right_answers_are_compared_by_mcnemars_exact_test():
    a = np.array([1.0] * 30 + [0.0] * 12 + [1.0] * 50 + [0.0] * 8)
    b = np.array([0.0] * 30 + [1.0] * 12 + [1.0] * 50 + [0.0] * 8)
    found = compare([a], [b])
    assert found == paired_answers(a, b)
    assert found.difference == pytest.approx(0.18)
    assert found.p_value == pytest.approx(2 * stats.binom.cdf(12, 42, 0.5))
    assert found.low < 0.18 < found.high


@pytest.mark.parametrize("values", [[[1.0, 0.0, 1.0] * 5], [[0.5, 0.25, 0.75] * 5], [[0.5] * 9, [0.25] * 9]])
def test_equal_cells_do_not_differ(values):
    found = compare(values, values)
    assert (found.difference, found.p_value) == (0.0, 1.0)


def test_nothing_is_said_of_too_few_windows_or_of_what_is_no_number():
    for values in ([[1.0, 2.0, 3.0, 4.0]], [[1.0] * 9 + [math.inf]], [[1.0, 2.0, 3.0]] * 3):
        other = [[0.5] * len(values[0])] * len(values)
        found = compare(values, other)
        assert math.isnan(found.p_value)
        assert math.isnan(found.low)


def test_holm_is_its_definition():
    values = [0.01, 0.04, 0.03, 0.005, math.nan]
    adjusted = holm(values)
    assert adjusted[:4] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(adjusted[4])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_rejects_a_true_hypothesis_of_a_table_as_rarely_as_it_says():
    rng = np.random.default_rng(0)
    tables = rng.random((2000, 12))
    wrong = sum(min(holm(list(table))) < NOMINAL for table in tables)
    assert plausible(wrong, 2000)
    assert wrong > 50, "not by rejecting nothing"


@pytest.mark.parametrize("windows", [12, 32])
def test_one_seed_keeps_its_level_over_windows(windows):
    rng = np.random.default_rng(windows)
    rejected = rejections(lambda: paired_windows(rng.normal(size=windows), rng.normal(size=windows)), 200)
    assert plausible(rejected, 200)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0.1, 1, 0.3), (1, 0.1, 0.3)], ids=str)
def test_several_seeds_keep_their_level_whatever_varies(seeds, spread):
    """Parts of the variance that belong to seeds, to windows, and to neither."""
    rng = np.random.default_rng(seeds)
    of_seed, of_window, rest = spread

    def draw():
        shape = (seeds, 32)
        return over_seeds(
            of_seed * rng.normal(size=(seeds, 1))
            + of_window * rng.normal(size=(1, 32))
            + rest * rng.normal(size=shape)
        )

    assert plausible(rejections(draw, 250), 250)


def test_intervals_over_seeds_cover_the_truth_and_are_not_boundless():
    rng = np.random.default_rng(0)
    found = [over_seeds(0.3 + 0.2 * rng.normal(size=(3, 1)) + rng.normal(size=(3, 64))) for _ in range(300)]
    covered = sum(item.low <= 0.3 <= item.high for item in found)
    assert plausible(300 - covered, 300)
    assert np.median([item.high - item.low for item in found]) < 2


def test_a_real_difference_is_found():
    rng = np.random.default_rng(0)
    found = over_seeds(0.5 + 0.05 * rng.normal(size=(3, 1)) + 0.3 * rng.normal(size=(3, 32)))
    assert found.p_value < 0.01
    assert found.low > 0


def pipeline_losses(seeds):
    """Output errors of one and the same pipeline (QuIP, whose rotations follow the seed) by seed, for 24
    batches of inputs."""
    problem = layer(16, 24)
    batches = torch.randn(24, 30, 24, generator=torch.Generator().manual_seed(1))
    rows = []
    for seed in seeds:
        weight = QuIP(bits=2, seed=seed).solve(problem, NoCorrection()).corrected.weight
        error = (problem.weight - weight).double()
        rows.append([float(quadratic_rows(error, (x.T @ x).double()).sum()) for x in batches])
    return np.log(np.array(rows))


def test_two_identical_pipelines_are_told_apart_as_rarely_as_the_level_says():
    """Only the seeds differ. The windows of one seed alone would tell the two apart nearly always: that
    question is about two models, not about two methods."""
    losses = pipeline_losses(range(240))
    groups = losses.reshape(40, 2, 3, -1)
    rejected = sum(over_seeds(a - b).p_value < NOMINAL for a, b in groups)
    assert plausible(rejected, len(groups))
    single = sum(compare([a[0]], [b[0]]).p_value < NOMINAL for a, b in groups)
    assert single > len(groups) / 2
