"""One holder at a time, whoever died before."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from q2n.records import lease
from q2n.records.lease import Holder, Observer, this_process

ELSEWHERE = Holder("another-machine 1 2", 1, "5")


def dead():
    """The holder that a process of this machine was."""
    program = "from q2n.records.lease import this_process; import json; print(json.dumps(this_process()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return Holder(*json.loads(done.stdout))


def left_by(holder: Holder, folder: Path, number: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"lease.{number}"
    path.write_text(json.dumps(holder._asdict()))
    return path


def test_a_lease_is_held_once_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "main" / "cell"
    with Observer().take(folder) as held:
        assert Observer().take(folder) is None
        assert lease.holder_of(folder) == this_process()
        assert not lease.abandoned(folder)
    assert not held.lost
    assert list(folder.iterdir()) == []
    assert lease.holder_of(folder) is None
    with Observer().take(folder):
        pass


def test_the_lease_of_a_dead_process_is_taken_at_once(tmp_path):
    holder = dead()
    assert holder.host == this_process().host
    left_by(holder, tmp_path / "cell", 7)
    assert lease.abandoned(tmp_path / "cell")
    with Observer().take(tmp_path / "cell"):
        assert [path.name for path in (tmp_path / "cell").iterdir()] == ["lease.8"]


def test_a_process_number_used_again_is_not_the_process_that_held_it(tmp_path):
    left_by(this_process()._replace(start="1"), tmp_path / "cell")
    assert Observer().take(tmp_path / "cell") is not None


def test_a_process_that_has_ended_and_was_not_waited_for_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    start = lease._start(child.pid)
    deadline = time.monotonic() + 30
    while lease._start(child.pid) != "ended" and time.monotonic() < deadline:
        time.sleep(0.02)
    left_by(Holder(this_process().host, child.pid, start), tmp_path / "cell")
    assert lease.abandoned(tmp_path / "cell")
    child.wait()


def test_another_machines_lease_lapses_when_it_is_not_touched(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: clock[0])
    path, observer = left_by(ELSEWHERE, tmp_path / "cell"), Observer()
    os.utime(path, (1, 1))  # how old it looks is the other clock's matter
    assert observer.take(path.parent) is None
    clock[0] += lease.LAPSE - 1
    assert observer.take(path.parent) is None
    os.utime(path)
    assert observer.take(path.parent) is None, "it was touched"
    clock[0] += lease.LAPSE
    assert not lease.abandoned(path.parent), "nobody here can know"
    with observer.take(path.parent):
        assert lease.holder_of(path.parent) == this_process()


def test_a_lease_being_written_is_held(tmp_path):
    left_by(ELSEWHERE, tmp_path / "cell").write_text("")
    assert Observer().take(tmp_path / "cell") is None


def test_the_holder_touches_its_lease_and_notices_when_it_was_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    with Observer().take(tmp_path / "cell") as held:
        path = tmp_path / "cell" / "lease.1"
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1
        path.rename(path.with_name("gone"))
        while not held.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held.lost


def test_who_judged_on_an_old_list_withdraws(tmp_path, monkeypatch):
    """Between its look and its own number, another one took the stale lease over, and a third one that."""
    left_by(dead(), tmp_path / "cell", 1)
    newer, listed = left_by(this_process(), tmp_path / "cell", 3), iter([[1], [2, 3]])
    monkeypatch.setattr(lease, "_numbers", lambda folder: next(listed))
    assert Observer().take(tmp_path / "cell") is None
    assert newer.exists()
    assert not (tmp_path / "cell" / "lease.2").exists()


def test_a_list_of_leases_given_back_since_gives_way_to_a_lower_number(tmp_path, monkeypatch):
    """Between its look and its own number, the holder gave the lease back and another one began at 1."""
    first = left_by(this_process(), tmp_path / "cell", 1)
    listed = iter([[5], [1, 6]])
    monkeypatch.setattr(lease, "_numbers", lambda folder: next(listed))
    assert Observer().take(tmp_path / "cell") is None
    assert [path.name for path in (tmp_path / "cell").iterdir()] == [first.name]


def test_a_number_that_was_stale_and_is_held_again_is_not_taken_over(tmp_path, monkeypatch):
    """Between its look and its own number, lease 1 was removed as stale, and made anew by another one."""
    left_by(dead(), tmp_path / "cell", 1)
    listed = iter([[1], [1, 2]])

    def numbers(folder):
        found = next(listed)
        if len(found) == 2:
            left_by(this_process(), folder, 1)
        return found

    monkeypatch.setattr(lease, "_numbers", numbers)
    assert Observer().take(tmp_path / "cell") is None
    assert [path.name for path in (tmp_path / "cell").iterdir()] == ["lease.1"]


def test_a_lease_that_another_one_removed_is_not_held(tmp_path, monkeypatch):
    (tmp_path / "cell").mkdir()
    monkeypatch.setattr(lease, "_numbers", lambda folder: [])
    assert Observer().take(tmp_path / "cell") is None


def _worker(folder: str, ready, results) -> None:
    """Count, again and again, in a file that only one at a time may touch."""
    observer, counter = Observer(), Path(folder) / "counter"
    ready.wait()
    for _ in range(15):
        while (held := observer.take(Path(folder) / "cell")) is None:
            time.sleep(0.0005)
        with held:
            value = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(value + 1))
            if value % 10 == 3:  # die with the lease in hand, as it were
                left_by(Holder(this_process().host, 2**22 + 1, "1"), Path(folder) / "cell", 100 + value)
    results.put(True)


def test_many_processes_count_together_without_losing_any(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_worker, args=(str(tmp_path), ready, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert (tmp_path / "counter").read_text() == "45"


@pytest.mark.parametrize("text", ["[]", '{"host": 1}', "null", '{"host": "a", "pid": "x", "start": ""}'])
def test_what_is_no_holder_is_judged_by_its_touches(tmp_path, text):
    left_by(ELSEWHERE, tmp_path / "cell").write_text(text)
    assert lease.holder_of(tmp_path / "cell") is None
    assert Observer().take(tmp_path / "cell") is None
