"""What a failing cell leaves on disk, and what a command says of cells that other processes ran."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from helpers.records import make_record

from q2n.cells import run
from q2n.cli import CONFIG_DIR
from q2n.command.outcomes import UNFINISHED, Command, exit_code
from q2n.command.preflight import preflight
from q2n.exceptions import NumericalError, RecordError
from q2n.pipeline import cell
from q2n.records import failure, lease
from q2n.records import notes as sweeps
from q2n.records import store as record
from q2n.records.fingerprint import fingerprint
from q2n.runtime.progress import LOGGER


@pytest.fixture
def command(tmp_path):
    """Two cells that are asked for, with a results folder of their own."""
    cells = ["-m", "model=tiny_llama", "bits=2,3", "calibration=news", f"results_dir={tmp_path}/r"]
    made = preflight(CONFIG_DIR, cells, "s1")
    made.announce()
    return made


def failing(error):
    def compute(config, identity, title, watch=None):
        LOGGER.info("quantize: block 3/30 mlp.down")
        with warnings.catch_warnings(action="default"):
            warnings.warn("a warning of a library", stacklevel=1)
        raise error

    return compute


def succeeding(config, identity, title, watch=None):
    return make_record(fingerprint=fingerprint(identity), config=config.tree)


def test_a_failure_is_beside_where_the_record_would_be_and_goes_with_success(command, monkeypatch):
    config, folder = command.cells[0], command.folders[0]
    monkeypatch.setattr(cell, "compute", failing(NumericalError("block 2: a loss is not finite")))
    outcome = run.run_cell(config, "s1")
    (left,) = failure.read_all(folder)[0]
    assert left == outcome.failure
    assert record.path_of(folder, "main", left.ref.fingerprint).parent == left_folder(folder, left)
    assert (left.error_type, left.stage, left.sweep) == (
        "NumericalError",
        "quantize: block 3/30 mlp.down",
        "s1",
    )
    assert "raise error" in left.traceback
    assert left.ref.configuration == config.tree
    assert left.ref.axes == config.cell
    assert not left.unexpected
    log = (left_folder(folder, left) / "cell.log").read_text()
    for part in ("block 3/30 mlp.down", "a warning of a library", "raise error", "a loss is not finite"):
        assert part in log
    monkeypatch.setattr(cell, "compute", succeeding)
    assert run.run_cell(config, "s1").decision == "computed"
    assert failure.read_all(folder) == ([], [])


def left_folder(folder, left):
    return failure.folder_of(folder, left.ref)


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


KILLED = """
import os, signal, sys
from pathlib import Path
from q2n.pipeline import cell
from q2n.cells import run
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.runtime.progress import LOGGER
def compute(config, identity, title, watch=None):
    LOGGER.info("quantize: block 2/30 mlp.up")
    os.kill(os.getpid(), signal.SIGKILL)
