"""Problems with everything a correction may ask for, and its definitions written down in float64."""

from dataclasses import replace

import torch
from helpers.layers import layer

from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.owq import OWQ
from q2n.baselines.pbllm import PBLLM
from q2n.baselines.quip import QuIP
from q2n.baselines.rtn import RTN
from q2n.corrections.none import NoCorrection
from q2n.types import LinearProblem, Statistic, Statistics

R, C = 24, 40
BASELINES = {
    "gptq": GPTQ(bits=2, group_size=9),
    "gptq, ordered": GPTQ(bits=2, group_size=16, act_order=True),
    "gptq, whole rows": GPTQ(bits=3, group_size=-1),
    "rtn": RTN(bits=3, group_size=8),
    "owq": OWQ(bits=2, target_rank=3, group_size=9),
    "pbllm": PBLLM(bits=1.7, group_size=9),
    "leanquant": LeanQuant(bits=2),
    "quip": QuIP(bits=2),
    "quip, groups": QuIP(bits=2, grid="uniform", group_size=16),
}


def measured(inputs):
    """Statistics of inputs ``(n, T, C)``."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    gram = flat.T @ flat
    values = {
        Statistic.GRAM: (gram + gram.T) / len(inputs),
        Statistic.MEAN: flat.mean(dim=0),
        Statistic.ABS_MEAN: flat.abs().mean(dim=0),
        Statistic.ABS_MAX: flat.abs().amax(dim=0),
        Statistic.TOKEN_SAMPLE: flat[::7].contiguous(),
        Statistic.POSITION_MEAN: inputs.mean(dim=0),
        Statistic.SQRT_POSITION_MEAN: inputs.mean(dim=0),
    }
    return Statistics(values, len(inputs), len(flat))


def inputs_of(seed=0, sequences=4, tokens=80, columns=C):
    """Correlated inputs with a mean; ``seed`` changes the sample, not what it is drawn from."""
    fixed = torch.Generator().manual_seed(99)
    mixing = torch.randn(columns, columns, generator=fixed) / columns**0.5
    spread = torch.arange(1, columns + 1).pow(-0.7)
    noise = torch.randn(sequences, tokens, columns, generator=torch.Generator().manual_seed(seed))
    return noise * spread @ mixing + 0.2 * torch.randn(columns, generator=fixed)


def problem(seed=0, names=("self_attn.q_proj",), rows=(R,)):
    """A layer, or several on one input, with held-out statistics."""
    stats = replace(measured(inputs_of(seed)), heldout=measured(inputs_of(seed + 1, sequences=2)))
    return LinearProblem(tuple(names), tuple(rows), layer(R, C, seed=seed).weight, stats)


def quantized(name, given=None):
    """A problem in the basis the baseline's solver works in, and what that makes of it, uncorrected."""
    given = given or problem()
    baseline = BASELINES[name]
    if not isinstance(baseline, QuIP):
        return given, baseline.solve(given, NoCorrection()).base
    seen = []

    class Spy(NoCorrection):
        def correct(self, problem, quantized):
            seen.append((problem, quantized))
            return quantized

    baseline.solve(given, Spy())
    return seen[0]


def output_errors(weight, other, gram):
    """``||(W - Q) X||^2`` of every row, float64."""
    error = weight.double() - other.double()
    return ((error @ gram.double()) * error).sum(dim=1)


def root(gram):
    """``X`` ``(C, C)`` float64 with ``X^T X = H``: stands for the inputs in least squares."""
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp(min=0).sqrt()).T
