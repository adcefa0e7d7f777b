"""The explanation names the keys that differ, and an unknown fingerprint the alternatives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.records import make_record, make_ref

from q2n import explain
from q2n.records import kept_code
from q2n.records import notes as sweeps
from q2n.records import store as record
from q2n.records.fingerprint import library_versions
from q2n.records.notes import AnnouncedCell, Note, Sweep
from q2n.records.schema import Reuse
from q2n.records.source_code import CHECKOUT, Code, Module


def identity(bits: int, **changes: object) -> dict[str, object]:
    config = {"bits": bits}
    code = CHECKOUT.of_cell(config).key
    return {"config": config, "code": code, "versions": library_versions(), **changes}


def note(decision: str, found: dict[str, object] | None = None, **changes: object) -> Note:
    ref = make_ref(label="tiny gptq", identity=found or {}, configuration=(found or {}).get("config", {}))
    return Note(ref=ref, decision=sweeps.State(decision), **changes)


def leave(folder: Path, *notes: Note, sweep: str = "s1", asked: int | None = None) -> None:
    cells = [AnnouncedCell(key=str(number), label="", name="main") for number in range(asked or len(notes))]
    sweeps.announce(folder, Sweep(id=sweep, alone=False, cells=tuple(cells)))
    for item in notes:
        sweeps.leave_note(folder, sweep, item)


def test_last_says_which_keys_made_a_cell_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = make_record(identity=identity(2, versions={**library_versions(), "torch": "2.0"}))
    far = make_record(identity=identity(2, config={"other": 1, "more": 2, "keys": 3}, versions={}))
    for item in (old, far):
        record.save(item, tmp_path)
    leave(
        tmp_path,
        note("computed", identity(3)),
        note("reused", identity(4)),
        note("failed", identity(5), reason="NumericalError: no"),
        asked=5,
    )
    assert explain.main(["last", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "5 cells, 2 of them not started" in out
    assert "config.bits: 2 -> 3" in out
    assert f"versions.torch 2.0 -> {library_versions()['torch']}" in out
    assert f"differences from the nearest record, {old.name}" in out
    assert "1 reused" in out
    assert note("reused", identity(4)).ref.fingerprint + "  main: tiny gptq" in out
    assert "  NumericalError: no" in out


def older_code(tmp_path: Path) -> str:
    """The key of code that differs from today's in one function, with its digests kept."""
    code = CHECKOUT.of_cell({})
    module = code["q2n.linalg.dense"]
    other = Module({**module.parts, "row_dots": "0" * 12}, module.imports)
    changed = Code({**code, "q2n.linalg.dense": other})
    kept_code.keep(changed, tmp_path)
    return changed.key


def test_changed_code_is_named_by_module_and_function(tmp_path: Path) -> None:
    record.save(make_record(identity=identity(2, code=older_code(tmp_path))), tmp_path)
    record.save(
        make_record(identity={**identity(9), "config": {"far": 1, "off": 2}, "versions": {}}), tmp_path
    )
    leave(tmp_path, note("computed", identity(2)))
    assert "    code: q2n.linalg.dense: row_dots\n" in explain.explain_last(tmp_path) + "\n"


def test_a_version_without_digests_by_function_is_said_to_be_one(tmp_path: Path) -> None:
    old = {**identity(2), "sources": {"q2n/linalg/dense.py": "0" * 64}}
    del old["code"]
    record.save(make_record(identity=old), tmp_path)
    leave(tmp_path, note("computed", identity(2)))
    out = explain.explain_last(tmp_path)
    assert "one of the two versions kept no digests per function" in out
    assert "sources" not in out


