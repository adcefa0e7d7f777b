"""Losses and scores beyond the range of floats: infinite, and never the end of a quantized model's cell."""

import json
import math

import pytest
import torch
from helpers.pages import folder, study
from helpers.records import make_metric, make_protocol, make_record
from helpers.runs import tiny, tokens
from helpers.special_tokens import ROLLING, with_tokens

from q2n.cells.run import objective, run_cell
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.evaluation.base import EvaluationContext, exp, expm1, mean_and_stderr
from q2n.evaluation.divergence import Divergence, divergences
from q2n.evaluation.harness import Harness
from q2n.evaluation.harness.model import HarnessModel
from q2n.evaluation.perplexity import Perplexity
from q2n.evaluation.reference import Original
from q2n.evaluation.windows import last_hidden_states
from q2n.exceptions import NumericalError
from q2n.models.spec import TinyModel
from q2n.records import store as records
from q2n.records.known_values import check_reference, earlier_values
from q2n.report.figures.of_study import write_figures
from q2n.report.page.html import render
from q2n.report.render.formats import latex, markdown
from q2n.report.significance import compare
from q2n.report.studies.study import CostGain, Differences, HeatMapFigure, Lines
from q2n.report.tables.pairs import pairs_of
from q2n.report.tables.table import build_table
from q2n.tracking import content

CPU = torch.device("cpu")
TEXT = {"datasets": ["wiki"], "seqlen": 64, "windows": 3}


def context(loaded, **changes):
    return EvaluationContext(loaded, CPU, torch.float32, None, lambda done, stage: None, **changes)


@torch.no_grad()
def scaled(factor):
    """A model whose logits are ``factor`` times as large."""
    loaded = tiny(tied=False)
    loaded.model.lm_head.weight.mul_(factor)
    return loaded


def broken():
    """A model whose logits are not numbers."""
    return scaled(math.nan)


# --- numbers ----------------------------------------------------------------------------------------------


def test_exponentials_overflow_to_infinity():
    assert (exp(1.5), expm1(1.5)) == (math.exp(1.5), math.expm1(1.5))
    assert exp(1e4) == expm1(1e4) == exp(math.inf) == math.inf
    assert exp(-math.inf) == 0


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1.0, math.inf], math.inf),
        ([-math.inf, -1.0], -math.inf),
        ([1e200, -1e200, 3e200], 1e200),
        ([math.inf], math.inf),
    ],
)
def test_a_mean_without_a_finite_spread_has_no_standard_error(values, mean):
    assert mean_and_stderr(values) == (pytest.approx(mean), None)


@torch.no_grad()
def test_a_perplexity_beyond_floats_is_infinite_with_finite_losses():
    option = Perplexity(**TEXT)
    (metric,) = option.evaluate(context(scaled(1e4)))
    assert metric.value == math.inf
    assert all(700 < loss < math.inf for loss in metric.per_window)
    assert metric.undefined == 0
    (metric,) = option.evaluate(context(scaled(1e37)))
    assert metric.value == math.inf


@torch.no_grad()
def test_what_is_not_a_number_stops_the_unquantized_model_and_is_the_result_of_a_quantized_one():
    option = Perplexity(**TEXT)
    with pytest.raises(NumericalError, match=r"unquantized model's output is not a number on 3 of 3 windows"):
        option.evaluate(context(broken()))
    (metric,) = option.evaluate(context(broken(), quantized=True))
    assert (metric.value, metric.per_window, metric.undefined) == (math.inf, (math.inf,) * 3, 3)
    assert "not a number on 3 of 3 windows" in metric.notes[0]


@torch.no_grad()
def test_divergence_from_what_is_not_a_number_is_infinite():
    option, identity = Divergence(**TEXT), {"config": {"model": {}, "evaluation": {}}, "weights": {}}
    identity |= {"data": {"evaluation": {}}, "hardware": {}, "versions": {}, "sources": {}}
    kept = {"wiki": original(tiny(tied=False), option.text("wiki", tiny().tokenizer, None).tokens)}
    kl, agreement = option.evaluate(context(broken(), kept=kept, quantized=True))
    assert (kl.value, kl.stderr, kl.undefined) == (math.inf, None, 3)
    assert agreement.value == 0
    loaded = tiny()
    loaded.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="unquantized model's output is not finite"):
        option.keep(context(loaded), identity)


def original(loaded, windows):
    states = last_hidden_states(loaded.adapter, windows, 2, CPU, lambda done: None)
    return Original(states, loaded.adapter.lm_head.weight.detach().clone())


