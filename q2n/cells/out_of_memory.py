"""Errors that mean that memory ran out, told apart from all others, and what to do about them."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from q2n.exceptions import OutOfMemoryError
from q2n.plan.fit import advice, device_memory, host_memory, size
from q2n.plan.memory import predict
from q2n.plan.workload import workload

if TYPE_CHECKING:
    from q2n.config import RunConfig

_TEXTS = re.compile(
    r"DefaultCPUAllocator|not enough memory|can't allocate memory|cannot allocate memory|out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or one it came from, says that memory ran out: Python's own, that of torch's host
    or device allocator, or the system's."""
    said = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and bool(_TEXTS.search(str(error))))
    )
    return said or (error is not None and is_out_of_memory(error.__cause__))


def explained(error: Exception, config: RunConfig, identity: Mapping[str, Any]) -> Exception:
    """``error``, or if memory ran out an :class:`OutOfMemoryError` that says how much the cell takes, how
    much there is, and what would make it fit."""
    if not is_out_of_memory(error):
        return error
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    better = OutOfMemoryError(f"{first[:200]}; {_account(config, identity)}")
    better.__cause__ = error
    return better


def _account(config: RunConfig, identity: Mapping[str, Any]) -> str:
    try:
        work = workload(config, config.model.shapes(), identity["hardware"])
        memory, host, device = predict(work), host_memory(), device_memory(work.device)
    except Exception:  # an explanation must not hide what it explains
        return "try calibration.batch_size=1, calibration.activations=disk"
    there = "an unknown amount" if host is None else size(host)
    on_device = "" if memory.device is None else f" and {size(memory.device)} on the device"
    # As it is it did not fit, whatever was predicted.
    limits = [_below(host, memory.needed), _below(device, memory.device)]
    return (
        f"this cell is predicted to take {size(memory.needed)}{on_device} (most in: {memory.phase}), and "
        f"this machine has {there}; {advice(work, *limits)}"
    )


def _below(there: int | None, taken: float | None) -> int | None:
    """What a changed cell must stay below: what there is, and clearly less than it takes now."""
    known = [size for size in (there, None if taken is None else int(0.95 * taken)) if size is not None]
    return min(known, default=None)
