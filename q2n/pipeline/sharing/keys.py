"""Keys of the stages of a static cell: digests of the part of the cell's identity that a stage depends on.

Code counts as it does for a whole cell (:mod:`q2n.records.source_code`): the modules that the stage and its
options import, except those known to have no effect on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from q2n.records.fingerprint import fingerprint
from q2n.records.source_code import CHECKOUT, Checkout, targets
from q2n.types import Baseline

_STAGES = "q2n.pipeline.sharing.static"

_AFTER_SOLVING = ("q2n.corrections", "q2n.evaluation", "q2n.diagnostics")
"""Packages that solved layers do not depend on."""

_AFTER_MEASURING = (*_AFTER_SOLVING, "q2n.baselines", "q2n.quantization.formats", "q2n.quantization.solvers")
"""Packages that the statistics of a model do not depend on, unless the baseline has rewritten it."""

_SPECTRUM = ("q2n.linalg.dense", "q2n.types.statistics")

_NEUTRAL_CALIBRATION = frozenset({"activations", "heldout"})
"""Keys of ``calibration`` that statistics do not depend on, or that count by their resolved value."""


@dataclass(frozen=True)
class StageKeys:
    """Keys of a cell's stages.

    ``statistics`` is the key of the (rewritten) unquantized model's statistics and of prepared blocks,
    ``spectra`` of the eigendecompositions of these statistics, ``codes`` of solved layers.
    """

    statistics: str
    spectra: str
    codes: str


def stage_keys(
    identity: Mapping[str, Any], baseline: Baseline, heldout: int, checkout: Checkout = CHECKOUT
) -> StageKeys:
    """Return the keys of a cell.

    Args:
        identity: identity of the cell (:func:`q2n.records.identity.identify`).
        baseline: the cell's baseline.
        heldout: number of calibration sequences that are held out.
        checkout: the code that runs.
    """
    config = identity["config"]
    rewrite = rewrite_identity(config["baseline"], baseline)
    inputs, method = [*targets(config["model"]), *targets(config["calibration"])], targets(config["baseline"])
    solving = checkout.code(_STAGES, *inputs, *method).without(_AFTER_SOLVING)
    measuring = solving if rewrite else checkout.code(_STAGES, *inputs).without(_AFTER_MEASURING)
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
        "code": measuring.key,
    }
    statistics = fingerprint(measured)
    decomposing = {name: solving[name].digest for name in _SPECTRUM}
    solved = {
        "statistics": statistics,
        "baseline": config["baseline"],
        "seed": config.get("seed"),
        "code": solving.key,
    }
    return StageKeys(
        statistics=statistics,
        spectra=fingerprint({"statistics": statistics, "code": decomposing}),
        codes=fingerprint(solved),
    )


def rewrite_identity(section: Mapping[str, Any], baseline: Baseline) -> dict[str, Any] | None:
    """Return the fields of a baseline that decide how it rewrites the model before statistics are collected.

    The result is None if the baseline does not rewrite the model.
    """
    names = baseline.rewrite_fields
    if names is None:
        return dict(section)
    return {name: section.get(name) for name in ("_target_", *names)} if names else None
