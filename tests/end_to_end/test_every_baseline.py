"""Every baseline with every correction on every family: the whole path of a cell, on tiny models."""

from __future__ import annotations

import math
import random
import re
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from q2n.cells.run import run_cell
from q2n.cli import CONFIG_DIR
from q2n.config import GROUPS, RunConfig
from q2n.data.sources import CalibrationOption

BASELINES = sorted(path.stem for path in (CONFIG_DIR / "baseline").glob("*.yaml"))
CORRECTIONS = ("off", "on", "released")
MODELS = ("tiny_llama", "tiny_qwen2", "tiny_qwen3")
RELEASED = {"gptq", "quip", "pbllm", "leanquant", "owq", "quarot", "quarot_kv4"}
BITS, GROUP = 3, 24  # the last group of every layer is shorter than the others
VALUE = 16  # bits of a scale, of a table's entry, of a kept value


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two files of sentences that no one wrote."""
    words = ["the", "of", "and", "in", "to", "was", "for", "on", "river", "stone", "light", "winter"]
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("text")
    for name in ("calibration", "evaluation"):
        (folder / f"{name}.txt").write_text(" ".join(draw.choices(words, k=400)) + ".\n")
    return folder


@cache
def composed(*overrides):
    """What Hydra makes of the overrides, as a plain tree with its interpolations resolved."""
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        tree = compose("config", overrides=[*overrides, f"bits={BITS}", f"group_size={GROUP}"])
    return {key: value for key, value in OmegaConf.to_container(tree, resolve=True).items() if key != "hydra"}


def cell(text, folder, model, baseline, correction, changes=()):
    """The outcome of one cell; ``changes`` are fields of its sections, as ``{"baseline": {"sym": True}}``."""
    common = (
        "device=cpu",
        "dtype=float32",
        "calibration=text",
        f"calibration.paths=[{text}/calibration.txt]",
        "calibration.nsamples=4",
        "calibration.seqlen=64",
        "evaluation.datasets=[text]",
        f"evaluation.paths=[{text}/evaluation.txt]",
        "evaluation.windows=4",
        "evaluation.seqlen=64",
    )
    tree = dict(composed(*common))
    choices = {"model": model, "baseline": baseline, "q2n": correction}
    for group, option in choices.items():
        tree[group] = composed(f"{group}={option}")[group]
    for group, fields in dict(changes).items():
        tree[group] = {**tree[group], **fields}
    tree = {**tree, "results_dir": str(folder / "results"), "cache_dir": str(folder / "cache")}
    return run_cell(RunConfig(tree, {**dict.fromkeys(GROUPS, ""), **choices}, ()))


def width(count):
    """Bits of a number below ``count``; at least one."""
    return max(1, math.ceil(math.log2(count)))


def uniform(rows, columns, group, zero=True):
    """Bits of codes, scales and zero points."""
    groups = math.ceil(columns / group)
    return rows * columns * BITS + rows * groups * (VALUE + (BITS if zero else 0))


def gptq(rows, columns):
    # Groups of columns by falling Hessian diagonal: every column's group is written down.
    return uniform(rows, columns, GROUP) + columns * width(math.ceil(columns / GROUP))


def owq(rows, columns, kept=2):
    return uniform(rows, columns - kept, columns - kept) + kept * rows * VALUE + kept * width(columns)


def pbllm(rows, columns, high=8):
    weights = rows * columns
    low = int(weights * (high - BITS) / (high - 1)) + 1
    mask, means_and_scales, range_of_high = weights, rows * 2 * VALUE, rows * (VALUE + high)
    return mask + low + (weights - low) * high + means_and_scales + range_of_high


def quip(rows, columns):
    scale, column_scales, seed = VALUE, columns * VALUE, 64
    return rows * columns * BITS + scale + column_scales + seed


STORED = {
    "rtn": lambda rows, columns: uniform(rows, columns, GROUP),
    "gptq": gptq,
    "quip": quip,
    "pbllm": pbllm,
    "leanquant": lambda rows, columns: rows * columns * BITS + rows * 2**BITS * VALUE,
    "owq": owq,
    "quarot": lambda rows, columns: uniform(rows, columns, columns, zero=False),
    "quarot_kv4": lambda rows, columns: uniform(rows, columns, columns, zero=False),
    "awq": lambda rows, columns: uniform(rows, columns, GROUP),
    "smoothquant": lambda rows, columns: uniform(rows, columns, columns, zero=False),
    "composed": lambda rows, columns: uniform(rows, columns, GROUP),
}


def row_vector(baseline, correction, layer):
    """Only QuIP's one scale a matrix cannot take up a factor a row."""
    costs = baseline == "quip" and correction == "on" and not layer.name.endswith("down_proj")
    return layer.shape[0] * VALUE if costs else 0


def check_bits(record, baseline, correction):
    total = weights = 0
    for layer in record.layers:
        rows, columns = layer.shape
        bits = STORED[baseline](rows, columns) + row_vector(baseline, correction, layer)
        assert layer.bits_per_weight == pytest.approx(bits / (rows * columns), rel=1e-12), layer.name
        total, weights = total + bits, weights + rows * columns
    assert record.bits_per_weight == pytest.approx(total / weights, rel=1e-12)


def check_numbers(record):
    (metric,) = record.metrics
    assert math.isfinite(metric.value)
    assert math.isfinite(metric.reference)
    assert metric.value != metric.reference
    assert len(metric.per_window) == 4
    assert len(record.layers) == 14
    assert all(0 < layer.error_before < 2 and 0 < layer.error_after < 2 for layer in record.layers)


