"""Every experiment is a study: it composes, its page is complete, its report asks for what there is."""

from __future__ import annotations

import re

import pytest
from helpers.commands import ROOT
from helpers.studies import EXAMPLES, EXPERIMENTS, NAMES, axes, commands, last_cell
from omegaconf import OmegaConf

from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.records.fingerprint import flatten
from q2n.report.studies.study import QUESTIONS, HeatMapFigure, Lines, load_studies

STUDIES = load_studies(EXPERIMENTS)
INDEX = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")


def test_studies_and_experiments_are_the_same():
    assert sorted(STUDIES) == NAMES
    assert len(NAMES) == 17
    for name in EXAMPLES:
        assert f"conf/experiment/{name}.yaml` is no study" in INDEX


@pytest.mark.parametrize("name", NAMES)
def test_a_study_says_what_a_reader_needs(name):
    study = STUDIES[name]
    page = (EXPERIMENTS / name / "README.md").read_text(encoding="utf-8")
    for text in (study.question, study.command, study.outcome, study.verdict):
        assert text
    assert study.question.partition("\n\n")[0].endswith("?") != study.claims
    assert "\n\n" not in study.verdict
    assert study.verdict.count(". ") < 3, "one to three sentences"
    assert "Fixed before looking:" in page
    assert "How to read it:" in page or study.outcome != "Not run yet at this length."
    bundled, paper, *_ = [item for item in commands(name) if f"+experiment={name}" in item]
    assert bundled == ["-m", f"+experiment={name}"]
    assert any(item.startswith("model=llama3_8b") for item in paper)
    assert any(item.startswith("calibration=c4") for item in paper)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_composes_under_its_name_and_its_figures_have_their_keys(name):
    assert OmegaConf.load(CONFIG_DIR / "experiment" / f"{name}.yaml")["name"] == name
    (cell,) = preflight(CONFIG_DIR, last_cell(name)).cells
    assert cell.scalars.name == name
    assert cell.model.name == "SmolLM2-135M-Instruct"
    for figure in STUDIES[name].figures:
        keys = {HeatMapFigure: ("x", "y"), Lines: ("x",)}.get(type(figure), ())
        for key in (getattr(figure, part) for part in keys):
            assert key in {**flatten(cell.tree), **cell.cell.model_dump()}
            assert key in axes(name), "a figure over something that the study does not vary"


def test_every_question_has_a_study_that_says_so():
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", (ROOT / "docs" / "questions.md").read_text(), re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, QUESTIONS + 1))
    said = {
        (int(number), name)
        for number, _, studies in rows
        for name in re.findall(r"experiments/(\w+)/", studies)
    }
    assert {number for number, _ in said} == set(range(1, QUESTIONS + 1))
    assert said == {(number, name) for name, study in STUDIES.items() for number in study.questions}


def test_the_index_names_every_study_once():
    assert sorted(re.findall(r"^\| \[(\w+)\]", INDEX, re.M)) == NAMES
    for study in STUDIES.values():
        assert f"| [{study.name}]({study.name}/README.md) | {study.heading} |" in INDEX


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *EXAMPLES])
def test_every_cell_of_a_study_is_valid_and_counted(name):
    bundled = preflight(CONFIG_DIR, ["-m", f"+experiment={name}"]).cells
    assert len({config.key for config in bundled}) == len(bundled) > 1
    if name in STUDIES:
        (counted,) = re.findall(rf"^\| \[{name}\].* \| (\d+) \|$", INDEX, re.M)
        assert len(bundled) == int(counted)
        for command in commands(name)[1:]:
            large = preflight(CONFIG_DIR, command).cells
            assert len(large) > 1
            assert {config.scalars.name for config in large} == {name}
