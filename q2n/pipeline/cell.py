"""Computation of one cell: load, evaluate the unquantized model, quantize, evaluate, build the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from q2n.config import RunConfig
from q2n.data.local_files import cache_root
from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.reference import reference_metrics
from q2n.models.loaded import LoadedModel
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method, OnBlock, require_finite_weights
from q2n.pipeline.checkpoint import Checkpoint, seed_block
from q2n.pipeline.cost import Cost, Expense
from q2n.pipeline.inputs import CellInputs, read_inputs
from q2n.pipeline.sharing.context import StageContext
from q2n.pipeline.sharing.keys import stage_keys
from q2n.pipeline.sharing.static import StaticStages
from q2n.pipeline.sharing.store import StageStore
from q2n.plan.fit import misfit
from q2n.records import provenance
from q2n.records.fingerprint import fingerprint
from q2n.records.known_values import guard
from q2n.records.schema import Metric, ReuseTally, RunRecord
from q2n.records.store import checkpoint_folder
from q2n.runtime.clock import clocked
from q2n.runtime.memory import keep_freed_memory
from q2n.runtime.progress import CellProgress
from q2n.types import LayerReport


def compute(
    config: RunConfig, identity: Mapping[str, Any], bar: CellProgress, watch: OnBlock | None = None
) -> RunRecord:
    """Compute a cell and return its record.

    Args:
        config: configuration of the cell.
        identity: identity of the cell, from which its fingerprint is computed.
        bar: progress line, already visible.
        watch: callback after every block with the reports so far, or None if there is none.

    Raises:
        UnsupportedError: model and method do not fit; raised before calibration.
        ConfigurationError, DataError: see :func:`q2n.pipeline.inputs.read_inputs`; no weights are read yet.
        CheckpointError, ModelError, NumericalError: see the stages.
        Interrupted: SIGINT or SIGTERM; the progress of the cell is saved.
    """
    dtype: torch.dtype = getattr(torch, identity["hardware"]["dtype"])
    device = torch.device(identity["hardware"]["device"])
    scalars, key = config.scalars, fingerprint(identity)
    expense, tally = Expense(), ReuseTally()
    checkpoint = Checkpoint(
        checkpoint_folder(scalars.results_dir, scalars.name, key),
        key,
        resume=scalars.resume,
        every=scalars.checkpoint_every,
        account=expense.note,
        say=bar.note,
    )
    with checkpoint, torch.no_grad():
        expense.earlier = Cost(**checkpoint.account)
        bar.begin("load")
        if (error := misfit(config)) is not None:
            raise error
        with expense.stage("tokenize"):
            config.evaluation.prepare(scalars.cache_dir)
            inputs = read_inputs(config)
        with expense.stage("load"):
            loaded = config.model.load(dtype, scalars.cache_dir, scalars.streaming)
            config.baseline.check(loaded.adapter)
            if loaded.adapter.in_memory:  # streamed blocks are checked when they are loaded
                for block in loaded.adapter.blocks:
                    require_finite_weights(block)
        if loaded.adapter.in_memory:  # streaming saves memory at the cost of time
            keep_freed_memory()
        cell = _LoadedCell(config, identity, inputs, loaded, device, checkpoint, expense, tally, bar)
        context = EvaluationContext(loaded, device, dtype, scalars.cache_dir, bar.advance)
        bar.begin("reference")
        with expense.stage("evaluate_unquantized"):
            reference = reference_metrics(config.evaluation, context, identity, tally)
            cell.guard(reference)
            kept = config.evaluation.keep(context, identity)
        bar.begin("quantize")
        with expense.stage("quantize"), clocked(expense.work):
            layers = cell.quantize(watch)
        bar.begin("evaluate")
        seed_block(scalars.seed, len(loaded.adapter.blocks))
        with expense.stage("evaluate"):
            metrics = config.evaluation.evaluate(replace(context, kept=kept, quantized=True))
    return cell.record(layers, [inputs.marked(_with_reference(metric, reference)) for metric in metrics])


@dataclass(frozen=True)
class _LoadedCell:
    """State of a cell after its model is loaded."""

    config: RunConfig
    identity: Mapping[str, Any]
    inputs: CellInputs
    loaded: LoadedModel
    device: torch.device
    checkpoint: Checkpoint
    expense: Expense
    tally: ReuseTally
    bar: CellProgress

    def guard(self, reference: list[Metric]) -> None:
        """Compare the unquantized model's metrics with known values; ``sanity`` decides if the cell stops."""
        scalars = self.config.scalars
        guard(
            reference,
            self.config.model.name,
            self.identity["weights"],
            action=scalars.sanity,
            path=scalars.known,
            results=(scalars.results_dir, scalars.name),
        )

    def quantize(self, watch: OnBlock | None) -> list[LayerReport]:
        """Quantize the model in place and return one report per layer."""
        config, calibration, blocks = self.config, self.config.calibration, self.loaded.adapter.blocks
        steps = [f"{block.index}/{group.name}" for block in blocks for group in block.groups]

        def progress(block: int, group: str) -> None:
            done = steps.index(f"{block}/{group}") / len(steps)
            self.bar.advance(done, f"block {block + 1}/{len(blocks)} {group}")

        method = Method(config.baseline, config.correction.bind(config.baseline), config.diagnostics)
        with activation_store(calibration.activations) as store:
            loop = BlockLoop(
                method,
                self.inputs.calibration.tokens,
                store,
                self.device,
                progress,
                batch_size=calibration.batch_size,
                true_sequential=calibration.stages == "true_sequential",
                heldout=self.inputs.calibration.heldout,
                seed=config.scalars.seed,
                checkpoint=self.checkpoint,
                static=self._static(method) if calibration.stages == "static" else None,
                on_block=watch,
            )
            return loop.quantize(self.loaded.adapter)

    def _static(self, method: Method) -> StaticStages:
        """Return the stages that share statistics of the unquantized model with other cells."""
        scalars = self.config.scalars
        store = StageStore(cache_root(scalars.cache_dir) / "stages", int(scalars.cache_limit * 2**30))
        return StaticStages(
            StageContext(store, self.device, self.tally),
            stage_keys(self.identity, method.baseline, self.config.heldout),
            method.baseline,
            method.requires,
            len(self.loaded.adapter.blocks),
        )

    def record(self, layers: list[LayerReport], metrics: list[Metric]) -> RunRecord:
        """Return the record of the finished cell."""
        config, scalars, spent = self.config, self.config.scalars, self.expense.total
        weights = sum(report.shape[0] * report.shape[1] for report in layers)
        bits = sum(report.bits_per_weight * report.shape[0] * report.shape[1] for report in layers)
        return RunRecord(
            fingerprint=fingerprint(self.identity),
            name=scalars.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            config=config.tree,
            overrides=config.overrides,
            cell=config.cell,
            identity=dict(self.identity),
            provenance=provenance.collect(
                device=self.identity["hardware"]["device"],
                dtype=self.identity["hardware"]["dtype"],
                seeds={"run": scalars.seed, "calibration": config.calibration.seed},
                weights=self.loaded.weights_sentence,
            ),
            layers=tuple(layers),
            metrics=tuple(metrics),
            **asdict(spent),
            reused=self.tally.reused,
            resumed_at=self.checkpoint.resumed_at,
            bits_per_weight=bits / weights,
            notes=(*self.inputs.notes, *dict.fromkeys(note for metric in metrics for note in metric.notes)),
        )


def _with_reference(metric: Metric, references: list[Metric]) -> Metric:
    """Return the metric with the unquantized model's value, if it was measured in the same way."""
    same = (reference for reference in references if metric.measures_as(reference))
    found = next(same, None)
    return metric if found is None else metric.with_reference(found)
