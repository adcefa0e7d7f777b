"""All bundled measurements as one option, on a tiny model through the real run.py."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import records
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from q2n.cli import CONFIG_DIR
from q2n.command.hydra_errors import explain
from q2n.command.preflight import preflight
from q2n.exceptions import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("model=tiny_llama", "group_size=32", "calibration=news", "calibration.nsamples=4"),
    *("calibration.seqlen=64", "evaluation=paper_bundled", "evaluation.parts.tasks.limit=6"),
    *("evaluation.parts.perplexity.seqlen=64", "evaluation.parts.perplexity.windows=3"),
    *("evaluation.parts.divergence.seqlen=64", "evaluation.parts.divergence.windows=3"),
]
EXPECTED = {
    ("perplexity", "wiki"),
    ("perplexity", "news"),
    ("kl_divergence", "wiki"),
    ("kl_divergence", "news"),
    ("top1_agreement", "wiki"),
    ("top1_agreement", "news"),
    ("acc_norm", "q2n_wiki_cloze"),
    ("acc_norm", "q2n_news_cloze"),
    ("acc", "q2n_wiki_lastword"),
    ("perplexity", "q2n_wiki_lastword"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-m", "bits=2,8", "baseline=rtn", "q2n=off", *SMALL],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "Q2N_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        record["cell"]["bits"]: {(metric["name"], metric["dataset"]): metric for metric in record["metrics"]}
        for record in records(folder / "results").values()
    }


@pytest.mark.slow
def test_every_part_is_measured(found):
    assert {bits: set(metrics) for bits, metrics in found.items()} == {2: EXPECTED, 8: EXPECTED}


@pytest.mark.slow
def test_finer_weights_diverge_less(found):
    for text in ("wiki", "news"):
        coarse, fine = (found[bits]["kl_divergence", text] for bits in (2, 8))
        assert 0 <= fine["value"] < coarse["value"] / 10
        assert found[8]["top1_agreement", text]["value"] > found[2]["top1_agreement", text]["value"]
        assert coarse["protocol"] == fine["protocol"] == found[2]["perplexity", text]["protocol"]


@pytest.mark.slow
def test_each_value_is_the_mean_of_its_parts(found):
    for metrics in found.values():
        for (name, _), metric in metrics.items():
            if name in ("acc", "acc_norm"):
                assert metric["value"] == pytest.approx(metric["per_item"].count("1") / metric["count"])
                assert len(metric["reference_per_item"]) == metric["count"] == 6
            else:
                mean = sum(metric["per_window"]) / metric["count"]
                assert metric["value"] == pytest.approx(math.exp(mean) if name == "perplexity" else mean)


def test_a_mistake_in_a_part_names_its_key():
    with pytest.raises(ConfigurationError, match=r"evaluation\.parts\.tasks\.limit=-1: .*greater"):
        preflight(CONFIG_DIR, ["evaluation=paper_bundled", "evaluation.parts.tasks.limit=-1"])


def test_an_unknown_key_of_a_part_is_named_with_the_nearest():
    with pytest.raises(ConfigCompositionException) as caught:
        preflight(CONFIG_DIR, ["evaluation=paper_bundled", "evaluation.parts.tasks.limt=3"])
    message = explain(caught.value, [CONFIG_DIR], ["evaluation=paper_bundled"])
    assert "evaluation.parts.tasks.limt: no such key in evaluation=paper_bundled" in message
    assert "did you mean 'parts.tasks.limit'" in message


def test_an_option_becomes_one_more_part():
    more = "+evaluation@evaluation.parts.more=zero_shot"
    assert len(preflight(CONFIG_DIR, ["evaluation=paper_bundled", more]).cells) == 1


def test_the_paper_is_measured_as_its_release_does():
    parts = OmegaConf.load(CONFIG_DIR / "evaluation" / "paper.yaml").parts
    assert parts.perplexity.seqlen == 2048
    assert list(parts.perplexity.datasets) == ["wikitext2", "ptb", "c4"]
