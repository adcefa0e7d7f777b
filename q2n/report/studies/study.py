"""Studies and published numbers, written by hand beside the records.

A study consists of ``conf/experiment/NAME.yaml`` (the cells), ``experiments/NAME/README.md`` (question,
command, outcome) and ``experiments/NAME/study.yaml`` (title, kind and figures: :class:`StudyFile`). None of
these files has numbers of the report, which come from the records of that name. Published numbers are in
``experiments/published.yaml``, which a user fills.
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
"""Number of questions the reviewers asked (docs/questions.md)."""

KINDS = ("paper", "reviewers", "beyond")
"""Kinds of study in the order of the overview: the paper's tables, its reviewers' questions, further ones."""

Key = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$")]
"""A dotted configuration key (``q2n.t``)."""

Words = Annotated[str, Field(min_length=1)]

MetricName = Words
"""Data set and metric as in a table's header (``wiki perplexity``)."""


class StudySettings(BaseModel):
    """Base of all that is read from these files: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Differences(StudySettings):
    """Forest plot of every correction against no correction; ``metric`` is None for all metrics."""

    kind: Literal["differences"] = "differences"
    metric: MetricName | None = None


class HeatMapFigure(StudySettings):
    """Heat map of a metric over two configuration keys; ``metric`` is None for the records' first one."""

    kind: Literal["heat_map"] = "heat_map"
    x: Key
    y: Key
    metric: MetricName | None = None


class Lines(StudySettings):
    """Metric over a numeric configuration key, one line per method.

    ``metric`` is None for the records' first one.
    """

    kind: Literal["lines"] = "lines"
    x: Key
    metric: MetricName | None = None


class Layers(StudySettings):
    """Relative output error of every layer before and after the correction."""

    kind: Literal["layers"] = "layers"


class CostGain(StudySettings):
    """Gain of a correction against its time.

    ``metric`` is None for the first one whose differences are in per cent.
    """

    kind: Literal["cost_gain"] = "cost_gain"
    metric: MetricName | None = None


class NullSpaceFigure(StudySettings):
    """Null spaces of the cells that measured them (``diagnostics=null_space``)."""

    kind: Literal["null_space"] = "null_space"


FigureSpec = Differences | HeatMapFigure | Lines | Layers | CostGain | NullSpaceFigure

FIGURES: Mapping[str, type[FigureSpec]] = {
    cls.model_fields["kind"].default: cls for cls in get_args(FigureSpec)
}


class StudyFile(StudySettings):
    """Content of ``study.yaml``.

    ``questions`` has the numbers of the reviewers' questions that the study answers, ``paper_table`` names
    the corresponding table of the paper, ``figures`` are drawn in the order given.
    """

    title: str = Field(min_length=1)
    questions: tuple[Annotated[int, Field(ge=1, le=QUESTIONS)], ...] = Field(default=(), strict=False)
    kind: Literal["paper", "reviewers", "beyond"]
    paper_table: str | None = None
    figures: tuple[FigureSpec, ...] = (Differences(),)


class Study(StudyFile):
    """A study with the texts of its README: Markdown, empty for a missing section.

    ``claims`` is true if ``question`` is a claim to be tested.
    """

    name: str
    heading: str
    question: str
    claims: bool = False
    command: str = ""
    outcome: str = ""
    verdict: str = ""


class PublishedRow(StudySettings):
    """Line of our tables that a published number belongs to."""

    model: Words
    baseline: Words
    q2n: Words


class PublishedColumn(StudySettings):
    """Column of our tables that a published number belongs to."""

    bits: int | float
    metric: Words
    dataset: str


class PublishedValue(StudySettings):
    """One published number.

    ``protocol`` has what the publication tells of the measurement, by field of our protocols or by dotted
    configuration key. ``table`` and ``note`` are shown to the reader.
    """

    study: Words
    table: Words
    row: PublishedRow
    column: PublishedColumn
    value: float = Field(allow_inf_nan=False)
    protocol: dict[str, Any] = Field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Experiments:
    """Studies by name, in the order of the overview, and published numbers."""

    studies: Mapping[str, Study] = field(default_factory=dict)
    published: tuple[PublishedValue, ...] = ()


def load_experiments(folder: Path = Path(FOLDER)) -> Experiments:
    """Load the studies and published numbers of the folder.

    Raises:
        ConfigurationError: a file is missing or wrong; the message has file, key, rule and alternatives.
    """
    studies = load_studies(folder)
    return Experiments(studies, load_published(folder, studies))


def load_studies(folder: Path = Path(FOLDER)) -> dict[str, Study]:
    """Load all studies by name, in the order of the overview (kind, first question, name).

    A folder without ``study.yaml`` is no study.

    Raises:
        ConfigurationError: a file is missing or wrong; the message has file, key, rule and alternatives.
    """
    studies = [load_study(path.parent) for path in sorted(folder.glob(f"*/{STUDY_FILE}"))]
    studies.sort(key=lambda study: (KINDS.index(study.kind), min(study.questions, default=0), study.name))
    return {study.name: study for study in studies}


def load_study(folder: Path) -> Study:
    """Load the study in ``experiments/NAME``.

    Raises:
        ConfigurationError: see :func:`load_studies`.
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
    """Load the numbers in ``published.yaml``; the result is empty if there is no such file.

    Args:
        folder: folder of the experiments.
        studies: names of the studies a number may belong to, or None for any.

    Raises:
        ConfigurationError: an entry is wrong; the message has file, key, rule and alternatives.
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
