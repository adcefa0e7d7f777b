"""The work of one cell: load, measure the original, quantize, measure again, make the record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from q2n import provenance
from q2n.activations import activation_store
from q2n.config import RunConfig
from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.known import guard
from q2n.evaluation.reference import reference_metrics
from q2n.fingerprint import fingerprint
from q2n.models.loading import LoadedModel
from q2n.pipeline import Method, quantize_model
from q2n.progress import CellProgress
from q2n.schema import Metric, RunRecord
from q2n.types import LayerReport


class Stopwatch:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def compute(config: RunConfig, identity: Mapping[str, Any], title: str) -> RunRecord:
    """The finished record of a cell.

    Raises:
        UnsupportedError: model and method do not fit (found before calibration).
        DataError, ModelError, NumericalError: see the stages.
    """
    device = torch.device(identity["hardware"]["device"])
    dtype: torch.dtype = getattr(torch, identity["hardware"]["dtype"])
    cache_dir = config.scalars.cache_dir
    watch = Stopwatch()
    torch.manual_seed(config.scalars.seed)
    provenance.reset_peak_memory()
    with CellProgress(title) as bar, torch.no_grad():
        bar.begin("load")
        with watch.stage("load"):
            config.evaluation.prepare(cache_dir)
            loaded = config.model.load(dtype, cache_dir)
            config.baseline.check(loaded.adapter)
        context = EvaluationContext(loaded, device, dtype, cache_dir, bar.advance)
        bar.begin("reference")
        with watch.stage("evaluate_unquantized"):
            reference = reference_metrics(config.evaluation, context, identity)
            _guard(config, identity, reference)
            kept = config.evaluation.keep(context, identity)
        bar.begin("quantize")
        layers = _quantize(config, loaded, device, watch, bar)
        bar.begin("evaluate")
        with watch.stage("evaluate"):
            metrics = config.evaluation.evaluate(replace(context, kept=kept))
    metrics = [_with_reference(metric, reference) for metric in metrics]
    return _record(config, identity, loaded, layers, metrics, watch.seconds)


def _guard(config: RunConfig, identity: Mapping[str, Any], reference: list[Metric]) -> None:
    """Stop before quantization where the unquantized model is not what it is known to be."""
    scalars = config.scalars
    guard(
        reference,
        config.model.name,
        identity["weights"],
        action=scalars.sanity,
        path=scalars.known,
        results=(scalars.results_dir, scalars.name),
    )


def _quantize(
    config: RunConfig, loaded: LoadedModel, device: torch.device, watch: Stopwatch, bar: CellProgress
) -> list[LayerReport]:
    calibration, adapter = config.calibration, loaded.adapter
    with watch.stage("tokenize"):
        text = calibration.tokens(loaded.tokenizer, config.scalars.cache_dir, config.heldout)
    count = len(adapter.blocks)
    steps = [f"{block.index}/{group.name}" for block in adapter.blocks for group in block.groups]

    def progress(block: int, group: str) -> None:
        done = steps.index(f"{block}/{group}") / len(steps)
        bar.advance(done, f"block {block + 1}/{count} {group}")

    with watch.stage("quantize"), activation_store(calibration.activations) as store:
        return quantize_model(
            adapter,
            text.tokens,
            Method(config.baseline, config.correction.bind(config.baseline)),
            batch_size=calibration.batch_size,
            true_sequential=calibration.stages == "true_sequential",
            store=store,
            device=device,
            progress=progress,
            heldout=text.heldout,
        )


def _with_reference(metric: Metric, references: list[Metric]) -> Metric:
    same = (reference for reference in references if metric.measures_as(reference))
    found = next(same, None)
    return metric if found is None else metric.with_reference(found)


def _record(
    config: RunConfig,
    identity: Mapping[str, Any],
    loaded: LoadedModel,
    layers: list[LayerReport],
    metrics: list[Metric],
    seconds: dict[str, float],
) -> RunRecord:
    scalars = config.scalars
    weights = sum(report.shape[0] * report.shape[1] for report in layers)
    bits = sum(report.bits_per_weight * report.shape[0] * report.shape[1] for report in layers)
    return RunRecord(
        fingerprint=fingerprint(identity),
        name=scalars.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.tree,
        overrides=config.overrides,
        cell=config.cell,
        identity=dict(identity),
        provenance=provenance.collect(
            device=identity["hardware"]["device"],
            dtype=identity["hardware"]["dtype"],
            seeds={"run": scalars.seed, "calibration": config.calibration.seed},
            weights=loaded.weights_sentence,
        ),
        layers=tuple(layers),
        metrics=tuple(metrics),
        seconds=seconds,
        peak_memory_bytes=provenance.peak_memory_bytes(),
        peak_device_memory_bytes=provenance.peak_device_memory_bytes(),
        bits_per_weight=bits / weights,
    )
