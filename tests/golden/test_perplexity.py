"""Perplexity against the official evaluation, on logits that were stored."""

from types import SimpleNamespace

import pytest
import torch
from golden.golden_data import Golden

from q2n.evaluation.perplexity import window_losses


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
        head=lambda states: states,
    )
    return torch.tensor(window_losses(adapter, windows, 2, torch.device("cpu")), dtype=torch.float64)


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
