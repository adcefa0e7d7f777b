"""Progress of a cell for people: one bar with block, stage and time left, on standard error."""

from __future__ import annotations

import logging
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from q2n.runtime import signals as interruption

LOGGER = logging.getLogger(__name__)
"""Logger of every step that begins."""
_NOTES = logging.getLogger("q2n.notes")


class CellProgress:
    """Context manager that shows the cell's title on a line that stays and below it a bar for the phase."""

    bars: ClassVar[bool] = True
    """Show bars; False in workers, several of which may share a terminal."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar = Progress(
            TextColumn("{task.description:9}", style="bold", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[stage]:25}", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not self.bars,
        )
        self._task = self._bar.add_task("", total=1.0, stage="")
        self._phase = self._stage = ""

    def __enter__(self) -> CellProgress:
        self.note(self._title)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        _NOTES.info("%s", text)
        self._bar.console.print(text, markup=False, highlight=False)

    def begin(self, phase: str) -> None:
        """Start the bar again for a new phase (``quantize``)."""
        self._bar.reset(self._task, description=phase, total=1.0, stage="")
        self._phase, self._stage = phase, ""
        LOGGER.info("%s", phase)

    def advance(self, fraction: float, stage: str) -> None:
        """Show that ``fraction`` of the phase is done and ``stage`` (``block 3/30 mlp.down``) begins.

        Raises:
            Interrupted: a signal arrived, and its own exception was lost in a callback.
        """
        interruption.check()
        self._bar.update(self._task, completed=fraction, stage=stage)
        if stage != self._stage:
            self._stage = stage
            LOGGER.info("%s: %s", self._phase, stage)
