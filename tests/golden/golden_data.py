"""Numbers made by running the official classes on small layers; see tests/golden/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from q2n.calibration import Accumulators
from q2n.types import LinearProblem, Statistic

DATA = Path(__file__).parent / "data"


class Golden:
    """One file: tensors by key, its settings, and the layer problem its inputs describe."""

    def __init__(self, name: str) -> None:
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
            self._arrays = {key: file[key] for key in file.files}
        self.settings: dict[str, Any] = json.loads(str(self._arrays["settings_json"]))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._arrays[key]))

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def keys(self) -> list[str]:
        return list(self._arrays)

    def problem(self, *statistics: Statistic) -> LinearProblem:
        wanted = {Statistic.GRAM, Statistic.POSITION_MEAN, *statistics}
        accumulators = Accumulators(wanted)
        for sequence in self["X"]:
            accumulators.update(sequence[None])
        weight = self["W"]
        return LinearProblem(("self_attn.q_proj",), (len(weight),), weight, accumulators.result())


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected magnitude, as the files' tolerances are stated."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
