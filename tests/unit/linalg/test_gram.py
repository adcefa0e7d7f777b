"""Gram matrices against float64, with and without oneDNN's product."""

import pytest
import torch
from helpers.hard_inputs import LARGE, SMALL

from q2n.linalg import bf16_product as onednn
from q2n.linalg import gram
from q2n.linalg.dense import quadratic_rows
from q2n.pipeline.calibration import Accumulators
from q2n.types import Statistic

WIDTHS = (1, 7, 192, 193, 576, 1537)


def inputs(width, dtype, rows=1100):
    """Columns of different size, correlated and not centred, as a layer's inputs are."""
    generator = torch.Generator().manual_seed(width)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    scales = torch.logspace(-2, 1, width)[torch.randperm(width, generator=generator)]
    rows = torch.randn(rows, width, generator=generator) @ mixing + torch.randn(width, generator=generator)
    return (rows * scales).to(dtype)


def lower_errors(total, rows):
    """Errors of the lower triangle in units of the product of both columns' norms."""
    exact = rows.double().T @ rows.double()
    norms = exact.diagonal().sqrt()
    return ((total.double() - exact) / norms / norms[:, None]).tril().abs()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_lower_triangle_is_that_of_the_exact_product(width, dtype):
    rows = inputs(width, dtype)
    total = torch.zeros(width, width)
    for part in rows.split(300):
        gram.add_gram(total, part)
    assert float(lower_errors(total, rows).max()) < 2e-6


@pytest.mark.parametrize("width", [7, 1024, 1300, 2049])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_triangle_measures_what_the_whole_matrix_does(width, dtype):
    batch = inputs(width, dtype, rows=256).view(2, 128, width)
    errors = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    accumulators = Accumulators({Statistic.GRAM, Statistic.TRIANGLE})
    accumulators.update(batch)
    accumulators.update(batch.flip(1))
    stats = accumulators.result()
    whole = quadratic_rows(errors, stats.gram)
    assert torch.allclose(quadratic_rows(errors, stats[Statistic.TRIANGLE]), whole, rtol=1e-6)
    assert stats[Statistic.TRIANGLE].numel() <= width * (width + gram.STRIP) / 2
    assert stats.output_form is stats.gram


def test_a_view_with_other_strides_is_the_same_input():
    rows = inputs(40, torch.bfloat16)
    one, other = torch.zeros(40, 40), torch.zeros(40, 40)
    gram.add_gram(one, rows)
    gram.add_gram(other, rows.T.contiguous().T)
    assert torch.equal(one, other)


@pytest.mark.skipif(not onednn.available(), reason="needs oneDNN and a processor that multiplies bfloat16")
@pytest.mark.parametrize("width", WIDTHS)
def test_products_of_bfloat16_are_as_near_to_float64_as_converted_ones(width, monkeypatch):
    rows = inputs(width, torch.bfloat16, rows=4096)
    native, converted = torch.zeros(width, width), torch.zeros(width, width)
    gram.add_gram(native, rows)
    monkeypatch.setattr(onednn, "available", lambda: False)
    gram.add_gram(converted, rows)
    errors, others = (lower_errors(total, rows).square().mean().sqrt() for total in (native, converted))
    assert float(errors) < 2 * float(others) + 1e-8


def test_without_the_package_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(onednn, "PACKAGE", "no-such-package")
    onednn._gemm.cache_clear()
    try:
        assert not onednn.available()
    finally:
        onednn._gemm.cache_clear()


def test_a_wrong_product_is_not_used():
    assert not onednn._is_right(lambda *arguments: 0)
    assert not onednn._is_right(lambda *arguments: 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulated_matrix_is_symmetric_and_scaled(dtype):
    batch = inputs(200, dtype, rows=96).reshape(4, 24, 200)
    accumulators = Accumulators([Statistic.GRAM])
    for part in batch.split(3):
        accumulators.update(part)
    found = accumulators.result().gram
    exact = batch.double().flatten(0, 1)
    assert torch.equal(found, found.T)
    assert torch.allclose(found.double(), 2 / 4 * exact.T @ exact, rtol=1e-4, atol=1e-6 * float(found.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 200])
@pytest.mark.parametrize("name", SMALL)
def test_inputs_of_every_kind_have_a_gram_matrix(name, width, dtype):
    batch = SMALL[name](2, 30, width).clamp(-6e4, 6e4).to(dtype)
    accumulators = Accumulators([Statistic.GRAM, Statistic.TRIANGLE])
    accumulators.update(batch)
    stats = accumulators.result()
    assert bool(stats.gram.isfinite().all())
    assert torch.equal(stats.gram, stats.gram.T)
    exact = batch.double().flatten(0, 1)
    exact = exact.T @ exact
    # Some products take what is subnormal for zero.
    assert torch.allclose(stats.gram.double(), exact, rtol=1e-4, atol=1e-6 * float(exact.max()) + 1e-37)
    assert torch.allclose(gram.diagonal(stats[Statistic.TRIANGLE], width), stats.gram.diagonal(), rtol=1e-5)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("width", [7, 1300])
def test_the_diagonal_tells_no_numbers_from_numbers_too_large(name, width):
    accumulators = Accumulators([Statistic.TRIANGLE])
    accumulators.update(LARGE[name](1, 5, width))
    diagonal = gram.diagonal(accumulators.result()[Statistic.TRIANGLE], width)
    assert bool(diagonal.isnan().any()) == (name == "NaN")
    assert bool(diagonal.isinf().any()) == (name != "NaN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 200])
def test_one_row_may_have_any_stride(width, dtype):
    """Torch calls a transposed column contiguous and leaves its stride at 1, which oneDNN refuses."""
    row = torch.linspace(-1, 1, width)[:, None].to(dtype).T
    total = torch.zeros(width, width)
    gram.add_gram(total, row)
    assert torch.equal(total.tril(), (row.float().T @ row.float()).tril())
