"""Static cells: what is kept of one serves the others, and no record can tell."""

from __future__ import annotations

import pytest
from helpers.static import numbers, static_cell, write_texts

BASELINES = (
    "awq",
    "composed",
    "gptq",
    "leanquant",
    "owq",
    "pbllm",
    "quarot_kv4",
    "quip",
    "rtn",
    "smoothquant",
)
RELEASED = ("gptq", "leanquant", "owq", "pbllm", "quarot_kv4", "quip")
CELLS = [(baseline, q2n) for baseline in BASELINES for q2n in ("off", "on", "released")]
CELLS = [(baseline, q2n) for baseline, q2n in CELLS if q2n != "released" or baseline in RELEASED]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(("baseline", "q2n"), CELLS)
def test_a_warm_cell_is_a_cold_cell_bit_for_bit(baseline, q2n, text, tmp_path):
    cell = (text, tmp_path, f"baseline={baseline}", f"q2n={q2n}")
    cold = static_cell(*cell)
    from_disk = static_cell(*cell)
    from_memory = static_cell(*cell, forget=False)
    assert numbers(cold) == numbers(from_disk) == numbers(from_memory)
    assert "statistics" not in cold.reused
    for warm in (from_disk, from_memory):
        for stage in ("statistics", "codes"):
            assert warm.reused[stage].found == warm.reused[stage].parts > 0
