"""What each stage of a static cell depends on: the part of the cell's identity that its key is a digest of.

Sources count by exclusion: a module that is not known to be of no effect on a stage is part of its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from q2n.fingerprint import fingerprint
from q2n.types import Baseline

_AFTER_SOLVING = (
    "q2n/corrections/",
    "q2n/nullspace/",
    "q2n/evaluation/",
    "q2n/diagnostics/",
    "q2n/cell.py",
    "q2n/run.py",
)
"""Sources that solved layers do not depend on."""

_AFTER_MEASURING = (*_AFTER_SOLVING, "q2n/baselines/", "q2n/grids/", "q2n/solvers/")
"""Sources that the statistics of a model do not depend on, unless the baseline has rewritten it."""

_SPECTRUM = ("q2n/linalg.py", "q2n/types/statistics.py")

_NEUTRAL_CALIBRATION = frozenset({"activations", "heldout"})
"""Keys of the section that statistics do not depend on, or that count as what they come to."""


@dataclass(frozen=True)
class StageKeys:
    """``statistics`` of the (rewritten) unquantized model; ``spectra`` of them; ``prepared`` blocks; solved
    ``codes``."""

    statistics: str
    spectra: str
    prepared: str
    codes: str


def stage_keys(identity: Mapping[str, Any], baseline: Baseline, heldout: int) -> StageKeys:
    """The keys of a cell.

    Args:
        identity: the cell's (:func:`q2n.run.identify`).
        heldout: calibration sequences that are held out.
    """
    config = identity["config"]
    rewrite = rewrite_identity(config["baseline"], baseline)
    measured = {
        "model": config["model"],
        "weights": identity["weights"],
        "calibration": {k: v for k, v in config["calibration"].items() if k not in _NEUTRAL_CALIBRATION},
        "heldout": heldout,
        "text": identity["data"]["calibration"],
        "hardware": identity["hardware"],
        "versions": identity["versions"],
        "rewrite": rewrite,
        "seed": config.get("seed") if rewrite else None,
        "sources": _sources(identity, _AFTER_SOLVING if rewrite else _AFTER_MEASURING),
    }
    statistics = fingerprint(measured)
    spectrum_code = {path: identity["sources"].get(path) for path in _SPECTRUM}
    solved = {
        "statistics": statistics,
        "baseline": config["baseline"],
        "seed": config.get("seed"),
        "sources": _sources(identity, _AFTER_SOLVING),
    }
    return StageKeys(
        statistics=statistics,
        spectra=fingerprint({"statistics": statistics, "sources": spectrum_code}),
        prepared=statistics,
        codes=fingerprint(solved),
    )


def rewrite_identity(section: Mapping[str, Any], baseline: Baseline) -> dict[str, Any] | None:
    """What of a baseline's section decides what the model is when it is measured; None: it is as it was."""
    names = baseline.rewrite_fields
    if names is None:
        return dict(section)
    return {name: section.get(name) for name in ("_target_", *names)} if names else None


def _sources(identity: Mapping[str, Any], without: Iterable[str]) -> dict[str, Any]:
    return {path: it for path, it in identity["sources"].items() if not path.startswith(tuple(without))}
