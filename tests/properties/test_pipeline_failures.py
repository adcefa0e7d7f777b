"""Numbers that are not finite, and Hessians that do not factorise."""

import re

import pytest
import torch
from helpers.runs import run, tokens

from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.rtn import RTN
from q2n.exceptions import NumericalError
from q2n.models.adapter import DOWN, GATE_UP, O_PROJ, QKV

PLACES = {
    "self_attn.k_proj": QKV,
    "self_attn.o_proj": O_PROJ,
    "mlp.up_proj": GATE_UP,
    "mlp.down_proj": DOWN,
}
RANK_DEFICIENT = tokens(1, 8)


def spoiled(name, value=float("nan")):
    def spoil(model):
        model.get_submodule(f"model.layers.1.{name}").weight.view(-1)[0] = value

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("baseline", [GPTQ(bits=3, group_size=16), RTN(bits=3, group_size=16)])
@pytest.mark.parametrize("name", PLACES)
def test_a_weight_that_is_no_number_is_named(baseline, name, value):
    place = f"{re.escape(PLACES[name].name)}|{re.escape(name)}"
    with pytest.raises(NumericalError, match=rf"weight of block 1 .*({place})\b.* not finite"):
        run(baseline, spoil=spoiled(name, value))


@pytest.mark.parametrize("baseline", [GPTQ(bits=3, group_size=16), RTN(bits=3, group_size=16)])
@pytest.mark.parametrize("batch_size", [0, 1])
def test_an_activation_that_is_no_number_is_named(baseline, batch_size):
    with pytest.raises(NumericalError, match="block 1 mlp"):
        run(baseline, spoil=spoiled("post_attention_layernorm"), batch_size=batch_size)


def test_an_activation_of_a_later_batch_that_is_no_number_is_named():
    """One token of the last sequence has an embedding that is no number."""
    ids = tokens().clamp(max=200)
    ids[-1, 3] = 250

    def spoil(model):
        model.get_submodule("model.embed_tokens").weight[250] = float("nan")

    with pytest.raises(NumericalError, match="block 0"):
        run(RTN(bits=3, group_size=16), ids=ids, batch_size=1, spoil=spoil)


@pytest.mark.parametrize(
    "method",
    [
        GPTQ(bits=3, group_size=16, percdamp=1e-30, percdamp_schedule=[1e-25, 0.05, 0.5]),
        LeanQuant(bits=3, percdamp=1e-30, percdamp_schedule=[1e-25, 0.05, 0.5]),
    ],
)
def test_damping_rises_along_the_schedule_and_is_recorded(method):
    result = run(method, ids=RANK_DEFICIENT)
    assert [report.damping for report in result.reports] == [0.05] * len(result.reports)
    assert all(torch.isfinite(value).all() for value in result.state().values())
    enough = run(GPTQ(bits=3, group_size=16, percdamp=0.02), ids=RANK_DEFICIENT)
    assert {report.damping for report in enough.reports} == {0.02}


def test_a_schedule_that_ends_too_early_names_the_layer():
    method = GPTQ(bits=3, group_size=16, percdamp=1e-30, percdamp_schedule=[1e-25])
    with pytest.raises(NumericalError, match=r"block 0 self_attn.*1e-30, 1e-25.*percdamp_schedule"):
        run(method, ids=RANK_DEFICIENT)
