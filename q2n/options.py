"""Building of configured objects: strict, frozen, and only from this package.

Each option of a config group is one YAML with a ``_target_`` naming one class decorated with
:func:`option`. Constructors validate and do nothing else, and their modules import nothing heavy, so a
mistake in a configuration is reported before torch is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from q2n.exceptions import ConfigurationError

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid")

_ABSENT = ("missing", "missing_argument")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
"""Pydantic's types of the errors for a field that is missing, and for one that does not exist."""

_TYPES = ("bool", "int", "float", "str", "list", "tuple", "dict")
"""Types in the location of an error that could be names of fields by their looks."""

_LONGEST = 80
"""Characters of a value that a message shows: with its key, about one line of a terminal."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def option(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen pydantic dataclass that rejects wrong types and unknown fields (a decorator)."""
    return pydantic_dataclass(cls, frozen=True, kw_only=True, config=STRICT)  # type: ignore[return-value]


class ReadIf:
    """Mark of a field that matters only where other fields of its option have certain values.

    ``Annotated[float, ReadIf(rank_rule="energy")]``; a tuple names several values of one field, and of a
    field that is a list one of its items counts. A field that is not read is no part of a cell: neither of
    its identity nor of its label and record.
    """

    _rule = "is read only with"

    def __init__(self, **others: Any) -> None:
        self.others = {key: value if isinstance(value, tuple) else (value,) for key, value in others.items()}

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether the field is read where the option's fields have these ``values``."""
        return all(_is_one_of(values.get(key), wanted) for key, wanted in self.others.items())

    def text(self, section: str) -> str:
        """Name the condition, for messages: ``is read only with q2n.rank_rule=energy``."""
        terms = (f"{section}.{key}={'|'.join(map(_shown, wanted))}" for key, wanted in self.others.items())
        return f"{self._rule} {' and '.join(terms)}"


