"""How configured objects are built: strict, frozen, and only from this package.

Each option of a config group is one YAML with a ``_target_`` naming one class decorated with
:func:`option`. Constructors validate and do nothing else, and their modules import nothing heavy, so a
mistake in a configuration is reported before torch is loaded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from q2n.exceptions import ConfigurationError

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def option(cls: type[T]) -> type[T]:
    """Class decorator: a frozen pydantic dataclass that rejects wrong types and unknown fields."""
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
        """Whether the field is read where the option's fields have these values."""
        return all(_is_one_of(values.get(key), wanted) for key, wanted in self.others.items())

    def text(self, section: str) -> str:
        """What it takes: ``is read only with q2n.rank_rule=energy``."""
        terms = (f"{section}.{key}={'|'.join(map(_shown, wanted))}" for key, wanted in self.others.items())
        return f"{self._rule} {' and '.join(terms)}"


class ReadUnless(ReadIf):
    """The same of a field that matters unless all of the other fields have these values."""

    _rule = "is not read with"

    def holds(self, values: Mapping[str, Any]) -> bool:
        return not super().holds(values)


def _is_one_of(value: Any, wanted: tuple[Any, ...]) -> bool:
    return any(item in wanted for item in value) if isinstance(value, (list, tuple)) else value in wanted


def _shown(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def as_read(tree: Any) -> Any:
    """A configuration with all fields that its options read, defaults included, and no field that they do
    not read. A section whose ``_target_`` is unknown stays as it is."""
    if isinstance(tree, (list, tuple)):
        return [as_read(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    section = {key: as_read(item) for key, item in tree.items()}
    fields = fields_of(section.get("_target_"))
    whole = {**section, **{key: value for key, value in _defaults(fields) if key not in section}}
    return {key: value for key, value in whole.items() if _missing(key, fields, whole) is None}


def unread(tree: Any, path: str = "") -> dict[str, str]:
    """The fields of a configuration that its options do not read, by dotted key, and why (``is read only
    with ...``)."""
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
    """The mark by which a field is not read, its own or that of a field it depends on; None: it is read."""
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
    """The fields of the option a ``_target_`` names; none if there is no such option (any more)."""
    try:
        return dict(_resolve(target, "").__pydantic_fields__)  # type: ignore[attr-defined]
    except ConfigurationError:
        return {}


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'bits'?"`` for the nearest choices, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(item) for item in near)}?" if near else ""


def build(section: Any, path: str) -> Any:
    """The object a config section describes.

    Args:
        section: plain mapping with ``_target_`` and the fields of that class.
        path: dotted key of the section, for messages.

    Raises:
        ConfigurationError: bad ``_target_`` or fields; names the dotted key, value, rule, alternatives.
    """
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise ConfigurationError(f"{path}: this group needs an option with a _target_; got {section!r}")
    fields = {key: value for key, value in section.items() if key != "_target_"}
    return construct(_resolve(section["_target_"], path), fields, path)


def construct(cls: type[T], fields: Mapping[str, Any], path: str) -> T:
    """``cls(**fields)`` with pydantic's complaints turned into one :class:`ConfigurationError`."""
    try:
        return cls(**fields)
    except ValidationError as error:
        known = list(getattr(cls, "__pydantic_fields__", None) or getattr(cls, "model_fields", {}))
        lines = [_explain(item, path, known) for item in error.errors()]
        raise ConfigurationError("\n".join(lines)) from None


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


def _explain(item: Any, path: str, known: list[str]) -> str:
    location = ".".join(str(part) for part in item["loc"])
    key = ".".join(part for part in (path, location) if part)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: no such key{did_you_mean(location, known)} (keys here: {', '.join(known)})"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: is required"
    message = item["msg"][0].lower() + item["msg"][1:]
    value = item.get("input")
    hint = ""
    if item["type"] == "literal_error" and isinstance(value, str):
        hint = did_you_mean(
            value, str(item["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
    return f"{key}={value!r}: {message}{hint}"
