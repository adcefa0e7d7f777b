"""Small models in folders, as ``save_pretrained`` writes them, rotating and attending in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from q2n.models.quiet import quiet_transformers
from q2n.models.tiny import byte_tokenizer

THETA = 10000.0
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.1 * place for place in range(8)],
        "long_factor": [2.0 + 0.5 * place for place in range(8)],
    },
}
"""Settings of each kind of rotary embedding beside its base, for heads of 16."""

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True},
    "linear": {"rope": "linear"},
    "dynamic": {"rope": "dynamic", "context": 48},
    "dynamic_tied": {"rope": "dynamic", "context": 48, "tied": True},
    "yarn": {"rope": "yarn"},
    "llama3": {"rope": "llama3"},
    "longrope": {"rope": "longrope"},
    "sliding_mistral": {"family": "mistral", "sliding_window": 24},
    "sliding_qwen2": {
        "family": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 1,
        "tied": True,
    },
}


def model_folder(
    folder: Path,
    *,
    family: str = "llama",
    rope: str = "default",
    context: int = 128,
    tied: bool = False,
    seed: int = 0,
    **fields: Any,
) -> Path:
    """The folder of a random model of two blocks that rotates by ``rope`` and was trained on ``context``."""
    config = CONFIG_MAPPING[family](
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": rope, "rope_theta": THETA, **ROPES[rope]},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **fields,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.08 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if name.endswith("norm.weight") else noise)
    with quiet_transformers():
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder
