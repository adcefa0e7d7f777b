"""Solved layers before the correction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from q2n.pipeline.sharing.codec import canonical, decode, encode
from q2n.pipeline.sharing.context import StageContext, total_bytes
from q2n.pipeline.sharing.store import Address
from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Solution

STAGE = "codes"

Solve = Callable[[LinearProblem, Correction], Solution]


@dataclass(frozen=True)
class _Solved:
    base: QuantizedLinear
    seconds: float


class SolutionsStage:
    """A baseline whose solver works once a layer."""

    def __init__(self, context: StageContext, key: str, baseline: Baseline) -> None:
        self._context, self._key, self._baseline = context, key, baseline

    @contextmanager
    def of_block(self, block: int) -> Iterator[Solve]:
        """The baseline's ``solve`` for the layers of one block; what is new is kept at the end."""
        address = Address(STAGE, self._key, f"{block:05d}")
        session = _Session(self._context, self._key, self._baseline, self._find(address))
        yield session.solve
        if session.fresh:
            tensors, facts = _packed(session.done)
            self._context.store.write(address, tensors, facts)
        size = sum(_size(solved.base) for solved in session.done.values())
        self._context.remember(address, session.done, size)

    def _find(self, address: Address) -> Mapping[str, _Solved | _Stored]:
        known: dict[str, _Solved] | None = self._context.memory.get(address)
        if known is not None:
            return known
        entry = self._context.store.open(address)
        return _unpacked(self._context.placed(entry.tensors()), entry.facts) if entry else {}


@dataclass(frozen=True)
class _Stored:
    """A solved layer from the cache folder, which lacks the weight it is a solution for."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def of(self, problem: LinearProblem) -> _Solved | None:
        """None where this version has no such format."""
        try:
            return _Solved(decode(self.tensors, self.facts, problem.weight), float(self.facts["seconds"]))
        except (AttributeError, ImportError, KeyError, TypeError, ValueError):
            return None


class _Session:
    """The layers of one block."""

    def __init__(
        self, context: StageContext, key: str, baseline: Baseline, known: Mapping[str, _Solved | _Stored]
    ) -> None:
        self._context, self._key, self._baseline, self._known = context, key, baseline, known
        self.done: dict[str, _Solved] = {}
        self.fresh = False

    def solve(self, part: LinearProblem, correction: Correction) -> Solution:
        label = ",".join(part.names)

        def quantize(problem: LinearProblem) -> QuantizedLinear:
            found = self._known.get(label)
            solved = found.of(problem) if isinstance(found, _Stored) else found
            self._context.ledger.note(STAGE, self._key, solved is not None, solved.seconds if solved else 0)
            if solved is None:
                began = time.perf_counter()
                base = self._baseline.quantize(problem)
                solved = _Solved(canonical(base), time.perf_counter() - began)
                self.fresh = True
            self.done[label] = solved
            return solved.base

        return self._baseline.solve(part, correction, quantize)


def _packed(done: Mapping[str, _Solved]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for label, solved in done.items():
        own, facts[label] = encode(solved.base)
        facts[label]["seconds"] = solved.seconds
        tensors |= {f"{label} {name}": tensor for name, tensor in own.items()}
    return tensors, facts


def _unpacked(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, _Stored]:
    parts: dict[str, dict[str, Tensor]] = {label: {} for label in facts}
    for path, tensor in tensors.items():
        label, _, name = path.partition(" ")
        parts[label][name] = tensor
    return {label: _Stored(parts[label], item) for label, item in facts.items()}


def _size(base: QuantizedLinear) -> int:
    """Bytes in memory, with the weight it is a solution for and its own dequantized one."""
    rows, columns = base.format.shape
    return total_bytes(encode(base)[0]) + 2 * 4 * rows * columns
