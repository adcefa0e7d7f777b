"""What an option of the config group ``evaluation`` can do, and the arithmetic of its metrics, which may be
beyond the range of floats."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q2n.data.text import TokenSet
from q2n.models.loaded import Outline
from q2n.records.schema import Metric

if TYPE_CHECKING:
    import torch

    from q2n.models.loaded import LoadedModel


@dataclass(frozen=True)
class EvaluationContext:
    """A model to be measured, where, and whom to tell of progress (fraction done, what is being done).

    ``kept`` is what :meth:`Evaluation.keep` returned of the unquantized model; None while that one is
    measured. ``quantized`` is whether the quantized model is measured: what it outputs is its result, even if
    that is not a number.
    """

    loaded: LoadedModel
    device: torch.device
    dtype: torch.dtype
    cache_dir: str | None
    progress: Callable[[float, str], None]
    kept: Any = None
    quantized: bool = False


class Evaluation(ABC):
    """Measures a model in place; the same call serves the unquantized and the quantized one."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What identifies the text that is measured on, cheaply, for fingerprints."""

    def prepare(self, cache_dir: str | None) -> None:
        """Make sure that everything but the model is there; called before the model is loaded.

        Raises:
            DataError: a text or a task's data cannot be had.
            ConfigurationError: something is asked for that does not exist or is not allowed.
        """

    def examine(self, outline: Outline, cache_dir: str | None) -> list[TokenSet]:
        """Check what this model's tokenizer decides, before the weights are read.

        Returns:
            The windows of every text that will be measured on.

        Raises:
            DataError: too little text, or a special token that the tokenizer lacks.
            UnsupportedError: the tokenizer lacks something else that is asked for.
        """
        return []

    def keep(self, context: EvaluationContext, identity: Mapping[str, Any]) -> Any:
        """What the quantized model will be compared with; called just before quantization changes the model.

        Args:
            context: the unquantized model.
            identity: the cell's, for what is kept in the cache folder.
        """
        return None

    @abstractmethod
    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        """The metrics, each under its protocol.

        Raises:
            DataError: too little text.
            NumericalError: what the unquantized model outputs is not a number.
        """


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (``s / sqrt(n)``, ``s`` with ``n - 1``); None for fewer than two values,
    or where one or the spread is not finite."""
    finite = all(map(math.isfinite, values))
    mean = (math.fsum(values) if finite else sum(values)) / len(values)
    if not finite or len(values) < 2:
        return mean, None
    try:
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    except OverflowError:
        return mean, None
    return mean, math.sqrt(variance / len(values))


def within_range(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, infinite where it is beyond the range of floats."""

    def tolerant(argument: Any) -> Any:
        try:
            return function(argument)
        except OverflowError:
            return math.inf

    return tolerant


exp: Callable[[float], float] = within_range(math.exp)
expm1: Callable[[float], float] = within_range(math.expm1)
