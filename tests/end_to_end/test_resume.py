"""Interrupted and killed commands, through the real run.py."""

from __future__ import annotations

import signal
import time

import pytest
from end_to_end.kill_sweep import kill_sweep
from helpers.commands import SMALL, environment, numbers, records, run, start

CELL = ["model=tiny_llama", "model.num_blocks=40", "checkpoint_every=1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, cache, *CELL)
    ((key, record),) = records(folder / "results").items()
    return key, numbers(record)


def at_block(folder, cache, *arguments, blocks=3):
    """A process whose checkpoint has at least so many blocks."""
    process = start(folder, cache, *CELL, *arguments)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("results/main/*/checkpoint/block-*"))) < blocks:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, cache, undisturbed, number):
    process = at_block(tmp_path, cache)
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 75, complaints
    assert "resumes the unfinished cell from its checkpoint" in complaints
    assert not records(tmp_path / "results")
    assert "resumed after block" in run(tmp_path, cache, *CELL, "resume=required")
    ((key, record),) = records(tmp_path / "results").items()
    assert (key, numbers(record)) == undisturbed
    assert len(record["resumed_at"]) == 1
    assert not (tmp_path / "results/main" / key / "checkpoint").exists()


@pytest.mark.slow
def test_required_fails_in_a_second_where_there_is_no_checkpoint(tmp_path, cache):
    out = run(tmp_path, cache, *CELL, "resume=required", code=1)
    assert "CheckpointError: resume=required: there is no checkpoint in" in out


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path, cache):
    sweep = ["model=tiny_llama", "model.num_blocks=12", "checkpoint_every=1", *SMALL]
    outcome = kill_sweep(tmp_path, sweep, kills=2, longest=6, seed=1, env=environment(cache))
    assert len(outcome.moments) == 2


@pytest.mark.slow
def test_many_kills(tmp_path, cache):
    sweep = [
        "model=tiny_qwen2",
        "model.num_blocks=60",
        "baseline=gptq,awq,quarot",
        "q2n=on,off",
        "checkpoint_every=1",
        *SMALL,
    ]
    outcome = kill_sweep(tmp_path, sweep, kills=12, longest=15, seed=0, env=environment(cache))
    assert any(outcome.resumed), "no kill fell into a quantization"
