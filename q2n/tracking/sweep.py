"""The content of a sweep for a tracker: the tables and figures that the report makes of its records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from q2n.exceptions import ConfigurationError
from q2n.records.store import RunRecord, to_frame
from q2n.report.figures.labels import measure
from q2n.report.figures.of_study import figures_of_sweep, write_figures
from q2n.report.overview import Drawn, StudyReport, study_report
from q2n.report.studies.study import load_studies
from q2n.report.tables.lines import long_frame
from q2n.report.tables.pairs import Pair
from q2n.tracking.content import without_secrets


@dataclass(frozen=True)
class SweepContent:
    """The logged content of one sweep; every figure has a PNG file.

    ``tables`` has ``results`` (one row per cell and metric), ``differences`` (one row per corrected line and
    column, against the uncorrected line) and ``layers`` (one row per cell and layer).
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    figures: tuple[Drawn, ...]


def sweep_content(records: Iterable[RunRecord], folder: Path) -> SweepContent:
    """The content of the newest record of each cell, without secrets.

    Args:
        records: records of the sweep; of several for one cell the newest counts.
        folder: folder the figures are written to.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
        OSError: the folder cannot be written.
    """
    cleaned = [record.model_copy(update={"config": without_secrets(record.config)}) for record in records]
    names = sorted({record.name for record in cleaned})
    name = names[0] if len(names) == 1 else "sweep"
    study = None
    with suppress(ConfigurationError):  # python -m q2n.report prints the fault of a study file
        study = load_studies().get(name)
    report = study_report(name, cleaned, study=study)
    verdicts = [pair.verdict for pair in report.pairs]
    counted = {f"differences/{word}": verdicts.count(word) for word in ("better", "worse", "undecided")}
    return SweepContent(
        config={"names": names, **_config(report.records)},
        summary={"cells": len(report.records), **counted},
        tables=_tables(report),
        figures=write_figures(report, folder, png=True, plain=figures_of_sweep(report.records)),
    )


def _config(records: Sequence[RunRecord]) -> dict[str, Any]:
    axes = {"models": "model", "baselines": "baseline", "corrections": "correction", "bits": "bits"}
    found = {key: {getattr(record.cell, axis) for record in records} for key, axis in axes.items()}
    found["seeds"] = {record.cell.seed for record in records}
    found["fingerprints"] = {record.fingerprint for record in records}
    return {key: sorted(values) for key, values in found.items()}


def _tables(report: StudyReport) -> dict[str, pd.DataFrame]:
    results, layers = long_frame(report.records), to_frame(report.records, per="layer")
    labels = [name for name in ("fingerprint", "settings", "q2n_settings") if name in results]
    if not layers.empty:
        layers = layers.filter(regex=r"^(?!shape$|null_space\.|extra\.)")  # a chart cannot show lists
        layers = layers.merge(results[labels].drop_duplicates(), on="fingerprint", how="left")
    differences = pd.DataFrame([_difference(pair) for pair in report.pairs])
    return {"results": results, "differences": differences, "layers": layers}


def _difference(pair: Pair) -> dict[str, Any]:
    row, column, found = pair.row, pair.column, pair.found
    model, baseline, settings, line = row.key
    return {
        "model": model,
        "baseline": baseline,
        "settings": settings,
        "correction": line,
        "bits": column.bits,
        "metric": measure(column),
        "protocol": column.protocol.label() if column.protocol else None,
        "uncorrected": pair.uncorrected,
        "corrected": pair.corrected,
        "unquantized": pair.reference,
        "difference": found and found.estimate,
        "low": found and found.low,
        "high": found and found.high,
        "unit": found and ("%" if found.relative else column.unit),
        "p": found and found.p_value,
        "seeds": pair.seeds,
        "verdict": pair.verdict,
    }
