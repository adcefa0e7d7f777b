"""One cell, top to bottom: identify it, reuse or compute, record, track. What became of it is on disk."""

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
from q2n.exceptions import StoppedEarly, StorageError, UnsupportedError
from q2n.pipeline.checkpoint import discard
from q2n.records import failure as failures
from q2n.records import kept_code, lease
from q2n.records import store as records
from q2n.records.failure import Failure
from q2n.records.fingerprint import identify
from q2n.records.log import CellLog
from q2n.records.notes import Note, State, leave_note
from q2n.records.outcome import Outcome
from q2n.records.source_code import CHECKOUT
from q2n.records.store import RunRecord
from q2n.runtime.files import FULL
from q2n.runtime.progress import CellProgress

if TYPE_CHECKING:
    from q2n.pipeline.blocks import Watch

POLL = 2.0
"""Seconds between two looks at a cell that another process works on."""


def run_cell(
    config: RunConfig,
    sweep: str | None = None,
    title: str = "",
    group: str | None = None,
    wait: bool = True,
    watch: Watch | None = None,
) -> Outcome:
    """Run the cell, or reuse its record; errors become failures on disk, and never touch finished records.

    Args:
        sweep: the command's id (:mod:`q2n.records.notes`), under which the cell leaves a note; None: no note.
        title: what the progress bar calls the cell.
        group: what cells of one sweep share in Weights & Biases.
        wait: whether to wait while another process works on the cell, or to return (``busy``).
        watch: told of every finished block; may raise :class:`StoppedEarly`.
    """
    cell = _Cell(config, sweep, title or config.label, watch)
    try:
        cell.note(State.STARTED)
        cell.ref = config.ref(identify(config))
        outcome = cell.settled()
        return outcome or cell.run(wait, group)
    except KeyboardInterrupt:
        cell.interrupted()
        raise
    except Exception as error:
        return cell.failed(error)


class _Cell:
    """A cell on its way from its configuration to its outcome."""

    def __init__(self, config: RunConfig, sweep: str | None, title: str, watch: Watch | None) -> None:
        self._config, self._sweep, self._title, self._watch = config, sweep, title, watch
        self._log: CellLog | None = None
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._ended = False
        self.ref = config.ref()  # until the whole identity is known

    def settled(self) -> Outcome | None:
        """The outcome where nothing is to be computed."""
        record = self._record()
        if record is not None:
            return self.finished(State.REUSED, record)
        scalars = self._config.scalars
        if scalars.retry == "all":
            return None
        before = failures.of_config(scalars.results_dir, self.ref)
        tried = bool(before) or lease.holder_of(self._folder) is not None
        if scalars.retry == "failed" and not tried:
            return self._give(
                State.SKIPPED, reason="it did not fail before, and retry=failed runs just those"
            )
        if scalars.retry == "none" and before:
            return self._give(State.FAILED, failure=before[-1])
        return None

    def run(self, wait: bool, group: str | None) -> Outcome:
        """Compute the cell, unless another process does."""
        observer, before = lease.Observer(), ""
        while (held := observer.take(self._folder)) is None:
            said = f"{lease.holder_of(self._folder) or 'another process'} works on it"
            if not wait:
                return self._give(State.BUSY, reason=said, code=1)
            if said != before:
                print(f"{self._title}: waiting, {said}", file=sys.stderr)
                before = said
            time.sleep(POLL)
        with held:
            record = self._record()  # whoever held the lease before may have finished
            if record is not None:
                return self.finished(State.REUSED, record)
            record = self._computed()
        outcome = self.finished(State.FORCED if self._config.scalars.force else State.COMPUTED, record)
        self._config.tracking.log_run(record, group)
        return outcome

    def _record(self) -> RunRecord | None:
        scalars = self._config.scalars
        record = records.find(scalars.results_dir, scalars.name, self.ref.fingerprint)
        # forced: only what was made since, by a process that was at it already
        return record if record and (not scalars.force or record.created > self._began) else None

    def _computed(self) -> RunRecord:
        self.note(State.STARTED)
        self._log = CellLog(self._folder / failures.LOG_NAME, self.ref.label)
        with self._log:
            with CellProgress(self._title) as bar:
                bar.begin("load")
                from q2n.pipeline.cell import compute  # takes seconds, so the bar is shown before

                record = compute(self._config, self.ref.identity, bar, self._watch)
            self._save(record)
            with contextlib.suppress(OSError):  # a help for explaining, no part of the result
                kept_code.keep(CHECKOUT.of_cell(self._config.tree), self._config.scalars.results_dir)
        return record

    def _save(self, record: RunRecord) -> None:
        """Save the record; where that is not possible, what was paid for is kept elsewhere, or said.

        Raises:
            StorageError: it is not where it belongs; says where it is.
        """
        scalars = self._config.scalars
        try:
            records.save(record, scalars.results_dir)
        except OSError as error:
            try:
                if error.errno not in FULL:
                    raise
                # There may be room where the checkpoint was, of which nobody has any more use.
                discard(records.checkpoint_folder(scalars.results_dir, scalars.name, record.fingerprint))
                records.save(record, scalars.results_dir)
            except OSError:
                raise StorageError(f"{error}; {_saved_elsewhere(record, scalars.results_dir)}") from error

    @property
    def _folder(self) -> Path:
        return failures.folder_of(self._config.scalars.results_dir, self.ref)

    def finished(self, decision: State, record: RunRecord) -> Outcome:
        scalars = self._config.scalars
        with contextlib.suppress(OSError):
            failures.clear(scalars.results_dir, self.ref)
        discard(records.checkpoint_folder(scalars.results_dir, scalars.name, record.fingerprint))
        return self._give(decision, record)

    def interrupted(self) -> None:
        if not self._ended:
            self.note(State.INTERRUPTED)

    def failed(self, error: Exception) -> Outcome:
        error = explained(error, self._config, self.ref.identity)
        stage, seconds = (self._log.stage, self._log.seconds) if self._log else ("identify", 0.0)
        failure = failures.of_error(
            error,
            self.ref,
            overrides=self._config.overrides,
            sweep=self._sweep,
            stage=stage,
            seconds=seconds,
        )
        if isinstance(error, UnsupportedError):
            return self._give(State.UNSUPPORTED, failure=failure)
        if isinstance(error, StoppedEarly):
            discard(
                records.checkpoint_folder(
                    self._config.scalars.results_dir, self.ref.name, self.ref.fingerprint
                )
            )
            return self._give(State.STOPPED, reason=str(error))
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            failures.save(failure, self._config.scalars.results_dir)
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
        self._ended = True
        folder = self._config.scalars.results_dir
        return Outcome(self.ref, decision, folder, record, failure, reason, code)

    def note(self, decision: State, reason: str = "", code: int = 0) -> None:
        if self._sweep is None:
            return
        note = Note(ref=self.ref, decision=decision, reason=reason, exit_code=code)
        leave_note(self._config.scalars.results_dir, self._sweep, note)


def _saved_elsewhere(record: RunRecord, results_dir: str) -> str:
    """What became of a record that cannot be saved in its folder."""
    measured = ", ".join(f"{metric.dataset} {metric.name} {metric.value:.6g}" for metric in record.metrics)
    try:
        path = records.save(record, tempfile.mkdtemp(prefix="q2n-record-"))
    except OSError as error:
        return f"the record could not be saved elsewhere either ({error}), it measured: {measured}"
    home = records.path_of(results_dir, record.name, record.fingerprint)
    return f"the record is {path}, and belongs to {home} (it measured: {measured})"
