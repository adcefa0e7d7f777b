"""What cannot be avoided: floating-point operations of a quantization, over the rate of matrix products.

Rates are measured in the run they are compared with, as medians over its rounds.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

SIZE = 2048
REPEATS = 5


@dataclass(frozen=True)
class Model:
    """The sizes that decide the work. ``groups``: rows and columns of the layers that share an input."""

    blocks: int
    groups: tuple[tuple[int, int], ...]
    attention_width: int

    @staticmethod
    def of(folder: str) -> Model:
        config = json.loads((Path(folder) / "config.json").read_text())
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        width = config.get("head_dim") or hidden // heads
        groups = (
            ((heads + 2 * shared) * width, hidden),
            (hidden, heads * width),
            (2 * inner, hidden),
            (hidden, inner),
        )
        return Model(config["num_hidden_layers"], groups, heads * width)


def operations(model: Model, sequences: int, length: int) -> dict[str, float]:
    """Floating-point operations by kind of work (names of :mod:`q2n.runtime.clock`).

    A product of ``(a, b)`` and ``(b, c)`` counts ``2abc``; causal attention and Gram matrices count half, the
    inverse of a Cholesky factor ``2/3 C^3`` with the factorisation, errors pushed to later columns ``R C^2``.
    """
    tokens = sequences * length
    linear = sum(2 * rows * columns * tokens for rows, columns in model.groups)
    attention = 2 * model.attention_width * length * tokens
    return {
        "forward": model.blocks * (linear + attention),
        "statistics": model.blocks * sum(columns**2 * tokens for _, columns in model.groups),
        "factorise": model.blocks * sum(2 / 3 * columns**3 for _, columns in model.groups),
        "solve": model.blocks * sum(rows * columns**2 for rows, columns in model.groups),
    }


def rates(threads: int) -> dict[str, float]:
    """Floating-point operations a second of square products: the best of a few."""
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        left, right = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - began)
        found[name] = 2 * SIZE**3 / best
    return found


def seconds(needed: dict[str, float], rate: dict[str, float]) -> dict[str, float]:
    """The floor of each kind of work: forward passes at the bfloat16 rate, the rest at float32's."""
    return {
        work: count / rate["bfloat16" if work == "forward" else "float32"] for work, count in needed.items()
    }
