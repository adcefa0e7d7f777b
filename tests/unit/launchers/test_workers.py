"""How a machine is divided, and which worker gets what."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from q2n.exceptions import ConfigurationError
from q2n.launchers import workers
from q2n.launchers.workers import THREAD_VARIABLES, Share, Worker, share


@pytest.fixture
def machine(monkeypatch):
    """A machine of a given number of cores and devices; nothing is set in the environment."""

    def set_up(cores: int, devices: int) -> None:
        monkeypatch.setattr(workers, "cores", lambda: cores)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)

    return set_up


@pytest.mark.parametrize(
    ("cores", "devices", "expected"),
    [
        (1, 0, Share(1, 1)),
        (2, 0, Share(2, 1)),
        (16, 0, Share(4, 4)),
        (30, 2, Share(2, 15, ("0", "1"))),
        (2, 4, Share(4, 1, ("0", "1", "2", "3"))),
    ],
)
def test_by_default_a_worker_a_device_or_one_for_every_four_cores(cores, devices, expected, machine):
    machine(cores, devices)
    assert share(None, None) == expected


def test_no_worker_is_a_mistake():
    with pytest.raises(ConfigurationError, match=r"hydra\.launcher\.n_jobs=0: must be at least 1, or null"):
        share(0, None)


def test_workers_never_ask_for_more_threads_than_there_are_cores(machine):
    for cores in range(1, 20):
        machine(cores, 0)
        for count in range(1, cores + 1):
            assert share(count, None).threads * count <= cores


def test_what_the_user_says_of_threads_counts_the_setting_more_than_the_variable(machine, monkeypatch):
    machine(16, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share(2, None).threads == 3
    assert share(2, 5).threads == 5


def test_devices_are_given_in_turn_and_only_those_the_user_left_visible(machine, monkeypatch):
    machine(8, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    division = share(4, None)
    assert [division.worker(slot).device for slot in range(4)] == ["5", "7", "5", "7"]
    assert [share(2, None, [3]).worker(slot).device for slot in range(2)] == ["3", "3"]
    machine(8, 0)
    assert share(2, None).worker(1).device is None


def test_a_worker_settles_its_threads_its_device_and_its_folder_before_torch_is_loaded(tmp_path):
    program = f"""
import os, sys
from q2n.launchers.workers import Worker
Worker(1, "6").settle({str(tmp_path)!r})
assert "torch" not in sys.modules
import torch
print(torch.get_num_threads(), os.environ["CUDA_VISIBLE_DEVICES"], os.getcwd())
"""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "2")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["1", "6", str(tmp_path)]


def test_threads_are_settled_in_a_process_that_has_loaded_torch(tmp_path, monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers.CellProgress, "bars", True)
    try:
        Worker(2).settle(str(tmp_path))
        assert torch.get_num_threads() == 2
        assert {os.environ[name] for name in THREAD_VARIABLES} == {"2"}
    finally:
        torch.set_num_threads(1)


def test_a_node_without_the_folder_of_the_command_says_so(tmp_path, monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(workers.CellProgress, "bars", True)
    with pytest.raises(FileNotFoundError, match="shared file system"):
        Worker(1).settle(str(tmp_path / "elsewhere"))
