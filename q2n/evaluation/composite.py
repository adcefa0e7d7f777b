"""Several evaluations in one option of the config group ``evaluation``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from q2n.data.text import TokenSet
from q2n.evaluation.base import Evaluation, EvaluationContext
from q2n.models.loaded import Outline
from q2n.options import build, option
from q2n.records.schema import Metric


def _built(sections: Any) -> Any:
    """Build every part as an option, so that an error names ``evaluation.parts.<part>.<key>``."""
    if not isinstance(sections, Mapping):
        return sections
    return {name: build(section, f"evaluation.parts.{name}") for name, section in sections.items()}


@option
class Composite(Evaluation):
    """Measures the metrics of all parts, in the order of the parts."""

    parts: Annotated[dict[str, Any], BeforeValidator(_built), Field(min_length=1)]
    """Evaluations by name; the name serves only to override settings of a part."""

    def identity(self) -> dict[str, Any]:
        """Return the identities of the parts by name."""
        return {name: part.identity() for name, part in self.parts.items()}

    def prepare(self, cache_dir: str | None) -> None:
        """Prepare every part."""
        for part in self.parts.values():
            part.prepare(cache_dir)

    def examine(self, outline: Outline, cache_dir: str | None) -> list[TokenSet]:
        """Return the windows of all parts."""
        return [text for part in self.parts.values() for text in part.examine(outline, cache_dir)]

    def keep(self, context: EvaluationContext, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return what each part keeps, by name."""
        return {name: part.keep(context, identity) for name, part in self.parts.items()}

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        """Return the metrics of all parts; each part takes an equal share of the progress bar."""
        kept = context.kept or {}
        metrics: list[Metric] = []
        for index, (name, part) in enumerate(self.parts.items()):
            progress = _share(context.progress, index, len(self.parts))
            metrics += part.evaluate(replace(context, kept=kept.get(name), progress=progress))
        return metrics


def _share(progress: Callable[[float, str], None], index: int, parts: int) -> Callable[[float, str], None]:
    """Return a callback for part number ``index``, which fills its share of ``progress``."""
    return lambda done, stage: progress((index + done) / parts, stage)
