"""What would make a cell fit: settings that need less memory, with what it then takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from q2n.plan.memory import Memory, predict
from q2n.plan.workload import Workload

GIB = 2**30


def fits(memory: Memory, host: int | None, device: int | None) -> bool:
    """Whether the prediction is below what there is (where that is known)."""
    enough = host is None or memory.needed <= host
    return enough and (memory.device is None or device is None or memory.device <= device)


def remedies(work: Workload, host: int | None, device: int | None) -> list[str]:
    """Changes, the fewest settings first, with which the cell would fit, and with how much."""
    found = []
    for settings, changed in _changes(work):
        memory = predict(changed)
        if fits(memory, host, device):
            found.append(f"{' '.join(settings)} ({size(memory.needed)})")
    return found


def advice(work: Workload, host: int | None, device: int | None) -> str:
    """One sentence: what would fit, or that nothing here would."""
    found = remedies(work, host, device)
    if found:
        return f"what would make it fit: {' or '.join(found[:3])}"
    smallest = min((predict(changed) for _, changed in _changes(work)), key=lambda memory: memory.needed)
    return (
        f"no setting makes it fit (the least is {size(smallest.needed)}); fewer calibration.nsamples or a "
        "shorter calibration.seqlen change what is computed"
    )


def size(number: float) -> str:
    return f"{number / GIB:.1f} GiB"


def _changes(work: Workload) -> Iterator[tuple[list[str], Workload]]:
    """Settings that change where things are, not what is computed; single ones, then together."""
    single: list[tuple[str, Workload]] = []
    if work.micro_batch > 1:
        single.append(("calibration.batch_size=1", replace(work, micro_batch=1)))
    if any(windows.batch > 1 for windows in work.windows):
        small = tuple(replace(windows, batch=1) for windows in work.windows)
        single.append(("evaluation.batch_size=1", replace(work, windows=small)))
    if not work.on_disk:
        single.append(("calibration.activations=disk", replace(work, on_disk=True)))
    if work.streamable and not work.streamed:
        single.append(("streaming=on", replace(work, streamed=True)))
    yield from (([setting], changed) for setting, changed in single)
    small = tuple(replace(windows, batch=1) for windows in work.windows)
    yield (
        [setting for setting, _ in single],
        replace(work, micro_batch=1, windows=small, on_disk=True, streamed=work.streamable),
    )
