"""What a stage's key depends on, and what it does not."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

from q2n.baselines.awq import AWQ
from q2n.baselines.gptq import GPTQ
from q2n.baselines.quarot import QuaRot
from q2n.baselines.rtn import RTN
from q2n.baselines.smoothquant import SmoothQuant
from q2n.pipeline.sharing.keys import rewrite_identity, stage_keys
from q2n.records.source_code import CHECKOUT, PACKAGE, Checkout

OPTIONS = {"gptq": GPTQ, "rtn": RTN, "quarot": QuaRot, "awq": AWQ, "smoothquant": SmoothQuant}
PLAIN = GPTQ(bits=3, group_size=64)


def cell(name="gptq", heldout=0, checkout=CHECKOUT, **changes):
    """Keys of a cell; ``changes`` by path, its parts joined by ``__``."""
    section = {"_target_": f"q2n.baselines.{name}.{OPTIONS[name].__name__}", "bits": 3, "group_size": 64}
    identity = {
        "config": {
            "model": {"_target_": "q2n.models.spec.TinyModel", "name": "m"},
            "baseline": section,
            "q2n": {"t": 0.1},
            "calibration": {
                "_target_": "q2n.data.sources.WikiCalibration",
                "nsamples": 4,
                "activations": "memory",
            },
            "evaluation": {"windows": 4},
            "seed": 0,
        },
        "weights": {"sha256": "w"},
        "data": {"calibration": {"sha256": "c"}, "evaluation": {"sha256": "e"}},
        "hardware": {"device": "cpu", "dtype": "float32"},
        "versions": {"torch": "2.13"},
    }
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        tree = identity
        for parent in parents:
            tree = tree[parent]
        assert leaf in tree
        tree[leaf] = value
    fields = {key: value for key, value in section.items() if key != "_target_"}
    return stage_keys(identity, OPTIONS[name](**fields), heldout, checkout)


BASE = cell()


@pytest.mark.parametrize(
    "change",
    [
        {"config__q2n": {"t": 0.2}},
        {"config__evaluation": {}},
        {"config__calibration__activations": "disk"},
        {"data__evaluation": {}},
    ],
)
def test_corrections_and_evaluation_change_no_key(change):
    assert cell(**change) == BASE


@pytest.mark.parametrize(
    "change",
    [
        {"heldout": 2},
        {"config__model__name": "n"},
        {"weights__sha256": ""},
        {"config__calibration__nsamples": 8},
        {"data__calibration": {}},
        {"hardware__dtype": "bfloat16"},
        {"versions__torch": "2.14"},
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
    ],
)
def test_what_solves_changes_the_codes_alone(change):
    changed = cell(**change)
    assert (changed.statistics, changed.spectra) == (BASE.statistics, BASE.spectra)
    assert changed.codes != BASE.codes


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The package with one module changed."""
    package = tmp_path_factory.mktemp("checkout") / "q2n"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))

    @contextmanager
    def edit(name):
        file = package / name
        text = file.read_text()
        file.write_text(f"{text}\nCHANGED = True\n")
        yield Checkout(package)
        file.write_text(text)

    return edit


@pytest.mark.parametrize(
    ("name", "measures", "solves"),
    [
        ("corrections/null_space.py", False, False),
        ("evaluation/perplexity.py", False, False),
        ("report/tables/table.py", False, False),
        ("baselines/owq.py", False, False),
        ("pipeline/calibration.py", True, True),
        ("models/block.py", True, True),
        ("data/text.py", True, True),
        ("quantization/solvers/obs.py", False, True),
        ("quantization/formats/uniform.py", False, True),
        ("baselines/gptq.py", False, True),
    ],
)
def test_code_counts_where_it_is_run(edited, name, measures, solves):
    with edited(name) as checkout:
        changed = cell(checkout=checkout)
    assert (changed.statistics != BASE.statistics) == measures
    assert (changed.codes != BASE.codes) == (measures or solves)


def test_a_rewriting_baselines_code_counts_for_its_statistics(edited):
    with edited("quantization/transforms/rotation.py") as checkout:
        assert cell("quarot", checkout=checkout).statistics != cell("quarot").statistics
        assert cell("gptq", checkout=checkout) == BASE


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
