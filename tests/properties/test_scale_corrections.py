"""Least-squares row scales and group scales: against definitions in float64, whatever the format."""

from dataclasses import replace

import pytest
import torch
from helpers.corrections import BASELINES, C, R, output_errors, problem, quantized, root
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.baselines.rtn import RTN
from q2n.corrections.groupwise import GroupwiseScale
from q2n.corrections.lstsq import LeastSquaresScale
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.alpha import row_scale
from q2n.corrections.nullspace.rank import prefix_suffix_rank
from q2n.corrections.output_error import row_products
from q2n.exceptions import NumericalError
from q2n.quantization.formats.base import scale_count, scale_groups, scale_index
from q2n.types import LinearProblem, Statistic, Statistics

NAMES = list(BASELINES)
GROUPED = ["gptq", "gptq, ordered", "rtn", "owq", "pbllm", "quip, groups"]


def parts(base):
    """``(R, G, C)`` float64: what each scale of a row multiplies, and the rest, so that all add up."""
    index, count = scale_index(base.format), scale_count(base.format)
    index = index.expand(base.weight.shape)
    held = torch.stack([index == group for group in range(count)], dim=1)
    pieces = held * base.weight.double()[:, None]
    return pieces, base.weight.double() - pieces.sum(dim=1)


# --- one factor a row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("lam", "damping"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5)])
def test_lstsq_is_the_least_squares_problem_it_states(name, lam, damping):
    given_, base = quantized(name)
    result = LeastSquaresScale(lam=lam, damping=damping).correct(given_, base)
    gram = given_.stats.gram.double()
    inputs = root(gram + damping * gram.diagonal().mean() * torch.eye(C))
    kept = torch.zeros(C, dtype=torch.bool) if base.kept is None else base.kept
    scaled = base.weight.double().masked_fill(kept, 0)
    wanted = base.original.double() - base.weight.double() + scaled
    for row, values, alpha in zip(wanted, scaled, result.diagnostics["alpha"], strict=True):
        # The penalty is one more equation: sqrt(lam) |X q| (alpha - 1) = 0.
        image = inputs @ values
        weight = lam**0.5 * image.norm()
        left = torch.cat([image, weight[None]])[:, None]
        right = torch.cat([inputs @ row, weight[None]])[:, None]
        assert float(alpha) == pytest.approx(float(torch.linalg.lstsq(left, right).solution), abs=1e-4)
    assert (result.diagnostics["alpha"] - 1).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_no_factor_a_row_does_better_than_lstsq(name):
    given_, base = quantized(name)
    gram = given_.stats.gram
    best = output_errors(base.original, LeastSquaresScale().correct(given_, base).weight, gram)
    assert bool((best <= output_errors(base.original, base.weight, gram)).all())
    on = NullSpaceScale(t=0.1, lam=0.2, skip=[]).correct(given_, base)
    assert bool((best <= output_errors(base.original, on.weight, gram) * (1 + 1e-6)).all())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        alpha = 1 + 0.3 * torch.randn(R, generator=generator, dtype=torch.float64)
        other = base.scaled_rows(alpha).weight
        assert bool((best <= output_errors(base.original, other, gram) * (1 + 1e-6)).all())


