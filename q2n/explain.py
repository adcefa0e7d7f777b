"""Why was a cell computed, or not? ``python -m q2n.explain <fingerprint|prefix|last>``.

A finished cell is reused when its identity (configuration, sources, versions, data) is unchanged. When
it is not reused although one expected it, the answer is a list of dotted keys that differ from the
nearest finished cells. The runner leaves its decisions below ``<results_dir>/sweeps/``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from q2n.exceptions import ConfigurationError, Q2NError
from q2n.fingerprint import difference, library_versions, source_digest
from q2n.options import did_you_mean
from q2n.record import RunRecord, read_all
from q2n.sweeps import FOLDER, Note, last_sweep, read_notes

_NEAREST = 3
_LINES = 12

_SENTENCES = {
    "reused": "reused: a finished record with the same identity was there",
    "computed": "computed: no finished record had this identity",
    "forced": "computed again because force=true, although a finished record may have been there",
    "failed": "failed: it left no record, so the next sweep runs it again (but with retry=none)",
    "stopped": "stopped early by the sweeper: it would not have been among the best",
    "unsupported": "not run: the method does not fit the model or the correction",
    "interrupted": "interrupted by a signal: goes on from its checkpoint, if it has one",
    "skipped": "left out on purpose",
    "busy": "not run: another process is at it",
    "started": "taken up, and not ended: at work still, or its process was killed",
}


def explain_last(results_dir: str | Path) -> str:
    """What happened to each cell of the last sweep, and for the computed ones, why."""
    sweep = last_sweep(results_dir)
    if sweep is None:
        return f"No sweep has been run with results_dir={results_dir} yet (there is no {FOLDER}/)."
    notes = read_notes(results_dir, sweep.id)
    records, faults = read_all(results_dir)
    asked = max(len(sweep.cells), len(notes))
    cells = f"{asked} cell{'' if asked == 1 else 's'}" + (
        f", {asked - len(notes)} of them not taken up" if asked > len(notes) else ""
    )
    title = "Last run, one cell:" if sweep.alone else f"Last sweep ({sweep.id}), {cells}:"
    return "\n\n".join([title, *(_explain_note(note, records) for note in notes), *_complaints(faults)])


def explain_cell(results_dir: str | Path, prefix: str) -> str:
    """What is known of the cell whose fingerprint starts with ``prefix``.

    Raises:
        ConfigurationError: no cell or several cells start so; names the alternatives.
    """
    records, faults = read_all(results_dir)
    sweep = last_sweep(results_dir)
    notes = {note.fingerprint: note for note in read_notes(results_dir, sweep.id)} if sweep else {}
    by_fingerprint = {record.fingerprint: record for record in records}
    found = _match(prefix, {**notes, **by_fingerprint}, results_dir)
    parts = []
    if found in by_fingerprint:
        parts.append(_explain_record(by_fingerprint[found]))
    if found in notes:
        parts.append("In the last sweep:\n" + _explain_note(notes[found], records))
    return "\n\n".join([*parts, *_complaints(faults)])


def _match(prefix: str, known: Mapping[str, Any], results_dir: str | Path) -> str:
    matches = sorted(key for key in known if key.startswith(prefix))
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = "\n".join(f"  {key}  {_title(known[key])}" for key in matches)
        raise ConfigurationError(f"fingerprint {prefix!r} is ambiguous, {len(matches)} cells:\n{listed}")
    if not known:
        raise ConfigurationError(f"fingerprint {prefix!r}: there is no record under {results_dir}")
    listed = "\n".join(f"  {key}  {_title(known[key])}" for key in sorted(known)[:_LINES])
    more = f"\n  and {len(known) - _LINES} more" if len(known) > _LINES else ""
    hint = did_you_mean(prefix, known)
    raise ConfigurationError(f"fingerprint {prefix!r}: no such cell{hint}. Known:\n{listed}{more}\n  last")


def _title(cell: RunRecord | Note) -> str:
    if isinstance(cell, Note):
        return f"{cell.name}: {cell.decision}, without a record"
    labels = cell.cell
    return (
        f"{cell.name}: {labels.model} {labels.baseline} q2n={labels.correction} bits={labels.bits} "
        f"group_size={labels.group_size} seed={labels.seed} ({cell.created})"
    )


def _explain_record(record: RunRecord) -> str:
    commit = record.provenance.git_commit or "unknown"
    dirty = " with uncommitted changes" if record.provenance.git_dirty else ""
    lines = [f"{record.fingerprint}  {_title(record)}", f"  code: commit {commit}{dirty}"]
    stored = {key: record.identity.get(key, {}) for key in ("sources", "versions")}
    changes = difference(stored, {"sources": source_digest(), "versions": library_versions()})
    if not changes:
        lines.append("  its sources and versions are today's: the same configuration and data reuse it")
    else:
        lines += ["  not reused by today's code and libraries:", *_indent(changes)]
    return "\n".join([*lines, *_found(record)])


def _found(record: RunRecord) -> list[str]:
    """What the cell did not have to make itself."""
    lines = [
        f"    {stage} {tally.key}: {tally.found} of {tally.parts}, saved {tally.saved_seconds:.1f} s"
        for stage, tally in record.reused.items()
    ]
    return ["  stages it found ready made:", *lines] if lines else []


def _explain_note(note: Note, records: Sequence[RunRecord]) -> str:
    lines = [f"{note.fingerprint}  {note.name}: {_SENTENCES.get(note.decision, note.decision)}"]
    lines += [f"  {line}" for line in note.reason.splitlines()]
    if note.decision not in ("computed", "failed"):
        return "\n".join(lines)
    # studies that share a cell have a record of it each
    others = {record.fingerprint: record for record in records if record.fingerprint != note.fingerprint}
    ranked = sorted(
        ((difference(record.identity, note.identity), record) for record in others.values()),
        key=lambda pair: (len(pair[0]), pair[1].fingerprint),
    )
    if not ranked:
        lines.append("  there is no other record to compare it with")
    for changes, record in ranked[:_NEAREST]:
        lines += [f"  from {record.fingerprint}  {_title(record)} it differs in:", *_indent(changes)]
    return "\n".join(lines)


def _indent(changes: Sequence[str]) -> list[str]:
    more = [f"    and {len(changes) - _LINES} more"] if len(changes) > _LINES else []
    return [f"    {change}" for change in changes[:_LINES]] + more


def _complaints(faults: Sequence[str]) -> list[str]:
    return ["Left out:\n" + "\n".join(f"  {fault}" for fault in faults)] if faults else []


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser("python -m q2n.explain", description="why a cell was or was not reused")
    parser.add_argument("cell", help="a fingerprint, the beginning of one, or 'last' for the last sweep")
    parser.add_argument("--results", default="results", help="folder of the records (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        last = options.cell == "last"
        text = explain_last(options.results) if last else explain_cell(options.results, options.cell)
    except Q2NError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
