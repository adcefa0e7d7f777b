"""Base class of evaluations, and arithmetic of metrics that may exceed the range of floats."""

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
    """A model to be measured, and the surroundings of the measurement.

    Attributes:
        loaded: model, tokenizer and adapter.
        device: device of the forward passes.
        dtype: dtype of the forward passes.
        cache_dir: cache folder, or None for the default one.
        progress: called with the fraction done and a description of the current step.
        kept: return value of :meth:`Evaluation.keep`, or None while the unquantized model is measured.
        quantized: True for the quantized model, whose output is a result even if it is not a number.
    """

    loaded: LoadedModel
    device: torch.device
    dtype: torch.dtype
    cache_dir: str | None
    progress: Callable[[float, str], None]
    kept: Any = None
    quantized: bool = False


class Evaluation(ABC):
    """Measures a model in memory; the same calls serve the unquantized and the quantized model."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what identifies the evaluation data, for fingerprints; cheap."""

    def prepare(self, cache_dir: str | None) -> None:
        """Load everything except the model; called before the model is loaded.

        Raises:
            DataError: a text or the data of a task are missing.
            ConfigurationError: a setting names something that does not exist or is not allowed.
        """

    def examine(self, outline: Outline, cache_dir: str | None) -> list[TokenSet]:
        """Check everything that depends on the model's tokenizer, before the weights are read.

        Returns:
            The windows of every evaluation text.

        Raises:
            DataError: the text is too short, or the tokenizer lacks a special token.
            UnsupportedError: the tokenizer lacks something else, such as a chat template.
        """
        return []

    def keep(self, context: EvaluationContext, identity: Mapping[str, Any]) -> Any:
        """Return what the quantized model is compared with; called just before quantization.

        Args:
            context: the unquantized model.
            identity: identity of the cell, part of the key in the cache folder.
        """
        return None

    @abstractmethod
    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        """Return the metrics, each with its protocol.

        Raises:
            DataError: the text is too short.
            NumericalError: the output of the unquantized model is not a number.
        """


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error (``s / sqrt(n)``, ``s`` with ``n - 1``).

    The error is None for fewer than two values, or if a value or the variance is not finite.
    """
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
    """Return the function with infinity in place of an overflow."""

    def tolerant(argument: Any) -> Any:
        try:
            return function(argument)
        except OverflowError:
            return math.inf

    return tolerant


exp: Callable[[float], float] = within_range(math.exp)
expm1: Callable[[float], float] = within_range(math.expm1)
