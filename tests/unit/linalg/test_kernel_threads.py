"""Rows divided among threads."""

import threading

import pytest
import torch

from q2n.linalg.kernels import threads


@pytest.fixture(params=["torch's own threads", "a pool"])
def team(request, monkeypatch):
    if request.param == "a pool":
        monkeypatch.setattr(threads, "_team", lambda: None)
    elif threads._team() is None:
        pytest.skip("torch does not run on GNU's OpenMP library here")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_every_row_is_done_once(team, rows, count):
    done, before = [], torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        threads.over_rows(
            lambda mark, first, last: done.extend((mark, r) for r in range(first, last)), rows, 1
        )
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == [(1, r) for r in range(rows)]


def test_threads_work_at_the_same_time(team):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=20)
    try:
        threads.over_rows(lambda first, last: both.wait() and None, 2)
    finally:
        torch.set_num_threads(before)
    assert not both.broken


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_any_part_is_raised(team, error):
    def kernel(first, last):
        if first:
            raise error("row")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(error, match="row"):
            threads.over_rows(kernel, 2)
    finally:
        torch.set_num_threads(before)


def test_an_interrupt_before_a_callback_begins_is_not_lost(monkeypatch):
    """Python prints what a callback raises, and goes on."""
    monkeypatch.setattr(threads, "_together", lambda work, count: None)
    with pytest.raises(KeyboardInterrupt):
        threads.over_rows(lambda first, last: None, 4)
