"""Exact conversion of a quantized layer to named tensors and plain facts, and back.

Number formats are frozen dataclasses whose fields are tensors, plain values and other formats; nothing here
depends on a particular format. Tensors are contiguous after both conversions, also when nothing is written:
the layout of a matrix in memory decides the order of the additions in a product.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from q2n.types import QuantizedLinear

_PLAIN = (bool, int, float, str, type(None))


def encode(quantized: QuantizedLinear) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and facts of all fields but ``original``, the weight of the problem, and ``scaling``.

    Raises:
        TypeError: a format or a diagnostic has a type that cannot be converted exactly.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"format": _encode_object("format", quantized.format, tensors)}
    compensated, original = quantized.compensated, quantized.original
    if compensated is not original and not torch.equal(compensated, original):
        tensors["compensated"] = compensated.contiguous()
    for name in ("order", "kept"):
        value = getattr(quantized, name)
        if value is not None:
            tensors[name] = value.contiguous()
    facts["diagnostics"] = {
        name: _encode_value(f"diagnostics.{name}", value, tensors)
        for name, value in quantized.diagnostics.items()
    }
    return tensors, facts


def decode(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], original: Tensor) -> QuantizedLinear:
    """Undo :func:`encode`, for the weight ``original`` ``(R, C)`` of the same problem.

    Raises:
        KeyError, TypeError, ValueError: the parts are not those of a quantized layer of this version.
    """
    return QuantizedLinear(
        format=_decode_value(facts["format"], tensors),
        original=original,
        compensated=tensors.get("compensated", original),
        order=tensors.get("order"),
        kept=tensors.get("kept"),
        diagnostics={name: _decode_value(item, tensors) for name, item in facts["diagnostics"].items()},
    )


def canonical(quantized: QuantizedLinear) -> QuantizedLinear:
    """Return ``quantized`` as it would be read back."""
    return decode(*encode(quantized), quantized.original)


def _encode_value(path: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.contiguous()
        return {"tensor": path}
    if isinstance(value, _PLAIN):
        return {
            "value": value.hex() if isinstance(value, float) else value,
            "float": isinstance(value, float),
        }
    if isinstance(value, dict):
        items = {name: _encode_value(f"{path}.{name}", item, tensors) for name, item in value.items()}
        return {"mapping": items}
    return _encode_object(path, value, tensors)


def _encode_object(path: str, value: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    cls = type(value)
    if not is_dataclass(value) or not cls.__module__.startswith("q2n."):
        raise TypeError(f"{path}: {cls.__module__}.{cls.__qualname__} cannot be kept as tensors and numbers")
    parts = {
        item.name: _encode_value(f"{path}.{item.name}", getattr(value, item.name), tensors)
        for item in fields(value)
    }
    return {"class": f"{cls.__module__}.{cls.__qualname__}", "fields": parts}


def _decode_value(item: Any, tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in item:
        return tensors[item["tensor"]]
    if "mapping" in item:
        return {name: _decode_value(part, tensors) for name, part in item["mapping"].items()}
    if "class" in item:
        build = _dataclass(item["class"])
        return build(**{name: _decode_value(part, tensors) for name, part in item["fields"].items()})
    return float.fromhex(item["value"]) if item["float"] else item["value"]


def _dataclass(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    if not module.startswith("q2n."):
        raise ValueError(f"{path}: not a class of this package")
    cls = getattr(importlib.import_module(module), name, None)
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise ValueError(f"{path}: not a dataclass")
    return cls
