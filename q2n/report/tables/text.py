"""Numbers as text: the same in every table, whatever it is rendered as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from q2n.records.schema import Metric
from q2n.report.significance import FEWEST
from q2n.report.tables.comparisons import FEWEST_SEEDS, LEVEL, Difference

EMPTY = "\u2013"
INTERVAL = "95 % interval"
P_VALUE = "p"
HUGE = 1e9
"""Size from which on a difference has an exponent: with collapsed models it has hundreds of digits."""


def compared_notes(compared: Sequence[Difference], base: str = "the uncorrected value") -> tuple[str, ...]:
    """Return the notes on intervals and p-values of one family of differences."""
    if not compared:
        return ()
    notes = [
        f"{INTERVAL}: paired, over the header's windows or items; of perplexities in per cent of "
        f"{base}; {P_VALUE}: adjusted for the table's {len(compared)} differences (Holm)"
    ]
    behind = sorted({item.seeds for item in compared})
    if behind[-1] < FEWEST_SEEDS:
        notes.append(
            "one seed: interval and p are about these quantized models on text like this, not about the "
            "methods: another calibration sample may turn a difference around, so nothing is bold"
        )
    else:
        counted = " or ".join(map(str, behind))
        notes.append(f"bold: significant across seeds (p < {LEVEL}; {counted} seeds per difference)")
    return tuple(notes)


def not_compared_notes(sides: Iterable[Mapping[int, Metric]]) -> tuple[str, ...]:
    """Reasons for which differences have no interval, of the metrics on both sides by seed."""
    metrics = [metric for side in sides for metric in side.values()]
    reasons = {
        f"fewer than {FEWEST} windows or items": any(0 < len(item.parts) < FEWEST for item in metrics),
        "a metric without a value per window or item": any(not item.parts for item in metrics),
        "a loss that is not finite": any(not all(map(math.isfinite, item.parts)) for item in metrics),
    }
    told = [reason for reason, holds in reasons.items() if holds]
    return (f"no {INTERVAL} and no {P_VALUE}: {'; '.join(told)}",) if told else ()


def amount(value: float) -> str:
    """A number for a person: two decimals where that is informative, more for small, fewer for large."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if size >= 0.0995 or size == 0 else f"{value:.4f}"


def difference(value: float, lower_is_better: bool, spread: float = math.nan) -> str:
    """A signed number and what its sign means: ``-1.50 better``."""
    if math.isnan(value):
        return "nan"
    if value == 0:
        return "0 same"
    sign = "+" if value > 0 else ""
    around = "" if math.isnan(spread) else f" ± {amount(spread)}"
    return f"{sign}{amount(value)}{around} {'better' if (value < 0) == lower_is_better else 'worse'}"


def interval(item: Difference | None) -> str:
    """``-4.0 to -0.8 %`` or ``-0.0120 to 0.0034``; :data:`EMPTY` if nothing is known."""
    if item is None:
        return EMPTY
    low, high = (signed(end, item.relative) for end in (item.low, item.high))
    return f"{low} to {high} %" if item.relative else f"{low} to {high}"


def signed(value: float, relative: bool) -> str:
    """A difference or an end of its interval, in per cent if ``relative``."""
    if abs(value) >= HUGE:
        return f"{value:+.2e}"
    return f"{value:+.1f}" if relative else f"{value:+.4f}"


def p_text(item: Difference | None) -> str:
    """The adjusted p-value; :data:`EMPTY` if nothing is known."""
    if item is None:
        return EMPTY
    return "<0.001" if item.p_value < 0.001 else f"{item.p_value:.3f}"
