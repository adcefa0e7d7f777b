"""KL divergence and agreement against their definitions."""

import pytest
import torch
from helpers.runs import tiny, tokens

from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.divergence import HEAD_ROWS, Divergence, divergences
from q2n.evaluation.reference import Original
from q2n.evaluation.windows import last_hidden_states

CPU = torch.device("cpu")
IDENTITY = {
    "config": {"model": {}, "evaluation": {}},
    "weights": {"random": "x"},
    "data": {"evaluation": {}},
    "hardware": {"device": "cpu"},
    "versions": {},
    "sources": {},
}


def states(loaded, windows):
    with torch.no_grad():
        return last_hidden_states(loaded.adapter, windows, 2, CPU, lambda done: None)


def original(loaded, windows):
    return Original(states(loaded, windows), loaded.adapter.lm_head.weight.detach().clone())


def disturbed(loaded, amount=0.01):
    """The model with noise on the weights of its blocks."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in loaded.adapter.blocks:
            for parameter in block.module.parameters():
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return loaded


@torch.no_grad()
def brute_force(first, second, windows):
    """Window by window from the two models' own logits, in float64, term by term."""
    kl, same = [], []
    for window in windows:
        p = first.model(window[None]).logits[0, :-1].double().softmax(dim=-1)
        q = second.model(window[None]).logits[0, :-1].double().softmax(dim=-1)
        kl.append(float((p * (p.log() - q.log())).sum() / len(p)))
        same.append(float((p.argmax(dim=-1) == q.argmax(dim=-1)).double().mean()))
    return kl, same


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_both_are_what_the_models_logits_say(family):
    windows = tokens(3, HEAD_ROWS + 20)
    kept = original(tiny(family), windows)
    quantized = disturbed(tiny(family))
    with torch.no_grad():
        found = divergences(kept, quantized.adapter, states(quantized, windows))
    kl, same = brute_force(tiny(family), quantized, windows)
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert found.agreement == same
    assert min(kl) > 1e-4
    assert max(same) < 1


def test_a_model_does_not_diverge_from_itself():
    windows = tokens(3, 40)
    loaded = tiny()
    with torch.no_grad():
        found = divergences(original(loaded, windows), loaded.adapter, states(loaded, windows))
    assert found.kl == [0, 0, 0]
    assert found.agreement == [1, 1, 1]


def test_the_option_keeps_the_original_and_reads_it_again_from_the_cache(tmp_path, monkeypatch):
    option = Divergence(datasets=["news"], seqlen=64, windows=3)
    loaded = tiny()
    context = EvaluationContext(loaded, CPU, torch.float32, str(tmp_path), lambda done, stage: None)
    with torch.no_grad():
        assert option.evaluate(context) == []
        kept = option.keep(context, IDENTITY)
        monkeypatch.setattr("q2n.evaluation.windows.last_hidden_states", None)
        again = option.keep(context, IDENTITY)
        assert torch.equal(kept["news"].states, again["news"].states)
        monkeypatch.undo()
        other = option.keep(context, {**IDENTITY, "weights": {"random": "y"}})
        assert len(list((tmp_path / "original").iterdir())) == 2
        disturbed(loaded)
        first = option.evaluate(EvaluationContext(*_fields(context), kept=kept))
        second = option.evaluate(EvaluationContext(*_fields(context), kept=other))
    kl, agreement = first
    assert (kl.name, agreement.name) == ("kl_divergence", "top1_agreement")
    assert kl.lower_is_better
    assert not agreement.lower_is_better
    assert kl.count == 3 == len(kl.per_window)
    assert kl.value == pytest.approx(sum(kl.per_window) / 3)
    assert kl.protocol == agreement.protocol
    assert [metric.per_window for metric in first] == [metric.per_window for metric in second]


def test_damaged_states_in_the_cache_are_made_anew(tmp_path):
    option = Divergence(datasets=["news"], seqlen=64, windows=2)
    context = EvaluationContext(tiny(), CPU, torch.float32, str(tmp_path), lambda done, stage: None)
    with torch.no_grad():
        before = option.keep(context, IDENTITY)
        (file,) = tmp_path.glob("original/*/*")
        file.write_bytes(b"nonsense")
        after = option.keep(context, IDENTITY)
    assert torch.equal(before["news"].states, after["news"].states)
    assert file.stat().st_size > 100


def _fields(context):
    return context.loaded, context.device, context.dtype, context.cache_dir, context.progress
