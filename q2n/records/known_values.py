"""Known scores of unquantized models, and a stop where a measured score departs from them.

Changed weights, code or libraries move every number of a table alike, so the table does not show the change.
The unquantized model's score does, before hours of quantization. Numbers are compared within one protocol
only: another text, tokenizer, dtype or placement of BOS gives another number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, ValidationError

from q2n.exceptions import ConfigurationError, DepartureError
from q2n.options import complaints
from q2n.records.fingerprint import fingerprint
from q2n.records.schema import Frozen, Metric, RunRecord
from q2n.records.store import read_all

SHIPPED = Path(__file__).resolve().parents[2] / "conf" / "known.yaml"
"""Known numbers that come with the project."""

EARLIER_TOLERANCE = 0.01
"""Relative tolerance against earlier records."""

_WAY_OUT = (
    "If the new number is right: sanity=warn only warns, sanity=off skips the comparison, known=FILE reads "
    "other known numbers, name=NAME starts a new set of records."
)

Action = Literal["stop", "warn", "off"]


class KnownValue(Frozen):
    """One known number with model, metric, protocol (the known fields), tolerance and source.

    ``weights`` are entries of the weights' identity that must be equal, ``tolerance`` is relative.
    """

    model: str
    metric: str
    dataset: str
    value: float
    tolerance: float = Field(gt=0, lt=1)
    source: str = Field(min_length=1)
    weights: dict[str, Any] = Field(default_factory=dict)
    protocol: dict[str, Any] = Field(default_factory=dict)

    def concerns(self, model: str, weights: Mapping[str, Any], metric: Metric) -> bool:
        """Tell whether this is a known value of ``metric`` of ``model``: no known field differs."""
        protocol = metric.protocol.model_dump()
        return (
            (self.model, self.metric, self.dataset) == (model, metric.name, metric.dataset)
            and all(weights.get(key) == value for key, value in self.weights.items())
            and all(protocol.get(key) == value for key, value in self.protocol.items())
        )

    def departure(self, metric: Metric) -> str | None:
        """Describe how a measured number departs from this one, or return None if it does not."""
        if math.isclose(metric.value, self.value, rel_tol=self.tolerance):
            return None
        protocol = f" ({metric.protocol.label()})" if self.protocol else ""
        return (
            f"unquantized {metric.dataset} {metric.name} of {self.model} is {metric.value:.6g}, known value "
            f"{self.value:.6g} within {100 * self.tolerance:g} % ({self.source}): no known protocol field "
            f"differs{protocol}; check weights, code and libraries"
        )


class _File(Frozen):
    values: tuple[KnownValue, ...]


@lru_cache(maxsize=8)
def known_values(path: str | None) -> tuple[KnownValue, ...]:
    """Return the numbers under ``values`` in a YAML file, or the project's own if ``path`` is None.

    Raises:
        ConfigurationError: the file cannot be read, or an entry is wrong.
    """
    from omegaconf import OmegaConf

    file = SHIPPED if path is None else Path(path).expanduser()
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file))
        return _File.model_validate(tree).values
    except OSError as error:
        raise ConfigurationError(f"known={path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        fields = cast(Mapping[str, Any], tree)
        raise ConfigurationError(f"known={file}: {complaints(error, fields)[0]}") from error


def earlier_values(records: Sequence[RunRecord]) -> list[KnownValue]:
    """Return the unquantized models' numbers in finished records, the newest of each quantity."""
    newest: dict[tuple[Any, ...], KnownValue] = {}
    for record in sorted(records, key=lambda item: item.created):
        for metric in record.metrics:
            if metric.reference is None or not math.isfinite(metric.reference):
                continue
            weights = dict(record.identity.get("weights", {}))
            quantity = (metric.name, metric.dataset, metric.protocol.key())
            newest[record.cell.model, fingerprint(weights), *quantity] = KnownValue(
                model=record.cell.model,
                metric=metric.name,
                dataset=metric.dataset,
                value=metric.reference,
                tolerance=EARLIER_TOLERANCE,
                source=f"record {record.fingerprint} of {record.created[:10]}",
                weights=weights,
                protocol=metric.protocol.model_dump(),
            )
    return list(newest.values())


def check_reference(
    metrics: Sequence[Metric], model: str, weights: Mapping[str, Any], known: Sequence[KnownValue]
) -> None:
    """Compare the unquantized model's metrics with the known values.

    Raises:
        DepartureError: a number departs; the message has the settings that help.
    """
    departures = [
        departure
        for metric in metrics
        for value in known
        if value.concerns(model, weights, metric) and (departure := value.departure(metric))
    ]
    if departures:
        raise DepartureError("\n".join([*departures, _WAY_OUT]))


def guard(
    metrics: Sequence[Metric],
    model: str,
    weights: Mapping[str, Any],
    *,
    action: Action,
    path: str | None,
    results: tuple[str, str],
) -> None:
    """Call :func:`check_reference` with the file ``path`` and with earlier records.

    Args:
        metrics: of the unquantized model.
        model: its name.
        weights: identity of its weights.
        action: raise (``stop``), print a warning (``warn``), or compare nothing (``off``).
        path: file of known values, or None for the project's own.
        results: results folder and name of the earlier records.

    Raises:
        DepartureError: ``action`` is ``stop`` and a number departs.
    """
    if action == "off":
        return
    try:
        check_reference(metrics, model, weights, [*known_values(path), *_earlier(*results)])
    except DepartureError as error:
        if action == "stop":
            raise
        from rich.console import Console

        Console(stderr=True).print(f"warning: {error}", style="yellow", markup=False, soft_wrap=True)


@lru_cache(maxsize=8)
def _earlier(results_dir: str, name: str) -> tuple[KnownValue, ...]:
    """Return the earlier values, read once per process: the sweep's own records are checked already."""
    return tuple(earlier_values(read_all(results_dir, name)[0]))