def check_correction(record, baseline, correction):
    """Which layers the correction touched, and what that did to them."""
    skips_nothing = baseline.startswith("quarot") and correction == "released"
    for layer in record.layers:
        if correction == "off" or (layer.name.endswith("down_proj") and not skips_nothing):
            assert layer.alpha_min in (None, 1)
            assert layer.alpha_max in (None, 1)
            assert layer.error_after == layer.error_before
        elif (baseline, correction) == ("quip", "released"):
            assert layer.alpha_min == layer.alpha_max == 1
            assert layer.error_after == layer.error_before
        else:
            assert 0.3 < layer.alpha_min < layer.alpha_max < 1.7
            assert layer.error_after != layer.error_before
            assert 0 < layer.null_rank < layer.shape[1]


def value(outcome):
    return outcome.record.metrics[0].value


def test_the_nine_baselines_are_there():
    assert set(BASELINES) >= set(STORED) > RELEASED


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("baseline", BASELINES)
def test_cells(model, baseline, text, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "every"
    outcomes = {correction: cell(text, folder, model, baseline, correction) for correction in CORRECTIONS}
    released = outcomes["released"]
    if baseline not in RELEASED:
        assert "the official code has no Q2N step for" in refusal(released)
        del outcomes["released"]
    for correction, outcome in outcomes.items():
        assert outcome.record is not None, outcome.why
        check_numbers(outcome.record)
        if baseline in STORED:
            check_bits(outcome.record, baseline, correction)
        check_correction(outcome.record, baseline, correction)
    assert value(outcomes["on"]) != value(outcomes["off"])
    if baseline == "quip":
        assert value(released) == value(outcomes["off"])
        assert released.record.layers[0].null_rank == released.record.layers[0].shape[1]
    elif baseline in RELEASED:
        assert value(released) not in (value(outcomes["off"]), value(outcomes["on"]))


@pytest.fixture
def no_calibration(monkeypatch):
    def reached(self, tokenizer, cache_dir=None):
        pytest.fail("calibration was reached")

    monkeypatch.setattr(CalibrationOption, "tokens", reached)


def refusal(outcome):
    assert outcome.decision == "unsupported", outcome.why
    assert outcome.failure.error_type == "UnsupportedError"
    assert outcome.record is None
    return outcome.failure.message


HEAD_SIZE = r"head size is 14.*nearest that would fit: (\d+) and (\d+)"
MLP_WIDTH = r"MLP width is 92.*nearest that would fit: (\d+) and (\d+)"
HIDDEN_SIZE = r"hidden size is 92.*nearest that would fit: (\d+) and (\d+)"
MISFITS = [
    ("quarot", {"model": {"head_dim": 14}}, HEAD_SIZE, "model", "head_dim"),
    ("quarot_kv4", {"model": {"head_dim": 14}}, HEAD_SIZE, "model", "head_dim"),
    ("quarot", {"model": {"intermediate_size": 92}}, MLP_WIDTH, "model", "intermediate_size"),
    ("quarot", {"model": {"hidden_size": 92}}, HIDDEN_SIZE, "model", "hidden_size"),
    (
        "owq",
        {"baseline": {"target_bit": 3.01, "target_rank": None}},
        r"rounds to no FP16 outlier column for .*q_proj.* target_bit >= ([\d.]+)",
        "baseline",
        "target_bit",
    ),
    ("owq", {"baseline": {"target_rank": 64}}, "target_rank can be at most (63)", "baseline", "target_rank"),
    (
        "quarot",
        {"baseline": {"a_group_size": 48}},
        "a_group_size=48: does not divide.* use a divisor of (64)",
        "baseline",
        "a_group_size",
    ),
    *[
        (
            name,
            {"baseline": {"group_size": 65}},
            r"q_proj has only 64 columns; use a group_size of at most (64)",
            "baseline",
            "group_size",
        )
        for name in BASELINES
        if name not in ("leanquant", "quip")  # tables are of whole rows; QuIP's groups are another test
    ],
    (
        "quip",
        {"baseline": {"group_size": 65, "grid": "uniform"}},
        r"q_proj has only 64 columns; use a group_size of at most (64)",
        "baseline",
        "group_size",
    ),
]


@pytest.mark.parametrize(
    ("baseline", "changes", "message", "group", "key"),
    MISFITS,
    ids=[f"{baseline} {changes}" for baseline, changes, *_ in MISFITS],
)
def test_models_that_do_not_fit_are_refused_with_what_would(
    baseline, changes, message, group, key, text, tmp_path, no_calibration, monkeypatch
):
    said = refusal(cell(text, tmp_path, "tiny_llama", baseline, "on", changes))
    found = re.search(message, said)
    assert found, said
    monkeypatch.undo()
    for advice in found.groups():
        fitting = {**changes[group], key: float(advice) if "." in advice else int(advice)}
        outcome = cell(text, tmp_path, "tiny_llama", baseline, "on", {**changes, group: fitting})
        assert outcome.record is not None, outcome.why


def test_a_correction_without_a_definition_is_refused_before_the_model_is_loaded(
    text, tmp_path, no_calibration, monkeypatch
):
    monkeypatch.setattr("q2n.models.spec.TinyModel.load", lambda *arguments: pytest.fail("loaded"))
    said = refusal(cell(text, tmp_path, "tiny_llama", "awq", "released"))
    assert "use q2n=on or q2n=off" in said
