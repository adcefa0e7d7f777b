"""The time of a correction, apart from its solver's."""

import time

import pytest
from helpers.layers import layer

from q2n.baselines.gptq import GPTQ
from q2n.baselines.quip import QuIP
from q2n.corrections.none import NoCorrection
from q2n.diagnostics.layers import layer_reports
from q2n.runtime.clock import WorkClock, clocked

SECONDS = 0.05


class Slow(NoCorrection):
    def correct(self, problem, quantized):
        time.sleep(SECONDS)
        return quantized


@pytest.mark.parametrize("baseline", [GPTQ(bits=3, group_size=-1), QuIP(bits=3)])
def test_a_correction_is_timed_in_whatever_basis_it_works(baseline):
    problem, clock = layer(), WorkClock()
    with clocked(clock):
        solution = baseline.solve(problem, Slow())
    assert solution.correct_seconds >= SECONDS
    assert clock.seconds["correct"] == pytest.approx(solution.correct_seconds, abs=0.02)
    (report,) = layer_reports(0, problem, solution, seconds=solution.correct_seconds + 1)
    assert report.correct_seconds == solution.correct_seconds
    assert report.solve_seconds == pytest.approx(1)
