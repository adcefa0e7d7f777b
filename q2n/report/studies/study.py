"""What people write beside the records: studies, and published numbers to set beside ours.

A study is ``conf/experiment/NAME.yaml`` (what is run), ``experiments/NAME/README.md`` (what it asks, how it
is run, what came out) and ``experiments/NAME/study.yaml`` (how it is reported: :class:`StudyFile`). The
report's numbers are in none of them: those come from the records of that name. Published numbers are in
``experiments/published.yaml``, which a user fills: none are known by heart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from q2n.exceptions import ConfigurationError
from q2n.options import construct, did_you_mean
from q2n.report.studies.files import named, read_mapping, read_texts

FOLDER = "experiments"
STUDY_FILE = "study.yaml"
PUBLISHED_FILE = "published.yaml"
README = "README.md"
QUESTIONS = 14
"""How many questions the reviewers asked (docs/questions.md)."""

KINDS = ("paper", "reviewers", "beyond")
"""In the order of the overview: the paper's own tables, what its reviewers asked, what nobody asked."""

Key = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$")]
"""A dotted configuration key (``q2n.t``)."""

Words = Annotated[str, Field(min_length=1)]

MetricName = Words
"""Data set and metric as a table's header has them (``wiki perplexity``)."""


class StudySettings(BaseModel):
    """Everything that is read from these files: strict and frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Differences(StudySettings):
    """Forest plot: every correction against doing nothing, with its interval. None: every metric."""

    kind: Literal["differences"] = "differences"
    metric: MetricName | None = None


class HeatMapFigure(StudySettings):
    """A metric over two configuration keys. None: the records' first metric."""

    kind: Literal["heat_map"] = "heat_map"
    x: Key
    y: Key
    metric: MetricName | None = None


class Lines(StudySettings):
    """A metric over a numeric configuration key, a line a method. None: the records' first metric."""

    kind: Literal["lines"] = "lines"
    x: Key
    metric: MetricName | None = None


class Layers(StudySettings):
    """Output error of every layer before and after the correction."""

    kind: Literal["layers"] = "layers"


class CostGain(StudySettings):
    """What a correction costs in time against what it gains. None: the records' first metric."""

    kind: Literal["cost_gain"] = "cost_gain"
    metric: MetricName | None = None


class NullSpaceFigure(StudySettings):
    """The null spaces of the cells that measured them."""

    kind: Literal["null_space"] = "null_space"


FigureSpec = Differences | HeatMapFigure | Lines | Layers | CostGain | NullSpaceFigure

FIGURES: Mapping[str, type[FigureSpec]] = {
    cls.model_fields["kind"].default: cls for cls in get_args(FigureSpec)
}


class StudyFile(StudySettings):
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


class PublishedRow(StudySettings):
    """The line of our tables it belongs to."""

    model: Words
    baseline: Words
    q2n: Words


class PublishedColumn(StudySettings):
    """The column of our tables it belongs to."""

    bits: int | float
    metric: Words
    dataset: str


class PublishedValue(StudySettings):
    """One published number. ``protocol`` has what is said of how it was measured, by field of our protocols
    or by dotted configuration key; ``table`` and ``note`` are for the reader."""

    study: Words
    table: Words
    row: PublishedRow
    column: PublishedColumn
    value: float = Field(allow_inf_nan=False)
    protocol: dict[str, Any] = Field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Experiments:
    """Studies by name in the order of the overview, and published numbers."""

    studies: Mapping[str, Study] = field(default_factory=dict)
    published: tuple[PublishedValue, ...] = ()


def load_experiments(folder: Path = Path(FOLDER)) -> Experiments:
    """Everything in the folder.

    Raises:
        ConfigurationError: a file that is missing or wrong; names file, key, rule and alternatives.
    """
    studies = load_studies(folder)
    return Experiments(studies, load_published(folder, studies))


def load_studies(folder: Path = Path(FOLDER)) -> dict[str, Study]:
    """Every study by name, in the order of the overview (kind, first question, name); a folder without
    ``study.yaml`` is none.

    Raises:
        ConfigurationError: a file that is missing or wrong; names file, key, rule and alternatives.
    """
    studies = [load_study(path.parent) for path in sorted(folder.glob(f"*/{STUDY_FILE}"))]
    studies.sort(key=lambda study: (KINDS.index(study.kind), min(study.questions, default=0), study.name))
    return {study.name: study for study in studies}


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
    return Study(name=folder.name, **described.__dict__, **texts)


def _figures(entries: Any) -> tuple[FigureSpec, ...]:
    if not isinstance(entries, list):
        raise ConfigurationError(f"figures={entries!r}: must be a list of figures, each with a kind")
    figures = []
    for place, entry in enumerate(entries):
        key = f"figures.{place}"
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in FIGURES:
            hint = did_you_mean(kind, FIGURES) if isinstance(kind, str) else ""
            raise ConfigurationError(f"{key}.kind={kind!r}: must be one of {', '.join(FIGURES)}{hint}")
        figures.append(construct(FIGURES[kind], {str(name): value for name, value in entry.items()}, key))
    return tuple(figures)


def load_published(folder: Path, studies: Collection[str] | None = None) -> tuple[PublishedValue, ...]:
    """The numbers in ``published.yaml`` of the folder of experiments; none where there is no such file.

    Args:
        studies: names a number may belong to; None: any.

    Raises:
        ConfigurationError: an entry is not as it should be; names file, key, rule and alternatives.
    """
    path = folder / PUBLISHED_FILE
    if not path.exists():
        return ()
    fields = read_mapping(path)
    with named(path):
        if set(fields) != {"values"} or not isinstance(fields["values"], list):
            raise ConfigurationError("must have the one key 'values', with a list (empty: values: [])")
        return tuple(
            _entry(entry, f"values.{place}", studies) for place, entry in enumerate(fields["values"])
        )


def _entry(entry: Any, key: str, studies: Collection[str] | None) -> PublishedValue:
    if not isinstance(entry, dict):
        raise ConfigurationError(
            f"{key}={entry!r}: must have keys (study, table, row, column, value, protocol)"
        )
    fields = dict(entry)
    for part, cls in (("row", PublishedRow), ("column", PublishedColumn)):
        if isinstance(fields.get(part), dict):
            fields[part] = construct(cls, fields[part], f"{key}.{part}")
    value = construct(PublishedValue, fields, key)
    if studies is not None and value.study not in studies:
        hint = did_you_mean(value.study, studies)
        raise ConfigurationError(f"{key}.study={value.study!r}: there is no such study{hint}")
    return value
