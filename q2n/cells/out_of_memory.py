"""Detection of errors that mean that memory ran out, and advice for them."""

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
    """Tell whether an error, or one that caused it, means that memory ran out.

    Such errors come from Python, from torch's host or device allocator, or from the system.
    """
    said = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and bool(_TEXTS.search(str(error))))
    )
    return said or (error is not None and is_out_of_memory(error.__cause__))


def explained(error: Exception, config: RunConfig, identity: Mapping[str, Any]) -> Exception:
    """Return ``error``, or an :class:`OutOfMemoryError` with explanation if memory ran out.

    The explanation has the predicted peak memory of the cell, the memory of the machine, and settings that
    would make the cell fit.
    """
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
    on_device = "" if memory.device is None else f" and {size(memory.device)} on the device"
    # The cell did not fit, whatever the prediction: advice must save at least 5 %.
    limits = [_below(host, memory.needed), _below(device, memory.device)]
    return (
        f"predicted peak memory of this cell: {size(memory.needed)}{on_device} (in: {memory.phase}); "
        f"this machine has {size(host)}; {advice(work, *limits)}"
    )


def _below(there: int | None, taken: float | None) -> int | None:
    """Bytes that a changed cell must stay below: those of the machine, and 95 % of those it needs now."""
    known = [size for size in (there, None if taken is None else int(0.95 * taken)) if size is not None]
    return min(known, default=None)
