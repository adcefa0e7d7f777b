"""The unquantized model is compared with what it is known to score, and the differing field is named."""

from __future__ import annotations

import pytest
from helpers.records import make_metric, make_protocol, make_record

from q2n.exceptions import ConfigurationError, DepartureError
from q2n.records.known_values import KnownValue, check_reference, earlier_values, guard, known_values
from q2n.records.store import save

WEIGHTS = {"sha256": "w" * 64, "file": "model.gguf"}


def known(value=20.0, **changes):
    fields = {
        "model": "m",
        "metric": "perplexity",
        "dataset": "wiki",
        "value": value,
        "tolerance": 0.01,
        "source": "table 1",
        "weights": {"sha256": "w" * 64},
        "protocol": {"seqlen": 512, "windows": 32, "bos": "none", "text_sha256": "a" * 64},
    }
    return KnownValue(**{**fields, **changes})


def check(metric, *values, model="m"):
    check_reference([metric], model, WEIGHTS, values)


def test_a_number_within_tolerance_passes():
    check(make_metric(20.1), known())
    with pytest.raises(DepartureError, match="no known protocol field differs"):
        check(make_metric(20.3), known())
    with pytest.raises(DepartureError):
        check(make_metric(float("nan")), known())


def test_a_departure_names_the_protocol_and_the_way_out():
    with pytest.raises(DepartureError) as caught:
        check(make_metric(25.0), known())
    for part in ("25", "table 1", "BOS none", "sanity=warn", "sanity=off", "known=FILE"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "field", ["bos", "text_sha256", "tokenizer", "loss_dtype", "forward_dtype", "stride"]
)
def test_numbers_of_another_protocol_are_not_compared(field):
    other = {"bos": "each_window", "loss_dtype": "float64", "forward_dtype": "bfloat16", "stride": 256}
    protocol = make_protocol(**{field: other.get(field, "b" * 64)})
    whole = known(protocol=make_protocol().model_dump())
    check(make_metric(25.0, protocol=protocol), whole)
    with pytest.raises(DepartureError):
        check(make_metric(25.0), whole)


def test_two_models_of_one_name_are_known_by_their_weights():
    records = [
        make_record(
            identity={"config": {}, "sources": {}, "versions": {}, "weights": {"sha256": which * 64}},
            metrics=(make_metric(40.0, reference=value),),
        )
        for which, value in (("a", 20.0), ("b", 30.0))
    ]
    assert sorted(value.value for value in earlier_values(records)) == [20.0, 30.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"metric": "kl_divergence"},
        {"dataset": "news"},
        {"weights": {"sha256": "x"}},
        {"protocol": {"seqlen": 2048}},
        {"protocol": {"windows": 16}},
    ],
)
def test_numbers_of_something_else_do_not_concern(changes):
    check(make_metric(25.0), known(**changes))


def test_earlier_records_are_known_numbers_too(tmp_path):
    identity = {"config": {}, "sources": {}, "versions": {}, "weights": WEIGHTS}
    record = make_record(identity=identity, metrics=(make_metric(40.0, reference=20.0),))
    save(record, tmp_path)
    (value,) = earlier_values([record])
    assert value.value == 20.0
    rest = {"action": "stop", "path": None, "results": (str(tmp_path), "main")}
    guard([make_metric(20.1)], "m", WEIGHTS, **rest)
    with pytest.raises(DepartureError, match=f"record {record.fingerprint} of 2026-01-01"):
        guard([make_metric(21.0)], "m", WEIGHTS, **rest)


def test_a_departure_can_be_a_warning_or_nothing(tmp_path, capsys):
    file = tmp_path / "known.yaml"
    file.write_text(
        "values:\n- {model: m, metric: perplexity, dataset: wiki, value: 20, tolerance: 0.01, source: s}\n"
    )
    rest = {"path": str(file), "results": (str(tmp_path), "main")}
    with pytest.raises(DepartureError):
        guard([make_metric(30.0)], "m", WEIGHTS, action="stop", **rest)
    guard([make_metric(30.0)], "m", WEIGHTS, action="warn", **rest)
    assert "warning: unquantized wiki perplexity of m is 30" in capsys.readouterr().err
    guard([make_metric(30.0)], "m", WEIGHTS, action="off", **rest)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("values:\n- {model: m}\n", r"values\.0\.metric"),
        ("values:\n- {model: m, metric: p, dataset: w, value: 1, tolerance: 2, source: s}\n", "tolerance"),
        ("numbers: []\n", "values"),
    ],
)
def test_a_file_that_is_not_right_is_named(tmp_path, text, message):
    file = tmp_path / "known.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        known_values(str(file))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        known_values(str(tmp_path / "missing.yaml"))


def test_the_projects_own_numbers_are_of_the_bundled_model():
    assert {value.model for value in known_values(None)} == {"SmolLM2-135M-Instruct"}
    assert all(value.protocol["text_sha256"] and value.weights["sha256"] for value in known_values(None))
