"""A cell that takes its process with it, through the real command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.commands import ROOT, SMALL, environment, records

CODE = """
import os
from pathlib import Path

from q2n.baselines.rtn import RTN
from q2n.options import option


@option
class Deadly(RTN):
    number: int = 11

    def solve(self, problem, correction):
        Path("begun").write_text(str(os.getpid()))
        if self.number:
            os.kill(os.getpid(), self.number)
        else:
            import time
            time.sleep(60)
        return super().solve(problem, correction)
"""
PROGRAM = """
import sys
import q2n.baselines
q2n.baselines.__path__.append(sys.argv.pop(1))
from q2n.cli import main
main()
"""


@pytest.fixture
def start(tmp_path):
    """A command in ``tmp_path`` with the option ``baseline=deadly``."""
    (tmp_path / "conf" / "baseline").mkdir(parents=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "deadly.py").write_text(CODE)
    settings = (ROOT / "conf" / "baseline" / "rtn.yaml").read_text()
    settings = settings.replace("q2n.baselines.rtn.RTN", "q2n.baselines.deadly.Deadly") + "\nnumber: 11\n"
    (tmp_path / "conf" / "baseline" / "deadly.yaml").write_text(settings)

    def command(*arguments, **how):
        fixed = ["model=tiny_llama", "q2n=off", *SMALL]
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                str(tmp_path / "code"),
                "--config-dir",
                "conf",
                *arguments,
                *fixed,
            ],
            cwd=tmp_path,
            env={**environment(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **how,
        )

    return command


def test_the_other_cells_still_run(start, tmp_path):
    """From a folder of each job's own (``hydra.job.chdir``), which changes no path."""
    command = start("-m", "baseline=deadly,rtn", "hydra.job.chdir=true", "results_dir=results")
    out, err = command.communicate(timeout=240)
    assert command.returncode == 1, err
    assert "1 failed, 1 computed" in out
    assert "SIGSEGV (signal 11, segmentation fault) (while: quantize: block 1/2" in err
    assert "memory" not in err
    (record,) = records(tmp_path / "results").values()
    assert record["cell"]["baseline"] == "rtn"


@pytest.mark.slow
def test_the_next_command_does_the_other_cells_first(start, tmp_path):
    start("baseline=deadly", "baseline.number=9").communicate(timeout=240)
    out, err = (process := start("-m", "baseline=deadly", "bits=3,2", "baseline.number=9")).communicate(
        timeout=240
    )
    assert process.returncode == 1
    assert "2 failed" in out
    assert err.index("[1/2] tiny_llama deadly q2n=off 2 bit") < err.index("tiny_llama deadly q2n=off 3 bit")
    assert "SIGKILL (signal 9" in err


def at_work(start, tmp_path):
    """A command whose cell is at work, and the process that runs the cell."""
    process = start("baseline=deadly", "baseline.number=0")
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists() or not (tmp_path / "begun").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, int((tmp_path / "begun").read_text())


def gone(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False])
def test_a_signal_means_the_same_to_one_process_and_to_the_group(start, tmp_path, group):
    """A terminal signals both processes, ``kill`` the one that waits: once is once."""
    send = os.killpg if group else os.kill
    process, worker = at_work(start, tmp_path)
    send(process.pid, signal.SIGTERM)
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == 75, complaints
    assert gone(worker)


@pytest.mark.slow
def test_the_cells_process_does_not_outlive_the_command(start, tmp_path):
    process, worker = at_work(start, tmp_path)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert gone(worker)
