"""The identity of a cell, found out without loading weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from q2n.records import fingerprint
from q2n.records.source_code import CHECKOUT
from q2n.runtime.device import resolve_device, resolve_dtype

if TYPE_CHECKING:
    from q2n.config import RunConfig


def identify(config: RunConfig) -> dict[str, Any]:
    """Return the identity of the cell that ``config`` describes, without loading weights.

    Raises:
        UnsupportedError: the correction is not defined after the baseline.
        ConfigurationError: torch does not see the device.
        ModelError, DataError: weights or text are not in the configured place.
    """
    config.correction.bind(config.baseline)
    device = resolve_device(config.scalars.device)
    return fingerprint.identity(
        config.tree,
        code=CHECKOUT.of_cell(config.tree).key,
        weights=config.model.identity(),
        data={"calibration": config.calibration.identity(), "evaluation": config.evaluation.identity()},
        hardware={"device": device, "dtype": resolve_dtype(config.scalars.dtype, device)},
    )
