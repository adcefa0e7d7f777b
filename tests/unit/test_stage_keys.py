"""What a stage's key depends on, and what it does not."""

from __future__ import annotations

import pytest

from q2n.baselines.awq import AWQ
from q2n.baselines.gptq import GPTQ
from q2n.baselines.quarot import QuaRot
from q2n.baselines.rtn import RTN
from q2n.baselines.smoothquant import SmoothQuant
from q2n.stages.keys import rewrite_identity, stage_keys

OPTIONS = {"gptq": GPTQ, "rtn": RTN, "quarot": QuaRot, "awq": AWQ, "smoothquant": SmoothQuant}
PLAIN = GPTQ(bits=3, group_size=64)


def cell(name="gptq", heldout=0, **changes):
    """Keys of a cell; ``changes`` by path, its parts joined by ``__``."""
    section = {"_target_": f"q2n.baselines.{name}", "bits": 3, "group_size": 64}
    identity = {
        "config": {
            "model": {"name": "m"},
            "baseline": section,
            "q2n": {"t": 0.1},
            "calibration": {"nsamples": 4, "activations": "memory"},
            "evaluation": {"windows": 4},
            "seed": 0,
        },
        "weights": {"sha256": "w"},
        "data": {"calibration": {"sha256": "c"}, "evaluation": {"sha256": "e"}},
        "hardware": {"device": "cpu", "dtype": "float32"},
        "versions": {"torch": "2.13"},
        "sources": {
            f"q2n/{path}.py": path
            for path in (
                "linalg",
                "calibration",
                "corrections/null_space",
                "evaluation/perplexity",
                "solvers/obs",
                "grids/uniform",
                "baselines/gptq",
                "transforms/rotation",
                "models/block",
            )
        },
    }
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        tree = identity
        for parent in parents:
            tree = tree[parent]
        assert leaf in tree
        tree[leaf] = value
    fields = {key: value for key, value in section.items() if key != "_target_"}
    return stage_keys(identity, OPTIONS[name](**fields), heldout)


BASE = cell()


@pytest.mark.parametrize(
    "change",
    [
        {"config__q2n": {"t": 0.2}},
        {"config__evaluation": {}},
        {"config__calibration__activations": "disk"},
        {"data__evaluation": {}},
        {"sources__q2n/corrections/null_space.py": ""},
        {"sources__q2n/evaluation/perplexity.py": ""},
    ],
)
def test_corrections_and_evaluation_change_no_key(change):
    assert cell(**change) == BASE


@pytest.mark.parametrize(
    "change",
    [
        {"heldout": 2},
        {"config__model": {}},
        {"weights__sha256": ""},
        {"config__calibration__nsamples": 8},
        {"data__calibration": {}},
        {"hardware__dtype": "bfloat16"},
        {"versions__torch": "2.14"},
        {"sources__q2n/calibration.py": ""},
        {"sources__q2n/models/block.py": ""},
        {"sources__q2n/transforms/rotation.py": ""},
    ],
)
def test_what_measures_changes_every_key(change):
    changed = cell(**change)
    assert changed.statistics != BASE.statistics
    assert changed.codes != BASE.codes
    assert changed.spectra != BASE.spectra


@pytest.mark.parametrize(
    "change",
    [
        {"config__baseline__bits": 4},
        {"config__seed": 1},
        {"sources__q2n/solvers/obs.py": ""},
        {"sources__q2n/grids/uniform.py": ""},
        {"sources__q2n/baselines/gptq.py": ""},
    ],
)
def test_what_solves_changes_the_codes_alone(change):
    changed = cell(**change)
    assert (changed.statistics, changed.spectra) == (BASE.statistics, BASE.spectra)
    assert changed.codes != BASE.codes


def test_baselines_that_leave_the_model_alone_share_its_statistics():
    assert cell("rtn").statistics == BASE.statistics
    assert cell("rtn").codes != BASE.codes


@pytest.mark.parametrize(
    ("name", "field", "matters"),
    [
        ("quarot", "bits", False),
        ("quarot", "seed", True),
        ("smoothquant", "bits", False),
        ("smoothquant", "alpha", True),
        ("awq", "bits", True),
    ],
)
def test_a_rewritten_model_has_statistics_of_its_own(name, field, matters):
    baseline = OPTIONS[name](bits=3, group_size=64)
    section = {"_target_": f"q2n.baselines.{name}", "bits": 3, "seed": 0, "alpha": 0.5, "group_size": 64}
    changed = section | {field: 7}
    assert cell(name).statistics != BASE.statistics
    assert (rewrite_identity(section, baseline) != rewrite_identity(changed, baseline)) == matters


def test_a_baseline_that_says_nothing_shares_nothing_across_its_fields():
    class Shy(RTN):
        def rewrite(self, adapter):
            pass

    assert RTN(bits=3, group_size=64).rewrite_fields == ()
    assert Shy(bits=3, group_size=64).rewrite_fields is None
    assert PLAIN.rewrite_fields == ()
