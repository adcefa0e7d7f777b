"""The answer at the top of the page, counted from the records: effect of the correction and its certainty."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from q2n.report.overview import Report
from q2n.report.page.by_bits import of_pair
from q2n.report.tables.comparisons import FEWEST_SEEDS, LEVEL
from q2n.report.tables.every_difference import MAIN, main_lines
from q2n.report.tables.lines import NO_CORRECTION
from q2n.report.tables.pairs import USELESS, Counts, Pair, count
from q2n.report.tables.table import Number
from q2n.report.tables.text import amount

Method = tuple[str, str, tuple[tuple[Number, ...], ...]]
"""Model, baseline, and the differences per column."""


@dataclass(frozen=True)
class Answer:
    """Content of the answer.

    ``counts`` is about the paper's correction at its usual settings, ``everything`` about each correction at
    all settings and in all metrics. ``rows`` has the differences of each method (model and baseline) per
    column (``heads``): more than one if studies differ in their seeds.
    """

    headline: str
    counts: Counts
    heads: tuple[str, ...]
    rows: tuple[Method, ...]
    how_much: tuple[str, ...]
    how_sure: tuple[str, ...]
    measured_on: tuple[str, ...]
    everything: Mapping[str, Counts]


def answer(report: Report) -> Answer:
    """Answer of the records on the paper's correction (:data:`MAIN`)."""
    pairs = [line.pair for line in main_lines(report.lines)]
    counts = count(pairs).get(MAIN, Counts())
    heads, rows = _where(pairs)
    return Answer(
        headline=headline(counts),
        counts=counts,
        heads=heads,
        rows=rows,
        how_much=tuple(_how_much(pairs)),
        how_sure=tuple(_how_sure(pairs)),
        measured_on=tuple(_measured_on(report, pairs)),
        everything=count(line.pair for line in report.lines),
    )


def headline(counts: Counts) -> str:
    """Answer in one sentence."""
    total, better, worse = counts.total, counts.better, counts.worse
    of = f"of {total} comparisons" if total > 1 else "comparison"
    match better, worse:
        case 0, 0 if not total:
            return f"Nothing to say yet: no cell with q2n={MAIN} has its partner with q2n={NO_CORRECTION}."
        case 0, 0:
            return f"Not shown: not one {of} is significant across seeds."
        case _ if total in (better, worse):
            sign = "Yes: better" if better else "No: worse"
            return f"{sign} in every comparison, significant across seeds."
        case _, 0:
            return f"In places: significantly better in {better} {of}, worse in none."
        case 0, _:
            return f"No: significantly worse in {worse} {of}, better in none."
    return f"It depends: significantly better in {better} {of} and worse in {worse}."


def _where(pairs: Sequence[Pair]) -> tuple[tuple[str, ...], tuple[Method, ...]]:
    places = sorted({(pair.column.dataset, pair.column.bits) for pair in pairs})
    several = len({dataset for dataset, _ in places}) > 1
    heads = tuple(f"{dataset} {bits:g} bit" if several else f"{bits:g} bit" for dataset, bits in places)
    found: dict[tuple[str, str], dict[object, list[Number]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        # below the difference: values without and with correction
        number = replace(of_pair(pair), detail=f"{amount(pair.uncorrected)} → {amount(pair.corrected)}")
        found[pair.row.model, pair.row.baseline][pair.column.dataset, pair.column.bits].append(number)
    rows = ((*method, tuple(tuple(row.get(place, ())) for place in places)) for method, row in found.items())
    return heads, tuple(rows)


def _how_much(pairs: Sequence[Pair]) -> Iterable[str]:
    known = [(pair.found.estimate, pair) for pair in pairs if pair.found is not None]
    for verdict in ("better", "worse"):
        found = sorted(
            ((size, pair) for size, pair in known if pair.verdict == verdict), key=lambda item: abs(item[0])
        )
        if found:
            (least, _), (most, largest) = found[0], found[-1]
            span = f"by {abs(most):.1f} %" if len(found) == 1 else f"by {abs(least):.1f} to {abs(most):.1f} %"
            yield f"Significantly {verdict}: {span} of perplexity, most with {_name(largest)}."
    if known:
        sizes = [size for size, _ in known]
        yield (
            f"Of all {len(known)}, significant or not: median {statistics.median(sizes):+.1f} %, "
            f"from {min(sizes):+.1f} to {max(sizes):+.1f} %."
        )
    useless = [pair for pair in pairs if pair.useless]
    if useless:
        which = ", ".join(dict.fromkeys(map(_name, useless)))
        yield (
            f"Even corrected, {which} {'has' if len(useless) == 1 else 'have'} over {USELESS} times the "
            "unquantized perplexity: a difference there is one between collapsed models."
        )


def _name(pair: Pair) -> str:
    return f"{pair.row.baseline} at {pair.column.bits:g} bit"


def _how_sure(pairs: Sequence[Pair]) -> Iterable[str]:
    several = sorted({pair.seeds for pair in pairs if pair.seeds >= FEWEST_SEEDS})
    single = sum(pair.seeds < FEWEST_SEEDS for pair in pairs)
    if single:
        which = "All of them rest" if not several else f"{single} of {len(pairs)} rest"
        yield (
            f"{which} on one seed and decide nothing: they compare two quantized models, and "
            "another calibration sample may turn them around."
        )
    if several:
        counted = f"{several[0]}" if len(several) == 1 else f"{several[0]} to {several[-1]}"
        which = "The others" if single else "All"
        yield f"{which} are paired over {counted} seeds and over the windows of the text."
    yield (
        f"Significant across seeds: p < {LEVEL}, adjusted for all differences of a study (Holm), and more "
        "than one seed."
    )


def _measured_on(report: Report, pairs: Sequence[Pair]) -> Iterable[str]:
    models = dict.fromkeys(pair.row.model for pair in pairs)
    weights = {
        record.cell.model: record.provenance.weights for item in report.studies for record in item.records
    }
    for model in models:
        yield f"{model}: {weights.get(model) or 'origin of the weights not recorded'}"
    yield from dict.fromkeys(pair.column.protocol.label() for pair in pairs if pair.column.protocol)
