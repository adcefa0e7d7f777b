"""What a user reads about fields that are wrong: key, value and rule, in no terms of pydantic."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from q2n.exceptions import ConfigurationError
from q2n.options import ReadIf, ReadUnless, complaints, construct, option


@option
class Rounding:
    bits: int
    every: Literal["auto"] | int = "auto"
    low: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Rounding:
        if self.low > self.bits:
            raise ValueError(f"low={self.low} exceeds bits={self.bits}")
        return self


class Score(BaseModel):
    shots: int


class Perplexity(BaseModel):
    windows: int


class Measured(BaseModel):
    parts: list[Score | Perplexity]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": "x"}, "baseline.bits='x': must be a valid integer"),
        ({"bits": None}, "baseline.bits=null: must be a valid integer"),
        ({"bits": True}, "baseline.bits=true: must be a valid integer"),
        ({"bits": 3, "every": "x"}, "baseline.every='x': must be 'auto' or a valid integer"),
        ({"bits": 3, "low": 4}, "baseline: low=4 exceeds bits=3"),
        ({}, "baseline.bits: is required"),
        (
            {"bits": 3, "bit": 3},
            "baseline.bit: no such key; did you mean 'bits'? (keys here: bits, every, low)",
        ),
        ({"bits": "x" * 200}, f"baseline.bits='{'x' * 79}...: must be a valid integer"),
    ],
)
def test_a_complaint_names_key_value_and_rule(fields, said):
    with pytest.raises(ConfigurationError) as caught:
        construct(Rounding, fields, "baseline")
    assert str(caught.value) == said


def test_the_types_that_were_tried_are_no_part_of_the_key():
    given = {"parts": [{"shots": 1}, {"windows": "x"}]}
    with pytest.raises(ValidationError) as caught:
        Measured.model_validate(given)
    found = complaints(caught.value, given)
    assert found[0] == "parts.1.shots: is required"
    assert found[1].startswith("parts.1.windows='x': must be a valid integer")


def test_numbers_of_a_condition_are_shown_as_numbers():
    assert ReadUnless(lam=0).text("q2n") == "is not read with q2n.lam=0"
    assert ReadIf(clip=True, low=None).text("q2n") == "is read only with q2n.clip=true and q2n.low=null"
