"""Perplexity of everyone's dequantized weights on the same held-out windows, by q2n's own evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.perplexity import Perplexity
from q2n.models.spec import HubModel

WINDOWS, LENGTH = 32, 512


class Judge:
    """The unquantized model in memory; weights are put into it and taken out again."""

    def __init__(self, folder: str) -> None:
        self._loaded = HubModel(path=folder).load(torch.bfloat16)
        self._evaluation = Perplexity(datasets=["wiki"], seqlen=LENGTH, windows=WINDOWS)
        self._original = {name: value.clone() for name, value in self._loaded.model.state_dict().items()}

    @torch.no_grad()
    def perplexity(self, weights: Path | None) -> float:
        """Of the model with the tensors of a file in place of its own.

        Raises:
            ValueError: the file has not exactly the weights of all quantized layers.
        """
        model = self._loaded.model
        model.load_state_dict(self._original)
        if weights is not None:
            tensors = load_file(weights)
            expected = {name for name in self._original if name.endswith("proj.weight")}
            if tensors.keys() != expected:
                raise ValueError(f"{weights}: {len(tensors)} layers, {len(expected)} are quantized")
            model.load_state_dict(tensors, strict=False)
        context = EvaluationContext(self._loaded, torch.device("cpu"), torch.bfloat16, None, lambda *_: None)
        return self._evaluation.evaluate(context)[0].value
