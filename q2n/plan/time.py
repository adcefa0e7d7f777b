"""Predicted wall time of a cell: that of similar cells, or operations divided by an assumed rate."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from q2n.config import RunConfig
from q2n.plan.workload import Workload
from q2n.records.provenance import cpu_model
from q2n.records.store import FILE_NAME

RATES = {"cpu": 40e9, "cuda": 60e12, "mps": 2e12}
"""Floating-point operations per second (a multiply-add is two): per thread for ``cpu``, else per device. A
guess, used only on machines without records."""
EIGEN_SLOWER = 10
"""Time of an eigendecomposition's operation, relative to an operation of a matrix product."""
NEWEST = 200
"""Maximum number of records read, newest first."""


@dataclass(frozen=True)
class Duration:
    """Predicted seconds and their source.

    The source is ``records`` (similar cells), ``scaled`` (similar cells with other numbers of tokens) or
    ``estimate`` (operations divided by a rate).
    """

    seconds: float
    source: str


@dataclass(frozen=True)
class Past:
    """Measured time of one record.

    Attributes:
        like: what similar cells have in common.
        amounts: tokens of calibration, and tokens of the evaluation's windows.
        seconds: wall time of all stages.
    """

    like: tuple[str, ...]
    amounts: tuple[int, int]
    seconds: float


def read_past(results_dir: str | Path) -> list[Past]:
    """Return the times of the newest records that were computed on this kind of processor."""
    paths = list(Path(results_dir).glob(f"*/*/{FILE_NAME}"))
    newest = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[:NEWEST]
    found = (_past(path) for path in newest)
    return [past for past in found if past is not None]


def _past(path: Path) -> Past | None:
    """Return the time of one record, or None if it is unreadable or from another processor.

    Only a few numbers are needed, so the record is not validated by its schema.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        provenance, config = record["provenance"], record["config"]
        if provenance["cpu"] != cpu_model() or not record["seconds"]:
            return None
        hardware = {"device": provenance["device"], "dtype": provenance["dtype"]}
        return Past(_like(config, hardware), _amounts(config), sum(record["seconds"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def duration(
    config: RunConfig, work: Workload, hardware: Mapping[str, str], past: Iterable[Past]
) -> Duration:
    """Return the predicted time of a cell.

    This is the median over similar cells (same model, baseline, correction, stages and device), scaled by
    tokens if none has the same number of tokens, or operations divided by :data:`RATES` if there are no
    similar cells.
    """
    like = [item for item in past if item.like == _like(config.tree, hardware)]
    amounts = _amounts(config.tree)
    same = [item.seconds for item in like if item.amounts == amounts]
    if same:
        return Duration(median(same), "records")
    if like:
        scaled = [item.seconds * sum(amounts) / max(1, sum(item.amounts)) for item in like]
        return Duration(median(scaled), "scaled")
    return Duration(operations(work) / rate(hardware["device"]), "estimate")


def rate(device: str) -> float:
    """Return the assumed operations per second of a device, for the CPU times its threads."""
    kind = device.partition(":")[0]
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))) if kind == "cpu" else 1
    return RATES.get(kind, RATES["cpu"]) * threads


def _like(config: Mapping[str, Any], hardware: Mapping[str, str]) -> tuple[str, ...]:
    """Return what similar cells have in common."""
    return (
        json.dumps(config["model"], sort_keys=True),
        config["baseline"]["_target_"],
        config["q2n"]["_target_"],
        config["calibration"]["stages"],
        *map(str, hardware.values()),
    )


def _amounts(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return tokens of calibration and tokens of evaluation."""
    calibration = config["calibration"]
    return calibration["nsamples"] * calibration["seqlen"], sum(_windows(config["evaluation"]))


def _windows(tree: Mapping[str, Any]) -> Iterable[int]:
    """Yield the tokens of each evaluation; for tasks their limit, since their tokens are unknown."""
    if "parts" in tree:
        for part in tree["parts"].values():
            yield from _windows(part)
    elif "windows" in tree:
        yield tree["windows"] * tree["seqlen"] * len(tree["datasets"])
    else:
        yield int(tree.get("limit") or 0)


def operations(work: Workload) -> float:
    """Return the number of floating-point operations of a cell, without a method's own searches."""
    shapes = work.shapes
    forward = 2.0 * sum(rows * columns for rows, columns in shapes.linears.values()) * shapes.num_blocks
    widths = (shapes.hidden, shapes.heads * shapes.head_dim, shapes.hidden, shapes.intermediate)
    gram = work.tokens * sum(width**2 for width in widths)
    factorising = sum(4 * width**3 for width in widths)
    columns = sum(2 * rows * width**2 for rows, width in shapes.linears.values())
    eigen = EIGEN_SLOWER * sum(9 * width**3 for width in work.corrected)
    per_block = gram + factorising + columns + eigen
    evaluated = sum(windows.tokens for windows in work.windows)
    head = 2.0 * shapes.embedding_weights * evaluated
    return forward * (work.forwards * work.tokens + 2 * evaluated) + shapes.num_blocks * per_block + 2 * head
