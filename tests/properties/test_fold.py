"""Row scales go into what a format stores: codes stay, and the parts rebuild the scaled weight."""

import pytest
import torch
from helpers.layers import layer

from q2n.baselines.quip import QuIP
from q2n.corrections.none import NoCorrection
from q2n.corrections.null_space import NullSpaceScale
from q2n.quantization.formats.awq import AwqSpec
from q2n.quantization.formats.base import SolverView
from q2n.quantization.formats.kept import KeptColumnsSpec
from q2n.quantization.formats.lut import LutSpec
from q2n.quantization.formats.masked import SalientSpec
from q2n.quantization.formats.mse2d import Mse2dSpec
from q2n.quantization.formats.per_tensor import PerTensorSpec
from q2n.quantization.formats.uniform import CentredSpec, UniformSpec
from q2n.quantization.formats.xnor import XnorSpec
from q2n.quantization.solvers.obs import solve_obs
from q2n.quantization.solvers.reference import activation_order

R, C = 24, 40
CODES = R * C
SCALE = 16
SOLVED = {
    "uniform": (UniformSpec(3, 16), False, CODES * 3 + R * 3 * (SCALE + 3)),
    "uniform, one group": (UniformSpec(3), True, CODES * 3 + R * (SCALE + 3)),
    "uniform, symmetric": (UniformSpec(3, 16, symmetric=True), False, CODES * 3 + R * 3 * SCALE),
    "uniform, clipped": (UniformSpec(3, 16, clip="mse"), False, CODES * 3 + R * 3 * (SCALE + 3)),
    # Groups of a changed order of columns: the group of each column is stored, in two bits of three groups.
    "permuted": (UniformSpec(3, 16), True, CODES * 3 + R * 3 * (SCALE + 3) + C * 2),
    "static": (UniformSpec(3, 16, static_groups=True), True, CODES * 3 + R * 3 * (SCALE + 3)),
    "centred": (CentredSpec(4, symmetric=True), False, CODES * 4 + R * SCALE),
    "centred, asymmetric": (CentredSpec(4, 20), False, CODES * 4 + R * 2 * (SCALE + 4)),
    "searched step": (Mse2dSpec(2, 16, steps=10), False, CODES * 2 + R * 3 * (SCALE + 2)),
    "awq": (AwqSpec(3, 16), False, CODES * 3 + R * 3 * (SCALE + 3)),
    "lut": (LutSpec(3, 4.0), True, CODES * 3 + R * 8 * SCALE),
    "xnor": (XnorSpec(16), False, CODES + R * 3 * (SCALE + SCALE)),
    "per tensor": (PerTensorSpec(2), False, CODES * 2 + SCALE),
    "kept": (
        KeptColumnsSpec(UniformSpec(3, 16)),
        True,
        # 36 columns in three groups whose columns are not in order; 4 of 40 columns take 6 bits each to name.
        (CODES - 4 * R) * 3 + R * 3 * (SCALE + 3) + 36 * 2 + 4 * R * SCALE + 4 * 6,
    ),
    "masked": (SalientSpec(XnorSpec(16), UniformSpec(8), 0.75, "hessian"), False, None),
}
ROTATED = {
    "transformed": (QuIP(bits=2), CODES * 2 + SCALE + C * SCALE + 64),
    "transformed, uniform": (
        QuIP(bits=3, grid="uniform", group_size=16),
        CODES * 3 + R * 3 * (SCALE + 3) + C * SCALE + 64,
    ),
}
FORMATS = [*SOLVED, *ROTATED]
HOLD_SCALES = ("scale", "mean", "table", "rows")


def stored(name):
    problem = layer(R, C, seed=1)
    if name in ROTATED:
        return ROTATED[name][0].solve(problem, NoCorrection()).base
    grid, ordered, _ = SOLVED[name]
    order = activation_order(problem.stats.gram) if ordered else None
    return solve_obs(problem, grid, [0.01], order, kept=4 if name == "kept" else 0)


def rebuilt(parts):
    """The weight that stored tensors stand for, in float64, by what each format's definition says."""
    parts = {name: part.double() if part.is_floating_point() else part for name, part in parts.items()}
    rows = parts.pop("rows", torch.ones(R))[:, None]
    if "mask" in parts:
        return torch.where(parts["mask"], rebuilt(below(parts, "low.")), rebuilt(below(parts, "high.")))
    if "column_scale" in parts:
        output, inputs = rotation(below(parts, "output.")), rotation(below(parts, "inputs."))
        return rows * (output.T @ rebuilt(below(parts, "inner.")) @ inputs) / parts["column_scale"]
    if "columns" in parts:
        weight = torch.full((R, C), torch.nan, dtype=torch.float64)
        weight[:, parts["columns"]] = parts["values"]
        weight[weight.isnan()] = rebuilt(below(parts, "inner.")).flatten()
        return weight
    if "table" in parts:
        return torch.stack(
            [row[codes.long()] for row, codes in zip(parts["table"], parts["codes"], strict=True)]
        )
    if "signs" in parts:
        return parts["mean"][:, parts["group"]] + parts["scale"][:, parts["group"]] * parts["signs"]
    if "zero" in parts:
        group = parts["group"]
        return parts["scale"][:, group] * (parts["codes"].double() - parts["zero"][:, group])
    return rows * parts["scale"] * (2 * parts["codes"].double() / 3 - 1)