@torch.no_grad()
def test_a_token_without_probability_adds_nothing_to_a_divergence():
    """Logits of -inf on both sides; on one side only where the other has no probability, or has some."""
    windows, loaded = tokens(2, 20), tiny(tied=False)
    kept, head = original(loaded, windows), loaded.adapter.lm_head

    def measured(before, after):
        class Head(torch.nn.Module):
            def forward(self, rows):
                logits = torch.nn.functional.linear(rows, head.weight)
                logits[:, after] = -math.inf
                return logits

        class Kept(Original):
            def logits(self, rows):
                logits = super().logits(rows)
                logits[:, before] = -math.inf
                return logits

        adapter = type("Adapter", (), {"lm_head": Head()})
        return divergences(Kept(kept.states, kept.head), adapter, kept.states).kl

    assert measured([], []) == [0, 0]
    assert measured([5], [5]) == [0, 0]
    assert all(0 < value < math.inf for value in measured([5], []))
    assert measured([], [5]) == [math.inf] * 2


# --- tasks ------------------------------------------------------------------------------------------------

TASKS = {"tasks": ["q2n_wiki_cloze", "q2n_wiki_lastword"], "limit": 6}


def test_a_tasks_perplexity_beyond_floats_is_infinite():
    found = {metric.name: metric for metric in Harness(**TASKS).evaluate(context(scaled(1e4)))}
    assert found["perplexity"].value == math.inf
    assert found["perplexity"].stderr is None
    assert all(map(math.isfinite, found["perplexity"].per_window))
    assert 0 <= found["acc_norm"].value <= 1


def test_an_answer_that_is_not_a_number_has_no_probability():
    with pytest.raises(NumericalError, match="task q2n_wiki_cloze: acc_norm of the unquantized model"):
        Harness(**TASKS).evaluate(context(broken()))
    found = {m.name: m for m in Harness(**TASKS).evaluate(context(broken(), quantized=True))}
    assert found["perplexity"].value == math.inf
    assert found["perplexity"].per_window == (math.inf,) * 6
    assert found["acc"].value == 0
    assert {metric.undefined for metric in found.values()} == {6}


@pytest.mark.parametrize(("factor", "undefined"), [(1e4, 0), (math.nan, 2)])
def test_perplexities_of_whole_texts_are_infinite(factor, undefined, tmp_path):
    data, file = tmp_path / "texts.jsonl", tmp_path / "texts.yaml"
    data.write_text("\n".join(json.dumps({"text": f"The river runs past mill {i}."}) for i in range(2)))
    file.write_text(ROLLING.format(file=data))
    loaded = with_tokens(scaled(factor), "bos")
    found = {m.name: m for m in Harness(tasks=[str(file)]).evaluate(context(loaded, quantized=True))}
    assert found["word_perplexity"].value == math.inf
    assert {metric.undefined for metric in found.values()} == {undefined}
    assert math.isfinite(found["bits_per_byte"].value) == (not undefined)


def test_a_window_that_is_not_a_number_undoes_only_its_own_text():
    loaded = with_tokens(tiny(), "bos")
    model = HarnessModel(context(loaded), "auto")
    request = type("Request", (), {"args": ("a", "b")})
    assert model._defined(request, -3.5) == -3.5
    assert model._defined(request, math.nan) == -math.inf
    assert model.undefined == {("a", "b")}


# --- records and what reads them --------------------------------------------------------------------------


def cell(correction, losses, seed=0, **changes):
    value = exp(sum(losses) / len(losses))
    fields = {"per_window": tuple(losses), "reference": math.inf, "reference_per_window": (800.0,) * 8}
    metric = make_metric(value, protocol=make_protocol(windows=8), **{**fields, **changes})
    return make_record(correction=correction, seed=seed, metrics=(metric,))


FINITE = [2.0 + 0.1 * i for i in range(8)]
LARGE = [800.0 + i for i in range(8)]
INFINITE = [3.0] * 7 + [math.inf]