# --- one factor a row and group -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_groupwise_is_the_least_squares_problem_it_states(name, lam):
    given_, base = quantized(name)
    result = GroupwiseScale(lam=lam).correct(given_, base)
    pieces, rest = parts(base)
    inputs = root(given_.stats.gram)
    for index in range(R):
        images = (inputs @ pieces[index].T)[:, (pieces[index] != 0).any(dim=1)]
        penalty = lam**0.5 * images.norm(dim=0)
        left = torch.cat([images, penalty.diag()])
        right = torch.cat([inputs @ (base.original[index].double() - rest[index]), penalty])
        expected = torch.linalg.lstsq(left, right[:, None]).solution[:, 0]
        found = result.diagnostics["alpha"][index][(pieces[index] != 0).any(dim=1)]
        assert torch.allclose(found, expected, rtol=0, atol=2e-3)
        errors = [
            (images @ scales + inputs @ (rest[index] - base.original[index].double())).square().sum()
            + (penalty * (scales - 1)).square().sum()
            for scales in (found, expected, torch.ones_like(expected))
        ]
        assert errors[0] <= errors[1] * (1 + 1e-5)
        assert errors[0] <= errors[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_groupwise_in_q2ns_objective_is_the_problem_it_states(name, lam):
    given_, base = quantized(name)
    result = GroupwiseScale(objective="q2n", lam=lam, t=0.1).correct(given_, base)
    vectors = torch.linalg.eigh(given_.stats.gram.double()).eigenvectors
    null = vectors[:, : result.diagnostics["null_rank"]]
    error = base.original.double() - base.weight.double()
    target = base.original.double() - error @ null @ null.T
    pieces, rest = parts(base)
    scales = torch.ones(R, pieces.shape[1], dtype=torch.float64, requires_grad=True)
    fit = (target - rest - (scales[:, :, None] * pieces).sum(dim=1)).square().sum()
    loss = fit + lam * (pieces.square().sum(dim=2) * (scales - 1).square()).sum()
    (slope,) = torch.autograd.grad(loss, scales)
    curvature = 2 * (1 + lam) * pieces.square().sum(dim=2)
    expected = 1 - slope / curvature.clamp(min=1e-300)
    assert torch.allclose(result.diagnostics["alpha"], expected, rtol=0, atol=1e-6)
    assert (expected - 1).abs().max() > 1e-3


@pytest.mark.parametrize("name", GROUPED)
def test_finer_scales_leave_less_error(name):
    given_, base = quantized(name)
    gram = given_.stats.gram
    by_row = output_errors(base.original, LeastSquaresScale().correct(given_, base).weight, gram)
    by_group = output_errors(base.original, GroupwiseScale(lam=0.0).correct(given_, base).weight, gram)
    assert bool((by_group <= by_row * (1 + 1e-5)).all())
    assert float(by_group.sum()) < 0.98 * float(by_row.sum())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GROUPED])
