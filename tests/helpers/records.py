"""Small records for the tests of everything that reads records."""

from __future__ import annotations

import math
from typing import Any

from q2n.records.fingerprint import fingerprint
from q2n.records.provenance import Provenance
from q2n.records.schema import Cell, CellRef, EvaluationProtocol, Metric, RunRecord


def make_protocol(**changes: Any) -> EvaluationProtocol:
    fields: dict[str, Any] = {
        "dataset": "wiki",
        "text_sha256": "a" * 64,
        "tokenizer": "t" * 64,
        "seqlen": 512,
        "windows": 32,
        "bos": "none",
        "loss_dtype": "float32",
        "forward_dtype": "float32",
        "stride": 512,
    }
    fields.update(changes)
    fields.setdefault("stride", fields["seqlen"])
    return EvaluationProtocol(**fields)


def make_metric(value: float, dataset: str = "wiki", **changes: Any) -> Metric:
    protocol = changes.pop("protocol", None) or make_protocol(dataset=dataset)
    fields: dict[str, Any] = {
        "name": "perplexity",
        "dataset": dataset,
        "value": value,
        "unit": "per token",
        "count": protocol.windows,
        "lower_is_better": True,
        "protocol": protocol,
    }
    return Metric(**{**fields, **changes})


def make_record(**changes: Any) -> RunRecord:
    """A record; cell labels, ``q2n_fields`` and ``baseline_fields`` go into a matching config."""
    labels = {"model": "m", "baseline": "gptq", "correction": "on", "bits": 3, "group_size": 64, "seed": 0}
    labels = {key: changes.pop(key, value) for key, value in labels.items()}
    q2n = {"_target_": f"q2n.corrections.{labels['correction']}", **changes.pop("q2n_fields", {})}
    baseline = {"_target_": f"q2n.baselines.{labels['baseline']}", "bits": labels["bits"]}
    baseline["group_size"] = labels["group_size"]
    config = {
        "name": "main",
        "results_dir": "results",
        "model": {"_target_": "q2n.models.source", "path": labels["model"]},
        "baseline": {**baseline, **changes.pop("baseline_fields", {})},
        "q2n": q2n,
        "calibration": {"_target_": "q2n.data.wiki", "nsamples": 32, "seed": labels["seed"]},
        "seed": labels["seed"],
        **changes.pop("config_fields", {}),
    }
    config = changes.pop("config", config)
    identity = changes.pop("identity", {"config": config, "sources": {}, "versions": {}})
    fields: dict[str, Any] = {
        "fingerprint": fingerprint(identity),
        "name": "main",
        "created": "2026-01-01T00:00:00+00:00",
        "config": config,
        "cell": Cell(**labels),
        "identity": identity,
        "provenance": Provenance(device="cpu", weights="random numbers"),
        "seconds": {"quantize": 1.5, "evaluate": 0.5},
        "peak_memory_bytes": 2**30,
        "bits_per_weight": labels["bits"] + 0.25,
        "metrics": (make_metric(10.0, reference=8.0),),
    }
    return RunRecord(**{**fields, **changes})


def make_ref(record: RunRecord | None = None, **changes: Any) -> CellRef:
    """The cell of a record, finished or lost."""
    record = record or make_record()
    fields = {"name": record.name, "label": "m gptq", "axes": record.cell}
    return CellRef(**{**fields, "configuration": record.config, "identity": record.identity, **changes})


def seeded(correction: str, shift: float, seeds: int = 3, **changes: Any) -> list[RunRecord]:
    """A cell a seed, with windows whose losses differ from the other correction's by about ``shift``."""
    found = []
    metric_fields = changes.pop("metric_fields", {})
    for seed in range(seeds):
        losses = [
            2.0 + 0.1 * (w % 5) + shift + 0.01 * ((w * 7 + seed * 3) % 4) * bool(shift) for w in range(12)
        ]
        metric = make_metric(math.exp(sum(losses) / 12), per_window=tuple(losses), **metric_fields)
        found.append(make_record(correction=correction, seed=seed, metrics=(metric,), **changes))
    return found
