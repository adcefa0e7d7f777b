"""The content of a record for a tracker: plain values without secrets. Imports no tracker."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from q2n.records.store import RunRecord
from q2n.types import LayerReport

if TYPE_CHECKING:
    import pandas as pd

_SECRET = re.compile(r"(^|_)(token|api_?key|secret|password|passwd|credentials?|auth)$", re.IGNORECASE)
_SERIES = (
    "error_before",
    "error_after",
    "heldout_error_before",
    "heldout_error_after",
    "alpha_min",
    "alpha_max",
    "null_rank",
    "damping",
    "bits_per_weight",
)


def run_name(record: RunRecord) -> str:
    """Name of the run in a tracker's list: ``<model>-<baseline>-<correction>-<bits>bit-seed<seed>``."""
    cell = record.cell
    return f"{cell.model}-{cell.baseline}-{cell.correction}-{cell.bits}bit-seed{cell.seed}"


def config_of(record: RunRecord) -> dict[str, Any]:
    """Resolved configuration with the cell's labels, fingerprint, provenance and protocols; no secrets."""
    whole = {
        **record.config,
        "cell": record.cell.model_dump(),
        "fingerprint": record.fingerprint,
        "overrides": list(record.overrides),
        "provenance": record.provenance.model_dump(),
        "protocols": {protocol.key(): protocol.model_dump() for protocol in record.protocols},
    }
    return dict(without_secrets(whole))


def without_secrets(tree: Any) -> Any:
    """A copy of ``tree`` in which ``***`` replaces secrets.

    A secret is the text under a key that names one, or the value of an override with such a key.
    """
    if isinstance(tree, Mapping):
        return {
            key: "***" if _SECRET.search(str(key)) and isinstance(value, str) else without_secrets(value)
            for key, value in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        return [without_secrets(item) for item in tree]
    if isinstance(tree, str):  # an override: +hub.hf_token=...
        key, sign, _ = tree.partition("=")
        return f"{key}=***" if sign and _SECRET.search(key.rpartition(".")[2]) else tree
    return tree


def history_of(record: RunRecord) -> list[tuple[int, dict[str, Any]]]:
    """Per-layer series in block order: ``(block, {"block": ..., "layers/<layer>/<quantity>": ...})``."""
    blocks: dict[int, list[LayerReport]] = defaultdict(list)
    for layer in record.layers:
        blocks[layer.block].append(layer)
    steps = []
    for block in sorted(blocks):
        values: dict[str, Any] = {"block": block}
        for layer in blocks[block]:
            for quantity in _SERIES:
                if (value := getattr(layer, quantity)) is not None:
                    values[f"layers/{layer.name}/{quantity}"] = value
        steps.append((block, values))
    return steps


def summary_of(record: RunRecord) -> dict[str, Any]:
    """Final numbers by key: ``<data set>/<metric>``, ``seconds/<stage>``, memory in bytes.

    If several protocols measured a metric, its keys end in the protocol's digest.
    """
    times = Counter((metric.dataset, metric.name) for metric in record.metrics)
    summary: dict[str, Any] = {
        "bits_per_weight": record.bits_per_weight,
        "peak_memory_bytes": record.peak_memory_bytes,
        **{f"seconds/{stage}": value for stage, value in record.seconds.items()},
    }
    for metric in record.metrics:
        key = f"{metric.dataset}/{metric.name}"
        if times[metric.dataset, metric.name] > 1:
            key = f"{key}/{metric.protocol.key()}"
        summary[key] = metric.value
        if metric.reference is not None:
            summary[f"{key}/unquantized"] = metric.reference
    return summary


def table_of(frame: pd.DataFrame) -> tuple[list[str | int], list[Iterable[Any]]]:
    """Columns and rows of the frame as plain values; None replaces a missing value."""
    frame = frame.astype(object)
    return [*map(str, frame.columns)], [*frame.where(frame.notna(), None).to_numpy().tolist()]