@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_one_group_is_the_row_scale(name, lam):
    given_, base = quantized(name)
    groups = GroupwiseScale(lam=lam).correct(given_, base)
    assert groups.diagnostics["alpha"].shape == (R, 1)
    rows = LeastSquaresScale(lam=lam).correct(given_, base)
    assert torch.allclose(groups.diagnostics["alpha"][:, 0], rows.diagnostics["alpha"], rtol=0, atol=1e-5)
    assert groups.bits_per_weight == rows.bits_per_weight
    free = GroupwiseScale(objective="q2n", lam=0.0).correct(given_, base)
    on = NullSpaceScale(t=0.1, lam=0.0, skip=[]).correct(given_, base)
    assert torch.allclose(free.diagnostics["alpha"][:, 0], on.diagnostics["alpha"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_group_scales_fold_exactly(name):
    _, base = quantized(name)
    count = scale_count(base.format)
    powers = 2.0 ** torch.arange(R * count).reshape(R, count).remainder(5).sub(2)
    index = scale_index(base.format).expand(base.weight.shape)
    factor = torch.cat([torch.ones(R, 1), powers], dim=1).gather(1, index + 1)
    folded = scale_groups(base.format, powers.double())
    # Powers of two only change exponents: not a bit may be lost.
    assert torch.equal(folded.dequantize(), base.weight * factor)
    ones = scale_groups(base.format, torch.ones(R, count, dtype=torch.float64))
    assert torch.equal(ones.dequantize(), base.weight)
    corrected = base.with_format(folded)
    before, after = base.format.tensors(), folded.tensors()
    for part, tensor in before.items():
        changes = part.rpartition(".")[2] in ("scale", "mean", "table", "rows")
        assert changes or torch.equal(after[part], tensor)
    new_vector = 16 * R if set(after) - set(before) else 0
    assert corrected.format.storage_bits() == base.format.storage_bits() + new_vector


class Plain:
    """A weight as it is, with one scale a row."""

    def __init__(self, weight):
        self.weight, self.shape = weight, weight.shape

    def dequantize(self):
        return self.weight

    def scale_rows(self, alpha):
        return Plain(self.weight * alpha.float()[:, None])

    def tensors(self):
        return {"weight": self.weight}


class Reordered:
    """The same format with its columns in another order."""

    def __init__(self, inner, order):
        self.inner, self.order = inner, order
        self.shape, self.scale_count = inner.shape, scale_count(inner)

    def dequantize(self):
        return self.inner.dequantize()[:, self.order]

    def scale_index(self):
        return scale_index(self.inner)[..., self.order]

    def scale_rows(self, alpha):
        return Reordered(self.inner.scale_rows(alpha), self.order)

    def scale_groups(self, factor):
        return Reordered(scale_groups(self.inner, factor), self.order)

    def select_rows(self, start, stop):
        raise NotImplementedError

    def storage_bits(self):
        return self.inner.storage_bits()

    def tensors(self):
        return self.inner.tensors()


# --- what holds for both ------------------------------------------------------------------------------------

BOTH = {
    "lstsq": LeastSquaresScale(),
    "lstsq, held": LeastSquaresScale(lam=0.1, damping=0.01),
    "groupwise": GroupwiseScale(),
    "groupwise, free": GroupwiseScale(lam=0.0),
    "groupwise, q2n": GroupwiseScale(objective="q2n"),
}


@pytest.mark.parametrize("name", BOTH)
def test_layers_can_be_left_alone(name):
    names, rows = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (12, 5, 7)
    given_, base = quantized("gptq", problem(names=names, rows=rows))
    part = replace(BOTH[name], skip=["*k_proj"]).correct(given_, base)
    whole = BOTH[name].correct(given_, base)
    assert torch.equal(part.weight[12:17], base.weight[12:17])
    assert torch.equal(part.weight[:12], whole.weight[:12])
    assert torch.equal(part.weight[17:], whole.weight[17:])
    assert replace(BOTH[name], skip=["*"]).correct(given_, base) is base


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("baseline", ["gptq, ordered", "owq", "leanquant"])
def test_the_order_of_columns_does_not_matter(name, baseline):
    """The correction of permuted columns is the permuted correction."""
    given_, base = quantized(baseline)
    order = torch.randperm(C, generator=torch.Generator().manual_seed(3))
    gram = given_.stats.gram[order][:, order]
    there = LinearProblem(
        given_.names, given_.rows, given_.weight[:, order], Statistics({Statistic.GRAM: gram}, 4, 1)
    )

    moved = replace(
        base,
        format=Reordered(base.format, order),
        original=base.original[:, order],
        kept=None if base.kept is None else base.kept[order],
    )
    here, other = BOTH[name].correct(given_, base), BOTH[name].correct(there, moved)
    tolerance = 2e-3 if name == "groupwise, free" else 1e-4
    assert torch.allclose(here.diagnostics["alpha"], other.diagnostics["alpha"], rtol=0, atol=tolerance)


def test_rotated_inputs_have_the_same_least_squares_scales():
    given_, base = quantized("gptq")
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(C, C, generator=generator)).Q
    moved = replace(given_, weight=given_.weight @ rotation.T, stats=given_.stats.mapped(rotation))
    here = row_products(given_, base, given_.stats)
    there = row_products(moved, replace(base, format=Plain(base.weight @ rotation.T)), moved.stats)
    assert torch.allclose(here.scale(), there.scale(), rtol=0, atol=1e-4)
    alpha = torch.linspace(0.8, 1.2, R, dtype=torch.float64)
    assert torch.allclose(here.change(alpha), there.change(alpha), rtol=1e-3, atol=1e-4)


def test_the_change_is_that_of_the_output_error():
    given_, base = quantized("owq")
    gram = given_.stats.gram
    products = row_products(given_, base, given_.stats)
    alpha = torch.linspace(0.8, 1.2, R, dtype=torch.float64)
    errors = [output_errors(base.original, form.weight, gram) for form in (base.scaled_rows(alpha), base)]
    assert torch.allclose(products.change(alpha), errors[0] - errors[1], rtol=1e-3, atol=1e-4)


# --- inputs nobody hopes for --------------------------------------------------------------------------------


@st.composite
def hard_problems(draw):
    """Weights with rows of zeros and of every size; inputs with dead columns, of rank one, of any range."""
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10.0 ** torch.tensor(draw(st.lists(st.integers(-8, 8), min_size=rows, max_size=rows)))[:, None]
    weight[draw(st.lists(st.integers(0, rows - 1), max_size=3))] = 0
    rank = draw(st.sampled_from([0, 1, 2, columns, 3 * columns]))
    inputs = torch.randn(rank, columns, generator=generator)
    spread = draw(st.sampled_from([0, 2, 5]))
    inputs *= 10.0 ** (spread * (torch.rand(columns, generator=generator) * 2 - 1))
    inputs[:, draw(st.lists(st.integers(0, columns - 1), max_size=3))] = 0
    gram = inputs.T @ inputs
    stats = Statistics({Statistic.GRAM: (gram + gram.T) / 2}, 1, max(rank, 1))
    group = draw(st.sampled_from([-1, 1, 3]))
    baseline = RTN(bits=draw(st.integers(2, 4)), group_size=min(group, columns))
    given_ = LinearProblem(("self_attn.q_proj",), (rows,), weight, stats)
    return given_, baseline.quantize(given_)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(hard_problems(), st.sampled_from(["lstsq", "groupwise", "groupwise, free"]))
def test_the_output_error_never_rises(case, name):
    given_, base = case
    result = BOTH[name].correct(given_, base)
    gram = given_.stats.gram.double()
    before, after = (output_errors(base.original, it.weight, gram) for it in (base, result))
    assert bool(result.weight.isfinite().all())
    # What float32 can tell of a row: its products are sums of terms up to |q_i| |q_j| sqrt(H_ii H_jj).
    sizes = (base.weight.double().abs() + base.original.double().abs()) * gram.diagonal().sqrt()
    noise = 1e-6 * sizes.sum(dim=1).square()
    assert bool((after <= before + noise).all())


@settings(max_examples=80, deadline=None, derandomize=True)
@given(hard_problems(), st.sampled_from([0.0, 0.3]))
def test_q2ns_group_objective_never_rises(case, lam):
    given_, base = case
    result = GroupwiseScale(objective="q2n", lam=lam).correct(given_, base)
    spectrum = given_.stats.spectrum(Statistic.GRAM)
    basis = spectrum.vectors[:, : prefix_suffix_rank(spectrum.values.clamp(min=0), 0.1)]
    error = base.original.double() - base.weight.double()
    target = base.weight.double() + error @ basis @ basis.T
    before, after = ((target - it.weight.double()).square().sum(dim=1) for it in (base, result))
    assert bool((after <= before * (1 + 1e-6) + 1e-12 * target.square().sum(dim=1)).all())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("where", ["weight", "gram"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_an_error(name, where, value):
    given_, base = quantized("rtn")
    if where == "weight":
        original = base.original.clone()
        original[3, 5] = value
        base, given_ = replace(base, original=original), replace(given_, weight=original)
    else:
        gram = given_.stats.gram.clone()
        gram[2, 2] = value
        given_ = replace(given_, stats=Statistics({Statistic.GRAM: gram}, 1, 1))
    with pytest.raises(NumericalError, match="not finite"):
        BOTH[name].correct(given_, base)


def test_rows_of_zeros_and_dead_inputs_keep_a_scale_of_one():
    given_ = problem()
    weight = given_.weight.clone()
    weight[4] = 0
    given_ = replace(given_, weight=weight, stats=Statistics({Statistic.GRAM: torch.zeros(C, C)}, 1, 1))
    base = BASELINES["rtn"].quantize(given_)
    for correction in (LeastSquaresScale(), GroupwiseScale(), GroupwiseScale(objective="q2n")):
        result = correction.correct(given_, base)
        assert torch.equal(result.diagnostics["alpha"], torch.ones_like(result.diagnostics["alpha"]))
        assert torch.equal(result.weight, base.weight)
    # Without a null space Q2N's row scale fits the weights, and so does least squares with white inputs.
    white = replace(given_, stats=Statistics({Statistic.GRAM: torch.eye(C)}, 1, 1))
    scales = LeastSquaresScale().correct(white, base).diagnostics["alpha"]
    vectors = torch.eye(C, dtype=torch.float64)
    expected = row_scale(weight - base.weight, base.weight, vectors, C, 0.0)
    assert torch.allclose(scales, expected, rtol=0, atol=1e-4)
