"""Whole models whose statistics are zero, singular or tiny, through every baseline, correction and stage."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers.hard_inputs import MODELS, STAGES, numbers, quantized, tokens
from omegaconf import OmegaConf

from q2n.exceptions import UnsupportedError
from q2n.options import build

CONF = Path(__file__).parents[2] / "conf"
BASELINES = sorted(path.stem for path in (CONF / "baseline").glob("*.yaml"))
CORRECTIONS = sorted(path.stem for path in (CONF / "q2n").glob("*.yaml"))


def configured(kind, name):
    tree = {"bits": 3, "group_size": 16, "seed": 0, kind: OmegaConf.load(CONF / kind / f"{name}.yaml")}
    return build(OmegaConf.to_container(OmegaConf.create(tree), resolve=True)[kind], kind)


def check(baseline, correction, stages, model, tmp_path, **options):
    """All numbers are finite; no layer is worse than zeros in its outputs and its weights at once."""
    made, before, reports = quantized(
        configured("baseline", baseline),
        configured("q2n", correction),
        stages,
        MODELS[model],
        tmp_path,
        **options,
    )
    state = made.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert all(math.isfinite(number) for report in reports for number in numbers(report))
    assert len(reports) == 14
    moved = baseline in ("awq", "smoothquant", "quarot", "quarot_kv4")
    for report in reports:
        if report.error_after is not None and report.error_after <= 1.001:
            continue
        name = f"model.layers.{report.block}.{report.name}.weight"
        if not moved:
            error = (state[name] - before[name]).norm()
            assert error <= 1.001 * before[name].norm(), (report.name, report.error_after)
    return reports


DEFAULT = [
    *((baseline, "on", "true_sequential", "all inputs are zero") for baseline in BASELINES),
    *((baseline, "off", "static", "subnormal squares") for baseline in BASELINES),
    *(("gptq", name, "whole_block", "inputs of down_proj are zero") for name in CORRECTIONS),
    *(("gptq", name, "static", "all tokens are equal") for name in CORRECTIONS),
    *(("rtn", name, "true_sequential", "squares below float32") for name in CORRECTIONS),
]
"""Every baseline, correction, stage and the worst statistics; the rest of the table is slow."""


@pytest.mark.parametrize(("baseline", "correction", "stages", "model"), DEFAULT)
def test_statistics_that_are_zero_or_singular_work(baseline, correction, stages, model, tmp_path):
    try:
        check(baseline, correction, stages, model, tmp_path)
    except UnsupportedError:
        assert correction == "released"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("baseline", BASELINES)
def test_statistics_that_are_zero_or_singular_work_in_the_whole_table(baseline, model, tmp_path):
    for correction, stages in itertools.product(CORRECTIONS, STAGES):
        try:
            check(baseline, correction, stages, model, tmp_path)
        except UnsupportedError:
            assert correction == "released"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("baseline", BASELINES)
def test_so_they_do_in_half_precision(baseline, dtype, tmp_path):
    for model, correction in itertools.product(MODELS, ("on", "bias", "groupwise")):
        check(baseline, correction, "static", model, tmp_path, dtype=dtype)


@pytest.mark.parametrize("baseline", BASELINES)
def test_one_token_is_a_statistic(baseline, tmp_path):
    for stages in ("true_sequential", "static"):
        check(baseline, "on", stages, "dead channels", tmp_path, ids=tokens(1, 1))


def test_a_layer_whose_output_is_zero_has_the_error_it_can_have(tmp_path):
    reports = check("gptq", "off", "true_sequential", "all inputs are zero", tmp_path)
    assert {report.error_before for report in reports} == {0.0}
