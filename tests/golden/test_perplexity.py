"""Perplexity against the official evaluation, on logits that were stored."""

import math
from types import SimpleNamespace

import pytest
import torch
from golden.golden_data import Golden
from helpers.records import make_protocol

from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.perplexity import Perplexity, window_loss
from q2n.evaluation.windows import last_hidden_states
from q2n.exceptions import ConfigurationError
from q2n.models.spec import TinyModel
from q2n.options import construct


def losses(data, dtype, kind):
    """The evaluator's losses when a model without blocks yields the stored logits in ``dtype``."""
    length = int(data["seqlen"])
    ids = data["input_ids"][0]
    windows = ids[: len(ids) // length * length].view(-1, length)
    logits = data[f"{kind}__logits"].to(dtype)
    places = {tuple(window.tolist()): index for index, window in enumerate(windows)}
    adapter = SimpleNamespace(
        prepare=lambda length: None,
        embed=lambda part: logits[[places[tuple(window.tolist())] for window in part]],
        blocks=[],
        final_norm=torch.nn.Identity(),
        lm_head=torch.nn.Identity(),
    )
    states = last_hidden_states(adapter, windows, 2, torch.device("cpu"), lambda done: None)
    found = [window_loss(adapter, *window) for window in zip(states, windows, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_losses_are_exact_whatever_the_logits_dtype(kind):
    data = Golden("perplexity")
    found = losses(data, getattr(torch, kind), kind)
    assert torch.allclose(found, data[f"{kind}__window_ce_float64"], rtol=1e-6, atol=0)
    expected = float(data[f"{kind}__ppl_float64_from_logits"])
    assert float(found.mean().exp()) == pytest.approx(expected, rel=1e-6)


def test_float32_is_the_released_number():
    data = Golden("perplexity")
    found = losses(data, torch.float32, "float32")
    assert float(found.mean().exp()) == pytest.approx(float(data["float32__ppl"]), rel=1e-5)
    per_window = found * int(data["seqlen"])
    assert torch.allclose(per_window, data["float32__window_nll"].double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kind", "off"), [("bfloat16", 1e-3), ("float16", 1e-4)])
def test_the_release_rounds_the_loss_of_short_logits(kind, off):
    data = Golden("perplexity")
    exact, released = float(data[f"{kind}__ppl_float64_from_logits"]), float(data[f"{kind}__ppl"])
    assert off < abs(released / exact - 1) < 1e-2


@pytest.mark.parametrize(
    ("bos", "stride"), [("tokenizer", None), ("none", 8), ("each_window", 5), ("none", 24)]
)
def test_perplexity_is_ten_lines(bos, stride, tmp_path):
    """The option on a real model against transformers and a loop over positions."""
    (tmp_path / "text.txt").write_text("Some words, and then some more of them. " * 12)
    loaded = TinyModel(name="tiny", family="llama").load(torch.float32, None)
    option = Perplexity(
        datasets=["text"],
        paths=[str(tmp_path / "text.txt")],
        seqlen=24,
        windows=0,
        bos=bos,
        stride=stride,
        batch_size=3,
    )
    context = EvaluationContext(loaded, torch.device("cpu"), torch.float32, None, lambda done, what: None)
    with torch.no_grad():
        (metric,) = option.evaluate(context)
    text = (tmp_path / "text.txt").read_text()
    ids = loaded.tokenizer(text, add_special_tokens=bos == "tokenizer")["input_ids"]
    first = [loaded.tokenizer.bos_token_id] if bos == "each_window" else []
    length, losses, seen = 24 - len(first), [], set()
    for start in range(0, len(ids) - length + 1, stride or length):
        window = torch.tensor([first + ids[start : start + length]])
        with torch.no_grad():
            logs = loaded.model(window).logits[0].double().log_softmax(-1)
        for place in range(1, 24):
            token = start + place - len(first)
            if token not in seen:
                seen.add(token)
                losses.append(-float(logs[place - 1, window[0, place]]))
    assert metric.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    assert metric.protocol.stride == (stride or 24)
    assert sum(metric.weights or [23] * metric.count) == len(losses)


def test_a_stride_that_leaves_tokens_out_is_refused():
    with pytest.raises(ConfigurationError, match="stride=24 leaves tokens out: at most 23"):
        construct(
            Perplexity,
            {"datasets": ["wiki"], "seqlen": 24, "windows": 1, "bos": "each_window", "stride": 24},
            "evaluation",
        )


def test_windows_never_cross_the_separate_crops_of_c4():
    fields = {"datasets": ["c4"], "seqlen": 64, "windows": 2}
    with pytest.raises(ValueError, match="separate crops"):
        Perplexity(**fields, stride=32)
    for allowed in ({"stride": 64}, {"stride": None}, {"stride": 32, "variant": "new_eval"}):
        Perplexity(**fields, **allowed)


def test_the_rule_of_a_hub_data_set_is_part_of_its_protocol():
    assert make_protocol(variant="gptq").key() != make_protocol(variant="new_eval").key()
    assert "rule new_eval" in make_protocol(variant="new_eval").label()
