"""Outcomes of a command's cells, read back from disk, and the table of them at the end.

Any process on any machine may have run the cells, so nothing here comes from memory: table and exit code are
the same wherever the cells ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from q2n.command.grid import Combination, Grid
from q2n.exceptions import ConfigurationError, RecordError, StorageError
from q2n.records import failure as failures
from q2n.records import killed, lease
from q2n.records import notes as sweeps
from q2n.records import store as records
from q2n.records.notes import FINISHED, Note, State
from q2n.records.outcome import Outcome
from q2n.runtime.files import FULL

if TYPE_CHECKING:
    from rich.console import Console

    from q2n.command.supervisor import Death
    from q2n.config import RunConfig

UNFINISHED = (State.FAILED, State.MISSING, State.STARTED, State.INTERRUPTED, State.BUSY)
"""Outcomes that make a sweep fail; a method that does not fit, or ``retry``, does not."""

NAMED = 5
"""Words of a label before its settings: model, baseline, correction, bits, ``bit``."""


@dataclass
class Command:
    """Cells of one command.

    ``cells`` are all of them, unless a sweeper chooses the cells one after the other (``complete=False``):
    then the cells with a note count. ``grid`` describes how the product of the axes became cells.
    """

    sweep: str
    cells: Sequence[RunConfig] = ()
    complete: bool = True
    multirun: bool = False
    grid: Grid = field(default_factory=Grid)
    _announced: bool = field(default=False, repr=False)

    def announce(self, misfits: Sequence[tuple[RunConfig, ConfigurationError]] = ()) -> None:
        """Write the list of the cells to each of their results folders.

        Args:
            misfits: cells that cannot run, with the reason.

        Raises:
            ConfigurationError: a results folder cannot be written.
            StorageError: the disk of a results folder is full.
        """
        for folder in self.folders:
            cells = tuple(
                sweeps.AnnouncedCell(key=config.key, label=config.label, name=config.scalars.name)
                for config in self.cells
                if config.scalars.results_dir == folder and self.complete
            )
            try:
                sweeps.announce(folder, sweeps.Sweep(id=self.sweep, alone=not self.multirun, cells=cells))
            except OSError as error:
                kind = StorageError if error.errno in FULL else ConfigurationError
                raise kind(f"results_dir={folder}: cannot be written: {error}") from None
        for config, why in misfits:
            note = Note(
                ref=config.ref(),
                decision=State.UNSUPPORTED,
                reason=f"{type(why).__name__}: {why}",
                exit_code=why.exit_code,
            )
            sweeps.leave_note(config.scalars.results_dir, self.sweep, note)
        self._announced = True

    def goes_on(self, death: Death) -> bool:
        """Take the command over from a process that was killed; the cell that it was running has failed.

        Returns:
            True if the process had finished or started a cell, so that a cell may have killed it.
        """
        self._announced = True
        dead = (death.pid, gethostname())
        left = [(folder, note) for folder, note in self._notes() if (note.pid, note.host) == dead]
        for folder, note in left:
            if note.decision is State.STARTED:
                killed.give_up(note, folder, self.sweep, death.how)
        return bool(left)

    def to_run(self, misfits: Sequence[tuple[RunConfig, ConfigurationError]] = ()) -> list[Combination]:
        """Return the overrides of each cell of a grid that is to run.

        Cells whose process was killed at their last try come last, so that they cannot end the command before
        all others have run.

        Args:
            misfits: cells that cannot run, with the reason.
        """
        tries = {folder: killed.last_tries(folder) for folder in self.folders}

        def tried(config: RunConfig) -> str:
            return tries[config.scalars.results_dir].get(killed.key_of(config.tree), "")

        unfit = [config for config, _ in misfits]
        return [list(config.overrides) for config in sorted(self.cells, key=tried) if config not in unfit]

    @property
    def folders(self) -> list[str]:
        """Results folders of the cells, each once."""
        return list(dict.fromkeys(config.scalars.results_dir for config in self.cells))

    def _notes(self) -> list[tuple[str, Note]]:
        """Return all notes of the command's cells, each with its results folder."""
        return [(folder, note) for folder in self.folders for note in sweeps.read_notes(folder, self.sweep)]

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of every cell, in the order of the command."""
        if not self._announced:
            return []
        if not self.complete:
            return [_of_note(note, folder, self.sweep) for folder, note in self._notes()]
        notes = {(folder, note.ref.key): note for folder, note in self._notes()}
        outcomes = []
        for config in self.cells:
            folder, reason = config.scalars.results_dir, "the command ended before this cell was started"
            if note := notes.get((folder, config.key)):
                outcomes.append(_of_note(note, folder, self.sweep))
            else:
                outcomes.append(Outcome(config.ref(), State.MISSING, folder, reason=reason, exit_code=1))
        return outcomes


def ended(config: RunConfig, sweep: str) -> Outcome | None:
    """Return the outcome of a cell that this command has finished before, or None if it has not."""
    folder = config.scalars.results_dir
    note = sweeps.read_note(folder, sweep, config.key)
    done = note is not None and note.decision not in (State.STARTED, State.BUSY, State.INTERRUPTED)
    return _of_note(note, folder, sweep) if note is not None and done else None


def _of_note(note: Note, results_dir: str, sweep: str) -> Outcome:
    record = failure = None
    reason = note.reason
    try:
        if note.decision is State.FAILED:
            failure = failures.find(results_dir, note.ref)
        elif note.decision in FINISHED:
            record = records.look_up(results_dir, note.ref.name, note.ref.fingerprint)
    except RecordError as error:
        reason = str(error)
    if note.decision is State.STARTED:
        return _of_silent(note, results_dir, sweep)
    if note.decision is State.INTERRUPTED:
        reason = "interrupted by a signal; the same command resumes the cell"
    if record is None and note.decision in FINISHED:
        reason = reason or "its record no longer exists"
        return Outcome(note.ref, State.MISSING, results_dir, reason=reason, exit_code=1)
    return Outcome(note.ref, note.decision, results_dir, record, failure, reason, note.exit_code)


def _of_silent(note: Note, results_dir: str, sweep: str) -> Outcome:
    """Outcome of a cell that was started and did not report its end: its process runs, or was killed."""
    who = f"process {note.pid} on {note.host}"
    folder = failures.folder_of(results_dir, note.ref)
    if not lease.abandoned(folder):
        held = lease.holder_of(folder) is not None
        reason = f"{who} is still running, or was killed" if held else f"{who} was interrupted"
        return Outcome(note.ref, State.STARTED, results_dir, reason=reason, exit_code=1)
    failure = killed.give_up(note, results_dir, sweep, killed.UNKNOWN)
    return Outcome(note.ref, State.FAILED, results_dir, failure=failure, reason=failure.reason, exit_code=1)


def exit_code(outcomes: Sequence[Outcome], multirun: bool) -> int:
    """Return the exit code of a command; 0 if nothing failed.

    In a sweep, cells whose method and model do not fit each other are expected and only listed; a command
    that consists of nothing else fails.
    """
    if outcomes and all(outcome.decision is State.UNSUPPORTED for outcome in outcomes):
        return ConfigurationError.exit_code
    if multirun:
        return int(any(outcome.decision in UNFINISHED for outcome in outcomes))
    return max((outcome.exit_code for outcome in outcomes), default=0)


def show(outcomes: Sequence[Outcome]) -> bool:
    """Print the table of the cells with a record, the reasons for the others, and the files written.

    Returns:
        False if a file could not be written.
    """
    if not outcomes:
        return True
    from rich.console import Console

    from q2n.report import print_report
    from q2n.report.tables.select import Unfinished

    console, complaints = Console(), Console(stderr=True)
    finished = [outcome.record for outcome in outcomes if outcome.record is not None]
    unfinished = [
        Unfinished(outcome.ref.axes, outcome.ref.configuration, outcome.decision.word, outcome.failure)
        for outcome in outcomes
        if outcome.record is None
    ]
    if finished:
        print_report(finished, console, unfinished)
    shared = shared_settings([outcome.ref.label for outcome in outcomes])
    by_reason: dict[object, list[Outcome]] = {}
    for place, outcome in enumerate(outcomes):
        if outcome.record is None:  # a failure has a line of its own
            reason = place if outcome.failure else (outcome.decision, outcome.why)
            by_reason.setdefault(reason, []).append(outcome)
    for alike in by_reason.values():
        _complain(alike, shared, complaints, alone=len(outcomes) == 1)
    counts = Counter(outcome.decision for outcome in outcomes)
    parts = ", ".join(f"{count} {decision}" for decision, count in counts.items())
    explained = f"python -m q2n.explain last --results {outcomes[0].results_dir}"
    _say(console, f"cells    {parts} (why: {explained})")
    whole = True
    for folder, name in sorted({(item.results_dir, item.record.name) for item in outcomes if item.record}):
        try:
            _write(folder, name, console, complaints)
        except OSError as error:
            _say(complaints, f"FAILED: tables of {Path(folder) / name}: {error}")
            whole = False
    return whole


def track(command: Command, outcomes: Sequence[Outcome]) -> None:
    """Log the results of a sweep to its trackers, once, wherever its cells ran."""
    records = list({item.record.fingerprint: item.record for item in outcomes if item.record}.values())
    if not command.multirun or not records:
        return
    for tracking in dict.fromkeys(config.tracking for config in command.cells):
        tracking.log_sweep(records, sweeps.group_of(command.sweep))


def shared_settings(labels: Sequence[str]) -> list[str]:
    """Return the settings that the labels of all cells of a sweep contain; none for a single cell."""
    settings = [label.split(" ")[NAMED:] for label in labels]
    if len(settings) < 2:
        return []
    return [item for item in settings[0] if all(item in others for others in settings)]


def without_shared(label: str, shared: Sequence[str]) -> str:
    """Return the label of a cell without the settings ``shared`` by the sweep."""
    words = label.split(" ")
    return " ".join([*words[:NAMED], *(word for word in words[NAMED:] if word not in shared)])


def _complain(alike: Sequence[Outcome], shared: Sequence[str], complaints: Console, alone: bool) -> None:
    """Print one line for cells without a record that have the same reason."""
    outcome = alike[0]
    loud = {State.FAILED: "FAILED", State.STARTED: "FAILED", State.STOPPED: "stopped"}
    state, label = loud.get(outcome.decision, "not run"), without_shared(outcome.ref.label, shared)
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    _say(complaints, f"{state}: {label}{more}: {outcome.why}")
    if outcome.failure is None:
        return
    # An explained error needs no traceback. Of any other, a single cell shows it and a sweep names the log.
    if alone and outcome.failure.unexpected:
        _say(complaints, outcome.failure.traceback)
    elif (Path(outcome.results_dir) / outcome.failure.log).is_file():
        _say(complaints, f"  log: {Path(outcome.results_dir) / outcome.failure.log}")


def _write(folder: str, name: str, console: Console, complaints: Console) -> None:
    """Write the report's files, which hold every record of that name, not only this command's."""
    from q2n.report.overview import gather
    from q2n.report.render.files import write_tables
    from q2n.report.studies.study import Experiments, load_experiments

    try:
        experiments = load_experiments()
    except ConfigurationError as error:  # a faulty experiment file must not cost a sweep its report
        _say(complaints, str(error))
        experiments = Experiments()
    report = gather(folder, experiments, name)
    for fault in report.faults:
        _say(complaints, f"left out of the tables: {fault}")
    written = [path for study in report.studies for path in write_tables(study, folder)]
    _say(console, f"records  {Path(folder) / name}")
    _say(console, f"tables   {' '.join(str(path) for path in written)}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
