"""Several evaluations as one option."""

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
    """Every part built like an option of its own: a mistake names ``evaluation.parts.<part>.<key>``."""
    if not isinstance(sections, Mapping):
        return sections
    return {name: build(section, f"evaluation.parts.{name}") for name, section in sections.items()}


@option
class Composite(Evaluation):
    """Measures what each part measures, in the order of the parts."""

    parts: Annotated[dict[str, Any], BeforeValidator(_built), Field(min_length=1)]
    """Evaluations by a name that is only used to override their keys."""

    def identity(self) -> dict[str, Any]:
        return {name: part.identity() for name, part in self.parts.items()}

    def prepare(self, cache_dir: str | None) -> None:
        for part in self.parts.values():
            part.prepare(cache_dir)

    def examine(self, outline: Outline, cache_dir: str | None) -> list[TokenSet]:
        return [text for part in self.parts.values() for text in part.examine(outline, cache_dir)]

    def keep(self, context: EvaluationContext, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {name: part.keep(context, identity) for name, part in self.parts.items()}

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        kept = context.kept or {}
        metrics: list[Metric] = []
        for index, (name, part) in enumerate(self.parts.items()):
            progress = _share(context.progress, index, len(self.parts))
            metrics += part.evaluate(replace(context, kept=kept.get(name), progress=progress))
        return metrics


def _share(progress: Callable[[float, str], None], index: int, parts: int) -> Callable[[float, str], None]:
    return lambda done, stage: progress((index + done) / parts, stage)
