"""Random models of every family, and what a test does with a whole one."""

import torch

from q2n.corrections.none import NoCorrection
from q2n.models.spec import TinyModel
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method

SHAPES = {
    "llama": {"family": "llama"},
    "llama_tied_own_heads": {"family": "llama", "tied": True, "num_kv_heads": 4},
    "qwen2_tied_biases": {"family": "qwen2", "tied": True},
    "qwen2_own_heads": {"family": "qwen2", "num_kv_heads": 4},
    "qwen3_wide_heads": {"family": "qwen3", "head_dim": 32},
    "mistral": {"family": "mistral"},
    "nine_heads": {
        "family": "llama",
        "hidden_size": 72,
        "intermediate_size": 96,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 8,
        "tied": True,
    },
    "twelve_heads": {
        "family": "llama",
        "hidden_size": 84,
        "intermediate_size": 104,
        "num_heads": 12,
        "num_kv_heads": 3,
        "head_dim": 4,
    },
}
"""Shapes by name: grouped heads or not, tied or not, biases, head norms, widths that are no powers of two."""

FAMILIES = ("llama", "qwen2_tied_biases", "qwen3_wide_heads")
TOKENS = torch.randint(3, 259, (3, 24), generator=torch.Generator().manual_seed(7))


def tiny(name, dtype=torch.float32, **fields):
    """The adapter of a random model, ready for sequences as long as ``TOKENS``."""
    adapter = TinyModel(name=name, **{**SHAPES[name], **fields}).load(dtype).adapter
    adapter.prepare(TOKENS.shape[1])
    return adapter


@torch.no_grad()
def logits(adapter, tokens=TOKENS):
    """As evaluation computes them: block by block."""
    adapter.prepare(tokens.shape[1])
    hidden = adapter.embed(tokens)
    for block in adapter.blocks:
        hidden = block.forward(hidden)
    return adapter.lm_head(adapter.final_norm(hidden))


def quantize(adapter, baseline, correction=None):
    """The pipeline with two micro-batches; its reports."""
    baseline.check(adapter)
    with activation_store("memory") as store:
        return BlockLoop(
            Method(baseline, correction or NoCorrection()),
            TOKENS,
            batch_size=2,
            true_sequential=True,
            store=store,
            device=torch.device("cpu"),
            progress=lambda block, group: None,
        ).quantize(adapter)


def difference(actual, expected):
    """Largest difference over the largest expected magnitude."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
