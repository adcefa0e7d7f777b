"""What became of each cell of this command, and how that is shown at the end."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2n.exceptions import Q2NError

if TYPE_CHECKING:
    from rich.console import Console

    from q2n.config import RunConfig
    from q2n.explain import Decision
    from q2n.schema import RunRecord


@dataclass(frozen=True)
class Outcome:
    """One cell. ``error`` is set exactly when there is no record."""

    label: str
    decision: Decision
    record: RunRecord | None
    results_dir: str
    error: Exception | None = None

    @property
    def reason(self) -> str:
        """One sentence for an error a user can act on, the whole traceback for any other."""
        if isinstance(self.error, Q2NError):
            return f"{type(self.error).__name__}: {self.error}"
        return "".join(traceback.format_exception(self.error)).strip() if self.error else ""


class OutcomeLog:
    """Collects outcomes as the cells of one command finish."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._expected = 0

    def expect(self, cells: int) -> None:
        self._expected = cells

    def title(self, config: RunConfig) -> str:
        """``[2/4] smollm2_135m gptq q2n=on 3 bit``."""
        return f"[{len(self._outcomes) + 1}/{max(self._expected, 1)}] {config.label}"

    def add(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)

    def close(self) -> int:
        """Show everything and return the exit code.

        In a sweep, cells whose parts do not fit each other are expected and only listed; a command that
        asked for just that cell fails.
        """
        alone = self._expected <= 1
        failed = [item for item in self._outcomes if item.error and (alone or item.decision == "failed")]
        self.show()
        if not failed:
            return 0
        return getattr(failed[0].error, "exit_code", 1) if alone else 1

    def show(self) -> None:
        """The table of all cells with a record, the reasons of those without, and what was written."""
        if not self._outcomes:
            return
        from rich.console import Console

        from q2n.report import print_report

        console, complaints = Console(), Console(stderr=True)
        records = [item.record for item in self._outcomes if item.record is not None]
        if records:
            print_report(records, console)
        for item in self._outcomes:
            if item.error is not None:
                kind = "not run" if item.decision == "unsupported" else "FAILED"
                _say(complaints, f"{kind}: {item.label}: {item.reason}")
        _say(console, _counts(self._outcomes))
        for folder, name in sorted(
            {(item.results_dir, item.record.name) for item in self._outcomes if item.record}
        ):
            _write(folder, name, console, complaints)
        self._outcomes.clear()


def _counts(outcomes: list[Outcome]) -> str:
    counts = Counter(item.decision for item in outcomes)
    parts = ", ".join(f"{count} {decision}" for decision, count in counts.items())
    return f"cells    {parts} (why: python -m q2n.explain last --results {outcomes[0].results_dir})"


def _write(folder: str, name: str, console: Console, complaints: Console) -> None:
    """The files of the report hold every record of that name, not only this command's."""
    from q2n.record import read_all
    from q2n.report import write_report

    records, faults = read_all(folder, name)
    for fault in faults:
        _say(complaints, f"left out of the tables: {fault}")
    written = write_report(records, folder, name)
    _say(console, f"records  {Path(folder) / name}")
    _say(console, f"tables   {' '.join(str(path) for path in written)}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
