"""One cell, top to bottom: identify it, reuse or compute, record, track. What became of it is on disk."""

from __future__ import annotations

import contextlib
from typing import Any

from q2n import failure as failures
from q2n import fingerprint as fingerprints
from q2n import record as records
from q2n.cell_log import CellLog
from q2n.checkpoint import discard
from q2n.config import RunConfig
from q2n.exceptions import UnsupportedError
from q2n.failure import Failure
from q2n.hardware import resolve_device, resolve_dtype
from q2n.outcomes import Outcome
from q2n.record import RunRecord
from q2n.sweeps import Decision, Note, leave_note


def run_cell(
    config: RunConfig, sweep: str | None = None, title: str = "", group: str | None = None
) -> Outcome:
    """Run the cell, or reuse its record; errors become failures on disk, and never touch finished records.

    Args:
        sweep: the command's id (:mod:`q2n.sweeps`), under which the cell leaves a note; None: no note.
        title: what the progress bar calls the cell.
        group: what cells of one sweep share in Weights & Biases.
    """
    scalars = config.scalars
    identity = failures.partial_identity(config)  # until the whole one is known
    try:
        identity = identify(config)
        key = fingerprints.fingerprint(identity)
        record = None if scalars.force else records.find(scalars.results_dir, scalars.name, key)
    except Exception as error:
        return _failed(config, identity, sweep, error, None)
    if record is not None:
        return _finished(config, identity, sweep, "reused", record)
    path = failures.folder_of(scalars.results_dir, scalars.name, key) / failures.LOG_NAME
    _note(config, identity, sweep, "started")
    log = CellLog(path, config.label)
    try:
        with log:
            from q2n.cell import compute

            record = compute(config, identity, title or config.label)
            records.save(record, scalars.results_dir)
    except Exception as error:
        return _failed(config, identity, sweep, error, log)
    except KeyboardInterrupt:
        _note(config, identity, sweep, "interrupted")
        raise
    outcome = _finished(config, identity, sweep, "forced" if scalars.force else "computed", record)
    config.tracking.log_run(record, group)
    return outcome


def _finished(
    config: RunConfig, identity: dict[str, Any], sweep: str | None, decision: Decision, record: RunRecord
) -> Outcome:
    scalars = config.scalars
    partial = fingerprints.fingerprint(failures.partial_identity(config))
    with contextlib.suppress(OSError):
        failures.clear(scalars.results_dir, scalars.name, record.fingerprint, partial)
    discard(records.checkpoint_folder(scalars.results_dir, scalars.name, record.fingerprint))
    _note(config, identity, sweep, decision)
    return Outcome(config.label, decision, scalars.results_dir, record)


def _failed(
    config: RunConfig, identity: dict[str, Any], sweep: str | None, error: Exception, log: CellLog | None
) -> Outcome:
    scalars = config.scalars
    stage, seconds = (log.stage, log.seconds) if log else ("identify", 0.0)
    failure = failures.of_error(error, config, identity, sweep=sweep, stage=stage, seconds=seconds)
    decision: Decision = "unsupported" if isinstance(error, UnsupportedError) else "failed"
    if decision == "failed":
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            failures.save(failure, scalars.results_dir)
    _note(config, identity, sweep, decision, failure)
    return Outcome(config.label, decision, scalars.results_dir, None, failure)


def _note(
    config: RunConfig,
    identity: dict[str, Any],
    sweep: str | None,
    decision: Decision,
    failure: Failure | None = None,
) -> None:
    if sweep is None:
        return
    note = Note(
        key=config.key,
        label=config.label,
        name=config.scalars.name,
        fingerprint=fingerprints.fingerprint(identity),
        decision=decision,
        identity=identity,
        reason=failure.reason if failure else "",
        exit_code=failure.exit_code if failure else 0,
    )
    with contextlib.suppress(OSError):  # a note is not worth a finished cell
        leave_note(config.scalars.results_dir, sweep, note)


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
