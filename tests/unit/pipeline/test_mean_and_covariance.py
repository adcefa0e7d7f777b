"""The mean input and the centred second moment derived from it, against their definitions."""

import pytest
import torch

from q2n.pipeline.calibration import Accumulators
from q2n.types import Statistic

N, T, C = 6, 50, 12


def inputs():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(C, C, generator=generator)
    return torch.randn(N, T, C, generator=generator) @ mixing + 3 * torch.randn(C, generator=generator)


def measured(batches):
    accumulators = Accumulators([Statistic.GRAM, Statistic.MEAN, Statistic.ABS_MEAN])
    for batch in batches:
        accumulators.update(batch)
    return accumulators.result()


@pytest.mark.parametrize("batch_size", [1, 4, N])
def test_mean_and_covariance_are_those_of_all_tokens(batch_size):
    stats, rows = measured(inputs().split(batch_size)), inputs().double().flatten(0, 1)
    assert torch.allclose(stats[Statistic.MEAN].double(), rows.mean(dim=0), rtol=1e-6, atol=1e-6)
    covariance = torch.cov(rows.T, correction=0)
    assert torch.allclose(stats.covariance, covariance, rtol=0, atol=1e-5 * float(covariance.max()))
    centred = rows - rows.mean(dim=0)
    expected = 2 / N * centred.T @ centred
    assert torch.allclose(stats.centred_gram, expected, rtol=0, atol=1e-5 * float(expected.max()))
    assert not torch.allclose(stats.centred_gram, stats.gram.double(), rtol=0.1)


def test_a_linear_map_of_the_inputs_moves_mean_and_covariance():
    right = torch.randn(8, C, generator=torch.Generator().manual_seed(1))
    mapped, direct = measured([inputs()]).mapped(right), measured([inputs() @ right.T])
    assert torch.allclose(mapped[Statistic.MEAN], direct[Statistic.MEAN], atol=1e-4)
    assert torch.allclose(mapped.covariance, direct.covariance, atol=1e-5 * float(direct.covariance.max()))
    assert Statistic.ABS_MEAN not in mapped


def test_a_rescaling_of_the_inputs_moves_mean_and_covariance():
    factor = torch.linspace(0.1, 2, C)
    scaled, direct = measured([inputs()]).scaled(factor), measured([inputs() * factor])
    assert torch.allclose(scaled[Statistic.MEAN], direct[Statistic.MEAN], atol=1e-5)
    assert torch.allclose(scaled.covariance, direct.covariance, atol=1e-5 * float(direct.covariance.max()))
