"""The one number of a cell that a sweeper optimises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from q2n.exceptions import ConfigurationError
from q2n.options import did_you_mean

if TYPE_CHECKING:
    from q2n.records.schema import RunRecord


def objective(record: RunRecord, wanted: str | None, direction: str | None) -> float | None:
    """The value of the metric ``wanted`` (``wiki/perplexity``), or of the first one.

    None if nothing was measured.

    Raises:
        ConfigurationError: there is no such metric, or ``direction`` would look for the worst.
    """
    metrics = {f"{metric.dataset}/{metric.name}": metric for metric in record.metrics}
    name = wanted or next(iter(metrics), None)
    if name is None:
        return None
    if name not in metrics:
        raise ConfigurationError(
            f"objective={name}: not measured{did_you_mean(name, metrics)} (measured: {', '.join(metrics)})"
        )
    metric = metrics[name]
    better = "minimize" if metric.lower_is_better else "maximize"
    if direction is not None and direction != better:
        raise ConfigurationError(
            f"hydra.sweeper.direction={direction}: would look for the worst {name}; use {better}"
        )
    return metric.value