def test_a_large_sweep_is_explained_on_one_screen(tmp_path: Path) -> None:
    record.save(make_record(identity=identity(2)), tmp_path)
    cells = [note("computed", identity(number % 9)) for number in range(3, 400)]
    leave(tmp_path, *cells)
    short, whole = explain.explain_last(tmp_path), explain.explain_last(tmp_path, everything=True)
    assert len(short.splitlines()) <= 50
    assert "(--all)" in short
    assert all(cell.ref.fingerprint in whole for cell in cells)


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    for number in range(300):
        record.save(make_record(fingerprint=f"{number:016x}"), tmp_path)
    command = f"{sys.executable} -m q2n.explain zzz --results {tmp_path} 2>&1 | head -1"
    shown = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "no such cell" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_record_says_what_it_found_ready_made(tmp_path: Path) -> None:
    tally = Reuse(key="0123456789abcdef", parts=30, found=29, saved_seconds=12.34)
    warm, cold = make_record(reused={"statistics": tally}), make_record(bits=4)
    for item in (warm, cold):
        record.save(item, tmp_path)
    assert "statistics 0123456789abcdef: 29 of 30, saved 12.3 s" in explain.explain_cell(
        tmp_path, warm.fingerprint
    )
    assert "reused from the cache" not in explain.explain_cell(tmp_path, cold.fingerprint)


def test_a_record_says_whether_todays_code_would_reuse_it(tmp_path: Path) -> None:
    config = {"bits": 2}
    same = make_record(identity=identity(2), config=config)
    changed = make_record(identity=identity(2, code=older_code(tmp_path)), config=config)
    for item in (same, changed):
        record.save(item, tmp_path)
    assert "reuse this record" in explain.explain_cell(tmp_path, same.fingerprint[:6])
    assert "code: q2n.linalg.dense: row_dots" in explain.explain_cell(tmp_path, changed.fingerprint)


def test_an_unknown_or_ambiguous_prefix_exits_2_with_the_alternatives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [make_record(fingerprint=name * 4) for name in ("abcd", "abce")]
    results = ["--results", str(tmp_path)]
    assert explain.main(["abcd", *results]) == 2
    assert "there is no record under" in capsys.readouterr().err
    for cell in cells:
        record.save(cell, tmp_path)
    assert explain.main(["abc", *results]) == 2
    assert all(cell.fingerprint in capsys.readouterr().err for cell in cells[:1])
    assert explain.main(["zz", *results]) == 2
    err = capsys.readouterr().err
    assert all(cell.fingerprint in err for cell in cells)
    assert "last" in err


def test_nothing_run_yet_is_said_clearly(tmp_path: Path) -> None:
    assert "No sweep has been run" in explain.explain_last(tmp_path)
    (tmp_path / "sweeps" / "s").mkdir(parents=True)
    (tmp_path / "sweeps" / "s" / "sweep.json").write_text("{broken")
    assert "No sweep has been run" in explain.explain_last(tmp_path)


def test_only_the_last_decision_on_a_cell_and_the_last_sweeps_are_kept(tmp_path: Path) -> None:
    leave(tmp_path, note("computed"), sweep="20260101T000000Z")
    leave(tmp_path, note("failed"), note("computed"), sweep="20260101T000001Z")
    last = sweeps.last_sweep(tmp_path)
    assert last is not None
    assert [item.decision for item in sweeps.read_notes(tmp_path, last.id)] == ["computed"]
    assert len(sweeps.read_notes(tmp_path, "20260101T000000Z")) == 1, "another sweep's notes are its own"
    for number in range(sweeps.KEPT):
        leave(tmp_path, sweep=f"20260102T0000{number:02}Z")
    assert len(list((tmp_path / "sweeps").iterdir())) == sweeps.KEPT
    assert sweeps.read_notes(tmp_path, "20260101T000001Z") == []


def test_unreadable_records_are_mentioned(tmp_path: Path) -> None:
    cell = make_record()
    record.save(cell, tmp_path)
    (tmp_path / "main" / "bad").mkdir()
    (tmp_path / "main" / "bad" / "record.json").write_text("{")
    assert "is not JSON" in explain.explain_cell(tmp_path, cell.fingerprint)
