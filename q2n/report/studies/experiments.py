"""What people write beside the records: studies, and published numbers to set beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from q2n.report.studies.published import PublishedValue, load_published
from q2n.report.studies.study import FOLDER, Study, load_studies


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
