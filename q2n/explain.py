"""Explain why a cell was computed or reused: ``python -m q2n.explain <fingerprint|prefix|last>``.

A finished cell is reused when its identity (configuration, code, versions, data) is unchanged. For a computed
cell, the differences from the nearest finished cell are listed: keys of settings, functions of the code.
Cells with the same answer are listed together. The decisions are read from ``<results_dir>/sweeps/``.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from q2n.exceptions import ConfigurationError, Q2NError
from q2n.options import did_you_mean
from q2n.records import kept_code
from q2n.records.fingerprint import canonical_json, difference, flatten, library_versions, plain
from q2n.records.notes import Note, State, last_sweep, read_notes
from q2n.records.source_code import CHECKOUT, Parts
from q2n.records.store import RunRecord, read_all

_LINES = 8
"""Lines per list without ``--all``."""

_CELLS = 3
"""Cells named per answer without ``--all``."""

_KINDS = 3
"""Answers shown without ``--all``: with their lines they fill about one screen."""


def explain_last(results_dir: str | Path, everything: bool = False) -> str:
    """Describe the outcome of each cell of the last sweep, with the reasons for computed and failed cells.

    Args:
        results_dir: folder of the records.
        everything: list all answers, cells and lines, however many.
    """
    sweep = last_sweep(results_dir)
    if sweep is None:
        return f"No sweep has been run with results_dir={results_dir} (other folders: --results FOLDER)."
    notes = read_notes(results_dir, sweep.id)
    records, faults = read_all(results_dir)
    asked = max(len(sweep.cells), len(notes))
    untouched = f", {asked - len(notes)} of them not started" if asked > len(notes) else ""
    cells = f"{asked} cell{'' if asked == 1 else 's'}{untouched}"
    title = "Last run, one cell:" if sweep.alone else f"Last sweep ({sweep.id}), {cells}:"
    neighbours = _Neighbours(records, results_dir)
    answers: dict[tuple[str, ...], list[Note]] = {}
    for note in notes:
        answers.setdefault(_answer(note, neighbours), []).append(note)
    ranked = sorted(answers.items(), key=lambda item: -len(item[1]))
    shown = ranked if everything else ranked[:_KINDS]
    texts = ["\n".join(_of_kind(answer, cells, everything)) for answer, cells in shown]
    rest = sum(len(cells) for _, cells in ranked[len(shown) :])
    more = [f"{rest} further cells for {len(ranked) - len(shown)} other reasons (--all)"] if rest else []
    return "\n\n".join([title, *texts, *more, *_complaints(faults)])


def _of_kind(answer: Sequence[str], cells: Sequence[Note], everything: bool) -> list[str]:
    """Format the cells with one answer, and the answer."""
    named = [f"  {note.ref.fingerprint}  {note.ref.name}: {note.ref.label}" for note in cells]
    shown = _limited(named, everything, _CELLS)
    return [f"{len(cells)} {answer[0]}", *shown, *_limited(answer[1:], everything)]


def _answer(note: Note, neighbours: _Neighbours) -> tuple[str, ...]:
    lines = [note.decision.sentence, *(f"  {line}" for line in note.reason.splitlines())]
    if note.decision in (State.COMPUTED, State.FAILED):
        lines += neighbours.reasons(note)
    return tuple(lines)


class _Neighbours:
    """Finished cells, in which the one nearest to another cell is looked up."""

    def __init__(self, records: Sequence[RunRecord], results_dir: str | Path) -> None:
        # studies that share a cell have a record of it each
        self._records = {record.fingerprint: record for record in records}
        self._leaves = {key: _leaves(record.identity) for key, record in self._records.items()}
        self._results_dir = results_dir

    def reasons(self, note: Note) -> list[str]:
        """List the differences between the cell and the nearest finished one, a line each."""
        own = _leaves(note.ref.identity)
        others = (
            (len(own ^ leaves), key) for key, leaves in self._leaves.items() if key != note.ref.fingerprint
        )
        _, nearest = min(others, default=(0, ""))
        if not nearest:
            return ["  no other record exists to compare this cell with"]
        record = self._records[nearest]
        changes = _changes(record.identity, note.ref.identity, self._results_dir)
        return [
            f"  differences from the nearest record, {_title(record)}:",
            *(f"    {line}" for line in changes),
        ]


def _leaves(identity: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(key, canonical_json(value)) for key, value in flatten(plain(identity)).items()}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], results_dir: str | Path) -> list[str]:
    """List :func:`difference`, with the functions that changed in place of the key of the code."""
    whole_files = {key: value for key, value in old.items() if key != "sources"}
    lines = [line for line in difference(whole_files, new) if not line.startswith("code")]
    if old.get("code") == new.get("code"):
        return lines
    if "code" not in old or "code" not in new:
        return [*lines, "code: one of the two versions kept no digests per function"]
    before, after = (_parts(item, results_dir) for item in (old, new))
    if before is None or after is None:
        return [
            *lines,
            f"code: changed (the digests of its functions are not in {Path(results_dir) / kept_code.FOLDER})",
        ]
    return [*lines, *(f"code: {line}" for line in kept_code.changes(before, after))]


def _parts(identity: Mapping[str, Any], results_dir: str | Path) -> Mapping[str, Parts] | None:
    """Digests per function of an identity's code, or None if it is not current and has left no record."""
    key, today = identity["code"], CHECKOUT.of_cell(identity.get("config", {}))
    return today.parts if today.key == key else kept_code.kept(results_dir, key)


