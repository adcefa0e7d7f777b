"""What is said of a process that was killed, and when its cell is tried again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from q2n.cells import run
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.records import failure, killed, lease
from q2n.records import notes as sweeps
from q2n.runtime import memory


@pytest.fixture
def command(tmp_path):
    asked = ["-m", "model=tiny_llama", "bits=2,3,4", "calibration=news", f"results_dir={tmp_path}/r"]
    made = preflight(CONFIG_DIR, asked, "s1")
    made.announce()
    return made


def taken_up(command, number):
    """A cell that a process has taken up; its identity."""
    config = command.cells[number]
    note = sweeps.Note(ref=config.ref(run.identify(config)), decision=sweeps.State.STARTED)
    sweeps.leave_note(command.folders[0], "s1", note)
    return note


@pytest.mark.parametrize(
    ("number", "before", "after", "expected"),
    [
        (signal.SIGSEGV, 2, 2, "was killed by SIGSEGV (signal 11, segmentation fault)"),
        (
            signal.SIGKILL,
            2,
            2,
            "was killed by SIGKILL (signal 9, killed); memory did not run out",
        ),
        (
            signal.SIGKILL,
            2,
            3,
            "was killed by SIGKILL (signal 9, killed): out of memory (processes ended by the kernel",
        ),
        (
            signal.SIGKILL,
            None,
            None,
            "was killed by SIGKILL (signal 9, killed); the kernel's log",
        ),
        (signal.SIGRTMIN + 3, 2, 2, "was killed by a signal"),
    ],
)
def test_memory_is_blamed_where_the_kernel_does(monkeypatch, number, before, after, expected):
    monkeypatch.setattr(killed, "ended_for_memory", lambda: after)
    said = killed.by_signal(number, before)
    assert said.startswith(expected)
    assert ("memory" in said) == (number == signal.SIGKILL)


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        ("0::/a/b", {"a/b/memory.events": "low 0\noom_kill 3\n", "memory.events": "oom_kill 9"}, 3),
        ("0::/not/seen/from/here", {"memory.events": "oom_kill 9\n"}, 9),
        ("4:memory:/a\n0::/", {"memory/a/memory.oom_control": "under_oom 0\noom_kill 5\n"}, 5),
    ],
)
def test_the_kernels_count_is_that_of_the_control_group(tmp_path, monkeypatch, membership, files, count):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    read = Path.read_text
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, **how: membership if str(self).startswith("/proc") else read(self, **how),
    )
    assert killed.ended_for_memory() == count


def test_a_cell_that_killed_its_process_runs_last(command):
    note = taken_up(command, 0)
    product = [list(config.overrides) for config in command.cells]
    assert command.to_run() == product
    killed.give_up(note, command.folders[0], "s1", killed.by_signal(signal.SIGSEGV, None))
    assert command.to_run() == [product[1], product[2], product[0]]
    assert "SIGSEGV" in command.outcomes()[0].why


def test_a_cell_of_a_process_that_nobody_survived_runs_last(command):
    """After a power cut there is no failure, only the lease of the dead."""
    note = taken_up(command, 1)
    product = [list(config.overrides) for config in command.cells]
    assert command.to_run() == product
    assert lease.Observer().take(failure.folder_of(command.folders[0], note.ref))
    assert command.to_run() == [product[0], product[2], product[1]]


def test_of_a_process_that_others_ran_the_signal_is_not_known(command, monkeypatch):
    note = taken_up(command, 0)
    assert lease.Observer().take(failure.folder_of(command.folders[0], note.ref))
    monkeypatch.setattr(lease, "_is_alive", lambda holder: False)
    assert "ended without an error message, signal unknown" in command.outcomes()[0].why
