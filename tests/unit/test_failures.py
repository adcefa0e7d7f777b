"""What a failing cell leaves on disk, and what a command says of cells that other processes ran."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
from helpers.records import make_record

from q2n import cell, failure, record, run, sweeps
from q2n.cli import CONFIG_DIR
from q2n.exceptions import NumericalError, RecordError
from q2n.outcomes import UNFINISHED, Command, exit_code
from q2n.preflight import preflight
from q2n.progress import LOGGER


@pytest.fixture
def command(tmp_path):
    """Two cells that are asked for, with a results folder of their own."""
    cells = ["-m", "model=tiny_llama", "bits=2,3", "calibration=news", f"results_dir={tmp_path}/r"]
    made = preflight(CONFIG_DIR, cells, "s1")
    made.announce()
    return made


def failing(error):
    def compute(config, identity, title):
        LOGGER.info("quantize: block 3/30 mlp.down")
        with warnings.catch_warnings(action="default"):
            warnings.warn("a warning of a library", stacklevel=1)
        raise error

    return compute


def succeeding(config, identity, title):
    return make_record(fingerprint=run.fingerprints.fingerprint(identity), config=config.tree)


def test_a_failure_is_beside_where_the_record_would_be_and_goes_with_success(command, monkeypatch):
    config, folder = command.cells[0], command.folders[0]
    monkeypatch.setattr(cell, "compute", failing(NumericalError("block 2: a loss is not finite")))
    outcome = run.run_cell(config, "s1")
    (left,) = failure.read_all(folder)[0]
    assert left == outcome.failure
    assert record.path_of(folder, "main", left.fingerprint).parent == left_folder(folder, left)
    assert (left.error_type, left.stage, left.sweep) == (
        "NumericalError",
        "quantize: block 3/30 mlp.down",
        "s1",
    )
    assert "raise error" in left.traceback
    assert left.config == config.tree
    assert not left.unexpected
    log = (left_folder(folder, left) / "cell.log").read_text()
    for part in ("block 3/30 mlp.down", "a warning of a library", "raise error", "a loss is not finite"):
        assert part in log
    monkeypatch.setattr(cell, "compute", succeeding)
    assert run.run_cell(config, "s1").decision == "computed"
    assert failure.read_all(folder) == ([], [])


def left_folder(folder, left):
    return failure.folder_of(folder, left.name, left.fingerprint)


def test_a_failure_before_the_fingerprint_is_known_goes_with_success_too(command, monkeypatch):
    config, folder = command.cells[0], command.folders[0]
    with monkeypatch.context() as broken:
        broken.setattr(run, "identify", lambda config: 1 / 0)
        outcome = run.run_cell(config, "s1")
    assert outcome.failure.unexpected
    assert (outcome.failure.error_type, outcome.failure.stage) == ("ZeroDivisionError", "identify")
    assert len(failure.read_all(folder)[0]) == 1
    monkeypatch.setattr(cell, "compute", succeeding)
    run.run_cell(config, "s1")
    assert failure.read_all(folder) == ([], [])
    assert not left_folder(folder, outcome.failure).exists()


def test_a_cell_that_fails_keeps_its_finished_record(command, monkeypatch):
    config, folder = command.cells[0], command.folders[0]
    monkeypatch.setattr(cell, "compute", succeeding)
    kept = run.run_cell(config, "s1").record
    monkeypatch.setattr(cell, "compute", failing(MemoryError()))
    object.__setattr__(config.scalars, "force", True)
    assert run.run_cell(config, "s1").decision == "failed"
    assert record.find(folder, "main", kept.fingerprint) == kept


def test_the_outcome_of_a_command_is_what_its_cells_left_on_disk(command, monkeypatch):
    """Cells of other processes count like one's own; a cell nobody took up is missing."""
    monkeypatch.setattr(cell, "compute", succeeding)
    run.run_cell(command.cells[0], "s1")
    first, second = command.outcomes()
    assert (first.decision, second.decision) == ("computed", "missing")
    assert first.record is not None
    assert exit_code([first, second], multirun=True) == 1
    monkeypatch.setattr(cell, "compute", failing(NumericalError("NaN")))
    run.run_cell(command.cells[1], "s1")
    second = command.outcomes()[1]
    assert second.failure.message == "NaN"
    assert second.why == "NumericalError: NaN (while: quantize: block 3/30 mlp.down)"
    assert exit_code(command.outcomes(), multirun=True) == 1
    monkeypatch.setattr(cell, "compute", succeeding)
    run.run_cell(command.cells[1], "s1")
    assert exit_code(command.outcomes(), multirun=True) == 0
    record.path_of(command.folders[0], "main", first.record.fingerprint).unlink()
    assert command.outcomes()[0].decision == "missing"


def test_a_cell_that_was_taken_up_and_not_ended_is_said_so(command):
    class Killed(BaseException):
        """As sudden as a signal."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell, "compute", failing(Killed()))
        with pytest.raises(Killed):
            run.run_cell(command.cells[0], "s1")
    outcome = command.outcomes()[0]
    assert outcome.decision in UNFINISHED
    assert "ended without a word" in outcome.why


def test_where_a_sweeper_chooses_the_cells_those_that_were_run_count(command, monkeypatch):
    monkeypatch.setattr(cell, "compute", succeeding)
    run.run_cell(command.cells[1], "s1")
    chosen = Command("s1", command.cells[:1], complete=False, multirun=True)
    chosen.announce()
    assert [outcome.label for outcome in chosen.outcomes()] == [command.cells[1].label]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ('{"schema_version": 99}', "update q2n"),
        ('{"schema_version": 1, "fingerprint": "x"}', "fingerprint"),
    ],
)
def test_a_file_that_is_no_failure_is_named(tmp_path, text, complaint):
    path = tmp_path / "main" / ("a" * 16) / failure.FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(RecordError, match=complaint):
        failure.load(path)
    assert complaint in failure.read_all(tmp_path)[1][0]


def test_a_note_that_cannot_be_read_is_as_if_it_were_not_there(command):
    note = Path(command.folders[0]) / sweeps.FOLDER / "s1" / f"{command.cells[0].key}.json"
    note.write_text(json.dumps({"key": 1}))
    assert command.outcomes()[0].decision == "missing"


def test_the_log_leaves_logging_as_it_was(command, monkeypatch):
    before = (list(logging.getLogger().handlers), logging.getLogger("q2n").level, warnings.showwarning)
    monkeypatch.setattr(cell, "compute", failing(ValueError("x")))
    run.run_cell(command.cells[0])
    assert before == (
        list(logging.getLogger().handlers),
        logging.getLogger("q2n").level,
        warnings.showwarning,
    )
