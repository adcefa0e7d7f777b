"""How far the quantized model's next-token distributions are from the unquantized model's.

Perplexity only looks at the probability of the token that came; these two numbers look at the whole
distribution, so they notice a change where right and wrong predictions happen to balance.
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
"""Tokens whose two rows of logits exist at the same time."""


@dataclass(frozen=True)
class Divergences:
    """Of each window: mean KL divergence in nats, and share of predictions with the same first choice."""

    kl: list[float]
    agreement: list[float]


@option
class Divergence(WindowedText):
    """KL divergence ``sum_v p(v) log(p(v) / q(v))``, ``p`` the unquantized model's distribution of the next
    token and ``q`` the quantized model's, and how often both rank the same token first, per window.

    The windows and the ``seqlen - 1`` predictions of each are those of a perplexity with the same settings.
    Both logits are turned to float32 first.
    """

    def keep(self, context: EvaluationContext, identity: Mapping[str, Any]) -> dict[str, Original]:
        """The unquantized model's last hidden states on every window, and its head."""
        from q2n.evaluation.reference import Original, kept_states

        # Cloned: a rewrite of the model (a rotation, a folded norm) changes the head in place.
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
        """Nothing for the unquantized model, which diverges from itself by nothing."""
        if context.kept is None:
            return []
        return [metric for name in self.datasets for metric in self._measure(context, name)]

    def _measure(self, context: EvaluationContext, dataset: str) -> Iterator[Metric]:
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
        original: what was kept of the unquantized model, states ``(n, T, D)``.
        adapter: the quantized model; its head is where ``states`` are.
        states: its own last hidden states ``(n, T, D)``, normalised.

    Returns:
        Divergences, NaN for a window on which the quantized model's output is not a number.
    """
    kl, agreement = [], []
    for before, after in zip(original.states, states, strict=True):
        total, same = 0.0, 0
        for p_rows, q_rows in zip(before[:-1].split(HEAD_ROWS), after[:-1].split(HEAD_ROWS), strict=True):
            p = original.logits(p_rows.to(after.device)).float().log_softmax(dim=-1)
            q = adapter.lm_head(q_rows).float().log_softmax(dim=-1)
            known = ~q[:, 0].isnan()  # of a row that is not a number, all of it is not
            same += int(((p.argmax(dim=-1) == q.argmax(dim=-1)) & known).sum())
            total += _divergence(p, q)
        kl.append(total / (len(after) - 1))
        agreement.append(same / (len(after) - 1))
    return Divergences(kl, agreement)


def _divergence(p: Tensor, q: Tensor) -> float:
    """Sum over rows of the KL divergence of log-probabilities ``(m, V)``."""
    total = float((p.exp() * (p - q)).sum(dim=-1).double().sum())
    if math.isnan(total):  # 0 * inf: a token without probability in p adds nothing, whatever it has in q
        total = float((p.exp() * (p - q)).masked_fill(p.exp() == 0, 0).sum(dim=-1).double().sum())
    return total
