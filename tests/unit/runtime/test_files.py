"""Files and folders are whole or absent, whatever happens while they are written."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from q2n.runtime import files
from q2n.runtime.files import (
    make_folder_atomic,
    sha256_file,
    sha256_text,
    write_json_atomic,
    write_text_atomic,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_as_utf8_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    write_text_atomic(path, "naïve\n漢字\r\n")
    assert path.read_bytes() == "naïve\n漢字\r\n".encode()
    assert names(path.parent) == ["c.txt"]
    assert sha256_file(path) == sha256_text("naïve\n漢字\r\n")


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_files_are_as_readable_as_any_other(tmp_path):
    write_text_atomic(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_text_atomic(path, "old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_value_without_json_form_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json_atomic(path, {"a": [1, 2.5, None, "ü"]})
    for value, error in ((float("nan"), ValueError), ({1, 2}, TypeError)):
        with pytest.raises(error):
            write_json_atomic(path, {"a": value})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 2.5, None, "ü"]}
    assert names(tmp_path) == ["file.json"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """A process that writes without pause is killed; what is there is one of the texts it wrote."""
    path = tmp_path / "file"
    write_text_atomic(path, "0" * 500_000)
    program = """
        import itertools, sys
        from q2n.runtime.files import write_text_atomic
        for number in itertools.count(1):
            write_text_atomic(sys.argv[1], str(number % 10) * 500_000)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(path)])
    while path.read_text()[0] == "0":
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    text = path.read_text()
    assert len(text) == 500_000
    assert len(set(text)) == 1


def is_whole(folder):
    return (folder / "b").is_file() and (folder / "b").read_text() == "whole"


def fill(folder):
    (folder / "a").write_text("first")
    (folder / "b").write_text("whole")


def test_a_folder_is_filled_once(tmp_path):
    calls = []
    for _ in range(2):
        made = make_folder_atomic(
            tmp_path / "x" / "y", lambda folder: (calls.append(folder), fill(folder)), is_whole
        )
    assert made == tmp_path / "x" / "y"
    assert names(made) == ["a", "b"]
    assert len(calls) == 1
    assert names(made.parent) == ["y"]


def test_a_failed_filling_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "a").write_text("first")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_folder_atomic(tmp_path / "y", fail, is_whole)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["broken", "empty", "file"])
def test_what_is_not_valid_is_replaced(tmp_path, kind):
    target = tmp_path / "y"
    if kind == "file":
        target.write_text("what is this")
    else:
        target.mkdir()
    if kind == "broken":
        (target / "b").write_text("who")
        (target / "stale").write_text("gone")
    make_folder_atomic(target, fill, is_whole)
    assert names(target) == ["a", "b"]
    assert names(tmp_path) == ["y"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_everything_in_a_folder_is_as_readable_as_any_other(tmp_path):
    def fill_privately(folder):
        fill(folder)
        (folder / "b").chmod(0o600)

    target = make_folder_atomic(tmp_path / "y", fill_privately, is_whole)
    (tmp_path / "plain").write_text("x")
    (tmp_path / "folder").mkdir()
    for ours, plain in ((target / "b", tmp_path / "plain"), (target, tmp_path / "folder")):
        assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_the_first_of_two_to_finish_is_kept(tmp_path):
    target = tmp_path / "y"

    def overtaken(folder):
        fill(folder)
        (folder / "a").write_text("second")
        make_folder_atomic(target, fill, is_whole)

    make_folder_atomic(target, overtaken, is_whole)
    assert (target / "a").read_text() == "first"
    assert names(tmp_path) == ["y"]


@pytest.mark.parametrize("broken_before", [False, True])
def test_many_at_once_end_with_one_valid_folder(tmp_path, broken_before):
    target = tmp_path / "y"
    if broken_before:
        target.mkdir()
        (target / "b").write_text("broken")
    count = 8
    barrier = threading.Barrier(count)
    failures = []

    def fill_together(folder):
        fill(folder)
        barrier.wait(timeout=20)

    def work():
        try:
            assert is_whole(make_folder_atomic(target, fill_together, is_whole))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert is_whole(target)
    assert names(tmp_path) == ["y"]


def test_a_move_that_cannot_work_is_an_error(tmp_path, monkeypatch):
    def fail(*arguments):
        raise PermissionError("no")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(PermissionError):
        make_folder_atomic(tmp_path / "y", fill, is_whole)
    assert names(tmp_path) == []
