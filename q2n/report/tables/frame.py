"""The records as one long frame for further work: a row per cell and metric, seeds not averaged."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from q2n.records.store import RunRecord, to_frame
from q2n.report.tables.lines import NO_CORRECTION, observations

_CELL = ["model", "baseline", "settings", "bits", "seed", "metric", "dataset", "unit", "protocol_key"]


def long_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """:func:`q2n.records.store.to_frame` with each row's settings, the value without correction and the
    difference to it (empty where that cell is missing), wall times and peak memory."""
    frame = to_frame(records)
    if frame.empty or "metric" not in frame:
        return frame
    labels, _ = observations(records)
    repeats = [max(1, len(record.metrics)) for record in records]
    pairs = [label for label, count in zip(labels, repeats, strict=True) for _ in range(count)]
    place = list(frame.columns).index("correction")
    frame.insert(place, "settings", [", ".join(pair.cell) for pair in pairs])
    frame.insert(place + 2, "q2n_settings", [", ".join(pair.correction) for pair in pairs])
    without = frame[frame["correction"] == NO_CORRECTION].drop_duplicates(_CELL)
    without = without[[*_CELL, "value"]].rename(columns={"value": "value_off"})
    frame = frame.merge(without, on=_CELL, how="left", validate="many_to_one")
    frame["value_off"] = frame["value_off"].where(frame["correction"] != NO_CORRECTION)
    frame["difference"] = frame["value"] - frame["value_off"]
    stages = [column for column in frame if str(column).startswith("seconds_")]
    frame["seconds"] = frame[stages].sum(axis=1)
    return frame
