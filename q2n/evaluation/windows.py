"""Windows of held-out text, and the model's last hidden states on these windows, block by block."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from q2n.data.hub import Variant
from q2n.data.sources import HUB_PATHS, text_source
from q2n.data.text import RULE, TextSource, TokenSet, evaluation_windows
from q2n.evaluation.base import Evaluation, EvaluationContext
from q2n.exceptions import NumericalError
from q2n.models.loaded import Outline, context_length
from q2n.options import ReadIf, option
from q2n.records.schema import EvaluationProtocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from q2n.models.adapter import ModelAdapter


@option
class WindowedText(Evaluation):
    """Base of evaluations on windows of text: data sets, windows and protocol.

    Each window of ``seqlen`` tokens is a sequence of its own.
    """

    datasets: Annotated[list[Literal["wiki", "news", "wikitext2", "c4", "ptb", "text"]], Field(min_length=1)]
    """Names of the data sets."""
    paths: list[str] = Field(default_factory=list)
    """Files of the data set ``text``."""
    seqlen: Annotated[int, Field(ge=8)]
    """Tokens per window."""
    windows: Annotated[int, Field(ge=0)]
    """Maximum number of windows per data set, or 0 for all."""
    bos: Literal["tokenizer", "each_window", "none"] = "tokenizer"
    """Placement of BOS (:data:`q2n.data.text.Bos`)."""
    variant: Annotated[Variant, ReadIf(datasets=("wikitext2", "c4", "ptb"))] = "gptq"
    """Sampling rule for data sets of the hub (:mod:`q2n.data.hub`)."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Windows per forward pass."""

    def __post_init__(self) -> None:
        if ("text" in self.datasets) != bool(self.paths):
            raise ValueError("the data set 'text' needs its files (paths), and paths the data set 'text'")

    @property
    def step(self) -> int:
        """Tokens between the starts of two windows."""
        return self.seqlen

    def identity(self) -> dict[str, Any]:
        """Return the identity of each data set's text and the version of the windowing.

        Raises:
            DataError: a text is missing.
        """
        return {name: {**self._source(name).identity(), "windowing": RULE} for name in self.datasets}

    def examine(self, outline: Outline, cache_dir: str | None) -> list[TokenSet]:
        """Return the windows of each data set.

        Raises:
            DataError: see :meth:`text`.
        """
        return [self.text(name, outline.tokenizer, cache_dir) for name in self.datasets]

    def text(self, dataset: str, tokenizer: Any, cache_dir: str | None) -> TokenSet:
        """Return the windows of a data set, ``(n, seqlen)``.

        Raises:
            DataError: the text is missing or shorter than one window, or ``bos`` asks for a token that the
                tokenizer lacks.
        """
        source = self._source(dataset, cache_dir)
        stride = None if self.step == self.seqlen else self.step
        return evaluation_windows(source, tokenizer, self.seqlen, self.windows, self.bos, stride)

    def _source(self, name: str, cache_dir: str | None = None) -> TextSource:
        return text_source(name, cache_dir=cache_dir, variant=self.variant, paths=self.paths)

    def states(self, context: EvaluationContext, text: TokenSet, dataset: str, what: str = "") -> Tensor:
        """Return :func:`last_hidden_states` ``(n, T, D)`` on the windows.

        ``what`` precedes the name of the data set in progress reports.
        """
        names: list[str] = [*self.datasets]

        def progress(done: float) -> None:
            context.progress((names.index(dataset) + done) / len(names), f"{what} {dataset}".strip())

        return last_hidden_states(
            context.loaded.adapter, text.tokens, self.batch_size, context.device, progress
        )

    def fields(
        self, context: EvaluationContext, text: TokenSet, dataset: str, began: float
    ) -> dict[str, Any]:
        """Return the fields that all metrics on a data set share: data set, protocol, count, tokens, seconds.

        ``began`` is the :func:`time.perf_counter` at the start of the measurement.
        """
        positions = context_length(context.loaded.adapter.model.config)
        protocol = EvaluationProtocol(
            dataset=dataset,
            text_sha256=text.text_sha256,
            tokenizer=context.loaded.tokenizer_sha256,
            seqlen=self.seqlen,
            windows=len(text.tokens),
            bos=self.bos,
            loss_dtype="float32",
            forward_dtype=str(context.dtype).removeprefix("torch."),
            stride=self.step,
            variant=self.variant if dataset in HUB_PATHS else "",
            positions=positions if positions and self.seqlen > positions else None,
        )
        return {
            "dataset": dataset,
            "protocol": protocol,
            "count": len(text.tokens),
            "tokens": text.tokens.numel(),
            "seconds": time.perf_counter() - began,
        }


def defined(losses: Sequence[float], quantized: bool, what: str) -> tuple[list[float], int]:
    """Return losses with infinity in place of NaN, and the number of such losses.

    Args:
        losses: one loss per window; NaN if the model's output is not a number.
        quantized: True for the quantized model, for which NaN is a result worth a record.
        what: name of the measurement in the message.

    Raises:
        NumericalError: a loss of the unquantized model is NaN.
    """
    undefined = sum(map(math.isnan, losses))
    if undefined and not quantized:
        raise NumericalError(
            f"{what}: the unquantized model's output is not a number on {undefined} of {len(losses)} "
            "windows; use dtype=float32 or bfloat16, or look at the model's weights"
        )
    return [math.inf if math.isnan(loss) else loss for loss in losses], undefined


def last_hidden_states(
    adapter: ModelAdapter,
    windows: Tensor,
    batch_size: int,
    device: torch.device,
    progress: Callable[[float], None],
) -> Tensor:
    """Return normalised outputs ``(n, T, D)`` of the last block for windows ``(n, T)``, on ``device``.

    Only one block at a time is on ``device``, so the whole model need not fit there. Final norm and head
    remain on ``device``.
    """
    import torch

    adapter.prepare(windows.shape[1])
    hidden = [adapter.embed(part).to(device) for part in windows.split(batch_size)]
    for block in adapter.blocks:
        progress(block.index / len(adapter.blocks))
        with block.on(device):
            hidden = [block.forward(batch) for batch in hidden]
    adapter.final_norm.to(device)
    adapter.lm_head.to(device)
    return torch.cat([adapter.final_norm(batch) for batch in hidden])
