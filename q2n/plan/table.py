"""Table of ``plan=true``: state and predicted cost of every cell, before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from q2n.config import RunConfig
from q2n.exceptions import Q2NError, RecordError
from q2n.plan.fit import GIB, advice, device_memory, host_memory, misfit, shortages, size
from q2n.plan.memory import Memory, disk, predict
from q2n.plan.time import Duration, Past, duration, read_past
from q2n.plan.workload import workload
from q2n.records import failure as failures
from q2n.records import lease
from q2n.records import store as records
from q2n.records.identity import identify
from q2n.records.notes import State
from q2n.records.schema import CellRef

MARKS = {"records": "", "scaled": " *", "estimate": " ?"}
"""Marks after a time, by :attr:`.Duration.source`."""

RUN = (State.TO_RUN, State.FAILED_BEFORE, State.FORCED)
"""States of cells that would be computed."""


@dataclass(frozen=True)
class Planned:
    """One cell of the plan.

    Attributes:
        ref: names and identity of the cell.
        state: planned action.
        why: reason of the state, or empty.
        memory: predicted memory; this and the next fields only for states in :data:`RUN`.
        disk: predicted bytes on disk.
        time: predicted wall time.
        too_large: shortage of memory with advice, or empty if the cell fits.
    """

    ref: CellRef
    state: State
    why: str = ""
    memory: Memory | None = None
    disk: float | None = None
    time: Duration | None = None
    too_large: str = ""


def plan(cells: Sequence[RunConfig]) -> list[Planned]:
    """Return state and predictions of each cell."""
    past = {folder: read_past(folder) for folder in {config.scalars.results_dir for config in cells}}
    return [_planned(config, past[config.scalars.results_dir]) for config in cells]


def _planned(config: RunConfig, past: Sequence[Past]) -> Planned:
    """Return the plan of one cell."""
    error = misfit(config)
    if error is not None:
        return Planned(config.ref(), State.UNSUPPORTED, str(error))
    try:
        ref = config.ref(identify(config))
        hardware = ref.identity["hardware"]
        state, why = _state(config, ref)
        if state not in RUN:
            return Planned(ref, state, why)
        work = workload(config, config.model.shapes(download=True), hardware)
    except Q2NError as error:
        return Planned(config.ref(), State.CANNOT_RUN, f"{type(error).__name__}: {error}")
    memory, there = predict(work), (host_memory(), device_memory(work.device))
    lacking = shortages(memory, *there)
    return Planned(
        ref,
        state,
        why,
        memory,
        disk(work, config),
        duration(config, work, hardware, past),
        f"needs {' and '.join(lacking)}; {advice(work, *there)}" if lacking else "",
    )


def _state(config: RunConfig, ref: CellRef) -> tuple[State, str]:
    """Return the state of a cell by records, failures and leases in its folder, and the reason."""
    scalars = config.scalars
    folder = failures.folder_of(scalars.results_dir, ref)
    try:
        finished = records.look_up(scalars.results_dir, ref.name, ref.fingerprint) is not None
    except RecordError as error:
        return State.CANNOT_RUN, str(error)
    if finished:
        return State.FORCED if scalars.force else State.REUSED, ""
    holder = lease.holder_of(folder)
    if holder is not None and not lease.abandoned(folder):
        return State.BUSY, f"{holder} runs this cell"
    before = failures.of_config(scalars.results_dir, ref)
    if scalars.retry == "failed" and not before and holder is None:
        return State.SKIPPED, "retry=failed runs only cells that failed before"
    if scalars.retry == "none" and before:
        return State.SKIPPED, f"retry=none, and it failed before: {before[-1].reason}"
    return (State.FAILED_BEFORE, before[-1].reason) if before else (State.TO_RUN, "")


def show_plan(cells: Sequence[Planned], complete: bool) -> int:
    """Print the plan and return the exit code, 1 if a cell cannot run or does not fit.

    ``complete`` is False if a sweeper chooses further cells during the sweep.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    on_device = any(cell.memory and cell.memory.device is not None for cell in cells)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), collapse_padding=True)
    table.add_column("cell")
    table.add_column("what", no_wrap=True)
    for head in ("memory", *(("device",) if on_device else ()), "disk", "time"):
        table.add_column(head, justify="right", no_wrap=True)
    for cell in cells:
        table.add_row(*_row(cell, on_device))
    console.print(table)
    for line in _notes(cells, complete):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(any(cell.too_large or cell.state is State.CANNOT_RUN for cell in cells))


def _row(cell: Planned, on_device: bool) -> list[str]:
    """Return the row of a cell, with a column for the device if ``on_device``."""
    from rich.markup import escape

    memory, time = cell.memory, cell.time
    device = size(memory.device) if memory and memory.device is not None else ""
    return [
        escape(cell.ref.label),
        "[red]does not fit[/]" if cell.too_large else cell.state,
        size(memory.host) if memory else "",
        *((device,) if on_device else ()),
        "" if cell.disk is None else "< 0.1 GiB" if cell.disk < 0.05 * GIB else size(cell.disk),
        f"{clock(time.seconds)}{MARKS[time.source]}" if time else "",
    ]


def _notes(cells: Sequence[Planned], complete: bool) -> list[str]:
    """Return the lines below the table: reasons, totals and the meaning of the marks."""
    counts = Counter(cell.state for cell in cells)
    lines = [f"{cell.state}: {cell.ref.label}: {cell.why}" for cell in cells if cell.why]
    lines += [f"DOES NOT FIT: {cell.ref.label}: {cell.too_large}" for cell in cells if cell.too_large]
    seconds = sum(cell.time.seconds for cell in cells if cell.time)
    largest = max((cell.memory.host for cell in cells if cell.memory), default=0)
    lines.append("cells    " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    if seconds:
        lines.append(f"total    {clock(seconds)} one after the other, at most {size(largest)} of memory")
    sources = {cell.time.source for cell in cells if cell.time}
    if "scaled" in sources:
        lines.append("*        from records of similar cells here, scaled by the number of tokens")
    if "estimate" in sources:
        lines.append(
            "?        estimate: operations divided by an assumed rate, without a method's searches; measured"
        )
        lines.append("         times replace it once similar cells have finished on this machine")
    if not complete:
        lines.append("the sweeper chooses the cells during the sweep: these numbers are for one cell")
    return lines


def clock(seconds: float) -> str:
    """Return seconds as text: ``45 s``, ``3 min``, ``2 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
