"""Records of former versions become today's two files, each or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.records import make_metric, make_record

from q2n.records import migrate
from q2n.records.fingerprint import fingerprint, plain
from q2n.records.kept_code import kept
from q2n.records.store import RunRecord, load_all
from q2n.types import LayerReport

SOURCES = {"q2n/linalg/dense.py": "0" * 64, "q2n/linalg/gram.py": "1" * 64}


def former(seed: int) -> RunRecord:
    layers = (LayerReport(0, "q", (2, 2), 3.0, float("nan"), float("inf"), extra={"x": 0.1}),)
    metrics = (make_metric(float("inf"), per_window=(0.1, float("nan"))),)
    identity = {"config": {"seed": seed}, "sources": SOURCES, "versions": {"torch": "1"}}
    return make_record(seed=seed, layers=layers, metrics=metrics, identity=identity)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two records as version 1 wrote them."""
    for seed in range(2):
        record = former(seed)
        path = tmp_path / record.name / record.fingerprint / "record.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**plain(record.model_dump()), "schema_version": 1}))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_converted_records_are_the_former_ones(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_all(folder)
    assert migrate.main([str(folder)]) == 0
    assert "2 converted" in capsys.readouterr().out
    after = load_all(folder)
    key = fingerprint(SOURCES)
    assert [record.identity["sources"] for record in after] == [key, key]
    again = [
        record.model_copy(update={"identity": {**record.identity, "sources": kept(folder, key)}})
        for record in after
    ]
    assert list(map(repr, again)) == list(map(repr, before))
    assert all(fingerprint(record.identity) == record.fingerprint for record in again)
    done = contents(folder)
    assert migrate.main([str(folder)]) == 0
    assert "0 converted" in capsys.readouterr().out
    assert contents(folder) == done


def test_an_interrupted_command_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, count = load_all(folder), 0
    write = migrate.write

    def interrupted(record: RunRecord, path: Path) -> None:
        nonlocal count
        count += 1
        if count == 4:  # the second record's own place
            raise KeyboardInterrupt
        write(record, path)

    with monkeypatch.context() as patched:
        patched.setattr(migrate, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            migrate.migrate(folder)
    found = load_all(folder)
    assert [record.fingerprint for record in found] == [record.fingerprint for record in expected]
    assert len(list(folder.rglob("layers.parquet"))) == 1
    assert migrate.migrate(folder) == (1, [])
    assert len(list(folder.rglob("layers.parquet"))) == 2


def test_a_record_that_would_change_or_cannot_be_read_is_left_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "main" / "bad" / "record.json"
    bad.parent.mkdir()
    bad.write_text("{")
    before = contents(folder)
    pack = migrate.record_values.pack
    monkeypatch.setattr(
        migrate.record_values, "pack", lambda record: pack(record.model_copy(update={"layers": ()}))
    )
    assert migrate.main([str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.count("would differ after conversion") == 2
    assert f"{bad}: is not JSON" in said
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert not list(folder.rglob("layers.parquet"))


def test_a_folder_that_cannot_be_written_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr(migrate, "write_json_atomic", full)
    assert migrate.main([str(folder)]) == 1
    said = capsys.readouterr().err
    assert said == "x.json: No space left on device; repeat the command to convert the rest\n"
    assert migrate.main([str(folder / "none")]) == 1
