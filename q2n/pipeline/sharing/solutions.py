"""Solved layers, before the correction, that cells share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from q2n.pipeline.sharing.codec import canonical, decode, encode
from q2n.pipeline.sharing.context import StageContext, total_bytes
from q2n.pipeline.sharing.store import Address, Part
from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Solution

STAGE = "codes"

Solve = Callable[[LinearProblem, Correction], Solution]


@dataclass(frozen=True)
class _Solved:
    """Solved layer; stays in memory with the intermediate results of corrections.

    See :meth:`~q2n.types.QuantizedLinear.recall`.
    """

    base: QuantizedLinear
    seconds: float


@contextmanager
def solving(context: StageContext, key: str, baseline: Baseline, block: int) -> Iterator[Solve]:
    """Yield the baseline's ``solve`` for the layers of one block; each layer is solved once.

    New solutions are kept at the end.
    """
    address = Address(STAGE, key, f"{block:05d}")
    known = _find(context, address)
    done: dict[str, _Solved] = {}
    fresh = []

    def solve(part: LinearProblem, correction: Correction) -> Solution:
        label = ",".join(part.names)

        def quantize(problem: LinearProblem) -> QuantizedLinear:
            solved = _solved(known.get(label), problem.weight)
            context.tally.note(STAGE, key, solved is not None, solved.seconds if solved else 0)
            if solved is None:
                began = time.perf_counter()
                base = baseline.quantize(problem)
                solved = _Solved(canonical(base), time.perf_counter() - began)
                fresh.append(label)
            done[label] = solved
            return solved.base

        return baseline.solve(part, correction, quantize)

    yield solve
    if fresh:
        context.store.write(address, *_packed(done))
    context.remember_object(address, done, sum(_size(solved.base) for solved in done.values()))


def _find(context: StageContext, address: Address) -> Mapping[str, _Solved | Part]:
    """Return the known layers of a block; those from the cache folder are still parts."""
    known: dict[str, _Solved] | None = context.memory.get(address)
    if known is not None:
        return known
    stored = context.store.open(address)
    return _unpacked(context.load(stored)) if stored else {}


def _solved(found: _Solved | Part | None, weight: Tensor) -> _Solved | None:
    """Return the layer that was found for ``weight``, or None if this version lacks its number format."""
    if not isinstance(found, Part):
        return found
    try:
        return _Solved(decode(found.tensors, found.facts, weight), float(found.facts["seconds"]))
    except (AttributeError, ImportError, KeyError, TypeError, ValueError):
        return None


def _packed(done: Mapping[str, _Solved]) -> Part:
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for label, solved in done.items():
        own, facts[label] = encode(solved.base)
        facts[label]["seconds"] = solved.seconds
        tensors |= {f"{label} {name}": tensor for name, tensor in own.items()}
    return Part(tensors, facts)


def _unpacked(part: Part) -> dict[str, Part]:
    tensors: dict[str, dict[str, Tensor]] = {label: {} for label in part.facts}
    for path, tensor in part.tensors.items():
        label, _, name = path.partition(" ")
        tensors[label][name] = tensor
    return {label: Part(tensors[label], facts) for label, facts in part.facts.items()}


def _size(base: QuantizedLinear) -> int:
    """Return the bytes in memory, including the original and the dequantized weight in float32."""
    rows, columns = base.format.shape
    return total_bytes(encode(base)[0]) + 2 * 4 * rows * columns
