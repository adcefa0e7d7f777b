"""How configured objects are built: strict, frozen, and only from this package.

Each option of a config group is one YAML with a ``_target_`` naming one class decorated with
:func:`option`. Constructors validate and do nothing else, and their modules import nothing heavy, so a
mistake in a configuration is reported before torch is loaded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
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
