"""Origin of a number: the code, the machine, the versions, the seeds, the weights.

Nothing here is part of a cell's identity. Environment variables, command lines of other programs and remote
addresses are never read, because a record may be published.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from q2n.records.fingerprint import library_versions
from q2n.records.schema import Provenance
from q2n.records.source_code import PACKAGE
from q2n.runtime.device import processor_fields

_CODE_PATHS = ("q2n", "conf", "run.py")


def collect(
    *, device: str, dtype: str, seeds: Mapping[str, int], weights: str, root: Path | None = None
) -> Provenance:
    """Collect the provenance of a cell that runs in this process now.

    Args:
        device: device the cell ran on, never ``auto``.
        dtype: dtype of the forward passes.
        seeds: every seed, by its purpose.
        weights: origin of the model's weights, a sentence for the reader.
        root: folder of the git checkout, or None for the one that holds this package.
    """
    commit, dirty = git_state(root or PACKAGE.parent)
    torch = sys.modules.get("torch")
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        versions=library_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_model(),
        threads=torch.get_num_threads() if torch else os.cpu_count(),  # of a forward pass
        device=device,
        dtype=dtype,
        seeds=dict(seeds),
        weights=weights,
    )


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """Return ``(commit, dirty)`` of the checkout at ``root``, or ``(None, None)`` without git or outside one.

    Dirty means that the code or its configuration departs from the commit; new results do not count. A
    package installed inside another project's checkout has no commit of its own.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None, None
    status = _git(root, "status", "--porcelain", "--", *_CODE_PATHS)
    return _git(root, "rev-parse", "--verify", "HEAD"), None if status is None else bool(status)


def _git(root: Path, *arguments: str) -> str | None:
    # no optional locks: refreshing the index would disturb a git command of the user
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """Return the processor's name, for reading wall times, or its architecture if the name is unknown."""
    names = (name for key, name in processor_fields().items() if key in ("model name", "Model", "Processor"))
    return next(names, platform.processor() or platform.machine())


def reset_peak_memory() -> bool:
    """Start a new peak for :func:`peak_memory_bytes`; return False if only the process's peak is known.

    Without a reset the second cell of a sweep would report the first cell's peak.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """Return the peak resident host memory in bytes, since :func:`reset_peak_memory` or the start."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    import resource  # does not exist on Windows, and everything imports this module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB everywhere but on macOS


def peak_device_memory_bytes() -> int | None:
    """Return the peak bytes that torch allocated on all CUDA devices together, or None if none was used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return sum(int(torch.cuda.max_memory_allocated(i)) for i in range(torch.cuda.device_count()))