def below(parts, prefix):
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}


def rotation(parts):
    product = torch.kron(parts["first"], parts["second"])
    return product[:, torch.argsort(parts["entry"])][parts["leave"]]


def expected(base, alpha):
    """``diag(alpha) W``, except for columns in full precision."""
    scaled = alpha.to(base.weight)[:, None] * base.weight
    return scaled if base.kept is None else torch.where(base.kept, base.weight, scaled)


@pytest.mark.parametrize("name", FORMATS)
def test_parts_rebuild_the_weight(name):
    base = stored(name)
    alpha = torch.linspace(0.7, 1.3, R, dtype=torch.float64)
    for form in (base.format, base.format.scale_rows(alpha), base.format.scale_rows(alpha).scale_rows(alpha)):
        assert torch.allclose(form.dequantize().double(), rebuilt(dict(form.tensors())), rtol=2e-6, atol=1e-7)
    assert torch.equal(base.weight, base.format.dequantize())


@pytest.mark.parametrize("name", FORMATS)
def test_codes_stay_and_the_fold_is_exact(name):
    base = stored(name)
    powers = 2.0 ** torch.arange(R).remainder(5).sub(2) * torch.where(torch.arange(R) % 7 == 3, -1, 1)
    result = base.scaled_rows(powers.double())
    # Powers of two only change exponents: not a bit may be lost.
    assert torch.equal(result.weight, expected(base, powers))
    before, after = base.format.tensors(), result.format.tensors()
    for part, tensor in before.items():
        assert torch.equal(after[part], tensor) or part.rpartition(".")[2] in HOLD_SCALES
    assert set(after) - set(before) <= {"rows"}
    alpha = torch.linspace(0.7, 1.3, R, dtype=torch.float64)
    general = base.scaled_rows(alpha)
    assert torch.allclose(general.weight, expected(base, alpha), rtol=1e-6, atol=1e-7)
    assert torch.equal(general.diagnostics["alpha"], alpha)
    assert torch.equal(base.scaled_rows(torch.ones(R)).weight, base.weight)
    assert torch.equal(result.scaled_rows(1 / powers).weight, base.weight)
    assert torch.equal(result.scaled_rows(powers).weight, expected(base, powers * powers))


@pytest.mark.parametrize("name", FORMATS)
def test_everything_stored_is_counted(name):
    base = stored(name)
    bits = ROTATED[name][1] if name in ROTATED else SOLVED[name][2]
    if name == "masked":
        low = int(base.format.mask.sum())
        bits = CODES + low + (CODES - low) * 8 + R * 3 * (SCALE + SCALE) + R * (SCALE + 8)
    assert base.format.storage_bits() == bits
    assert base.bits_per_weight == pytest.approx(bits / CODES)
    # Only where no scale belongs to a row does a row scale take room of its own, once.
    vector = R * SCALE if name in ("per tensor", *ROTATED) else 0
    once = base.format.scale_rows(torch.full((R,), 1.1))
    assert once.storage_bits() == bits + vector
    assert once.scale_rows(torch.full((R,), 1.1)).storage_bits() == bits + vector


@pytest.mark.parametrize("name", SOLVED)
def test_values_the_solver_went_on_with_are_those_stored(name):
    grid = SOLVED[name][0]
    problem = layer(R, C, seed=2)
    order = torch.randperm(C, generator=torch.Generator().manual_seed(0))
    columns = problem.weight.T[order]
    kept = 4 if name == "kept" else 0
    diagonal = torch.linspace(1, 2, C)
    encoder = grid.encoder(SolverView(columns.T, order, torch.zeros(C, dtype=torch.bool), diagonal, kept))
    values = columns.clone()
    for position in range(C - kept):
        encoder.enter(position, columns)
        values[position] = encoder.encode(position, columns[position].clone())
    weight = encoder.finish(columns).dequantize()
    assert torch.allclose(weight[:, order].T, values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ROTATED)
def test_rotated_layers_are_scaled_in_the_rotated_basis(name):
    method, bits = ROTATED[name]
    solution = method.solve(layer(R, C, seed=1), NullSpaceScale(t=0.1, lam=0.2))
    before, after = solution.base.format.tensors(), solution.corrected.format.tensors()
    assert torch.equal(before["inner.codes"], after["inner.codes"])
    assert solution.corrected.format.storage_bits() == bits + (R * SCALE if name == "transformed" else 0)
    weight = solution.corrected.weight
    assert torch.allclose(weight.double(), rebuilt(dict(after)), rtol=2e-6, atol=1e-7)
    assert not torch.allclose(weight, solution.base.weight, atol=1e-4)
