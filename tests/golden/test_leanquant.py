"""LeanQuant against the official class and the k-means it calls."""

import numpy as np
import pytest
import torch
from golden.golden_data import Golden, check_row_scales, relative
from sklearn.cluster import KMeans

from q2n.baselines.leanquant import LeanQuant
from q2n.quantization.formats.kmeans import cluster_rows
from q2n.quantization.formats.lut import LutSpec
from q2n.quantization.solvers.obs import solve_obs
from q2n.quantization.solvers.reference import activation_order

CASES = ["leanquant_w2_p4", "leanquant_w2_p4_actorder", "leanquant_w3_p3_actorder"]


def baseline(settings):
    return LeanQuant(
        bits=settings["bits"],
        exponent=settings["exponent"],
        act_order=settings["act_order"],
        percdamp=settings["percdamp"],
        percdamp_schedule=[],
    )


def ascending(data):
    """The file's tables and codes with every row's levels in rising order."""
    table, place = data["lut"].sort(dim=1)
    return table, torch.argsort(place, dim=1).gather(1, data["codes"].long()).to(torch.uint8)


@pytest.mark.parametrize("case", CASES)
def test_tables_codes_and_weights_are_the_official_ones(case):
    data = Golden(case)
    problem = data.problem()
    result = baseline(data.settings).quantize(problem)
    table, codes = ascending(data)
    assert relative(result.format.table, table) < 1e-5
    assert torch.equal(result.format.codes, codes)
    assert torch.equal(result.order, data["perm"])
    assert relative(result.weight, data["Q"]) < 1e-5
    assert relative(result.compensated, data["W_comp"]) < 1e-5
    assert result.diagnostics["loss"] == pytest.approx(float(data["obs_loss"]), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_solver_with_the_official_tables(case):
    data = Golden(case)
    problem = data.problem()
    settings = data.settings
    grid = LutSpec(settings["bits"], settings["exponent"], tables=data["lut"])
    order = activation_order(problem.stats.gram) if settings["act_order"] else None
    result = solve_obs(problem, grid, [settings["percdamp"]], order)
    assert torch.equal(result.format.codes, ascending(data)[1])
    assert relative(result.weight, data["Q"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_row_scales_match_the_float64_reference(case):
    data = Golden(case)
    problem = data.problem()
    check_row_scales(data, baseline(data.settings).quantize(problem), problem)


@pytest.mark.parametrize("clusters", [4, 8, 16, 32])
def test_clusters_are_scikit_learns(clusters):
    generator = np.random.default_rng(clusters)
    values = generator.standard_t(4, size=(12, 150)).astype(np.float32)
    values[0, 0] = 60.0  # leaves evenly spaced starts without values
    weights = (generator.random(150) + 0.05).astype(np.float32)
    found = cluster_rows(torch.from_numpy(values), torch.from_numpy(weights), clusters, seed=0)
    for row, centres in zip(values, found.numpy(), strict=True):
        start = "k-means++"
        if clusters <= 8:
            start = np.linspace(row.min(), row.max(), clusters)[:, None]
        reference = KMeans(clusters, init=start, n_init="auto", max_iter=100, tol=1e-6, random_state=0)
        reference.fit(row[:, None], sample_weight=weights)
        levels = np.sort(reference.cluster_centers_[:, 0])
        distance = np.abs(row[:, None] - centres).min(axis=1)
        assert (weights * distance**2).sum() == pytest.approx(reference.inertia_, rel=1e-4)
        assert np.abs(centres - levels).max() < 1e-5 * np.abs(levels).max()
