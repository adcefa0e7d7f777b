"""Cached results of the unquantized model: its metrics, and the hidden states for token-wise comparison.

Log-probabilities of all tokens would take gigabytes. The last hidden states and the head, from which they
follow exactly, take about a hundredth of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from q2n.data.local_files import cache_root, kept
from q2n.evaluation.base import Evaluation, EvaluationContext
from q2n.records.fingerprint import fingerprint, plain
from q2n.records.schema import Metric, ReuseTally
from q2n.records.source_code import CHECKOUT, targets
from q2n.runtime.files import write_atomic, write_json_atomic

_METRICS = TypeAdapter(list[Metric])


@dataclass(frozen=True)
class Original:
    """Outputs of the unquantized model.

    ``states`` ``(n, T, D)``: normalised outputs of the last block; ``head`` ``(V, D)``: weight of the head.
    """

    states: Tensor
    head: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """Return the unquantized model's logits ``(m, V)`` for states ``(m, D)``."""
        return torch.nn.functional.linear(rows, self.head.to(rows.device))


def reference_metrics(
    evaluation: Evaluation, context: EvaluationContext, identity: Mapping[str, Any], tally: ReuseTally
) -> list[Metric]:
    """Return the unquantized model's metrics, from the cache folder if they were measured before.

    Args:
        evaluation: the evaluation.
        context: the unquantized model.
        identity: identity of the cell; model, evaluation, code, libraries and hardware must match.
        tally: receives a note of each hit or miss.
    """
    key = fingerprint(reference_identity(identity))
    path = cache_root(context.cache_dir) / "reference" / f"{key}.json"
    try:
        metrics = _METRICS.validate_python(json.loads(path.read_text(encoding="utf-8")))
        tally.note("reference", key, True, sum(metric.seconds or 0.0 for metric in metrics))
        return metrics
    except (OSError, ValueError, ValidationError):
        pass  # missing or unreadable: measured again and replaced
    tally.note("reference", key, False)
    metrics = evaluation.evaluate(context)
    kept(lambda: write_json_atomic(path, [plain(metric.model_dump()) for metric in metrics]))
    return metrics


def kept_states(
    context: EvaluationContext,
    identity: Mapping[str, Any],
    key: Mapping[str, Any],
    compute: Callable[[], Tensor],
) -> Tensor:
    """Return the unquantized model's last hidden states ``(n, T, D)``, from the cache folder if possible.

    Args:
        context: the unquantized model.
        identity: identity of the cell.
        key: everything beside model, code, libraries and hardware that determines the states.
        compute: computes the states if the cache folder does not have them.
    """
    whole = reference_identity(identity)
    relevant = {name: part for name, part in whole.items() if name not in ("evaluation", "data")}
    folder = cache_root(context.cache_dir) / "original" / fingerprint({**relevant, **key})
    path = folder / "states.safetensors"
    try:
        return load_file(path)["states"]
    except (OSError, KeyError, SafetensorError):
        pass  # missing or damaged: computed and written again
    states = compute().cpu().contiguous()
    kept(lambda: write_atomic(path, lambda file: save_file({"states": states}, file)))
    return states


def reference_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a cell's identity that determines the unquantized model's metrics."""
    config = identity["config"]
    return {
        "model": config["model"],
        "evaluation": config["evaluation"],
        "weights": identity["weights"],
        "data": identity["data"]["evaluation"],
        "hardware": identity["hardware"],
        "versions": identity["versions"],
        "code": CHECKOUT.code(__name__, *targets(config["model"]), *targets(config["evaluation"])).key,
    }
