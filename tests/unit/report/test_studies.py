"""A study is what its three files say, and a mistake in one of them is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from q2n.exceptions import ConfigurationError
from q2n.report.studies.study import FIGURES, HeatMapFigure, Lines, load_studies

README = """# A longer heading

**Question.** Does `on` help, and
where?

**Command.**

```
# not a heading
python run.py -m +experiment=one
```

**What came out.** This.

**Verdict.** It does not.

More of it.

## Details

Nothing of this belongs to the verdict.
"""
STUDY = "title: Does it help?\nkind: reviewers\nquestions: [3, 1]\n"


def put(folder: Path, name: str = "one", study: str = STUDY, readme: str | None = README) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "study.yaml").write_text(study)
    if readme is not None:
        (folder / name / "README.md").write_text(readme)
    return folder


def test_a_study_has_the_texts_of_its_readme_and_the_figures_it_asks_for(tmp_path: Path) -> None:
    figures = "figures:\n- {kind: heat_map, x: q2n.t, y: q2n.lam}\n- {kind: lines, x: bits}\n"
    study = load_studies(put(tmp_path, study=STUDY + figures))["one"]
    assert (study.name, study.title, study.questions) == ("one", "Does it help?", (3, 1))
    assert study.heading == "A longer heading"
    assert (study.question, study.claims) == ("Does `on` help, and\nwhere?", False)
    assert study.command == "```\n# not a heading\npython run.py -m +experiment=one\n```"
    assert study.outcome == "This."
    assert study.verdict == "It does not.\n\nMore of it."
    assert study.figures == (HeatMapFigure(x="q2n.t", y="q2n.lam"), Lines(x="bits"))


def test_without_a_word_on_figures_differences_are_drawn_and_without_a_verdict_there_is_none(
    tmp_path: Path,
) -> None:
    study = load_studies(put(tmp_path, readme="# T\n\n**Claim.** It helps."))["one"]
    assert [figure.kind for figure in study.figures] == ["differences"]
    assert (study.question, study.claims, study.verdict) == ("It helps.", True, "")


def test_studies_come_in_the_order_of_the_overview_and_other_folders_are_none(tmp_path: Path) -> None:
    for name, kind, questions in (("b", "beyond", []), ("r", "reviewers", [9]), ("z", "reviewers", [2])):
        put(tmp_path, name, f"title: t\nkind: {kind}\nquestions: {questions}\n")
    put(tmp_path, "p", "title: t\nkind: paper\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("no study")
    assert list(load_studies(tmp_path)) == ["p", "z", "r", "b"]
    assert load_studies(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("study", "complaint"),
    [
        ("kind: paper", r"one/study\.yaml: title: is required"),
        ("title: t\nkind: papre", r"study\.yaml: kind='papre': .*did you mean 'paper'"),
        ("titel: t\nkind: paper", "titel: no such key; did you mean 'title'"),
        (STUDY.replace("3", "15"), "questions.0=15: .*less than or equal to 14"),
        (STUDY.replace("3", "'3'"), "questions.0='3': .*integer"),
        (STUDY + "figures: [{kind: heatmap}]", "figures.0.kind='heatmap': .*did you mean 'heat_map'"),
        (STUDY + "figures: [{kind: lines, x: bits}, {kind: heat_map, x: a}]", "figures.1.y: is required"),
        (STUDY + "figures: [{kind: lines, x: bits, z: a}]", r"figures.0.z: no such key \(keys here: kind, x"),
        (STUDY + "figures: [{kind: lines, x: 'a b'}]", "figures.0.x='a b': .*pattern"),
        (STUDY + "figures: lines", "figures='lines': must be a list"),
        (STUDY + "title: again", "is not YAML: .*duplicate key"),
        ("a: [", "is not YAML"),
        ("- title", "must hold keys"),
        ("", "title: is required"),
    ],
)
def test_a_mistake_in_the_study_file_is_named_with_file_and_key(
    tmp_path: Path, study: str, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){complaint}"):
        load_studies(put(tmp_path, study=study))


@pytest.mark.parametrize(
    ("readme", "complaint"),
    [
        (None, "cannot be read"),
        ("**Question.** Why?", "no '# title'"),
        ("# T\n", r"must have one section that begins with \*\*Question"),
        ("# T\n\n**Question.** a\n\n**Claim.** b", "must have one section"),
        ("# T\n\n**Question.** a\n\n**Verdict.** b\n\n**Verdict.** c", r"two sections \*\*Verdict"),
    ],
)
def test_a_mistake_in_the_readme_is_named_with_its_file(
    tmp_path: Path, readme: str | None, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"one/README\.md: .*{complaint}"):
        load_studies(put(tmp_path, readme=readme))


def test_every_kind_of_figure_is_known_by_its_name() -> None:
    assert {name: figure.model_fields["kind"].default for name, figure in FIGURES.items()} == {
        name: name for name in FIGURES
    }
