"""What an option of the config group ``evaluation`` can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from q2n.models.loading import LoadedModel
    from q2n.schema import Metric


@dataclass(frozen=True)
class EvaluationContext:
    """A model to be measured, where, and whom to tell of progress (fraction done, what is being done)."""

    loaded: LoadedModel
    device: torch.device
    dtype: torch.dtype
    cache_dir: str | None
    progress: Callable[[float, str], None]


class Evaluation(ABC):
    """Measures a model in place; the same call serves the unquantized and the quantized one."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What identifies the text that is measured on, cheaply, for fingerprints."""

    @abstractmethod
    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        """The metrics, each under its protocol.

        Raises:
            DataError: too little text.
            NumericalError: a loss is not finite.
        """