def explain_cell(results_dir: str | Path, prefix: str, everything: bool = False) -> str:
    """Describe the record and the last outcome of the cell whose fingerprint starts with ``prefix``.

    Args:
        results_dir: folder of the records.
        prefix: the first digits of a fingerprint.
        everything: list all lines, however many.

    Raises:
        ConfigurationError: no cell or several cells match; names the alternatives.
    """
    records, faults = read_all(results_dir)
    sweep = last_sweep(results_dir)
    notes = {note.ref.fingerprint: note for note in read_notes(results_dir, sweep.id)} if sweep else {}
    neighbours = _Neighbours(records, results_dir)
    by_fingerprint = {record.fingerprint: record for record in records}
    found = _match(prefix, {**notes, **by_fingerprint}, results_dir)
    parts = []
    if found in by_fingerprint:
        parts.append(_explain_record(by_fingerprint[found], results_dir, everything))
    if found in notes:
        kind = _of_kind(_answer(notes[found], neighbours), [notes[found]], everything)
        parts.append("\n".join(["In the last sweep:", *kind]))
    return "\n\n".join([*parts, *_complaints(faults)])


def _match(prefix: str, known: Mapping[str, Any], results_dir: str | Path) -> str:
    matches = sorted(key for key in known if key.startswith(prefix))
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = "\n".join(f"  {key}  {_title(known[key])}" for key in matches)
        raise ConfigurationError(f"fingerprint {prefix!r} is ambiguous, {len(matches)} cells:\n{listed}")
    if not known:
        raise ConfigurationError(
            f"fingerprint {prefix!r}: there is no record under {results_dir} (others: --results FOLDER)"
        )
    listed = "\n".join(f"  {key}  {_title(known[key])}" for key in sorted(known)[:_LINES])
    more = f"\n  and {len(known) - _LINES} more" if len(known) > _LINES else ""
    hint = did_you_mean(prefix, known)
    raise ConfigurationError(f"fingerprint {prefix!r}: no such cell{hint}. Known:\n{listed}{more}\n  last")


def _title(cell: RunRecord | Note) -> str:
    if isinstance(cell, Note):
        return f"{cell.ref.name}: {cell.decision}, without a record"
    labels = cell.cell
    return (
        f"{cell.name}: {labels.model} {labels.baseline} q2n={labels.correction} bits={labels.bits} "
        f"group_size={labels.group_size} seed={labels.seed} ({cell.created})"
    )


def _explain_record(record: RunRecord, results_dir: str | Path, everything: bool) -> str:
    commit = record.provenance.git_commit or "unknown"
    dirty = " with uncommitted changes" if record.provenance.git_dirty else ""
    lines = [f"{record.fingerprint}  {_title(record)}", f"  code: commit {commit}{dirty}"]
    today = {"code": CHECKOUT.of_cell(record.config).key, "versions": library_versions()}
    stored = {key: record.identity[key] for key in today if key in record.identity}
    config = {"config": record.config}
    changes = _changes({**stored, **config}, {**today, **config}, results_dir)
    if not changes:
        lines.append(
            "  code and library versions are current: the same configuration and data reuse this record"
        )
    else:
        shown = _limited([f"    {change}" for change in changes], everything)
        lines += ["  not reused, because code or libraries have changed:", *shown]
    return "\n".join([*lines, *_found(record)])


def _found(record: RunRecord) -> list[str]:
    """List the stages whose results the cell reused."""
    lines = [
        f"    {stage} {tally.key}: {tally.found} of {tally.parts}, saved {tally.saved_seconds:.1f} s"
        for stage, tally in record.reused.items()
    ]
    return ["  stages reused from the cache:", *lines] if lines else []


def _limited(lines: Sequence[str], everything: bool, most: int = _LINES) -> list[str]:
    if everything or len(lines) <= most:
        return [*lines]
    return [*lines[:most], f"    and {len(lines) - most} more (--all)"]


def _complaints(faults: Sequence[str]) -> list[str]:
    return ["Left out:\n" + "\n".join(f"  {fault}" for fault in faults)] if faults else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser("python -m q2n.explain", description="why a cell was or was not reused")
    parser.add_argument("cell", help="a fingerprint, the beginning of one, or 'last' for the last sweep")
    parser.add_argument("--results", default="results", help="folder of the records (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="every reason, cell and line, however many")
    options = parser.parse_args(arguments)
    try:
        if options.cell == "last":
            text = explain_last(options.results, options.all)
        else:
            text = explain_cell(options.results, options.cell, options.all)
    except Q2NError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(text)
    return 0


if __name__ == "__main__":
    # As other tools end in `| head`: at once, without a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
