"""Every loop on numbers of every kind: finite results no worse than zeros, or an error that says why."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.every_kernel import calls, compiled
from helpers.layers import layer

from q2n.baselines.awq import AWQ
from q2n.baselines.composed import Composed
from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.owq import OWQ
from q2n.baselines.pbllm import PBLLM
from q2n.baselines.quarot import QuaRot
from q2n.baselines.quip import QuIP
from q2n.baselines.rtn import RTN
from q2n.baselines.smoothquant import SmoothQuant
from q2n.corrections.none import NoCorrection
from q2n.exceptions import NumericalError, UnsupportedError
from q2n.linalg import kernels
from q2n.models.fused import GatedMLP, RMSNorm
from q2n.quantization.formats.activation import ActivationQuantizer
from q2n.quantization.formats.kmeans import cluster_rows
from q2n.quantization.transforms.hadamard import hadamard_transform
from q2n.types import LinearProblem, Statistic, Statistics

ROOT = Path(__file__).resolve().parents[2]

SLACK = 1.001


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_entry(value):
    def make(*shape):
        numbers = normal(*shape) * 0.05
        numbers.view(-1)[numbers.numel() // 2] = value
        return numbers

    return make


def mixed(*shape):
    exponents = torch.linspace(-30, 30, normal(*shape).numel())
    return normal(*shape).sign() * 10 ** exponents[normal(*shape).flatten().argsort()].view(shape)


NUMBERS = {
    "ordinary": lambda *shape: normal(*shape) * 0.05,
    "zero": lambda *shape: torch.zeros(shape),
    "constant": lambda *shape: torch.full(shape, 0.5),
    "negative constant": lambda *shape: torch.full(shape, -0.5),
    "rank one": lambda *shape: normal(*shape[:-1], 1) * normal(shape[-1], seed=1),
    "one outlier": with_entry(1e4),
    "zeros but one": lambda *shape: (torch.arange(normal(*shape).numel()) == 0).float().view(shape),
    "subnormal": lambda *shape: normal(*shape) * 1e-39,
    "least": lambda *shape: normal(*shape).sign() * 1.4e-45,
    "some subnormal": lambda *shape: torch.where(normal(*shape, seed=2) > 0, normal(*shape), 1e-40),
    "small": lambda *shape: normal(*shape) * 1e-25,
    "large": lambda *shape: normal(*shape) * 1e15,
}  # fmt: skip
"""Tensors of a shape for which every loop has a result."""

HUGE = {
    "huge": lambda *shape: normal(*shape).clamp(-3, 3) * 1e38,
    "one huge": with_entry(3e38),
    "mixed magnitude": mixed,
}
"""Those whose squares or differences may be beyond single precision."""

NO_NUMBERS = {
    "NaN": with_entry(float("nan")),
    "infinity": with_entry(float("inf")),
    "negative infinity": with_entry(-float("inf")),
    "nothing but NaN": lambda *shape: torch.full(shape, float("nan")),
}

METHODS = {
    "rtn": RTN(bits=3, group_size=-1),
    "rtn mse": RTN(bits=3, group_size=16, sym=True, clip="mse"),
    "gptq": GPTQ(bits=3, group_size=-1),
    "gptq groups": GPTQ(bits=2, group_size=16, sym=True, act_order=True, static_groups=True),
    "gptq mse": GPTQ(bits=3, group_size=16, clip="mse"),
    "leanquant": LeanQuant(bits=3),
    "leanquant 4": LeanQuant(bits=4, exponent=16.0, act_order=False),
    "pbllm": PBLLM(bits=2),
    "pbllm magnitude": PBLLM(bits=2, group_size=16, saliency="magnitude"),
    "owq": OWQ(bits=3, target_rank=1),
    "owq minmax": OWQ(bits=3, target_rank=1, tuning="minmax", act_order=True, group_size=16),
    "quip": QuIP(bits=3),
    "quip uniform": QuIP(bits=3, grid="uniform", group_size=16, npasses=2),
    "quarot": QuaRot(bits=3),
    "quarot rtn": QuaRot(bits=3, weight_solver="rtn", group_size=16),
    "awq": AWQ(bits=3, group_size=16),
    "smoothquant": SmoothQuant(bits=3, weight_solver="gptq", sym=False),
    **{
        f"{solver} {grid}": Composed(bits=3, group_size=-1, solver=solver, grid=grid)
        for solver in ("rtn", "obs", "ldlq")
        for grid in ("uniform", "centred", "mse2d", "lut", "per_tensor")
        if solver != "rtn" or grid not in ("lut", "per_tensor")
    },
}

SHAPES = [(12, 40), (1, 40), (12, 1), (1, 1)]

BOUNDED = ("gptq", "leanquant", "leanquant 4", "pbllm", "owq", "quip", "rtn mse", "awq", "obs mse2d")
"""Of the table, what the default run computes: each kernel once."""


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_installed", lambda: False)
    return request.param


def problem(weight, inputs=None):
    """A layer with ``inputs`` ``(2, T, C)``; ordinary ones by default."""
    if inputs is None:
        stats = layer(*weight.shape).stats
        tokens = normal(64, weight.shape[1])
        stats = Statistics({**stats.values, Statistic.TOKEN_SAMPLE: tokens}, 4, 1200)
    else:
        flat = inputs.reshape(-1, inputs.shape[-1])
        values = {Statistic.GRAM: flat.T @ flat, Statistic.TOKEN_SAMPLE: flat}
        stats = Statistics(values, len(inputs), len(flat))
    return LinearProblem(("self_attn.v_proj",), (len(weight),), weight, stats)


def assert_no_worse_than_zeros(method, part, weight):
    """In the metric the method minimises: that of its inputs, or the plain one."""
    assert weight.dtype == torch.float32
    assert weight.isfinite().all()
    gram = part.stats.gram if Statistic.GRAM in method.requires else torch.eye(weight.shape[1])
    gram = gram.double()
    size = float(gram.abs().max()) or 1.0
    unit = float(part.weight.double().abs().max()) or 1.0

    def error(rows):
        rows = rows.double() / unit
        return float(((rows @ (gram / size)) * rows).sum())

    assert error(part.weight - weight) <= SLACK * error(part.weight) + 1e-12


def skipped(method, shape):
    """What is refused before any layer is solved."""
    return isinstance(method, OWQ) and shape[1] == 1


CAUSE = "not finite|not positive definite"


def check(method, part, certain):
    """Finite and no worse than zeros; unless that is ``certain``, or an error that says what was not."""
    try:
        weight = method.solve(part, NoCorrection()).base.weight
    except NumericalError as error:
        if certain or not re.search(CAUSE, str(error)):
            raise
        return
    assert_no_worse_than_zeros(method, part, weight)


def check_weight(method, kind, shape):
    part = problem((NUMBERS | HUGE)[kind](*shape))
    check(method, part, certain=kind in NUMBERS)


def check_inputs(method, kind, shape):
    """A layer of ordinary weights whose inputs are not ordinary."""
    part = problem(normal(*shape) * 0.05, (NUMBERS | HUGE)[kind](2, 30, shape[1]))
    check(method, part, certain=bool(part.stats.gram.isfinite().all()))


def check_refused(method, kind, shape):
    """What is no number: in a weight, and in the inputs where the method looks at them."""
    spoilt = [problem(NO_NUMBERS[kind](*shape))]
    if Statistic.GRAM in method.requires:
        spoilt.append(problem(normal(*shape), NO_NUMBERS[kind](2, 30, shape[1])))
    for part in spoilt:
        with pytest.raises(NumericalError, match=CAUSE):
            method.solve(part, NoCorrection())


@pytest.mark.parametrize("name", BOUNDED)
def test_one_shape(path, name):
    for kind in NUMBERS | HUGE:
        check_weight(METHODS[name], kind, SHAPES[0])
        check_inputs(METHODS[name], kind, SHAPES[0])
    for kind in NO_NUMBERS:
        check_refused(METHODS[name], kind, SHAPES[0])


@pytest.mark.slow
@pytest.mark.parametrize("place", [check_weight, check_inputs])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NUMBERS | HUGE)
@pytest.mark.parametrize("name", METHODS)
def test_every_shape(path, name, kind, shape, place):
    if not skipped(METHODS[name], shape):
        place(METHODS[name], kind, shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_no_number_is_named(path, name, kind, shape):
    if not skipped(METHODS[name], shape):
        check_refused(METHODS[name], kind, shape)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOKENS = NUMBERS | {"huge": lambda *shape: normal(*shape).clamp(-1, 1) * 1e38, "mixed magnitude": mixed}


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("shape", [(5, 48), (1, 1)])
def test_tokens(path, kind, shape):
    """Activations, keys and values: symmetric and not, whole tokens and runs of channels."""
    for dtype in DTYPES:
        check_tokens(kind, shape, dtype)


def check_tokens(kind, shape, dtype):
    tokens = TOKENS[kind](*shape).to(dtype)
    tokens = tokens.where(tokens.isfinite(), 0)  # float16 has no number for what is large
    for symmetric, ratio, size in product((True, False), (1.0, 0.9), (-1, min(16, shape[1]))):
        for bits in (2, 4, 8):
            rounded = ActivationQuantizer(bits, symmetric, ratio, size)(tokens)
            assert rounded.dtype == dtype
            assert rounded.isfinite().all()
            if symmetric or size == -1:  # otherwise zero need not be in the range
                wide, unit = tokens.double(), float(tokens.abs().max()) or 1.0
                error, zeros = ((wide - rounded.double()) / unit).norm(), (wide / unit).norm()
                assert float(error) <= SLACK * float(zeros)


@pytest.mark.parametrize("value", [0.5, -3.0, 1e-40, 1e38])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_run_of_one_number_keeps_it(value, dtype):
    """It has no range: dividing by that gave NaN."""
    tokens = torch.full((3, 32), value).to(dtype)
    rounded = ActivationQuantizer(4, False, 1.0, 16)(tokens)
    assert torch.allclose(rounded.float(), tokens.float(), rtol=1e-2, atol=0 if abs(value) > 1e-38 else 1e-39)


def test_runs_that_do_not_divide_the_channels_are_refused():
    for dtype, symmetric in product(DTYPES, (True, False)):
        with pytest.raises(UnsupportedError, match="48 channels"):
            ActivationQuantizer(4, symmetric, 1.0, 32)(torch.ones(2, 48, dtype=dtype))


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("width", [1, 2, 12, 64, 256, 768])
def test_hadamard_transforms_keep_lengths(kind, width):
    rows = NUMBERS[kind](3, width)
    least = width * 1.5e-45  # what each of them may be lost of a sum
    for dtype in (torch.float32, torch.float64):
        given = rows.to(dtype)
        turned = hadamard_transform(given)
        back = hadamard_transform(turned, inverse=True)
        assert turned.isfinite().all()
        assert float((back.double() - given.double()).abs().max()) <= 1e-5 * float(given.abs().max()) + least


@pytest.mark.parametrize("kind", NUMBERS | HUGE | NO_NUMBERS)
@pytest.mark.parametrize("shape", [(5, 48), (1, 48), (5, 1), (1, 1)])
def test_norms_and_networks_are_what_torch_makes_of_them(kind, shape):
    """Whatever comes, finite or not, where the plain formulas put it."""
    numbers = (NUMBERS | HUGE | NO_NUMBERS)[kind](*shape).bfloat16()
    norm = SimpleNamespace(
        weight=torch.nn.Parameter(normal(shape[1], seed=3).bfloat16()), variance_epsilon=1e-6
    )
    linear = torch.nn.Identity()
    mlp = SimpleNamespace(gate_proj=linear, up_proj=linear, down_proj=linear, act_fn=torch.nn.SiLU())
    for module in (RMSNorm(norm), GatedMLP(mlp)):
        with torch.no_grad():
            found = module(numbers.clone()).float()
        expected = module(numbers.clone()).detach().float()  # with gradients: torch's own operations
        assert torch.equal(found.isfinite(), expected.isfinite())
        finite = expected.isfinite()
        assert torch.allclose(found[finite], expected[finite], rtol=2**-6, atol=1e-38)


@pytest.mark.parametrize("kind", NUMBERS | HUGE)
@pytest.mark.parametrize("clusters", [4, 16])
@pytest.mark.parametrize("columns", [1, 40])
def test_clusters_lie_among_the_values(path, kind, clusters, columns):
    values = (NUMBERS | HUGE)[kind](6, columns)
    centres = cluster_rows(values, normal(columns, seed=1).abs() + 0.1, clusters, 0)
    slack = 1e-6 * values.abs().amax(dim=1, keepdim=True).double() + 1e-44
    assert (centres.diff(dim=1) >= 0).all()
    assert (centres >= values.amin(dim=1, keepdim=True) - slack).all()
    assert (centres <= values.amax(dim=1, keepdim=True) + slack).all()


def bounds_checked(folder, *names):
    """The table of kernels in a process whose machine code compares every index with its array's bounds."""
    variables = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/helpers/every_kernel.py"), *names]
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 500


def test_no_index_of_the_clusters_is_out_of_bounds(tmp_path):
    bounds_checked(tmp_path, "lloyd_rows")


@pytest.mark.slow
def test_no_index_of_any_kernel_is_out_of_bounds(tmp_path):
    bounds_checked(tmp_path)


def test_every_kernel_is_in_the_table():
    """Those that are not called from Python are called by those that are: the whole table fails otherwise."""
    known = {kernel for kernel, _ in calls()}
    called = {kernel for name, kernel in compiled().items() if not name.rpartition(".")[2].startswith("_")}
    assert called == known
