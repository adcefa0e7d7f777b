"""Data of every cell for the page: the parts of its record that a reader needs, small enough to embed.

Values per window and layer are left out; the page links to the complete ``record.json``. Parts that many
cells share (a group of the configuration, a protocol, a machine) are written once.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from q2n.records.failure import FILE_NAME as FAILURE_FILE
from q2n.records.failure import Failure
from q2n.records.fingerprint import NEUTRAL_KEYS, canonical_json, plain
from q2n.records.schema import Cell, Metric, RunRecord
from q2n.records.store import FILE_NAME
from q2n.report.overview import StudyReport
from q2n.types import LayerReport


def file_of(name: str, fingerprint: str, file: str = FILE_NAME) -> str:
    """Address of a cell's file, relative to the page."""
    return f"{quote(name)}/{fingerprint}/{file}"


class Shared:
    """A list of values that are written once and referred to by their index."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """Index of ``value`` in :attr:`values`; a new value is appended."""
        place = self._places.setdefault(canonical_json(value), len(self.values))
        if place == len(self.values):
            self.values.append(plain(value))
        return place


def embedded(reports: Iterable[StudyReport]) -> dict[str, Any]:
    """Data for the page's script: ``shared`` values, and ``cells`` and ``failures`` by fingerprint."""
    shared = Shared()
    cells: dict[str, Any] = {}
    failures: dict[str, Any] = {}
    for report in reports:
        for record in report.records:
            # a cell that several studies share is embedded once, with one file per study
            if record.fingerprint not in cells:
                cells[record.fingerprint] = plain_tree(_cell(record, shared))
            place = [report.name, file_of(report.name, record.fingerprint)]
            cells[record.fingerprint]["files"].append(place)
        for item in report.unfinished:
            if item.failure is not None:
                failures[item.failure.ref.fingerprint] = plain_tree(_failure(item.failure, shared))
    return {"shared": shared.values, "cells": cells, "failures": failures}


def _cell(record: RunRecord, shared: Shared) -> dict[str, Any]:
    provenance = record.provenance.model_dump()
    seeds = provenance.pop("seeds")
    return {
        **_common(record.cell, record.config, record, shared),
        "files": [],
        "metrics": [plain_tree(_metric(metric, shared)) for metric in record.metrics],
        "bits_per_weight": record.bits_per_weight,
        "seeds": seeds,
        "provenance": shared.place(provenance),
        "seconds": {stage: round(value, 2) for stage, value in record.seconds.items()},
        "work": {kind: round(value, 2) for kind, value in record.work_seconds.items()},
        "reused": {stage: f"{item.found} of {item.parts}" for stage, item in record.reused.items()},
        "memory": [record.peak_memory_bytes, record.peak_device_memory_bytes],
        "resumed": record.resumed_at,
        "layers": layer_summary(record.layers),
    }


def plain_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree as plain JSON values, without empty ones (``files`` stays even if it is empty)."""
    kept = {key: plain(value) for key, value in tree.items()}
    return {key: value for key, value in kept.items() if value not in (None, "", {}) or key == "files"}


def _common(axes: Cell, config: dict[str, Any], item: RunRecord | Failure, shared: Shared) -> dict[str, Any]:
    """Fields that finished and failed cells have in common."""
    config = {key: value for key, value in config.items() if key not in NEUTRAL_KEYS}
    return {
        "cell": axes.model_dump(),
        "created": item.created,
        "overrides": [text for text in item.overrides if _key(text) not in NEUTRAL_KEYS],
        "config": {key: shared.place(value) for key, value in config.items()},
    }


def _key(override: str) -> str:
    """Top-level key of an override: ``q2n`` of ``+q2n.t=0.1``.

    Overrides with neutral keys stay out of the page: the results folder, for one, is an absolute path.
    """
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0]


def _metric(metric: Metric, shared: Shared) -> dict[str, Any]:
    return {
        "name": f"{metric.dataset} {metric.name}".strip(),
        "value": metric.value,
        "reference": metric.reference,
        "stderr": metric.stderr,
        "unit": metric.unit,
        "count": f"{metric.count} {metric.count_unit}",
        "lower_is_better": metric.lower_is_better,
        "seconds": metric.seconds,
        "protocol": shared.place({**metric.protocol.model_dump(), "key": metric.protocol.key()}),
    }


def _failure(failure: Failure, shared: Shared) -> dict[str, Any]:
    return {
        **_common(failure.ref.axes, failure.ref.configuration, failure, shared),
        "files": [[failure.ref.name, file_of(failure.ref.name, failure.ref.fingerprint, FAILURE_FILE)]],
        "reason": failure.reason,
        "log": failure.log,
        "seconds": failure.seconds,
    }


def layer_summary(layers: Sequence[LayerReport]) -> list[list[Any]]:
    """Summary with one line per kind of layer.

    Returns:
        Per kind: name, number of layers, median relative output error before and after the correction, and
        number of layers whose error fell.
    """
    kinds: dict[str, list[tuple[float | None, float | None]]] = defaultdict(list)
    for layer in layers:
        kinds[layer.name].append((layer.error_before, layer.error_after))
    summary: list[list[Any]] = []
    for name, errors in kinds.items():
        before, after = zip(*errors, strict=True)
        fell = sum(a < b for b, a in errors if a is not None and b is not None)
        summary.append([name, len(errors), _median(before), _median(after), fell])
    return summary


def _median(errors: Iterable[float | None]) -> float | None:
    """Median of the known errors, to four digits, or None if there are none."""
    known = [error for error in errors if error is not None]
    return float(f"{statistics.median(known):.4g}") if known else None
