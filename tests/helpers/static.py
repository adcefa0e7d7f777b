"""Static cells: whole ones through the runner, on text and models that take a second."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

from helpers.commands import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from q2n.cells.run import run_cell
from q2n.config import GROUPS, RunConfig
from q2n.pipeline.sharing.context import MEMORY


def write_texts(folder: Path) -> Path:
    """Random words, one text to calibrate on and one to measure on."""
    generator = random.Random(0)
    words = [
        "".join(generator.choices(string.ascii_lowercase, k=generator.randint(2, 9))) for _ in range(300)
    ]
    for name in ("calibration", "evaluation"):
        (folder / f"{name}.txt").write_text(" ".join(generator.choices(words, k=4000)), encoding="utf-8")
    return folder


def static_cell(text: Path, folder: Path, *overrides: str, cache: str = "cache", forget: bool = True) -> Any:
    """The record of a forced cell; ``forget``: as another process would run it, with nothing in memory."""
    if forget:
        MEMORY.clear()
    outcome = run_cell(small_cell(text, folder, *overrides, cache=cache))
    assert outcome.record is not None, outcome.why
    return outcome.record


def small_cell(text: Path, folder: Path, *overrides: str, cache: str = "cache") -> RunConfig:
    """The configuration of a forced static cell on the two texts of :func:`write_texts`."""
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        composed = compose(
            "config",
            overrides=[
                "model=tiny_llama",
                "device=cpu",
                "dtype=float32",
                "group_size=32",
                "calibration=text",
                f"calibration.paths=[{text}/calibration.txt]",
                "calibration.nsamples=4",
                "calibration.seqlen=32",
                "calibration.stages=static",
                "evaluation.datasets=[text]",
                f"evaluation.paths=[{text}/evaluation.txt]",
                "evaluation.windows=2",
                "evaluation.seqlen=32",
                f"results_dir={folder / 'results'}",
                f"cache_dir={folder / cache}",
                "force=true",
                *overrides,
            ],
            return_hydra_config=True,
        )
    choices = dict(composed.hydra.runtime.choices)
    tree = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(tree, dict)
    del tree["hydra"]
    resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    assert isinstance(resolved, dict)
    return RunConfig(
        {str(key): value for key, value in resolved.items()}, {**dict.fromkeys(GROUPS, ""), **choices}, ()
    )


def numbers(record: Any) -> str:
    """What must not depend on what was kept; exact."""
    layers, metrics = (
        [
            {key: value for key, value in part.items() if not key.endswith("seconds")}
            for part in record.model_dump(mode="json")[name]
        ]
        for name in ("layers", "metrics")
    )
    return json.dumps([metrics, layers, record.bits_per_weight, record.fingerprint])
