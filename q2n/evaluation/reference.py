"""The unquantized model's metrics, measured once a protocol and kept in the cache folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from q2n.data.cache import cache_root, kept
from q2n.evaluation.base import Evaluation, EvaluationContext
from q2n.records.fingerprint import fingerprint, plain
from q2n.records.reuse import Ledger
from q2n.records.schema import Metric
from q2n.records.source_code import CHECKOUT, targets
from q2n.runtime.files import write_json_atomic

_METRICS = TypeAdapter(list[Metric])


def reference_metrics(
    evaluation: Evaluation, context: EvaluationContext, identity: Mapping[str, Any], ledger: Ledger
) -> list[Metric]:
    """From the cache if this model was measured so, by this code and these libraries; else measured now."""
    key = fingerprint(reference_identity(identity))
    path = cache_root(context.cache_dir) / "reference" / f"{key}.json"
    try:
        metrics = _METRICS.validate_python(json.loads(path.read_text(encoding="utf-8")))
        ledger.note("reference", key, True, sum(metric.seconds or 0.0 for metric in metrics))
        return metrics
    except (OSError, ValueError, ValidationError):
        pass  # not there, or unreadable: measured again and replaced
    ledger.note("reference", key, False)
    metrics = evaluation.evaluate(context)
    kept(lambda: write_json_atomic(path, [plain(metric.model_dump()) for metric in metrics]))
    return metrics


def reference_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell's identity that the unquantized model's metrics depend on."""
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
