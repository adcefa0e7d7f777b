"""The work of one cell: load, measure the original, quantize, measure again, make the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from q2n.config import RunConfig
from q2n.data.local_files import cache_root
from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.reference import reference_metrics
from q2n.models.loaded import LoadedModel
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import Method, Watch, quantize_model, require_finite_weights
from q2n.pipeline.checkpoint import Checkpoint, seed_block
from q2n.pipeline.cost import Expense, Spent
from q2n.pipeline.inputs import Inputs, read_inputs
from q2n.pipeline.sharing.context import StageContext
from q2n.pipeline.sharing.keys import stage_keys
from q2n.pipeline.sharing.static import StaticStages
from q2n.pipeline.sharing.store import StageStore
from q2n.plan.fit import misfit
from q2n.records import provenance
from q2n.records.fingerprint import fingerprint
from q2n.records.known_values import guard
from q2n.records.schema import Metric, Reuse, ReuseTally, RunRecord
from q2n.records.store import checkpoint_folder
from q2n.runtime.clock import clocked
from q2n.runtime.memory import keep_freed_memory
from q2n.runtime.progress import CellProgress
from q2n.types import LayerReport


def compute(
    config: RunConfig, identity: Mapping[str, Any], bar: CellProgress, watch: Watch | None = None
) -> RunRecord:
    """The finished record of a cell; ``bar`` is shown already, ``watch`` gets the reports so far after every
    block.

    Raises:
        UnsupportedError: model and method do not fit (found before calibration).
        ConfigurationError, DataError: see :func:`q2n.pipeline.inputs.read_inputs`; no weights are read yet.
        CheckpointError, ModelError, NumericalError: see the stages.
        Interrupted: SIGINT or SIGTERM; where the cell had got to is saved.
    """
    dtype: torch.dtype = getattr(torch, identity["hardware"]["dtype"])
    device = torch.device(identity["hardware"]["device"])
    cache_dir, seed = config.scalars.cache_dir, config.scalars.seed
    expense, tally = Expense(), ReuseTally()
    with _checkpoint(config, identity, expense, bar) as checkpoint, torch.no_grad():
        expense.earlier = Spent(**checkpoint.account)
        bar.begin("load")
        if (error := misfit(config)) is not None:
            raise error
        with expense.stage("tokenize"):
            config.evaluation.prepare(cache_dir)
            inputs = read_inputs(config)
        with expense.stage("load"):
            loaded = config.model.load(dtype, cache_dir, config.scalars.streaming)
            config.baseline.check(loaded.adapter)
            if loaded.adapter.in_memory:  # blocks that are streamed are checked when they are taken
                for block in loaded.adapter.blocks:
                    require_finite_weights(block)
        if loaded.adapter.in_memory:  # who streams needs the memory more than the time
            keep_freed_memory()
        context = EvaluationContext(loaded, device, dtype, cache_dir, bar.advance)
        bar.begin("reference")
        with expense.stage("evaluate_unquantized"):
            reference = reference_metrics(config.evaluation, context, identity, tally)
            _guard(config, identity, reference)
            kept = config.evaluation.keep(context, identity)
        bar.begin("quantize")
        layers = _quantize(config, identity, loaded, inputs, device, expense, bar, checkpoint, tally, watch)
        bar.begin("evaluate")
        seed_block(seed, len(loaded.adapter.blocks))
        with expense.stage("evaluate"):
            metrics = config.evaluation.evaluate(replace(context, kept=kept, quantized=True))
    metrics = [inputs.marked(_with_reference(metric, reference)) for metric in metrics]
    return _record(
        config, identity, loaded, inputs, layers, metrics, expense.total, checkpoint.resumed_at, tally.reused
    )


def _checkpoint(
    config: RunConfig, identity: Mapping[str, Any], expense: Expense, bar: CellProgress
) -> Checkpoint:
    scalars, key = config.scalars, fingerprint(identity)
    return Checkpoint(
        checkpoint_folder(scalars.results_dir, scalars.name, key),
        key,
        resume=scalars.resume,
        every=scalars.checkpoint_every,
        account=expense.note,
        say=bar.note,
    )


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
    config: RunConfig,
    identity: Mapping[str, Any],
    loaded: LoadedModel,
    inputs: Inputs,
    device: torch.device,
    expense: Expense,
    bar: CellProgress,
    checkpoint: Checkpoint,
    tally: ReuseTally,
    watch: Watch | None,
) -> list[LayerReport]:
    calibration, adapter = config.calibration, loaded.adapter
    method = Method(config.baseline, config.correction.bind(config.baseline), config.diagnostics)
    count = len(adapter.blocks)
    steps = [f"{block.index}/{group.name}" for block in adapter.blocks for group in block.groups]

    def progress(block: int, group: str) -> None:
        done = steps.index(f"{block}/{group}") / len(steps)
        bar.advance(done, f"block {block + 1}/{count} {group}")

    with (
        expense.stage("quantize"),
        clocked(expense.work),
        activation_store(calibration.activations) as store,
    ):
        return quantize_model(
            adapter,
            inputs.calibration.tokens,
            method,
            batch_size=calibration.batch_size,
            true_sequential=calibration.stages == "true_sequential",
            store=store,
            device=device,
            progress=progress,
            heldout=inputs.calibration.heldout,
            seed=config.scalars.seed,
            checkpoint=checkpoint,
            static=_static_stages(config, identity, method, loaded, device, tally),
            watch=watch,
        )


def _static_stages(
    config: RunConfig,
    identity: Mapping[str, Any],
    method: Method,
    loaded: LoadedModel,
    device: torch.device,
    tally: ReuseTally,
) -> StaticStages | None:
    if config.calibration.stages != "static":
        return None
    limit = int(config.scalars.cache_limit * 2**30)
    return StaticStages(
        StageContext(StageStore(cache_root(config.scalars.cache_dir) / "stages", limit), device, tally),
        stage_keys(identity, config.baseline, config.heldout),
        method.baseline,
        method.requires,
        len(loaded.adapter.blocks),
    )


def _with_reference(metric: Metric, references: list[Metric]) -> Metric:
    same = (reference for reference in references if metric.measures_as(reference))
    found = next(same, None)
    return metric if found is None else metric.with_reference(found)


def _record(
    config: RunConfig,
    identity: Mapping[str, Any],
    loaded: LoadedModel,
    inputs: Inputs,
    layers: list[LayerReport],
    metrics: list[Metric],
    spent: Spent,
    resumed_at: tuple[int, ...],
    reused: dict[str, Reuse],
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
        seconds=spent.seconds,
        work_seconds=spent.work_seconds,
        reused=reused,
        peak_memory_bytes=spent.peak_memory_bytes,
        peak_device_memory_bytes=spent.peak_device_memory_bytes,
        resumed_at=resumed_at,
        bits_per_weight=bits / weights,
        notes=(*inputs.notes, *dict.fromkeys(note for metric in metrics for note in metric.notes)),
    )
