"""Perplexity on windows of held-out text, block by block, losses in float32."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from q2n.data.hub import Variant
from q2n.evaluation.base import Evaluation, EvaluationContext
from q2n.exceptions import NumericalError
from q2n.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from q2n.data.text import TextSource, TokenSet
    from q2n.models.adapter import ModelAdapter
    from q2n.schema import EvaluationProtocol, Metric

HEAD_ROWS = 1024
"""Tokens whose logits exist at the same time."""


@option
class Perplexity(Evaluation):
    """``exp`` of the mean over windows of each window's mean next-token negative log-likelihood.

    Every window of ``seqlen`` tokens is run on its own and gives ``seqlen - 1`` predictions, as in GPTQ's
    evaluation; the logits are turned to float32 before the loss (the released code rounds the loss of
    bfloat16 logits to steps of 2^-6 and more). With a ``stride`` below ``seqlen`` windows overlap, and all
    but the first count only their last ``stride`` predictions: every token once, with more context.
    ``variant`` is the rule by which data sets of the hub are read (:mod:`q2n.data.hub`).
    """

    datasets: Annotated[list[Literal["wiki", "news", "wikitext2", "c4", "ptb", "text"]], Field(min_length=1)]
    paths: list[str] = Field(default_factory=list)
    """The files of the data set ``text``."""
    seqlen: Annotated[int, Field(ge=8)]
    windows: Annotated[int, Field(ge=0)]
    stride: Annotated[int, Field(ge=1)] | None = None
    """Tokens between the starts of two windows; None: ``seqlen``, no overlap."""
    bos: Literal["tokenizer", "each_window", "none"] = "tokenizer"
    variant: Variant = "gptq"
    batch_size: Annotated[int, Field(ge=1)] = 8

    def __post_init__(self) -> None:
        if ("text" in self.datasets) != bool(self.paths):
            raise ValueError("the data set 'text' and evaluation.paths (its files) need each other")
        if self.stride not in (None, self.seqlen) and "c4" in self.datasets and self.variant == "gptq":
            raise ValueError(
                "c4 by the rule gptq is made of separate crops, so windows may not overlap: "
                "leave stride at null or use variant=new_eval"
            )
        room = self.seqlen - (self.bos == "each_window")
        if self.stride is not None and self.stride > room:
            raise ValueError(
                f"stride={self.stride} leaves tokens out: at most {room} with seqlen={self.seqlen}"
            )

    def identity(self) -> dict[str, Any]:
        from q2n.data.text import RULE

        return {name: {**self._source(name).identity(), "windowing": RULE} for name in self.datasets}

    def _source(self, name: str, cache_dir: str | None = None) -> TextSource:
        from q2n.data.sources import text_source

        return text_source(name, cache_dir=cache_dir, variant=self.variant, paths=self.paths)

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        return [self._measure(context, name, index) for index, name in enumerate(self.datasets)]

    def _measure(self, context: EvaluationContext, dataset: str, index: int) -> Metric:
        from q2n.data.text import evaluation_windows
        from q2n.schema import Metric

        began = time.perf_counter()
        source, tokenizer = self._source(dataset, context.cache_dir), context.loaded.tokenizer
        text = evaluation_windows(source, tokenizer, self.seqlen, self.windows, self.bos, self.stride)
        counted = self._counted(len(text.tokens))

        def progress(done: float) -> None:
            context.progress((index + done) / len(self.datasets), dataset)

        losses = window_losses(
            context.loaded.adapter, text.tokens, self.batch_size, context.device, progress, counted
        )
        if not all(map(math.isfinite, losses)):
            raise NumericalError(f"perplexity on {dataset}: the loss of a window is not finite")
        total = math.fsum(loss * count for loss, count in zip(losses, counted, strict=True))
        return Metric(
            name="perplexity",
            dataset=dataset,
            value=math.exp(total / sum(counted)),
            unit="perplexity",
            count=len(losses),
            lower_is_better=True,
            protocol=self._protocol(context, text, dataset),
            per_window=tuple(losses),
            weights=tuple(counted) if len(set(counted)) > 1 else (),
            tokens=text.tokens.numel(),
            seconds=time.perf_counter() - began,
        )

    def _counted(self, windows: int) -> list[int]:
        """Predictions of each window that count."""
        every = self.seqlen - 1
        return [every] + [every if self._start() == self.seqlen else self._start()] * (windows - 1)

    def _start(self) -> int:
        return self.seqlen if self.stride is None else self.stride

    def _protocol(self, context: EvaluationContext, text: TokenSet, dataset: str) -> EvaluationProtocol:
        from q2n.data.sources import HUB_PATHS
        from q2n.schema import EvaluationProtocol

        return EvaluationProtocol(
            dataset=dataset,
            text_sha256=text.text_sha256,
            tokenizer=context.loaded.tokenizer_sha256,
            seqlen=self.seqlen,
            windows=len(text.tokens),
            bos=self.bos,
            loss_dtype="float32",
            forward_dtype=str(context.dtype).removeprefix("torch."),
            stride=self._start(),
            variant=self.variant if dataset in HUB_PATHS else "",
        )


def window_losses(
    adapter: ModelAdapter,
    windows: Tensor,
    batch_size: int,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
    counted: Sequence[int] | None = None,
) -> list[float]:
    """Mean negative log-likelihood (nats) of each window's ``T - 1`` predictions.

    One block at a time is on ``device``, so the model need not fit there.

    Args:
        windows: token ids ``(n, T)``.
        counted: how many of the last predictions of each window count; None: all.
    """
    import torch

    adapter.prepare(windows.shape[1])
    hidden = [adapter.embed(part).to(device) for part in windows.split(batch_size)]
    for block in adapter.blocks:
        if progress is not None:
            progress(block.index / len(adapter.blocks))
        block.module.to(device)
        hidden = [block.forward(batch) for batch in hidden]
        if device.type != "cpu":
            block.module.to("cpu")
    adapter.final_norm.to(device)
    adapter.lm_head.to(device)
    counts = [windows.shape[1] - 1] * len(windows) if counted is None else counted
    losses = [
        window_loss(adapter, states[-count - 1 :], ids[-count - 1 :].to(device))
        for states, ids, count in zip(torch.cat(hidden), windows, counts, strict=True)
    ]
    return [float(loss) for loss in losses]


def window_loss(adapter: ModelAdapter, hidden: Tensor, ids: Tensor) -> Tensor:
    """Mean loss of a window: ``hidden`` ``(T, D)`` of the last block, ``ids`` ``(T,)``; a float64 scalar."""
    import torch

    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    targets = ids[1:]
    for states, labels in zip(hidden[:-1].split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        logits = adapter.head(states[None])[0].float()
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().sum()
    return total / len(targets)
