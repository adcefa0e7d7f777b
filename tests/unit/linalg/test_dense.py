"""Factorisations and spectra of matrices that are zero, singular, tiny or too large."""

import pytest
import torch
from helpers.hard_inputs import LARGE, SMALL

from q2n.exceptions import NumericalError
from q2n.linalg import dense as linalg
from q2n.linalg.dense import damped_inverse_factor, lower_factor, symmetric_spectrum, within_range
from q2n.pipeline.calibration import Accumulators
from q2n.types import Statistic

DAMPING = [0.01, 0.1, 1.0]
WIDTHS = (1, 7, 200)


def gram_of(inputs, width=7, dtype=torch.float32):
    accumulators = Accumulators([Statistic.GRAM])
    accumulators.update(inputs(2, 40, width).to(dtype))
    return accumulators.result().gram


def alive(gram):
    """As the solver of GPTQ does it: a dead column gets the diagonal 1."""
    return gram + torch.diag((gram.diagonal() == 0).to(gram))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SMALL)
def test_every_gram_matrix_has_a_damped_inverse(name, width):
    hessian = alive(gram_of(SMALL[name], width))
    factor = damped_inverse_factor(hessian, DAMPING)
    assert bool(factor.upper.isfinite().all())
    assert bool((factor.upper.diagonal() > 0).all())
    damped = hessian.double() + factor.damping * hessian.double().diagonal().mean() * torch.eye(width)
    scale = damped.diagonal().rsqrt()  # as correlations, which all have the same size
    wanted = torch.linalg.inv(damped * scale * scale[:, None])
    upper = factor.upper.double() / scale
    assert torch.allclose(upper.T @ upper, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_gram_matrix_has_a_spectrum(name, width, dtype):
    gram = gram_of(SMALL[name], width)
    spectrum = symmetric_spectrum(gram, dtype)
    assert bool(spectrum.values.isfinite().all())
    assert torch.allclose(spectrum.vectors.T @ spectrum.vectors, torch.eye(width, dtype=dtype), atol=1e-4)


@pytest.mark.parametrize("name", LARGE)
def test_a_matrix_that_is_not_finite_is_refused(name):
    gram = gram_of(LARGE[name])
    for work in (symmetric_spectrum, lambda matrix: damped_inverse_factor(matrix, DAMPING)):
        with pytest.raises(NumericalError, match=r"\d+ of 49 entries are not finite"):
            work(gram)


def test_a_matrix_too_large_for_the_precision_is_refused():
    matrix = torch.eye(3, dtype=torch.float64) * 1e60
    assert float(symmetric_spectrum(matrix).values[0]) == 1e60
    with pytest.raises(NumericalError, match="decomposed in float32: 3 of 9"):
        symmetric_spectrum(matrix, torch.float32)


def test_a_decomposition_that_does_not_converge_says_so(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge\nand more")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(NumericalError, match=r"\(3 columns, float64\) failed: .*converge$"):
        symmetric_spectrum(torch.eye(3))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SMALL)
def test_within_range_a_hundredth_of_the_diagonal_is_enough(name, width):
    gram = gram_of(SMALL[name], width)
    used = within_range(gram)
    damped = used.double()
    damped.diagonal().add_(0.01 * float(used.diagonal().mean()))
    assert lower_factor(damped) is not None
    assert 0 < float(used.trace()) < float("inf")
    if float(gram.max()) > linalg.NO_GRAM:
        assert torch.allclose(used * float(gram.diagonal().max() / used.diagonal().max()), gram, rtol=1e-5)
    else:
        assert torch.equal(used, torch.eye(width))


def test_within_range_leaves_what_is_in_range_alone():
    gram = gram_of(SMALL["one outlier"])
    assert within_range(gram) is gram
    with pytest.raises(NumericalError):
        damped_inverse_factor(within_range(gram_of(LARGE["NaN"])), DAMPING)
