"""The digest depends on what can change a number and on nothing else."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q2n.records.fingerprint import (
    canonical_json,
    difference,
    fingerprint,
    flatten,
    identity,
    library_versions,
    plain,
)

KEYS = st.text("abc", min_size=1, max_size=3)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("xyz", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
PATIENT = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
IDENTITIES = st.dictionaries(KEYS, TREES, max_size=4)


def test_the_digest_is_the_documented_one() -> None:
    # sha256 of '{"a":1,"b":[true,null]}', computed with sha256sum
    assert fingerprint({"b": (True, None), "a": 1}) == "1cc69c7fa23616ca"


@PATIENT
@given(IDENTITIES)
def test_key_order_does_not_matter_and_plain_is_idempotent(tree: dict[str, object]) -> None:
    assert fingerprint(dict(reversed(tree.items()))) == fingerprint(tree)
    assert canonical_json(plain(tree)) == canonical_json(tree)


@PATIENT
@given(IDENTITIES, IDENTITIES)
def test_there_is_a_difference_exactly_when_the_digests_differ(
    a: dict[str, object], b: dict[str, object]
) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (difference(a, b) == [])


def test_types_that_python_calls_equal_are_told_apart() -> None:
    assert difference({"a": 1}, {"a": True}) == ["a: 1 -> true"]


def test_differences_read_well() -> None:
    a = {"config": {"bits": 2, "q2n": {"t": 0.1}}, "sources": {"q2n/a.py": "0" * 64, "q2n/b.py": "1" * 64}}
    b = {"config": {"bits": 3, "q2n": {}}, "sources": {"q2n/a.py": "2" * 64, "q2n/c.py": "1" * 64}}
    assert difference({**a, "versions": {"torch": "2.12"}}, {**b, "versions": {"torch": "2.13"}}) == [
        "config.bits: 2 -> 3",
        "config.q2n: absent -> {}",
        "config.q2n.t: 0.1 -> absent",
        "sources.q2n/a.py changed",
        "sources.q2n/b.py removed",
        "sources.q2n/c.py added",
        "versions.torch 2.12 -> 2.13",
    ]


def test_where_results_go_is_not_part_of_a_cell() -> None:
    config = {"seed": 3, "results_dir": "a", "force": False, "tracking": {"mode": "offline"}, "name": "main"}
    moved = {**config, "results_dir": "b", "force": True, "tracking": {}, "name": "other"}
    assert identity(config, data="x") == identity(moved, data="x")
    assert fingerprint(identity(config, data="x")) != fingerprint(identity(config, data="y"))
    assert fingerprint(identity({**config, "seed": 2})) != fingerprint(identity(config))


def test_missing_libraries_are_absent_and_nothing_is_imported() -> None:
    versions = library_versions()
    assert versions["torch"][0].isdigit()
    versions["torch"] = "changed"
    assert library_versions()["torch"] != "changed", "callers get a copy"


def test_values_without_a_plain_form_are_refused() -> None:
    class Colour(StrEnum):
        RED = "red"

    assert plain({"a": Colour.RED, "b": {2, 1}, "c": float("nan"), "p": Path("a/b")}) == {
        "a": "red",
        "b": [1, 2],
        "c": "nan",
        "p": "a/b",
    }
    with pytest.raises(TypeError, match="object"):
        plain({"a": object()})


def test_flatten_keeps_empty_mappings_and_lists_as_leaves() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
