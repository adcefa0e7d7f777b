"""One and two threads give the same bits, also where torch divides a decomposition or a sum among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.baselines import BASELINES, ON
from helpers.runs import run, same_state, tokens

from q2n.corrections.nullspace.decompose import singular_spectrum
from q2n.diagnostics.null_space import NullSpaceMeasures
from q2n.linalg.dense import invert_factor, symmetric_spectrum
from q2n.linalg.kernels.threads import STEADY, steady
from q2n.quantization.transforms import kronecker, rotation


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_threads(compute):
    """What it returns in one and in two threads."""
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(compute())
        assert torch.get_num_threads() == count
    return found


def definite(size):
    rows = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return rows.T @ rows / size


def inverted(size):
    matrix = definite(size)
    assert invert_factor(matrix)
    return matrix


DECOMPOSITIONS = {
    "eigenvectors": lambda size: symmetric_spectrum(definite(size)).vectors,
    "cholesky": inverted,
    "singular vectors": lambda size: singular_spectrum(definite(size)).vectors,
    "rotation": lambda size: rotation.random_rotation(size, "orthogonal", 0).matrix,
    "kronecker": lambda size: kronecker.special_orthogonal(size, torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("size", [64, 192, STEADY])
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_decompositions(name, size):
    one, two = in_threads(lambda: DECOMPOSITIONS[name](size))
    assert torch.equal(one, two)


def test_a_large_factor_is_made_of_small_ones():
    one, two = in_threads(lambda: inverted(1000))
    assert torch.equal(one, two)


def test_only_what_gains_nothing_is_kept_in_one_thread():
    torch.set_num_threads(2)
    with steady(STEADY):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with steady(STEADY + 1):
        assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline(name, family):
    """On enough tokens for every sum over activations to be divided."""

    def quantized():
        diagnostics = NullSpaceMeasures(heldout_sequences=0)
        return run(BASELINES[name], ON, family, ids=tokens(16, 128), diagnostics=diagnostics)

    one, two = in_threads(quantized)
    assert same_state(one, two)
    timeless = [
        [replace(it, solve_seconds=0.0, correct_seconds=0.0) for it in found.reports] for found in (one, two)
    ]
    assert timeless[0] == timeless[1]
