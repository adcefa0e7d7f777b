"""Scores of tasks as metrics of a record."""

import math

import pytest
from helpers.records import make_metric, make_protocol, make_record

from q2n.evaluation.base import mean_and_stderr
from q2n.evaluation.harness.results import _parts
from q2n.records import store as records
from q2n.records.schema import Metric, TaskProtocol


def task_metric(value=0.75, **changes):
    protocol = TaskProtocol(
        dataset="piqa",
        items_sha256="a" * 64,
        tokenizer="t" * 64,
        items=4,
        task_version="1.0",
        harness="lm-eval 0.4.13",
        fewshot=0,
        chat_template=False,
        forward_dtype="float32",
    )
    fields = {
        "name": "acc",
        "dataset": "piqa",
        "value": value,
        "unit": "share",
        "count": 4,
        "count_unit": "items",
        "lower_is_better": False,
        "protocol": protocol.model_copy(update=changes.pop("protocol", {})),
        "per_item": "1101",
    }
    return Metric(**{**fields, **changes})


def test_the_standard_error_is_that_of_a_mean():
    mean, stderr = mean_and_stderr([1, 0, 1, 1])
    assert (mean, stderr) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 3)))
    assert mean_and_stderr([2.5]) == (2.5, None)


def test_a_share_keeps_its_answers_and_a_mean_its_values():
    assert _parts("acc", 0.75, [1.0, 0, True, 1])["per_item"] == "1011"
    found = _parts("f", 0.5, [0.25, 0.75])
    assert (found["per_window"], found["stderr"]) == ((0.25, 0.75), pytest.approx(0.25))


def test_a_perplexity_keeps_losses_and_its_error_is_carried_through_the_exponential():
    found = _parts("perplexity", math.exp(2.0), [-1.0, -3.0])
    assert found["per_window"] == (1.0, 3.0)
    assert found["stderr"] == pytest.approx(math.exp(2.0) * 1.0)


@pytest.mark.parametrize("values", [[0.25, 0.75], [(0, 1), (1, 1)], [None, 1.0], ["a", "b"]])
def test_nothing_is_claimed_about_other_aggregations(values):
    assert _parts("f1", 0.9, values) == {"value": 0.9, "difference": "unit"}


def test_a_task_score_comes_back_from_its_file(tmp_path):
    metric = task_metric(reference=1.0, reference_per_item="1111", stderr=0.25, tokens=100, seconds=1.5)
    record = make_record(metrics=(metric, make_metric(10.0)))
    again = records.load(records.save(record, tmp_path))
    assert again == record
    assert isinstance(again.metrics[0].protocol, TaskProtocol)
    assert again.metrics[0].parts == (1, 1, 0, 1)


def test_a_reference_belongs_to_the_same_quantity_under_the_same_protocol():
    metric, reference = task_metric(), task_metric(1.0, per_item="1111")
    assert metric.measures_as(reference)
    found = metric.with_reference(reference)
    assert (found.reference, found.reference_per_item, found.per_item) == (1.0, "1111", "1101")
    assert not metric.measures_as(task_metric(protocol={"fewshot": 5}))
    assert not metric.measures_as(task_metric(name="acc_norm"))
    assert not metric.measures_as(make_metric(3.0, name="acc", dataset="piqa", protocol=make_protocol()))


def test_every_field_of_a_protocol_is_part_of_its_key():
    protocol = task_metric().protocol
    changed = {"items_sha256": "b" * 64, "items": 5, "task_version": "2", "harness": "x", "fewshot": 1}
    changed |= {"chat_template": True, "forward_dtype": "bfloat16", "tokenizer": "u" * 64, "dataset": "y"}
    changed |= {"left_out": "</s>", "cut": 1, "window": 64}
    assert set(changed) == set(TaskProtocol.model_fields)
    keys = {protocol.model_copy(update={name: value}).key() for name, value in changed.items()}
    assert len(keys | {protocol.key()}) == len(changed) + 1
