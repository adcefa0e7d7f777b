"""Numbers computed by the official classes on small layers; each file holds inputs, settings and results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from q2n.corrections.null_space import NullSpaceScale
from q2n.pipeline.calibration import Accumulators
from q2n.types import LinearProblem, QuantizedLinear, Statistic

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


def check_row_scales(data: Golden, quantized: QuantizedLinear, problem: LinearProblem, **fields: Any) -> None:
    """Every null-space scale the file holds: both statistics, references and index rules."""
    references = ["original", "compensated"]
    for statistic in ("gram", "position_mean"):
        for reference in references:
            for rule in ("released", "textbook"):
                plain = (reference, rule) == ("original", "released")
                alternative = f"alt_alpha__{statistic}__{reference}__{rule}"
                key = f"aligned_alpha_{statistic}" if plain else alternative
                if key not in data:
                    continue
                correction = NullSpaceScale(
                    t=data.settings["threshold"],
                    lam=data.settings["lambda"],
                    statistic=statistic,
                    reference=reference,
                    index_rule=rule,
                    **fields,
                )
                found = correction.correct(problem, quantized).diagnostics
                expected = problem.weight.shape[1] - int(data[key.replace("alpha", "k")])
                assert found["null_rank"] == expected, key
                assert torch.allclose(found["alpha"], data[key], atol=2e-5, rtol=0), key
