"""A disk without room, a cache that cannot be written: said once, and nothing that was paid for is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch
from helpers.records import make_record
from safetensors import SafetensorError

from q2n.cells import run
from q2n.cli import CONFIG_DIR
from q2n.command.outcomes import exit_code, show
from q2n.command.preflight import preflight
from q2n.data import local_files
from q2n.exceptions import ConfigurationError, StorageError
from q2n.models import convert
from q2n.pipeline import cell
from q2n.pipeline.activations import MappedActivationStore
from q2n.pipeline.sharing.store import Address, StageStore
from q2n.records import failure
from q2n.records import notes as sweeps
from q2n.records import store as record
from q2n.records.fingerprint import fingerprint
from q2n.records.lease import Observer
from q2n.records.log import CellLog
from q2n.report.__main__ import main as report
from q2n.runtime import files


@pytest.fixture
def broken(monkeypatch):
    """``broken(folder, number)``: from then on the system refuses new files below ``folder``."""
    refused: dict[Path, int] = {}
    make, make_folder = tempfile.mkstemp, tempfile.mkdtemp

    def refusing(function):
        def call(*arguments, **keywords):
            place = Path(keywords.get("dir") or tempfile.gettempdir()).absolute()
            for folder, number in refused.items():
                if place.is_relative_to(folder):
                    raise OSError(number, os.strerror(number), str(place))
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(tempfile, "mkstemp", refusing(make))
    monkeypatch.setattr(tempfile, "mkdtemp", refusing(make_folder))
    monkeypatch.setattr(local_files, "_said", set())
    monkeypatch.setattr(sweeps, "UNWRITTEN", {})
    return lambda folder, number=errno.ENOSPC: refused.__setitem__(Path(folder).absolute(), number)


@pytest.fixture
def command(tmp_path):
    asked = ["-m", "model=tiny_llama", "bits=2,3", "calibration=news", f"results_dir={tmp_path}/r"]
    return preflight(CONFIG_DIR, asked, "s1")


def succeeding(config, identity, title, watch=None):
    return make_record(fingerprint=fingerprint(identity), config=config.tree)


def test_what_is_missing_and_what_is_there_is_said(tmp_path, broken):
    files.write_text_atomic(tmp_path / "a", "old")
    broken(tmp_path)
    with pytest.raises(StorageError, match=r"^no space left on device: .*/a \(needs 2\.0 MB, .* free\)$"):
        files.write_text_atomic(tmp_path / "a", "x" * 2_000_000)
    assert (tmp_path / "a").read_text() == "old"
    with pytest.raises(StorageError, match="no space left on device"):
        files.make_folder_atomic(tmp_path / "f", lambda _: None, lambda _: False)


def test_a_library_that_has_errors_of_its_own(tmp_path):
    def fail(_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(StorageError, match="no space left on device") as caught:
        files.write_atomic(tmp_path / "a", fail)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_record_without_room_is_kept_elsewhere(command, broken, monkeypatch, capsys, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(cell, "compute", succeeding)
    command.announce()
    first = run.run_cell(command.cells[0], "s1").record
    broken(command.folders[0])
    assert run.run_cell(command.cells[1], "s1").decision == "failed"
    (kept,) = elsewhere.glob("*/main/*/record.json")
    assert record.load(kept).metrics[0].value == 10
    outcomes = command.outcomes()
    assert [outcome.decision for outcome in outcomes] == ["computed", "failed"], "notes have no room, too"
    assert outcomes[0].record == first
    assert exit_code(outcomes, multirun=True) == 1
    assert not show(outcomes), "the tables are not written"
    said = capsys.readouterr().err
    for part in ("no space left on device", str(kept), "wiki perplexity 10", "FAILED: tables of"):
        assert part in said


def test_a_record_with_no_room_anywhere_is_on_the_terminal(command, broken, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cell, "compute", succeeding)
    broken(tmp_path)
    why = run.run_cell(command.cells[0], "s1").why
    assert "could not be saved elsewhere either" in why
    assert "wiki perplexity 10" in why


def test_a_record_may_take_the_room_of_its_checkpoint(command, broken, monkeypatch):
    config, folder = command.cells[0], command.folders[0]
    checkpoint = record.checkpoint_folder(folder, "main", fingerprint(run.identify(config)))
    monkeypatch.setattr(cell, "compute", succeeding)
    checkpoint.mkdir(parents=True)
    save = record.save

    def tight(*arguments):
        if checkpoint.exists():
            error = StorageError("no space left on device")
            error.errno = errno.ENOSPC
            raise error
        return save(*arguments)

    monkeypatch.setattr(run.records, "save", tight)
    assert run.run_cell(config, "s1").decision == "computed"


def test_a_command_says_at_once_that_there_is_no_room(command, broken):
    broken(command.folders[0])
    with pytest.raises(StorageError, match=r"results_dir=.*no space left on device") as caught:
        command.announce()
    assert caught.value.exit_code == 1
    broken(command.folders[0], errno.EROFS)
    with pytest.raises(ConfigurationError, match=r"results_dir=.*read-only file system"):
        command.announce()


def test_a_lease_without_room_stands_in_nobodys_way(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as without_room:
        without_room.setattr(json, "dumps", full)
        with pytest.raises(StorageError, match="no space left on device"):
            Observer().take(tmp_path / "cell")
    assert not list((tmp_path / "cell").iterdir())
    assert Observer().take(tmp_path / "cell") is not None


def test_a_cell_goes_on_without_its_log(capfd):
    with CellLog(Path("/dev/full"), "a cell") as log:
        for step in ("one", "two"):
            logging.getLogger("q2n.runtime.progress").info(step)
    assert log.stage == "two"
    said = capfd.readouterr().err
    assert said.count("No space left on device: /dev/full") == 1
    assert "Traceback" not in said


def test_the_report_says_that_there_is_no_room(tmp_path, broken, capsys):
    record.save(make_record(), tmp_path)
    broken(tmp_path)
    assert report(["--results", str(tmp_path), "--name", "main"]) == 1
    assert re.search("no space left on device: .*main", capsys.readouterr().err)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_done_without_and_that_is_said_once(
    tmp_path, broken, caplog, number
):
    store, address = StageStore(tmp_path, 1 << 20), Address("statistics", "k", "0")
    assert store.write(address, {"x": torch.ones(3)}, {})
    broken(tmp_path, number)
    for name in "12":
        assert not store.write(Address("statistics", "k", name), {"x": torch.ones(3)}, {})
    assert store.open(address) is not None
    assert len(caplog.messages) == 1
    assert os.strerror(number).lower() in caplog.messages[0]


def test_a_model_that_the_cache_has_no_room_for_is_converted_elsewhere(tmp_path, broken, monkeypatch, caplog):
    class Source:
        sha256 = "0" * 64

    def fill(source, folder):
        (folder / "model").write_text("whole")

    monkeypatch.setattr(convert, "_convert", fill)
    monkeypatch.setattr(convert, "is_complete", lambda folder: (folder / "model").exists())
    kept = convert.converted(Source(), "m", str(tmp_path / "cache"))
    assert kept.is_relative_to(tmp_path / "cache")
    broken(tmp_path / "cache", errno.EROFS)
    assert convert.converted(Source(), "m", str(tmp_path / "cache")) == kept
    made = convert.converted(Source(), "other", str(tmp_path / "cache"))
    assert not made.is_relative_to(tmp_path / "cache")
    assert (made / "model").read_text() == "whole"
    assert len(caplog.messages) == 1


def test_a_failure_that_cannot_be_written_is_told(command, broken, monkeypatch):
    def fail(*_):
        raise ValueError("why it failed")

    monkeypatch.setattr(cell, "compute", fail)
    command.announce()
    broken(command.folders[0])
    run.run_cell(command.cells[0], "s1")
    assert failure.read_all(command.folders[0]) == ([], [])
    assert "why it failed" in command.outcomes()[0].why


def test_activations_without_room_are_an_error_and_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = MappedActivationStore(tmp_path)
    assert torch.equal(store.keep(torch.ones(2, 3)), torch.ones(2, 3))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"no space left on device: .* \(needs 4\.0 kB"):
        store.keep(torch.ones(1000))
    assert not list(tmp_path.iterdir())