cell.compute = compute
run.run_cell(preflight(CONFIG_DIR, sys.argv[1:], "s1").cells[0], "s1")
"""


def test_a_cell_whose_process_was_killed_is_a_failure_for_whoever_looks_next(command, monkeypatch):
    config, folder = command.cells[0], command.folders[0]
    done = subprocess.run([sys.executable, "-c", KILLED, *config.overrides], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert failure.read_all(folder) == ([], [])
    outcome = command.outcomes()[0]
    assert outcome.decision == "failed"
    assert outcome.failure.error_type == "Killed"
    assert outcome.failure.stage == "quantize: block 2/30 mlp.up"
    assert failure.read_all(folder)[0] == [outcome.failure]
    assert command.outcomes()[0].failure == outcome.failure
    monkeypatch.setattr(cell, "compute", succeeding)
    assert run.run_cell(config, "s1").decision == "computed", "its lease does not stand in the way"
    assert failure.read_all(folder) == ([], [])


def test_a_cell_that_was_interrupted_is_no_failure_and_not_finished(command, monkeypatch):
    monkeypatch.setattr(cell, "compute", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run.run_cell(command.cells[0], "s1")
    outcome = command.outcomes()[0]
    assert outcome.decision == "interrupted"
    assert outcome.decision in UNFINISHED
    assert failure.read_all(command.folders[0]) == ([], [])


def retried(command, how):
    """Decisions on both cells with ``retry=how``."""
    for config in command.cells:
        object.__setattr__(config.scalars, "retry", how)
    return [run.run_cell(config, "s1").decision for config in command.cells]


def test_retry_says_which_of_the_cells_without_a_record_are_run(command, monkeypatch):
    monkeypatch.setattr(cell, "compute", failing(NumericalError("NaN")))
    run.run_cell(command.cells[0], "s1")
    assert retried(command, "all") == ["failed", "failed"]
    for folder in Path(command.folders[0], "main").iterdir():
        shutil.rmtree(folder)
    run.run_cell(command.cells[0], "s1")
    monkeypatch.setattr(cell, "compute", succeeding)
    assert retried(command, "none") == ["failed", "computed"]
    assert exit_code(command.outcomes(), multirun=True) == 1
    assert "NaN" in command.outcomes()[0].why
    assert retried(command, "failed") == ["computed", "reused"]


def test_a_cell_that_was_never_tried_is_not_retried(command, monkeypatch):
    monkeypatch.setattr(cell, "compute", failing(NumericalError("NaN")))
    run.run_cell(command.cells[0], "s1")
    monkeypatch.setattr(cell, "compute", succeeding)
    assert retried(command, "failed") == ["computed", "skipped"]
    assert exit_code(command.outcomes(), multirun=True) == 0
    assert "only cells that failed before" in command.outcomes()[1].why


def test_a_failure_of_other_code_is_retried_and_goes(command, monkeypatch):
    """The usual case: the cell failed, the code was mended, and so its fingerprint is another."""
    identify = run.identify
    with monkeypatch.context() as before:
        before.setattr(run, "identify", lambda config: {**identify(config), "code": "0" * 16})
        before.setattr(cell, "compute", failing(NumericalError("NaN")))
        old = run.run_cell(command.cells[0], "s1").failure
    monkeypatch.setattr(cell, "compute", succeeding)
    assert retried(command, "failed")[0] == "computed"
    assert not left_folder(command.folders[0], old).exists()


def test_a_cell_another_process_works_on_is_left_or_waited_for(command, monkeypatch, capsys):
    config, folder = command.cells[0], command.folders[0]
    monkeypatch.setattr(run, "POLL", 0.05)
    monkeypatch.setattr(cell, "compute", lambda *_: pytest.fail("computed twice"))
    identity = run.identify(config)
    held = lease.Observer().take(failure.folder_of(folder, config.ref(identity)))
    assert run.run_cell(config, "s1", wait=False).decision == "busy"
    assert f"process {os.getpid()}" in command.outcomes()[0].why
    assert exit_code(command.outcomes(), multirun=True) == 1

    def finish_elsewhere():
        with held:
            time.sleep(0.3)
            record.save(succeeding(config, identity, ""), folder)

    thread = threading.Thread(target=finish_elsewhere)
    thread.start()
    assert run.run_cell(config, "s1").decision == "reused"
    thread.join()
    assert capsys.readouterr().err.count("waiting") == 1


def test_where_a_sweeper_chooses_the_cells_those_that_were_run_count(command, monkeypatch):
    monkeypatch.setattr(cell, "compute", succeeding)
    run.run_cell(command.cells[1], "s1")
    chosen = Command("s1", command.cells[:1], complete=False, multirun=True)
    chosen.announce()
    assert [outcome.ref.label for outcome in chosen.outcomes()] == [command.cells[1].label]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ('{"schema_version": 99}', "update q2n"),
        ('{"schema_version": 1, "fingerprint": "x"}', "ref"),
    ],
)
def test_a_file_that_is_no_failure_is_named(tmp_path, text, complaint):
    path = tmp_path / "main" / ("a" * 16) / failure.FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(RecordError, match=complaint):
        failure.load(path)
    assert complaint in failure.read_all(tmp_path)[1][0]


def test_a_failure_of_the_first_version_is_of_its_configuration(command, monkeypatch):
    """Files of before a cell had one description count for ``retry`` and go with success."""
    config, folder = command.cells[0], command.folders[0]
    monkeypatch.setattr(cell, "compute", failing(NumericalError("NaN")))
    new = run.run_cell(config, "s1").failure
    tree = json.loads((left_folder(folder, new) / failure.FILE_NAME).read_text())
    ref = tree.pop("ref")
    old = {"name": "main", "label": ref["label"], "cell": ref["axes"], "identity": ref["identity"]}
    old["config"] = {**ref["configuration"], "bits": 2, "group_size": 64}
    for path in Path(folder, "main").glob(f"*/{failure.FILE_NAME}"):
        path.write_text(json.dumps({**tree, **old, "schema_version": 1, "fingerprint": "f" * 16}))
    (left,) = failure.of_config(folder, config.ref())
    assert (left.ref.label, left.ref.axes, left.message) == (new.ref.label, config.cell, "NaN")
    monkeypatch.setattr(cell, "compute", succeeding)
    assert retried(command, "failed")[0] == "computed"
    assert failure.read_all(folder) == ([], [])


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
