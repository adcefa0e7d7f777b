"""Perplexity on windows of held-out text, with losses in float32."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from q2n.evaluation.base import EvaluationContext, exp
from q2n.evaluation.windows import WindowedText, defined
from q2n.options import option
from q2n.records.schema import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import ModelAdapter

HEAD_ROWS = 128
"""Tokens per step of the head: their float32 logits fit into the processor's cache (25 MB for a vocabulary
of 49,152; 1024 rows per step took 1.6 times as long, docs/LOG.md)."""


@option
class Perplexity(WindowedText):
    """``exp`` of the mean over windows of each window's mean next-token negative log-likelihood.

    Every window of ``seqlen`` tokens gives ``seqlen - 1`` predictions, as in GPTQ's evaluation. Logits are
    cast to float32 before the loss (the official code rounds the loss of bfloat16 logits to steps of 2^-6 or
    more). With a ``stride`` below ``seqlen`` windows overlap, and all but the first count only their last
    ``stride`` predictions: each token counts once, with more context.
    """

    stride: Annotated[int, Field(ge=1)] | None = None
    """Tokens between the starts of two windows, or None for windows without overlap (``seqlen``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step != self.seqlen and "c4" in self.datasets and self.variant == "gptq":
            raise ValueError(
                "c4 by the rule gptq is made of separate crops, so windows may not overlap: "
                "leave stride at null or use variant=new_eval"
            )
        room = self.seqlen - (self.bos == "each_window")
        if self.stride is not None and self.stride > room:
            raise ValueError(
                f"stride={self.stride} leaves tokens out: at most {room} with seqlen={self.seqlen}"
            )

    @property
    def step(self) -> int:
        """Tokens between the starts of two windows."""
        return self.seqlen if self.stride is None else self.stride

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        """Return one perplexity per data set.

        Raises:
            NumericalError: the output of the unquantized model is not a number.
        """
        return [self._measure(context, name) for name in self.datasets]

    def _measure(self, context: EvaluationContext, dataset: str) -> Metric:
        """Return the perplexity on one data set."""
        began = time.perf_counter()
        text = self.text(dataset, context.loaded.tokenizer, context.cache_dir)
        states = self.states(context, text, dataset)
        every = self.seqlen - 1
        counted = [every] + [min(every, self.step)] * (len(text.tokens) - 1)
        losses = [
            window_loss(context.loaded.adapter, hidden[-count - 1 :], ids[-count - 1 :].to(hidden.device))
            for hidden, ids, count in zip(states, text.tokens, counted, strict=True)
        ]
        losses, undefined = defined(losses, context.quantized, f"perplexity on {dataset}")
        total = math.fsum(loss * count for loss, count in zip(losses, counted, strict=True))
        return Metric(
            name="perplexity",
            value=exp(total / sum(counted)),
            unit="perplexity",
            lower_is_better=True,
            difference="ratio",
            per_window=tuple(losses),
            weights=tuple(counted) if len(set(counted)) > 1 else (),
            undefined=undefined,
            **self.fields(context, text, dataset, began),
        )


def window_loss(adapter: ModelAdapter, states: Tensor, ids: Tensor) -> float:
    """Return the mean negative log-likelihood (nats) of a window's ``T - 1`` predictions.

    Args:
        adapter: the model, with its head on the device of ``states``.
        states: normalised last hidden states ``(T, D)``.
        ids: tokens of the window ``(T,)``.
    """
    import torch

    total = torch.zeros((), dtype=torch.float64, device=states.device)
    targets = ids[1:]
    for rows, labels in zip(states[:-1].split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        logits = adapter.lm_head(rows).float()
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().sum()
    return float(total / len(targets))
