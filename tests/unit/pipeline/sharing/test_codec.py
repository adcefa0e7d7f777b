"""Solved layers as tensors and numbers, and back."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
import torch
from helpers.layers import layer
from safetensors.torch import load, save

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
from q2n.corrections.null_space import NullSpaceScale
from q2n.pipeline.sharing.codec import decode, encode
from q2n.records.fingerprint import canonical_json
from q2n.types import QuantizedLinear

BASELINES = {
    "rtn": RTN(bits=3, group_size=16),
    "gptq": GPTQ(bits=3, group_size=16, act_order=True),
    "gptq_static_sym": GPTQ(bits=4, group_size=16, act_order=True, static_groups=True, sym=True, clip="mse"),
    "quip": QuIP(bits=2),
    "quip_uniform": QuIP(bits=3, grid="uniform", group_size=8),
    "pbllm": PBLLM(bits=2.5, group_size=16),
    "leanquant": LeanQuant(bits=3),
    "owq": OWQ(bits=3, target_rank=2),
    "quarot": QuaRot(bits=4),
    "awq": AWQ(bits=3, group_size=16, clip=False),
    "smoothquant": SmoothQuant(bits=8),
    "composed": Composed(bits=3, group_size=-1, solver="ldlq", grid="lut"),
}


def through_bytes(quantized):
    """As the cache folder keeps it: tensors in a safetensors file, the rest as JSON."""
    import json

    tensors, facts = encode(quantized)
    return decode(load(save(tensors)), json.loads(canonical_json(facts)), quantized.original)


def expect_equal(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif is_dataclass(one):
        for item in fields(one):
            expect_equal(getattr(one, item.name), getattr(other, item.name), f"{path}.{item.name}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for name in one:
            expect_equal(one[name], other[name], f"{path}.{name}")
    else:
        assert one == other, path


@pytest.mark.parametrize("name", BASELINES)
def test_every_baselines_layers_come_back_exactly(name):
    problem = layer(rows=24, columns=48, dead=(3,))
    for correction in (NoCorrection(), NullSpaceScale(t=0.1, lam=0.2)):
        solution = BASELINES[name].solve(problem, correction)
        for quantized in (solution.base, solution.corrected):
            found = through_bytes(quantized)
            expect_equal(replace(quantized, scaling=None), found)
            assert torch.equal(found.weight, quantized.weight)
            assert found.bits_per_weight == quantized.bits_per_weight


@pytest.mark.parametrize("value", [0.1, 1e-300, float("inf"), -0.0, 3, True, None, "text"])
def test_diagnostics_keep_value_and_type(value):
    problem = layer(rows=4, columns=8)
    base = RTN(bits=3, group_size=8).quantize(problem)
    quantized = QuantizedLinear(base.format, base.original, base.compensated, diagnostics={"it": value})
    found = through_bytes(quantized).diagnostics["it"]
    assert (repr(found), type(found)) == (repr(value), type(value))


@dataclass(frozen=True)
class Elsewhere:
    codes: torch.Tensor


def test_only_this_packages_formats_are_kept_or_built():
    weight = torch.zeros(2, 2)
    with pytest.raises(TypeError, match=r"Elsewhere cannot be kept"):
        encode(QuantizedLinear(Elsewhere(weight), weight, weight))
    tensors, facts = encode(RTN(bits=3, group_size=8).quantize(layer(rows=4, columns=8)))
    for path in (
        "os.path",
        "subprocess.Popen",
        "q2n.runtime.files.sha256_text",
        "q2n.quantization.formats.uniform.nothing",
    ):
        with pytest.raises(ValueError, match="not a"):
            decode(tensors, {**facts, "format": {**facts["format"], "class": path}}, weight)
