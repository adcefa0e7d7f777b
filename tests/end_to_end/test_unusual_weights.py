"""Whole models with layers of unusual numbers: a result, or one error that names block, layer and cause."""

import pytest
import torch
from helpers import commands
from helpers.tiny_models import logits, quantize, tiny

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
from q2n.exceptions import NumericalError

METHODS = [
    RTN(bits=3, group_size=-1),
    GPTQ(bits=3, group_size=-1),
    QuIP(bits=3),
    PBLLM(bits=2),
    LeanQuant(bits=3),
    OWQ(bits=3, target_rank=1),
    QuaRot(bits=3, k_bits=4, v_bits=4, kv_sym=False),
    AWQ(bits=3, group_size=16),
    SmoothQuant(bits=3),
    Composed(bits=3, group_size=-1, grid="mse2d"),
]


def subnormal(weight):
    weight.mul_(1e-38)


def outlier(weight):
    weight[1, 2] = 1e4


CHANGES = {
    "subnormal": subnormal,
    "zero": torch.Tensor.zero_,
    "constant": lambda weight: weight.fill_(0.25),
    "one outlier": outlier,
}


@torch.no_grad()
def changed(change):
    """A bfloat16 model with one such layer in either block."""
    adapter = tiny("llama", torch.bfloat16)
    for index, name in enumerate(("mlp.gate_proj", "self_attn.q_proj")):
        change(adapter.blocks[index].linear(name).weight.data)
    return adapter


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("kind", CHANGES)
def test_every_method_has_a_result(method, kind):
    adapter = changed(CHANGES[kind])
    quantize(adapter, method)
    assert logits(adapter).isfinite().all()


@pytest.mark.parametrize("method", METHODS[:5], ids=lambda method: type(method).__name__)
def test_what_overflows_is_named(method):
    """Single precision holds the weights, but not their differences."""
    adapter = changed(lambda weight: weight.copy_(weight.sign() * 3e38))
    with pytest.raises(NumericalError, match=r"block 0 mlp.*(not finite|no numbers)"):
        quantize(adapter, method)


@pytest.mark.slow
def test_a_sweep_over_all_methods(tmp_path):
    adapter = changed(subnormal)
    adapter.model.save_pretrained(tmp_path / "model")
    from q2n.models.tiny import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "model")
    commands.run(
        tmp_path,
        tmp_path / "cache",
        "-m",
        "model=path",
        "model.path=model",
        "baseline=rtn,gptq,quip,pbllm,leanquant,owq,quarot,quarot_kv4,awq,smoothquant,composed",
        "q2n=off,on",
        "results_dir=results",
    )
    assert len(commands.records(tmp_path / "results")) == 22
