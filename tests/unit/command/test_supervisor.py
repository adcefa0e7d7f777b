"""The process that waits, with children that do nothing but die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

DYING = """
import os, signal, sys
from q2n.command import supervisor
death = supervisor.in_child()
print(death and death.how, supervisor.goes_on(), flush=True)
if not death:
    supervisor.taken_up()
    os.kill(os.getpid(), signal.SIGSEGV)
if "SIGSEGV" in death.how:
    supervisor.taken_up()
    os.kill(os.getpid(), signal.SIGBUS)
sys.exit(7)
"""
IDLE = """
import os, signal
from q2n.command import supervisor
supervisor.in_child()
os.kill(os.getpid(), signal.SIGSEGV)
"""
WAITING = """
import sys, time
from q2n.runtime import signals as interruption
from q2n.command import supervisor
supervisor.in_child()
try:
    with interruption.graceful():
        print("ready", flush=True)
        time.sleep(20)
except KeyboardInterrupt:
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
    sys.exit(75)
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_another_child_goes_on_and_the_last_one_says_how_it_ends():
    out, _ = (process := start(DYING)).communicate(timeout=60)
    assert process.returncode == 7
    first, second, third = out.splitlines()
    assert first == "None False"
    assert second.startswith("was killed by SIGSEGV")
    assert third.startswith("was killed by SIGBUS")


def test_a_child_that_dies_without_a_cell_is_not_replaced():
    _, err = (process := start(IDLE)).communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("was killed by SIGSEGV") == 1


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_once_whoever_it_is_sent_to(send, number):
    process = start(WAITING, "0.5")
    assert process.stdout.readline() == "ready\n"
    send(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, "saving\n")


def test_a_second_signal_does_not_wait():
    process = start(WAITING, "20")
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "saving\n"
    process.terminate()
    process.communicate(timeout=15)
    assert process.returncode == -signal.SIGTERM
