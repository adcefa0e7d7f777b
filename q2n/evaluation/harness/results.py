"""Conversion of lm-eval's results to metrics of a record, with items, protocol, tokens and seconds."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from q2n.evaluation.base import EvaluationContext, exp, mean_and_stderr
from q2n.evaluation.harness.tasks import Loaded
from q2n.exceptions import NumericalError
from q2n.records.fingerprint import canonical_json
from q2n.records.schema import Metric, TaskProtocol
from q2n.runtime.files import sha256_text

if TYPE_CHECKING:
    from q2n.evaluation.harness.model import HarnessModel


@dataclass(frozen=True)
class Results:
    """Results of one call of lm-eval.

    Attributes:
        scores: return value of ``lm_eval.evaluate``.
        loaded: the tasks.
        model: the model, with the tokens of its requests.
        context: the context of the measurement.
        seconds: wall time of all tasks together.
        chat_template: True if prompts used the chat template.
    """

    scores: Mapping[str, Any]
    loaded: Loaded
    model: HarnessModel
    context: EvaluationContext
    seconds: float
    chat_template: bool

    def metrics(self, name: str) -> Iterator[Metric]:
        """Yield every score of a task or group.

        Raises:
            NumericalError: a score of the unquantized model is not a number.
        """
        whole = self.tokens(list(self.loaded.tasks))
        for key, value in self.scores["results"][name].items():
            score, comma, rule = key.partition(",")
            if not comma or score.endswith("_stderr"):
                continue
            tasks = self.scored(name, key)
            tokens = self.tokens(tasks)
            samples = self.samples(tasks, score, rule)
            undefined = _items(samples, self.model.undefined)
            if not self.context.quantized and (undefined or math.isnan(value)):
                raise NumericalError(
                    f"task {name}: {score} of the unquantized model is not a number"
                    f" ({undefined} of {len(samples)} items without log-likelihoods)"
                )
            higher = self.scores["higher_is_better"].get(name, {}).get(score)
            share = score in ("acc", "acc_norm", "exact_match") or score.startswith("pass@")
            yield Metric(
                name=score if rule == "none" else f"{score} ({rule})",
                dataset=name,
                unit="share" if share else score,
                count=len(samples),
                count_unit="items",
                lower_is_better=higher is False,
                protocol=self.protocol(name, samples),
                tokens=tokens or None,
                seconds=self.seconds * tokens / whole if whole else None,
                special_tokens=self.model.reader.before,
                undefined=undefined,
                **_parts(score, float(value), [sample.get(score) for sample in samples]),
            )

    def protocol(self, name: str, samples: Sequence[Mapping[str, Any]]) -> TaskProtocol:
        """Return the protocol of a task on these items: two scores are comparable only if it is equal."""
        asked = canonical_json([[sample["arguments"], str(sample["target"])] for sample in samples])
        cut = _items(samples, self.model.cut)
        return TaskProtocol(
            dataset=name,
            items_sha256=sha256_text(asked),
            tokenizer=self.context.loaded.tokenizer_sha256,
            items=len(samples),
            task_version=str(self.scores["versions"].get(name)),
            harness=f"lm-eval {importlib.metadata.version('lm_eval')}",
            fewshot=int(self.scores["n-shot"].get(name, 0)),
            chat_template=self.chat_template,
            forward_dtype=str(self.context.dtype).removeprefix("torch."),
            left_out=self.model.reader.left_out,
            cut=cut,
            window=self.model.max_length if cut else 0,
        )

    def scored(self, name: str, key: str) -> list[str]:
        """Return the tasks behind a score (``acc,none``): the task itself, or the group's with that score."""
        group = self.loaded.groups.get(name)
        if group is None:
            return [name]
        tasks = dict.fromkeys(task.task_name for task in group.get_all_tasks())
        return [task for task in tasks if key in self.scores["results"].get(task, {})]

    def samples(self, tasks: Sequence[str], score: str, rule: str) -> list[Mapping[str, Any]]:
        """Return lm-eval's samples of all items that have the score under a rule (lm-eval: filter)."""
        return [
            item
            for task in tasks
            for item in self.scores["samples"][task]
            if item["filter"] == rule and score in item["metrics"]
        ]

    def tokens(self, tasks: Sequence[str]) -> int:
        """Return the number of tokens that were run for all distinct requests of the tasks."""
        asked = {
            strings for task in tasks for item in self.scores["samples"][task] for strings in _requests(item)
        }
        return sum(self.model.lengths.get(strings, 0) for strings in asked)


def _requests(item: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the strings of each request of an item."""
    return [tuple(part for part in request if isinstance(part, str)) for request in item["arguments"]]


def _items(samples: Sequence[Mapping[str, Any]], among: Collection[tuple[str, ...]]) -> int:
    """Return the number of items with a request in ``among``."""
    return sum(any(strings in among for strings in _requests(item)) for item in samples)


def _parts(score: str, value: float, values: list[Any]) -> dict[str, Any]:
    """Return the value and, if it is a mean or the exponential of one, its items and standard error."""
    alone = {"value": value, "difference": "unit"}
    if not values or not all(isinstance(item, Real) for item in values):
        return alone
    numbers = [float(item) for item in values]
    mean, stderr = mean_and_stderr(numbers)
    if score == "perplexity" and math.isclose(exp(-mean), value, rel_tol=1e-9):
        losses = tuple(-number for number in numbers)
        if stderr is not None:
            stderr = value * stderr if math.isfinite(value) else None
        return {"value": value, "difference": "ratio", "per_window": losses, "stderr": stderr}
    if not math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12):
        return alone  # not a mean: its standard error is unknown
    if set(numbers) <= {0.0, 1.0}:
        return {**alone, "per_item": "".join(f"{number:.0f}" for number in numbers), "stderr": stderr}
    return {**alone, "per_window": tuple(numbers), "stderr": stderr}
