"""What changed between two versions of the code is known by function."""

from __future__ import annotations

from pathlib import Path

from q2n.records.kept_code import changes, keep, kept
from q2n.records.source_code import CHECKOUT


def test_what_changed_between_two_versions_is_said_by_function(tmp_path: Path) -> None:
    code = CHECKOUT.code("q2n.pipeline.cell", "q2n.baselines.gptq")
    keep(code, tmp_path)
    parts = kept(tmp_path, code.key)
    assert parts == code.parts
    assert kept(tmp_path, "0" * 16) is None
    other = {**parts, "q2n.linalg.dense": {**parts["q2n.linalg.dense"], "": "x"}, "q2n.new": {}}
    del other["q2n.linalg.gram"]
    assert changes(parts, other) == [
        "q2n.linalg.dense: top level",
        "q2n.linalg.gram removed",
        "q2n.new added",
    ]
