"""Search space of ``hydra/sweeper=optuna``: Hydra's sweep grammar, read as distributions.

``interval(a, b)`` is continuous (``int(interval(a, b))`` integers, ``tag(log, interval(a, b))`` on a
logarithmic scale), ``range(a, b, step=c)`` evenly spaced numbers, ``x,y,z`` a choice without order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from q2n.config import key_of
from q2n.exceptions import ConfigurationError


@dataclass(frozen=True)
class Search:
    """Axes to search, and overrides that all cells share."""

    axes: tuple[Override, ...]
    fixed: tuple[str, ...]
    ends: Mapping[str, Sequence[str]]
    """Both ends of each axis that is an interval, and all values of each other axis, by key."""

    def distributions(self) -> dict[str, Any]:
        """Return Optuna's distribution of each axis, by key."""
        return {axis.get_key_element(): _distribution(axis) for axis in self.axes}

    def extremes(self) -> list[list[str]]:
        """Return cells for validation: each axis at its ends or choices, the others at their first value."""
        first = {key: values[0] for key, values in self.ends.items()}
        cells = [first] + [{**first, key: item} for key, values in self.ends.items() for item in values[1:]]
        return [[*self.fixed, *(f"{key}={value}" for key, value in cell.items())] for cell in cells]


def by_key(
    params: Mapping[str, Any], overrides: Sequence[str], loader: ConfigLoader | None = None
) -> dict[str, Override]:
    """Return the overrides of the sweeper's ``params`` and of the command line, which wins, by key."""
    lines = {key: f"{key}={value}" for key, value in params.items()}
    lines |= {key_of(item): item for item in overrides if key_of(item) in lines}
    others = [item for item in overrides if key_of(item) not in lines]
    parsed = OverridesParser.create(loader).parse_overrides([*lines.values(), *others])
    return {item.get_key_element(): item for item in parsed}


def search(params: Mapping[str, Any], overrides: Sequence[str]) -> Search:
    """Return the search space of the sweeper's ``params`` and the command line, which wins.

    Raises:
        ConfigurationError: nothing is searched, or an interval is empty or cannot be logarithmic.
    """
    given = by_key(params, overrides).values()
    axes = tuple(item for item in given if item.is_sweep_override())
    if not axes:
        raise ConfigurationError(
            "hydra/sweeper=optuna: nothing to search; give for example q2n.t=interval(0.01,0.3) or bits=2,3"
        )
    fixed = tuple(item.input_line or "" for item in given if not item.is_sweep_override())
    return Search(axes, fixed, {axis.get_key_element(): _ends(axis) for axis in axes})


def _ends(axis: Override) -> list[str]:
    sweep = axis.value()
    if not isinstance(sweep, IntervalSweep):
        values = list(axis.sweep_string_iterator())
        if not values:
            raise ConfigurationError(f"{axis.input_line}: has no value")
        return values
    assert sweep.start is not None
    assert sweep.end is not None
    if sweep.start >= sweep.end:
        raise ConfigurationError(f"{axis.input_line}: the interval is empty")
    if "log" in sweep.tags and sweep.start <= 0:
        raise ConfigurationError(f"{axis.input_line}: a logarithmic interval must begin above 0")
    return [str(sweep.start), str(sweep.end)]


def _distribution(axis: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = axis.value()
    if isinstance(sweep, IntervalSweep):
        kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    values: list[Any] = list(axis.sweep_iterator())
    if isinstance(sweep, RangeSweep) and len(values) > 1 and values[0] < values[-1]:
        kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
        return kind(values[0], values[-1], step=values[1] - values[0])
    return CategoricalDistribution(list(axis.sweep_string_iterator()))
