"""Lines of the terminal on the cells of a sweep: what they have in common stands once."""

from __future__ import annotations

import io

from rich.console import Console

from q2n.command.outcomes import _complain, shared_settings, without_shared
from q2n.records.notes import State
from q2n.records.outcome import Outcome
from q2n.records.schema import Cell, CellRef

LABELS = [
    "tiny gptq q2n=on 2 bit group_size=32 calibration=news seed=0",
    "tiny gptq q2n=off 2 bit group_size=32 calibration=news seed=1",
]


def outcome(label: str, decision: State = State.SKIPPED, reason: str = "it was not asked for") -> Outcome:
    axes = Cell(model="tiny", baseline="gptq", correction="on", bits=2, group_size=32, seed=0)
    ref = CellRef(name="main", label=label, axes=axes, configuration={}, identity={})
    return Outcome(ref, decision, "results", reason=reason)


def test_a_label_loses_what_all_cells_have_in_common() -> None:
    shared = shared_settings(LABELS)
    assert shared == ["group_size=32", "calibration=news"]
    assert [without_shared(label, shared) for label in LABELS] == [
        "tiny gptq q2n=on 2 bit seed=0",
        "tiny gptq q2n=off 2 bit seed=1",
    ]


def test_model_and_method_stay_and_a_single_cell_keeps_its_label() -> None:
    assert shared_settings(LABELS[:1]) == []
    assert without_shared(LABELS[0], []) == LABELS[0]
    assert shared_settings(["tiny gptq q2n=on 2 bit"] * 2) == []


def test_cells_with_the_same_reason_are_one_line_with_a_count() -> None:
    written = io.StringIO()
    alike = [outcome(label) for label in LABELS]
    _complain(alike, shared_settings(LABELS), Console(file=written, width=200), alone=False)
    assert written.getvalue() == "not run: tiny gptq q2n=on 2 bit seed=0 and 1 more: it was not asked for\n"
