"""Numbers that are not finite, and Hessians that do not factorise."""

import re
from dataclasses import replace

import pytest
import torch
from helpers.hard_inputs import STAGES, quantized
from helpers.runs import run, tokens
from helpers.static import static_cell, write_texts

from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.rtn import RTN
from q2n.baselines.smoothquant import SmoothQuant
from q2n.corrections.none import NoCorrection
from q2n.diagnostics.base import NoDiagnostics
from q2n.exceptions import NumericalError
from q2n.models.spec import TinyModel
from q2n.pipeline import blocks as pipeline
from q2n.pipeline import calibration

NAMES = ("input_layernorm", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
BASELINES = [GPTQ(bits=3, group_size=16), RTN(bits=3, group_size=16)]
RANK_DEFICIENT = tokens(1, 8)


def spoiled(name, value=float("nan")):
    def spoil(model):
        model.get_submodule(f"model.layers.1.{name}").weight.data.view(-1)[0] = value

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_is_no_number_is_named(baseline, name, value):
    with pytest.raises(NumericalError, match=rf"^block 1 {re.escape(name)}: weight in float32: 1 of "):
        run(baseline, spoil=spoiled(name, value))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("batch_size", [0, 1])
def test_an_activation_that_is_no_number_is_named(baseline, batch_size):
    def spoil(model):
        model.model.layers[1].post_attention_layernorm.weight.fill_(3e38)

    with pytest.raises(
        NumericalError, match=r"^block 1 mlp\.gate_up: inputs: 64 of 64 channels are no numbers|inf"
    ):
        run(baseline, spoil=spoil, batch_size=batch_size)


def test_an_activation_of_a_later_batch_that_is_no_number_is_named():
    """One token of the last sequence has an embedding that is no number."""
    ids = tokens().clamp(max=200)
    ids[-1, 3] = 250

    def spoil(model):
        model.get_submodule("model.embed_tokens").weight[250] = float("nan")

    with pytest.raises(NumericalError, match="embeddings, inputs of block 0: 64 of"):
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


@pytest.mark.parametrize("true_sequential", [True, False])
def test_weights_are_looked_at_before_their_inputs_are_measured(true_sequential, monkeypatch):
    measured = []

    def collect(*arguments, **options):
        measured.append(arguments)
        return calibration.collect(*arguments, **options)

    monkeypatch.setattr(pipeline, "collect", collect)
    with pytest.raises(NumericalError, match=r"block 1 mlp\.down_proj"):
        run(BASELINES[0], spoil=spoiled("mlp.down_proj"), true_sequential=true_sequential)
    assert len(measured) == 4  # the groups of block 0


def test_inputs_whose_squares_overflow_are_told_from_those_that_are_no_numbers():
    def spoil(model):
        model.model.layers[1].post_attention_layernorm.weight.mul_(1e20)

    with pytest.raises(
        NumericalError, match=r"^block 1 mlp\.gate_up: inputs: 64 of 64 channels are infinite, or"
    ):
        run(BASELINES[0], spoil=spoil)


def test_held_out_inputs_that_are_no_numbers_are_named(monkeypatch):
    def collect(*arguments, **options):
        group, stats = calibration.collect(*arguments, **options)
        stats.heldout.output_form[-1] = float("nan")
        return group, stats

    monkeypatch.setattr(pipeline, "collect", collect)
    cause = r"^block 0 self_attn\.qkv: held-out inputs: 1 of 64 channels are no numbers$"
    with pytest.raises(NumericalError, match=cause):
        run(BASELINES[0], heldout=tokens(2))


def test_smoothquant_names_inputs_and_not_the_weights_it_makes_of_them():
    def spoil(model):
        model.model.layers[1].input_layernorm.weight.fill_(3e38)

    with pytest.raises(NumericalError, match=r"^block 1: largest inputs of self_attn\.qkv"):
        run(SmoothQuant(bits=4), spoil=spoil)


class Larger(NoCorrection):
    """Rows a hundred million times as large, or a bias of that."""

    def __init__(self, bias):
        self._bias = bias

    def correct(self, problem, quantized):
        factor = torch.full((len(problem.weight),), 1e8, dtype=torch.float64)
        return replace(quantized, bias=factor.float()) if self._bias else quantized.scaled_rows(factor)


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize(("bias", "what"), [(False, "quantized weight"), (True, "bias with the")])
def test_what_overflows_in_the_models_dtype_is_named(bias, what, stages, tmp_path):
    with pytest.raises(NumericalError, match=rf"^block 0 self_attn\.q_proj: {what}.* in float16: "):
        quantized(BASELINES[1], Larger(bias), stages, lambda model: None, tmp_path, dtype=torch.float16)


class Broken(NoDiagnostics):
    def measure(self, problem, solution):
        raise NumericalError("a figure does not exist")


def test_a_figure_that_does_not_exist_is_named():
    with pytest.raises(NumericalError, match=r"^block 0 self_attn.q_proj, .*v_proj: a figure does not"):
        run(GPTQ(bits=3, group_size=16), diagnostics=Broken())


def test_a_weight_that_is_no_number_is_found_before_the_unquantized_model_is_evaluated(tmp_path, monkeypatch):
    load = TinyModel.load

    def loaded(self, *arguments):
        found = load(self, *arguments)
        spoiled("mlp.down_proj")(found.model)
        return found

    monkeypatch.setattr(TinyModel, "load", loaded)
    with pytest.raises(AssertionError, match=r"block 1 mlp\.down_proj: weight in float32: 1 of"):
        static_cell(write_texts(tmp_path), tmp_path, "baseline=rtn")
