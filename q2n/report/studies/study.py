"""Studies: what an experiment asks, what its README says of it, and how its report looks.

A study is ``conf/experiment/NAME.yaml`` (what is run), ``experiments/NAME/README.md`` (what it asks, how it
is run, what came out) and ``experiments/NAME/study.yaml`` (how it is reported: :class:`StudyFile`). The
report's numbers are in none of them: those come from the records of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from q2n.exceptions import ConfigurationError
from q2n.options import construct, did_you_mean
from q2n.report.studies.readme import read_texts
from q2n.report.studies.yaml_file import named, read_mapping

FOLDER = "experiments"
STUDY_FILE = "study.yaml"
README = "README.md"
QUESTIONS = 14
"""How many questions the reviewers asked (docs/questions.md)."""

KINDS = ("paper", "reviewers", "beyond")
"""In the order of the overview: the paper's own tables, what its reviewers asked, what nobody asked."""

Key = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$")]
"""A dotted configuration key (``q2n.t``)."""

MetricName = Annotated[str, Field(min_length=1)]
"""Data set and metric as a table's header has them (``wiki perplexity``)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Differences(_Frozen):
    """Forest plot: every correction against doing nothing, with its interval. None: every metric."""

    kind: Literal["differences"] = "differences"
    metric: MetricName | None = None


class HeatMap(_Frozen):
    """A metric over two configuration keys. None: the records' first metric."""

    kind: Literal["heat_map"] = "heat_map"
    x: Key
    y: Key
    metric: MetricName | None = None


class Lines(_Frozen):
    """A metric over a numeric configuration key, a line a method. None: the records' first metric."""

    kind: Literal["lines"] = "lines"
    x: Key
    metric: MetricName | None = None


class Layers(_Frozen):
    """Output error of every layer before and after the correction."""

    kind: Literal["layers"] = "layers"


class CostGain(_Frozen):
    """What a correction costs in time against what it gains. None: the records' first metric."""

    kind: Literal["cost_gain"] = "cost_gain"
    metric: MetricName | None = None


class NullSpace(_Frozen):
    """The null spaces of the cells that measured them."""

    kind: Literal["null_space"] = "null_space"


FigureSpec = Differences | HeatMap | Lines | Layers | CostGain | NullSpace

FIGURES: Mapping[str, type[FigureSpec]] = {
    "differences": Differences,
    "heat_map": HeatMap,
    "lines": Lines,
    "layers": Layers,
    "cost_gain": CostGain,
    "null_space": NullSpace,
}


class StudyFile(_Frozen):
    """``study.yaml``. ``questions`` are the numbers of the reviewers' questions it answers, ``paper_table``
    says in words which table of the paper it corresponds to, ``figures`` are drawn in this order."""

    title: str = Field(min_length=1)
    questions: tuple[Annotated[int, Field(ge=1, le=QUESTIONS)], ...] = Field(default=(), strict=False)
    kind: Literal["paper", "reviewers", "beyond"]
    paper_table: str | None = None
    figures: tuple[FigureSpec, ...] = (Differences(),)


class Study(StudyFile):
    """A study with the texts of its README (Markdown; empty where the section is not there).

    ``claims`` says whether ``question`` is one or a claim to be tested.
    """

    name: str
    heading: str
    question: str
    claims: bool = False
    command: str = ""
    outcome: str = ""
    verdict: str = ""

    @property
    def order(self) -> tuple[int, int, str]:
        """Place in the overview: kind, first question, name."""
        return (KINDS.index(self.kind), min(self.questions, default=0), self.name)


def load_studies(folder: Path = Path(FOLDER)) -> dict[str, Study]:
    """Every study by name, in the order of the overview; a folder without ``study.yaml`` is none.

    Raises:
        ConfigurationError: a file that is missing or wrong; names file, key, rule and alternatives.
    """
    studies = [load_study(path.parent) for path in sorted(folder.glob(f"*/{STUDY_FILE}"))]
    return {study.name: study for study in sorted(studies, key=lambda study: study.order)}


def load_study(folder: Path) -> Study:
    """The study in ``experiments/NAME``.

    Raises:
        ConfigurationError: as :func:`load_studies`.
    """
    fields = read_mapping(folder / STUDY_FILE)
    with named(folder / STUDY_FILE):
        if "figures" in fields:
            fields["figures"] = _figures(fields["figures"])
        described = construct(StudyFile, fields, "")
    try:
        readme = (folder / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{folder / README}: cannot be read: {error}") from None
    with named(folder / README):
        texts = read_texts(readme)
    return Study(name=folder.name, **described.__dict__, **texts._asdict())


def _figures(entries: Any) -> tuple[FigureSpec, ...]:
    if not isinstance(entries, list):
        raise ConfigurationError(f"figures={entries!r}: must be a list of figures, each with a kind")
    return tuple(_figure(entry, f"figures.{place}") for place, entry in enumerate(entries))


def _figure(entry: Any, key: str) -> FigureSpec:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in FIGURES:
        hint = did_you_mean(kind, FIGURES) if isinstance(kind, str) else ""
        raise ConfigurationError(f"{key}.kind={kind!r}: must be one of {', '.join(FIGURES)}{hint}")
    return construct(FIGURES[kind], {str(name): value for name, value in entry.items()}, key)
