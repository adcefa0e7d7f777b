"""How a figure becomes files: the same bytes from the same records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from q2n.runtime.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 120


def save(figure: Figure, folder: Path, label: str, kinds: Sequence[str] = ("svg",)) -> list[Path]:
    """Write ``<label>.svg`` into ``folder`` and return its path.

    Args:
        kinds: the formats that are written (``svg``, ``png``), a path each.

    Raises:
        OSError: the folder cannot be written.
    """
    import matplotlib

    paths = []
    figure.draw_without_rendering()  # lays the figure out, which takes as long as drawing it: once for all
    figure.set_layout_engine("none")
    with matplotlib.rc_context({"svg.hashsalt": "q2n", "svg.fonttype": "none"}):
        for kind in kinds:
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            path = folder / f"{label}.{kind}"
            drawn = partial(figure.savefig, format=kind, dpi=PNG_DPI, metadata=metadata)
            write_atomic(path, drawn)
            paths.append(path)
    return paths
