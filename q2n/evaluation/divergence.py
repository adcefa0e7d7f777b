"""KL divergence and top-1 agreement between the unquantized and the quantized model.

Perplexity depends only on the probability of the observed token, so gains and losses can cancel. These two
metrics compare the whole next-token distribution and show every change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from q2n.evaluation.base import EvaluationContext, mean_and_stderr
from q2n.evaluation.windows import WindowedText, defined
from q2n.exceptions import NumericalError
from q2n.options import option
from q2n.records.schema import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.evaluation.reference import Original
    from q2n.models.adapter import ModelAdapter

HEAD_ROWS = 256
"""Tokens per step: bounds the memory of the two models' logits, ``(HEAD_ROWS, V)`` each."""


@dataclass(frozen=True)
class Divergences:
    """Mean KL divergence (nats) and top-1 agreement (share of predictions) per window."""

    kl: list[float]
    agreement: list[float]


@option
class Divergence(WindowedText):
    """KL divergence ``sum_v p(v) log(p(v) / q(v))`` and top-1 agreement, per window.

    ``p`` is the unquantized model's distribution of the next token, ``q`` the quantized model's. Windows and
    the ``seqlen - 1`` predictions per window are those of a perplexity with the same settings. Logits of both
    models are cast to float32 first.
    """

    def keep(self, context: EvaluationContext, identity: Mapping[str, Any]) -> dict[str, Original]:
        """Return the unquantized model's last hidden states ``(n, T, D)`` and its head, per data set.

        Raises:
            NumericalError: a hidden state is not finite.
        """
        from q2n.evaluation.reference import Original, kept_states

        # Cloned, because rewrites of the model (rotation, folded norms) change the head in place.
        head = context.loaded.adapter.lm_head.weight.detach().clone()
        kept: dict[str, Original] = {}
        for dataset in self.datasets:
            text = self.text(dataset, context.loaded.tokenizer, context.cache_dir)
            key = {"windows": text.tokens.tolist(), "text": text.text_sha256}
            compute = partial(self.states, context, text, dataset, "divergence")
            states = kept_states(context, identity, key, compute)
            if not bool(states.isfinite().all()):
                raise NumericalError(
                    f"divergence on {dataset}: the unquantized model's output is not finite; use "
                    "dtype=float32 or bfloat16, or look at the model's weights"
                )
            kept[dataset] = Original(states, head)
        return kept

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        """Return both metrics per data set; nothing for the unquantized model, whose divergence is zero."""
        if context.kept is None:
            return []
        return [metric for name in self.datasets for metric in self._measure(context, name)]

    def _measure(self, context: EvaluationContext, dataset: str) -> Iterator[Metric]:
        """Yield divergence and agreement on one data set."""
        began = time.perf_counter()
        text = self.text(dataset, context.loaded.tokenizer, context.cache_dir)
        states = self.states(context, text, dataset, "divergence")
        found = divergences(context.kept[dataset], context.loaded.adapter, states)
        kl, undefined = defined(found.kl, context.quantized, f"divergence on {dataset}")
        fields = self.fields(context, text, dataset, began)
        for name, unit, values, lower_is_better in (
            ("kl_divergence", "nats", kl, True),
            ("top1_agreement", "share", found.agreement, False),
        ):
            value, stderr = mean_and_stderr(values)
            yield Metric(
                name=name,
                value=value,
                unit=unit,
                lower_is_better=lower_is_better,
                difference="unit",
                per_window=tuple(values),
                stderr=stderr,
                undefined=undefined,
                **fields,
            )


def divergences(original: Original, adapter: ModelAdapter, states: Tensor) -> Divergences:
    """Compare two models window by window.

    Args:
        original: head and last hidden states ``(n, T, D)`` of the unquantized model.
        adapter: the quantized model, with its head on the device of ``states``.
        states: last hidden states ``(n, T, D)`` of the quantized model, normalised.

    Returns:
        Divergences; NaN for a window on which the quantized model's output is not a number.
    """
    kl, agreement = [], []
    for before, after in zip(original.states, states, strict=True):
        total, same = 0.0, 0
        for p_rows, q_rows in zip(before[:-1].split(HEAD_ROWS), after[:-1].split(HEAD_ROWS), strict=True):
            p = original.logits(p_rows.to(after.device)).float().log_softmax(dim=-1)
            q = adapter.lm_head(q_rows).float().log_softmax(dim=-1)
            known = ~q[:, 0].isnan()  # if one logit of a row is NaN, log_softmax makes all of them NaN
            same += int(((p.argmax(dim=-1) == q.argmax(dim=-1)) & known).sum())
            total += _divergence(p, q)
        kl.append(total / (len(after) - 1))
        agreement.append(same / (len(after) - 1))
    return Divergences(kl, agreement)


def _divergence(p: Tensor, q: Tensor) -> float:
    """Return the sum over rows of the KL divergence (nats) of log-probabilities ``(m, V)``."""
    total = float((p.exp() * (p - q)).sum(dim=-1).double().sum())
    if math.isnan(total):  # 0 * inf: a token with p = 0 adds nothing, whatever its q
        total = float((p.exp() * (p - q)).masked_fill(p.exp() == 0, 0).sum(dim=-1).double().sum())
    return total
