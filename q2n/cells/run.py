"""Running of one cell: identify it, reuse its record or compute, write the record, track."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from q2n.cells.out_of_memory import explained
from q2n.config import RunConfig
from q2n.exceptions import ConfigurationError, StoppedEarly, StorageError, UnsupportedError
from q2n.options import did_you_mean
from q2n.pipeline.checkpoint import discard
from q2n.records import failure as failures
from q2n.records import kept_code, lease
from q2n.records import store as records
from q2n.records.failure import Failure
from q2n.records.identity import identify
from q2n.records.log import CellLog
from q2n.records.notes import Note, State, leave_note
from q2n.records.outcome import Outcome
from q2n.records.source_code import CHECKOUT
from q2n.records.store import RunRecord
from q2n.runtime.files import FULL
from q2n.runtime.progress import CellProgress

if TYPE_CHECKING:
    from q2n.pipeline.blocks import OnBlock

POLL = 2.0
"""Seconds between two looks at a cell that another process runs."""


def run_cell(
    config: RunConfig,
    sweep: str | None = None,
    title: str = "",
    group: str | None = None,
    wait: bool = True,
    watch: OnBlock | None = None,
) -> Outcome:
    """Run the cell, or reuse its record; errors become failures on disk and never touch finished records.

    Args:
        config: the cell.
        sweep: id of the command under which a note is written (:mod:`q2n.records.notes`), or None for none.
        title: name of the cell in the progress bar.
        group: group of the sweep's cells in Weights & Biases.
        wait: wait while another process runs the cell, instead of returning (``busy``).
        watch: called after every finished block; may raise :class:`StoppedEarly`.
    """
    attempt = _Attempt(config, sweep, title or config.label, watch)
    try:
        attempt.note(State.STARTED)
        attempt.ref = config.ref(identify(config))
        return attempt.settled() or attempt.run(wait, group)
    except KeyboardInterrupt:
        if not attempt.ended:
            attempt.note(State.INTERRUPTED)
        raise
    except Exception as error:
        return attempt.failed(error)


class _Attempt:
    """One attempt at a cell, from its configuration to its outcome."""

    def __init__(self, config: RunConfig, sweep: str | None, title: str, watch: OnBlock | None) -> None:
        self._config, self._sweep, self._title, self._watch = config, sweep, title, watch
        self._scalars, self._results = config.scalars, config.scalars.results_dir
        self._log: CellLog | None = None
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self.ended = False
        self.ref = config.ref()  # until the whole identity is known

    def settled(self) -> Outcome | None:
        """Return the outcome if nothing is to be computed, else None."""
        record = self._record()
        if record is not None:
            return self._finished(State.REUSED, record)
        if self._scalars.retry == "all":
            return None
        before = failures.of_config(self._results, self.ref)
        tried = bool(before) or lease.holder_of(self._folder) is not None
        if self._scalars.retry == "failed" and not tried:
            return self._give(State.SKIPPED, reason="retry=failed runs only cells that failed before")
        if self._scalars.retry == "none" and before:
            return self._give(State.FAILED, failure=before[-1])
        return None

    def run(self, wait: bool, group: str | None) -> Outcome:
        """Compute the cell; while another process runs it, wait or return (``busy``)."""
        observer, before = lease.Observer(), ""
        while (held := observer.take(self._folder)) is None:
            said = f"{lease.holder_of(self._folder) or 'another process'} runs this cell"
            if not wait:
                return self._give(State.BUSY, reason=said, code=1)
            if said != before:
                print(f"{self._title}: waiting, {said}", file=sys.stderr)
                before = said
            time.sleep(POLL)
        with held:
            record = self._record()  # the former holder of the lease may have finished
            if record is not None:
                return self._finished(State.REUSED, record)
            record = self._computed()
        outcome = self._finished(State.FORCED if self._scalars.force else State.COMPUTED, record)
        self._config.tracking.log_run(record, group)
        return outcome

    def _record(self) -> RunRecord | None:
        record = records.find(self._results, self.ref.name, self.ref.fingerprint)
        # forced: only a record written since, by a process that had already been running the cell
        return record if record and (not self._scalars.force or record.created > self._began) else None

    def _computed(self) -> RunRecord:
        self.note(State.STARTED)
        self._log = CellLog(self._folder / failures.LOG_NAME, self.ref.label)
        with self._log:
            with CellProgress(self._title) as bar:
                bar.begin("load")
                from q2n.pipeline.cell import compute  # takes seconds, so the bar is shown before

                record = compute(self._config, self.ref.identity, bar, self._watch)
            self._save(record)
            with contextlib.suppress(OSError):  # only q2n.explain needs this file
                kept_code.keep(CHECKOUT.of_cell(self._config.tree), self._results)
        return record

    def _save(self, record: RunRecord) -> None:
        """Save the record; where that is not possible, save it elsewhere or put its numbers into the message.

        Raises:
            StorageError: the record is not in its folder; the message has its place.
        """
        try:
            records.save(record, self._results)
        except OSError as error:
            try:
                if error.errno not in FULL:
                    raise
                # The checkpoint is of no use any more, and its space may suffice.
                self._discard_checkpoint()
                records.save(record, self._results)
            except OSError:
                raise StorageError(f"{error}; {_saved_elsewhere(record, self._results)}") from error

    @property
    def _folder(self) -> Path:
        return failures.folder_of(self._results, self.ref)

    def _discard_checkpoint(self) -> None:
        discard(records.checkpoint_folder(self._results, self.ref.name, self.ref.fingerprint))

    def _finished(self, decision: State, record: RunRecord) -> Outcome:
        with contextlib.suppress(OSError):
            failures.clear(self._results, self.ref)
        self._discard_checkpoint()
        return self._give(decision, record)

    def failed(self, error: Exception) -> Outcome:
        """Write down why the cell has no record, and return that outcome."""
        error = explained(error, self._config, self.ref.identity)
        if isinstance(error, StoppedEarly):
            self._discard_checkpoint()
            return self._give(State.STOPPED, reason=str(error))
        failure = failures.of_error(
            error,
            self.ref,
            overrides=self._config.overrides,
            sweep=self._sweep,
            stage=self._log.stage if self._log else "identify",
            seconds=self._log.seconds if self._log else 0.0,
        )
        if isinstance(error, UnsupportedError):
            return self._give(State.UNSUPPORTED, failure=failure)
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            failures.save(failure, self._results)
        return self._give(State.FAILED, failure=failure)

    def _give(
        self,
        decision: State,
        record: RunRecord | None = None,
        failure: Failure | None = None,
        reason: str = "",
        code: int = 0,
    ) -> Outcome:
        if failure is not None:
            reason, code = failure.reason, failure.exit_code
        self.note(decision, reason, code)
        self.ended = True
        return Outcome(self.ref, decision, self._results, record, failure, reason, code)

    def note(self, decision: State, reason: str = "", code: int = 0) -> None:
        """Write the state of the cell for the command, if there is one."""
        if self._sweep is not None:
            note = Note(ref=self.ref, decision=decision, reason=reason, exit_code=code)
            leave_note(self._results, self._sweep, note)


def _saved_elsewhere(record: RunRecord, results_dir: str) -> str:
    """Save a record in a temporary folder, and describe where it is and what it measured."""
    measured = ", ".join(f"{metric.dataset} {metric.name} {metric.value:.6g}" for metric in record.metrics)
    try:
        path = records.save(record, tempfile.mkdtemp(prefix="q2n-record-"))
    except OSError as error:
        return f"the record could not be saved elsewhere either ({error}); measured: {measured}"
    home = records.path_of(results_dir, record.name, record.fingerprint)
    return f"the record was saved as {path} and belongs to {home} (measured: {measured})"


def objective(record: RunRecord, wanted: str | None, direction: str | None) -> float | None:
    """Return the number that a sweeper optimises, or None if nothing was measured.

    Args:
        record: the finished cell.
        wanted: metric as ``wiki/perplexity``, or None for the first.
        direction: ``minimize``, ``maximize``, or None if it does not matter.

    Raises:
        ConfigurationError: there is no such metric, or ``direction`` would search for the worst value.
    """
    metrics = {f"{metric.dataset}/{metric.name}": metric for metric in record.metrics}
    name = wanted or next(iter(metrics), None)
    if name is None:
        return None
    if name not in metrics:
        raise ConfigurationError(
            f"objective={name}: not measured{did_you_mean(name, metrics)} (measured: {', '.join(metrics)})"
        )
    metric = metrics[name]
    better = "minimize" if metric.lower_is_better else "maximize"
    if direction is not None and direction != better:
        raise ConfigurationError(
            f"hydra.sweeper.direction={direction}: would search for the worst {name}; use {better}"
        )
    return metric.value
