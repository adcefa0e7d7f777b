"""Every compiled kernel on numbers of every kind, each index compared with its array's bounds.

    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=FOLDER python tests/helpers/every_kernel.py [KERNEL ...]

Bounds are compared only in code compiled under that variable, which the cached code of other processes is
not: hence a process and a folder of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from q2n.linalg import kernels
from q2n.linalg.kernels import columns, forward, jit, kmeans, rounding, search
from q2n.quantization.formats.clip import minorants

Array = np.ndarray[Any, Any]
Arguments = list[Any]

NORMAL = np.random.default_rng(0).normal
LEVELS = 7


def _one(value: float) -> Callable[[Array], Array]:
    def spoil(array: Array) -> Array:
        array.flat[array.size // 2 :][:1] = value
        return array

    return spoil


def _mixed(array: Array) -> Array:
    return np.sign(array) * 10.0 ** np.linspace(-30, 30, array.size).reshape(array.shape)


SPOILT: dict[str, Callable[[Array], Array]] = {
    "zero": lambda array: 0 * array,
    "constant": lambda array: 0 * array + 0.5,
    "negative": lambda array: 0 * array - 3,
    "subnormal": lambda array: array * 1e-39,
    "huge": lambda array: np.sign(array) * 3e38,
    "one outlier": _one(1e30),
    "mixed magnitude": _mixed,
    "one NaN": _one(np.nan),
    "NaN": lambda array: 0 * array + np.nan,
    "one infinity": _one(np.inf),
    "infinity": lambda array: 0 * array + np.inf,
    "negative infinity": lambda array: 0 * array - np.inf,
    "both infinities": lambda array: np.sign(array) * np.inf,
}
"""What becomes of an array of ordinary numbers, in double precision."""


def ordinary(*shape: int) -> Array:
    return NORMAL(size=shape).astype(np.float32)


def halves(*shape: int) -> Array:
    """Bfloat16 numbers as their bits."""
    return _bits(ordinary(*shape))


def _bits(values: Array) -> Array:
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def strip(count: int, rows: int, target: bool, values: bool) -> tuple[Array, ...]:
    """The argument that kernels of the column loop share."""
    none = np.empty((0, 0), np.float32)
    push = np.triu(ordinary(count, count))
    arrays = (ordinary(count, rows), push, ordinary(count, rows), np.abs(ordinary(count)) + 1)
    return *arrays, ordinary(count, rows) if target else none, ordinary(count, rows) if values else none


def calls() -> Iterator[tuple[Any, Arguments]]:
    """Every kernel with ordinary arguments, in the shapes that its branches tell apart."""
    for rows, count, target in product((1, 40), (1, 9), (False, True)):
        shared = strip(count, rows, target, values=target)
        scale, zero = np.abs(ordinary(2, rows)), np.round(np.abs(ordinary(2, rows)))
        group = np.arange(count, dtype=np.int64) % 2
        shift, codes = np.zeros_like(scale), ordinary(count, rows)
        yield (
            columns.round_uniform,
            [shared, (codes, scale, zero, group), shift, float(LEVELS), target],
        )
        table = np.sort(ordinary(8, rows), axis=0)
        yield columns.round_table, [shared, codes, table, (table[1:] + table[:-1]) / 2]
        held = (ordinary(count, rows) > 0).astype(np.float32)
        low = (ordinary(count, rows), ordinary(2, rows), scale, group)
        yield (
            columns.round_salient,
            [shared, low, held, (codes, scale, zero, group), float(LEVELS)],
        )
    for rows, width in product((1, 40), (1, 30)):
        weight, zeros = ordinary(rows, width), np.full((80, rows), 4, np.float32)
        units, best = np.abs(ordinary(rows)), np.zeros(rows, np.int64)
        for multiples in (np.arange(100, 20, -1), np.array([3, 2])):
            bound = minorants(multiples, LEVELS, width)
            scales = units * multiples[:, None].astype(np.float32)
            yield (
                search.best_shrinkage,
                [weight, scales, zeros[: len(multiples)], LEVELS, (multiples, bound, 1e-4), best, 0, rows],
            )
        for multiples in (np.arange(1, 41), np.arange(1, 3)):
            bound = minorants(multiples, LEVELS, width)
            yield (
                search.best_step_and_zero,
                [weight, units, LEVELS, (multiples, bound, 1e-4), best, 0, rows],
            )
        for clusters in (4, 16):
            centres = np.sort(NORMAL(size=(rows, clusters)), axis=1)
            importance = np.abs(ordinary(width))
            yield kmeans.lloyd_rows, [weight, importance, 1e-6, 100, centres, 0, rows]
        scale, zero = np.abs(ordinary(width)), np.round(np.abs(ordinary(rows)))
        result = np.zeros_like(weight)
        for size in (width, 7):
            yield rounding.round_scaled, [weight, scale, size, LEVELS, 1e-5, result, 0, rows]
        errors = np.zeros(width)
        yield rounding.add_column_errors, [weight, np.abs(ordinary(rows)), zero, LEVELS, errors]
        for bits in (2, 8):
            yield forward.round_tokens, [weight, bits, 0.9, result, 0, rows]
            tokens = halves(rows, width)
            yield forward.round_half_tokens, [tokens, bits, 0.9, tokens.copy(), 0, rows]
        rows_of_halves, weights = halves(rows, width), halves(width)
        yield (
            forward.norm_rows,
            [rows_of_halves, weights, 1e-6, rows_of_halves.copy(), 0, rows],
        )
        table = ordinary(1 << 16)
        yield (
            forward.multiply_activated,
            [rows_of_halves, table, halves(rows, width), rows_of_halves.copy(), 0, rows],
        )


def spoilt(arguments: Arguments) -> Iterator[Arguments]:
    """The call as it is, with each of its floats of each kind, and with all of them of that kind."""
    flat = [part for value in arguments for part in (value if isinstance(value, tuple) else (value,))]
    places = [place for place, value in enumerate(flat) if _is_float(value)]
    yield _arranged(_copied(flat), arguments)
    for kind in SPOILT:
        for chosen in ([], *([place] for place in places), places):
            changed = _copied(flat)
            for place in chosen:
                changed[place] = _spoil(changed[place], kind)
            yield _arranged(changed, arguments)


def _copied(flat: Arguments) -> Arguments:
    return [value.copy() if isinstance(value, np.ndarray) else value for value in flat]


def _arranged(flat: Arguments, arguments: Arguments) -> Arguments:
    """The parts of ``flat`` in tuples where ``arguments`` has tuples."""
    parts = iter(flat)
    return [
        tuple(next(parts) for _ in value) if isinstance(value, tuple) else next(parts) for value in arguments
    ]


def _is_float(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype != np.int64 and bool(value.size)
    return isinstance(value, float)


def _spoil(value: Any, kind: str) -> Any:
    with np.errstate(all="ignore"):
        if isinstance(value, float):
            return float(SPOILT[kind](np.array([value]))[0])
        if value.dtype.kind == "f":
            return SPOILT[kind](value.astype(np.float64)).astype(value.dtype)
        numbers = (value.astype(np.uint32) << 16).view(np.float32)
        return _bits(SPOILT[kind](numbers.astype(np.float64)).astype(np.float32))


def compiled() -> dict[str, Any]:
    """Every function of the package that is compiled, by name."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__, "q2n.linalg.kernels."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Dispatcher):
                found[f"{module.name}.{name}"] = value
    return found


def bounds_are_checked() -> bool:
    @jit
    def beyond(array: Array) -> float:
        return float(array[len(array)])

    try:
        beyond(np.zeros(3))
    except IndexError:
        return True
    return False


def main(wanted: Sequence[str]) -> None:
    if not bounds_are_checked():
        raise SystemExit("set NUMBA_BOUNDSCHECK=1, and NUMBA_CACHE_DIR to a folder of its own")
    count = 0
    for kernel, arguments in calls():
        for changed in spoilt(arguments) if not wanted or kernel.__name__ in wanted else ():
            kernel(*changed)
            count += 1
    left_out = [name for name, function in compiled().items() if not function.signatures]
    if left_out and not wanted:
        raise SystemExit(f"never called: {', '.join(left_out)}")
    print(f"{count} calls of {len(compiled())} functions")


if __name__ == "__main__":
    main(sys.argv[1:])
