"""Perplexity on non-overlapping windows, block by block, losses in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from q2n.evaluation.base import Evaluation, EvaluationContext
from q2n.exceptions import NumericalError
from q2n.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from q2n.models.adapter import ModelAdapter
    from q2n.schema import Metric

HEAD_ROWS = 1024
"""Tokens whose logits exist at the same time."""


@option
class Perplexity(Evaluation):
    """``exp`` of the mean over windows of each window's mean next-token negative log-likelihood.

    Every window of ``seqlen`` tokens is run on its own and gives ``seqlen - 1`` predictions, as in GPTQ's
    evaluation; the logits are turned to float32 before the loss (the released code rounds the loss of
    bfloat16 logits to steps of 2^-6 and more).
    """

    datasets: Annotated[list[Literal["wiki", "news", "wikitext2", "c4", "ptb", "text"]], Field(min_length=1)]
    paths: list[str] = Field(default_factory=list)
    """The files of the data set ``text``."""
    seqlen: Annotated[int, Field(ge=8)]
    windows: Annotated[int, Field(ge=0)]
    bos: Literal["tokenizer", "each_window", "none"] = "tokenizer"
    batch_size: Annotated[int, Field(ge=1)] = 8

    def __post_init__(self) -> None:
        if ("text" in self.datasets) != bool(self.paths):
            raise ValueError("the data set 'text' and evaluation.paths (its files) need each other")

    def identity(self) -> dict[str, Any]:
        from q2n.data.sources import text_source
        from q2n.data.text import RULE

        sources = {name: text_source(name, paths=self.paths) for name in self.datasets}
        return {name: {**source.identity(), "windowing": RULE} for name, source in sources.items()}

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        return [self._measure(context, name, index) for index, name in enumerate(self.datasets)]

    def _measure(self, context: EvaluationContext, dataset: str, index: int) -> Metric:
        from q2n.data.sources import text_source
        from q2n.data.text import evaluation_windows
        from q2n.schema import EvaluationProtocol, Metric

        source = text_source(dataset, cache_dir=context.cache_dir, paths=self.paths)
        text = evaluation_windows(source, context.loaded.tokenizer, self.seqlen, self.windows, self.bos)

        def progress(done: float) -> None:
            context.progress((index + done) / len(self.datasets), dataset)

        losses = window_losses(context.loaded.adapter, text.tokens, self.batch_size, context.device, progress)
        if not all(map(math.isfinite, losses)):
            raise NumericalError(f"perplexity on {dataset}: the loss of a window is not finite")
        return Metric(
            name="perplexity",
            dataset=dataset,
            value=math.exp(sum(losses) / len(losses)),
            unit="perplexity",
            count=len(losses),
            lower_is_better=True,
            protocol=EvaluationProtocol(
                dataset=dataset,
                text_sha256=text.text_sha256,
                tokenizer=context.loaded.tokenizer_sha256,
                seqlen=self.seqlen,
                windows=len(losses),
                bos=self.bos,
                loss_dtype="float32",
                forward_dtype=str(context.dtype).removeprefix("torch."),
                stride=self.seqlen,
            ),
            per_window=tuple(losses),
        )


def window_losses(
    adapter: ModelAdapter,
    windows: Tensor,
    batch_size: int,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
) -> list[float]:
    """Mean negative log-likelihood (nats) of each window's ``T - 1`` predictions.

    One block at a time is on ``device``, so the model need not fit there.

    Args:
        windows: token ids ``(n, T)``.
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
    losses = [
        window_loss(adapter, states, ids.to(device))
        for states, ids in zip(torch.cat(hidden), windows, strict=True)
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