class ReadUnless(ReadIf):
    """Mark of a field that matters unless all of the other fields have these values."""

    _rule = "is not read with"

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether the field is read: True unless all other fields have the values of the mark."""
        return not super().holds(values)


def _is_one_of(value: Any, wanted: tuple[Any, ...]) -> bool:
    return any(item in wanted for item in value) if isinstance(value, (list, tuple)) else value in wanted


def _shown(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def as_read(tree: Any) -> Any:
    """Return a configuration with exactly the fields that its options read, defaults included.

    A section whose ``_target_`` is unknown stays as it is.
    """
    if isinstance(tree, (list, tuple)):
        return [as_read(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    section = {key: as_read(item) for key, item in tree.items()}
    fields = fields_of(section.get("_target_"))
    whole = {**section, **{key: value for key, value in _defaults(fields) if key not in section}}
    return {key: value for key, value in whole.items() if _missing(key, fields, whole) is None}


def unread(tree: Any, path: str = "") -> dict[str, str]:
    """Return the fields that a configuration's options do not read, by dotted key.

    The values are the reasons (``is read only with ...``).
    """
    if not isinstance(tree, Mapping):
        return {}
    found: dict[str, str] = {}
    fields = fields_of(tree.get("_target_"))
    whole = {**dict(_defaults(fields)), **tree}
    for key, item in tree.items():
        place = f"{path}.{key}" if path else str(key)
        mark = _missing(key, fields, whole)
        found |= unread(item, place) if mark is None else {place: mark.text(path)}
    return found


def _missing(key: str, fields: Mapping[str, Any], values: Mapping[str, Any]) -> ReadIf | None:
    """Mark by which a field is not read, its own or that of a field it depends on, or None if it is read."""
    for mark in fields[key].metadata if key in fields else ():
        if isinstance(mark, ReadIf):
            above = (_missing(other, fields, values) for other in mark.others)
            missing = next(filter(None, above), None if mark.holds(values) else mark)
            if missing is not None:
                return missing
    return None


def _defaults(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, field in fields.items():
        if not field.is_required():
            yield key, field.get_default(call_default_factory=True)


@cache
def fields_of(target: Any) -> Mapping[str, Any]:
    """Fields of the option that a ``_target_`` names; empty if there is no such option (any more)."""
    try:
        return dict(_resolve(target, "").__pydantic_fields__)  # type: ignore[attr-defined]
    except ConfigurationError:
        return {}


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Suggest the nearest choices (``"; did you mean 'bits'?"``), or return an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(item) for item in near)}?" if near else ""


def build(section: Any, path: str) -> Any:
    """Build the object that a config section describes.

    Args:
        section: plain mapping with ``_target_`` and the fields of that class.
        path: dotted key of the section, for messages.

    Raises:
        ConfigurationError: bad ``_target_`` or fields; names the dotted key, value, rule, alternatives.
    """
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise ConfigurationError(
            f"{path}: needs an option (a section with a _target_), got {_value(section)}"
        )
    fields = {key: value for key, value in section.items() if key != "_target_"}
    return construct(_resolve(section["_target_"], path), fields, path)


def construct(cls: type[T], fields: Mapping[str, Any], path: str) -> T:
    """Call ``cls(**fields)``; what pydantic refuses becomes one :class:`ConfigurationError`."""
    try:
        return cls(**fields)
    except ValidationError as error:
        known = list(getattr(cls, "__pydantic_fields__", None) or getattr(cls, "model_fields", {}))
        raise ConfigurationError("\n".join(complaints(error, fields, path, known))) from None


def complaints(
    error: ValidationError, given: Mapping[str, Any], path: str = "", known: Sequence[str] = ()
) -> list[str]:
    """List the faults that pydantic found, a line each: dotted key, value, rule, nearest alternatives.

    Args:
        error: pydantic's exception. Its own text names classes, which mean nothing to a user.
        given: the fields that were validated.
        path: dotted key of ``given``; empty at the top level.
        known: names of the fields that exist, for suggestions.
    """
    rules: dict[str, list[str]] = {}
    for item in error.errors():
        place = _place(item["loc"], given)
        key = ".".join(part for part in (path, *place) if part)
        # The rule for a whole option names the fields it is about, so their values are not listed again.
        shown = (
            f"{key}={_value(item['input'])}" if place and item["type"] not in (*_ABSENT, *_UNKNOWN) else key
        )
        rules.setdefault(shown, []).append(_rule(item, ".".join(place), known))
    # The members of a union have each refused the value: it must fulfil one rule or another.
    return [": ".join(filter(None, (key, _either(texts)))) for key, texts in rules.items()]


def _resolve(target: Any, path: str) -> type:
    if not isinstance(target, str) or not target.startswith("q2n."):
        raise ConfigurationError(
            f"{path}._target_={target!r}: must name a class inside the package q2n "
            "(configs may not call arbitrary code)"
        )
    module_name, _, class_name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{path}._target_={target!r}: {error}") from None
    if not (isinstance(cls, type) and hasattr(cls, "__pydantic_fields__")):
        raise ConfigurationError(f"{path}._target_={target!r}: is not a configurable option of q2n")
    return cls


def _place(location: Sequence[int | str], given: Any) -> list[str]:
    """Path to a value inside ``given``: pydantic's location without the types of a union that it names.

    Args:
        location: keys, indices, and names of types (``EvaluationProtocol``, ``literal['auto']``, ``int``).
        given: the value that was validated; a validator may have given it keys it did not have.
    """
    place: list[str] = []
    for part in location:
        indexed = isinstance(given, (list, tuple)) and isinstance(part, int) and part < len(given)
        if indexed or (isinstance(given, Mapping) and part in given):
            given = given[part]
        elif isinstance(part, str) and (part in _TYPES or not re.fullmatch("[a-z][a-z0-9_]*", part)):
            continue
        place.append(str(part))
    return place


def _rule(item: Any, key: str, known: Sequence[str]) -> str:
    if item["type"] in _UNKNOWN:
        return f"no such key{did_you_mean(key, known)} (keys here: {', '.join(known)})"
    if item["type"] in _ABSENT:
        return "is required"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] in ("dataclass_type", "dict_type", "model_type"):  # pydantic names the class
        return "must be a section of keys and values"
    rule = re.sub(r"^\w+ should ", "must ", item["msg"]).replace(" after validation", "")
    if item["type"] == "literal_error" and isinstance(value := item["input"], str):
        choices = str(item["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return rule + did_you_mean(value, choices)
    return rule


def _either(rules: Sequence[str]) -> str:
    """Join alternatives: ``must be 'auto' or a valid integer``."""
    first, *others = dict.fromkeys(rules)
    return " or ".join([first, *(re.sub("^must (be )?", "", other) for other in others)])


def _value(value: Any) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
