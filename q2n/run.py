"""One cell, top to bottom: identify it, reuse or compute, record, track."""

from __future__ import annotations

import contextlib
from typing import Any

from q2n import fingerprint as fingerprints
from q2n import record as records
from q2n.config import RunConfig
from q2n.exceptions import UnsupportedError
from q2n.explain import Decision, note_decision
from q2n.hardware import resolve_device, resolve_dtype
from q2n.outcomes import Outcome


def run_cell(config: RunConfig, sweep: str | None = None, title: str = "") -> Outcome:
    """Run the cell, or reuse its record; errors become outcomes, and never touch finished records.

    Args:
        sweep: what cells of one command share (groups them in W&B and for ``q2n.explain``).
        title: what the progress bar calls the cell.
    """
    scalars = config.scalars
    identity: dict[str, Any] = {"config": config.tree}  # until the whole one is known
    record, failure = None, None
    decision: Decision
    try:
        identity = identify(config)
        key = fingerprints.fingerprint(identity)
        record = None if scalars.force else records.find(scalars.results_dir, scalars.name, key)
        decision = "reused" if record else "forced" if scalars.force else "computed"
        if record is None:
            from q2n.cell import compute

            record = compute(config, identity, title or config.label)
            records.save(record, scalars.results_dir)
            config.tracking.log_run(record, sweep)
    except Exception as error:
        failure = error
        decision = "unsupported" if isinstance(error, UnsupportedError) else "failed"
    with contextlib.suppress(OSError):  # a note for q2n.explain is not worth a finished cell
        note_decision(
            scalars.results_dir, sweep=sweep, name=scalars.name, decision=decision, identity=identity
        )
    return Outcome(config.label, decision, None if failure else record, scalars.results_dir, failure)


def identify(config: RunConfig) -> dict[str, Any]:
    """Everything that can change the cell's number; loads no weights.

    Raises:
        UnsupportedError: the correction is not defined after the baseline.
        ConfigurationError: the device is not there.
        ModelError, DataError: weights or text are not where the configuration says.
    """
    config.correction.bind(config.baseline)
    device = resolve_device(config.scalars.device)
    return fingerprints.identity(
        config.tree,
        weights=config.model.identity(),
        data={"calibration": config.calibration.identity(), "evaluation": config.evaluation.identity()},
        hardware={"device": device, "dtype": resolve_dtype(config.scalars.dtype, device)},
    )
