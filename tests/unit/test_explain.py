"""The explanation names the keys that differ, and an unknown fingerprint the alternatives."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from helpers.records import make_record

from q2n import explain, record
from q2n.fingerprint import fingerprint, library_versions, source_digest


def identity(bits: int, **changes: object) -> dict[str, object]:
    return {"config": {"bits": bits}, "sources": source_digest(), "versions": library_versions(), **changes}


def test_last_says_which_keys_made_a_cell_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = make_record(identity=identity(2, versions={**library_versions(), "torch": "2.0"}))
    far = make_record(identity=identity(2, config={"other": 1, "more": 2, "keys": 3}, versions={}))
    for item in (old, far):
        record.save(item, tmp_path)
    note = {"results_dir": tmp_path, "sweep": "s1", "name": "main"}
    explain.note_decision(**note, fingerprint="f" * 16, decision="computed", identity=identity(3))
    explain.note_decision(**note, fingerprint="e" * 16, decision="reused", identity=identity(4))
    assert explain.main(["last", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "config.bits: 2 -> 3" in out
    assert f"versions.torch 2.0 -> {library_versions()['torch']}" in out
    assert out.index(old.fingerprint) < out.index(far.fingerprint), "the nearest record comes first"
    assert "e" * 16 + "  main: reused" in out


def test_a_record_says_whether_todays_code_would_reuse_it(tmp_path: Path) -> None:
    same = make_record(identity=identity(2))
    sources = {**source_digest(), "q2n/linalg.py": "0" * 64}
    changed = make_record(identity=identity(2, sources=sources))
    for item in (same, changed):
        record.save(item, tmp_path)
    assert "reuse it" in explain.explain_cell(tmp_path, same.fingerprint[:6])
    assert "sources.q2n/linalg.py changed" in explain.explain_cell(tmp_path, changed.fingerprint)


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
    (tmp_path / "last.json").write_text("{broken")
    assert "No sweep has been run" in explain.explain_last(tmp_path)


def test_only_the_last_sweep_and_the_last_decision_on_a_cell_are_kept(tmp_path: Path) -> None:
    for sweep, cell, decision in [("a", "1", "computed"), ("b", "2", "failed"), ("b", "2", "computed")]:
        explain.note_decision(
            tmp_path, sweep=sweep, fingerprint=cell * 16, name="main", decision=decision, identity={}
        )
    assert [(note.sweep, note.decision) for note in explain.last_decisions(tmp_path)] == [("b", "computed")]
    for bits in (2, 3):
        explain.note_decision(
            tmp_path, sweep=None, name="main", decision="computed", identity={"config": {"bits": bits}}
        )
    (alone,) = explain.last_decisions(tmp_path)
    assert alone.fingerprint == fingerprint({"config": {"bits": 3}})
    assert "Last run, one cell" in explain.explain_last(tmp_path)


def _note(job: tuple[Path, int]) -> None:
    folder, number = job
    explain.note_decision(
        folder, sweep="s", fingerprint=f"{number:016x}", name="main", decision="reused", identity={}
    )


def test_processes_of_one_sweep_do_not_lose_each_others_notes(tmp_path: Path) -> None:
    import multiprocessing

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_note, [(tmp_path, number) for number in range(12)]))
    assert len(explain.last_decisions(tmp_path)) == 12


def test_unreadable_records_are_mentioned(tmp_path: Path) -> None:
    cell = make_record()
    record.save(cell, tmp_path)
    (tmp_path / "main" / "bad").mkdir()
    (tmp_path / "main" / "bad" / "record.json").write_text("{")
    assert "is not JSON" in explain.explain_cell(tmp_path, cell.fingerprint)
