"""Seconds by kind of work, with a clock that is moved by hand."""

import contextlib

import pytest

from q2n.runtime import clock


@pytest.fixture
def now(monkeypatch):
    """``now.pass_(seconds)`` lets time pass."""

    class Now:
        value = 100.0

        def pass_(self, seconds):
            self.value += seconds

    time = Now()
    monkeypatch.setattr(clock.time, "perf_counter", lambda: time.value)
    return time


def test_inner_work_is_not_counted_as_the_outer_one(now):
    listener = clock.WorkClock()
    with clock.clocked(listener):
        now.pass_(50)
        with clock.timed("solve"):
            now.pass_(1)
            with clock.timed("factorise"):
                now.pass_(2)
            now.pass_(4)
        now.pass_(50)
        with clock.timed("solve"):
            now.pass_(8)
    assert listener.seconds == {"solve": 13, "factorise": 2}


def test_work_that_fails_has_ended(now):
    listener = clock.WorkClock()
    with clock.clocked(listener):
        with contextlib.suppress(ValueError), clock.timed("forward"):
            now.pass_(1)
            raise ValueError
        now.pass_(50)
        with clock.timed("measure"):
            now.pass_(2)
    assert listener.seconds == {"forward": 1, "measure": 2}


def test_nobody_listening(now):
    listener = clock.WorkClock()
    with clock.timed("forward"):
        now.pass_(1)
    with clock.clocked(listener):
        pass
    with clock.timed("forward"):
        now.pass_(1)
    assert listener.seconds == {}