@pytest.mark.parametrize("losses", [LARGE, INFINITE])
def test_infinity_comes_back_from_its_file(losses, tmp_path):
    record = cell("on", losses, undefined=1)
    path = records.save(record, tmp_path)
    assert records.load(path) == record
    assert "Infinity" not in path.read_text()
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize(
    ("on", "off", "difference"),
    [
        (FINITE, LARGE, "-inf better"),
        (LARGE, FINITE, "inf worse"),
        (FINITE, INFINITE, "-inf better"),
        (INFINITE, INFINITE, "\u2013"),
        (LARGE, LARGE, "\u2013"),
        (LARGE, INFINITE, "\u2013"),
    ],
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_table_shows_infinity(on, off, difference, seeds):
    made = [cell(name, losses, seed) for seed in range(seeds) for name, losses in (("on", on), ("off", off))]
    table = build_table(made)
    lines = {line.row.line: line.numbers[0].text for line in table.lines}
    assert lines["unquantized"] == "inf"
    assert (lines["off"].partition(" ")[0] == "inf") == (off is not FINITE)
    assert lines["on - off"].lstrip("+") == difference
    assert "inf" in markdown(table, "title")
    assert "inf" in latex(table, "title")
    for pair in pairs_of(table, "study"):
        assert pair.verdict in ("better", "worse", "undecided")
    assert "inf" in records.to_frame(made).to_csv()
    for record in made:
        columns, rows = content.table_of(records.to_frame([record]))
        assert len(rows[0]) == len(columns)
        assert content.summary_of(record)["wiki/perplexity"] == record.metrics[0].value
    assert objective(made[0], None, "minimize") == made[0].metrics[0].value


def test_statistics_say_nothing_of_infinite_losses():
    found = compare([INFINITE], [FINITE])
    assert all(map(math.isnan, (found.difference, found.low, found.high, found.p_value)))


def test_an_infinite_reference_is_no_known_value():
    record = cell("on", LARGE)
    assert earlier_values([record]) == []
    check_reference(record.metrics, "m", {}, earlier_values([record]))


REACHES = {
    "some": lambda t, lam: 800.0 * (t == 0.1),
    "all": lambda t, lam: 800.0,
    "infinite losses": lambda t, lam: math.inf if t == 0.1 else 0.0,
}


@pytest.mark.parametrize(
    "reach", ["some", *(pytest.param(n, marks=pytest.mark.slow) for n in REACHES if n != "some")]
)
@pytest.mark.parametrize("off", [0.0, pytest.param(800.0, marks=pytest.mark.slow)])
def test_figures_and_page_have_infinite_values(reach, off, tmp_path):
    """Everything a study can draw, without a warning."""
    cells = {
        (t, lam, correction): REACHES[reach](t, lam) if correction == "on" else off
        for t in (0.1, 0.01)
        for lam in (0, 0.5)
        for correction in ("on", "off")
    }
    made = {}
    for (t, lam, correction), more in cells.items():
        fields = {"t": t, "lam": lam} if correction == "on" else {}
        for seed in (0, 1):
            losses = [2.0 + 0.1 * i + 0.01 * seed + more for i in range(8)]
            metric = make_metric(exp(sum(losses) / 8), per_window=tuple(losses), reference=exp(off + 2))
            times = {"seconds": {"quantize": 40.0}, "work_seconds": {"correct": 3.0}}
            record = make_record(
                correction=correction, seed=seed, q2n_fields=fields, metrics=(metric,), **times
            )
            made[record.fingerprint] = record
    figures = (HeatMapFigure(x="q2n.t", y="q2n.lam"), Differences(), Lines(x="q2n.t"), CostGain())
    report, results = folder(tmp_path, list(made.values()), study=study(figures=figures))
    written = write_figures(report.studies[0], results)
    assert len(written) >= 2
    page = render(report, results)
    assert ">inf<" in page.replace("\n", "")
    assert "Infinity" not in page


@pytest.mark.slow
def test_a_cell_whose_perplexity_overflows_finishes(tmp_path, monkeypatch):
    load = TinyModel.load

    def huge(self, *arguments):
        loaded = load(self, *arguments)
        loaded.model.lm_head.weight.mul_(1e4)
        return loaded

    monkeypatch.setattr(TinyModel, "load", huge)
    small = [
        "calibration.nsamples=2",
        "calibration.seqlen=32",
        "evaluation.windows=2",
        "evaluation.seqlen=64",
    ]
    folders = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache", "dtype=float32"]
    (config,) = preflight(CONFIG_DIR, ["model=tiny_llama", "baseline=rtn", "q2n=off", *small, *folders]).cells
    outcome = run_cell(config)
    assert (outcome.decision, outcome.exit_code) == ("computed", 0)
    (metric,) = outcome.record.metrics
    assert metric.value == metric.reference == math.inf
    again = run_cell(config)
    assert (again.decision, again.record) == ("reused", outcome.record)
