"""lm-eval's results as metrics of a record: each score with its items, protocol, tokens and seconds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from q2n.evaluation.base import EvaluationContext, exp, mean_and_stderr
from q2n.exceptions import NumericalError
from q2n.records.fingerprint import canonical_json
from q2n.records.schema import Metric, TaskProtocol

if TYPE_CHECKING:
    from q2n.evaluation.harness.model import HarnessModel
    from q2n.evaluation.harness.tasks import Loaded


@dataclass(frozen=True)
class Results:
    """lm-eval's scores, the model that answered (with the tokens of its requests), and the seconds of all
    tasks together."""

    scores: Mapping[str, Any]
    model: HarnessModel
    seconds: float
    chat_template: bool

    def scored(self, name: str, key: str, loaded: Loaded) -> list[str]:
        """The tasks behind a score (``acc,none``): the task itself, or those of the group that have it."""
        group = loaded.groups.get(name)
        if group is None:
            return [name]
        tasks = dict.fromkeys(task.task_name for task in group.get_all_tasks())
        return [task for task in tasks if key in self.scores["results"].get(task, {})]

    def samples(self, tasks: Sequence[str], score: str, rule: str) -> list[Mapping[str, Any]]:
        """What lm-eval noted of every item that has the score by one of the tasks' rules (its filters)."""
        return [
            item
            for task in tasks
            for item in self.scores["samples"][task]
            if item["filter"] == rule and score in item["metrics"]
        ]

    def tokens(self, tasks: Sequence[str]) -> int:
        """Tokens of all distinct requests of the tasks, as they were run."""
        asked = {
            strings for task in tasks for item in self.scores["samples"][task] for strings in _requests(item)
        }
        return sum(self.model.lengths.get(strings, 0) for strings in asked)


def _requests(item: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The strings of each of an item's requests."""
    return [tuple(part for part in request if isinstance(part, str)) for request in item["arguments"]]


def metrics(results: Results, loaded: Loaded, context: EvaluationContext) -> list[Metric]:
    """Every score of every name that is shown.

    Raises:
        NumericalError: one of the unquantized model's is not a number.
    """
    return [metric for name in loaded.shown for metric in _of_name(name, results, loaded, context)]


def _of_name(name: str, results: Results, loaded: Loaded, context: EvaluationContext) -> list[Metric]:
    whole = results.tokens(list(loaded.tasks))
    found = []
    for key, value in results.scores["results"][name].items():
        score, comma, rule = key.partition(",")
        if not comma or score.endswith("_stderr"):
            continue
        tasks = results.scored(name, key, loaded)
        tokens = results.tokens(tasks)
        samples = results.samples(tasks, score, rule)
        undefined = _items(samples, results.model.undefined)
        if not context.quantized and (undefined or math.isnan(value)):
            raise NumericalError(
                f"task {name}: {score} of the unquantized model is not a number"
                f" ({undefined} of {len(samples)} items without log-likelihoods)"
            )
        higher = results.scores["higher_is_better"].get(name, {}).get(score)
        found.append(
            Metric(
                name=score if rule == "none" else f"{score} ({rule})",
                dataset=name,
                unit=_unit(score),
                count=len(samples),
                count_unit="items",
                lower_is_better=higher is False,
                protocol=_protocol(name, samples, results, context),
                tokens=tokens or None,
                seconds=results.seconds * tokens / whole if whole else None,
                special_tokens=results.model.reader.before,
                undefined=undefined,
                **_parts(score, float(value), [sample.get(score) for sample in samples]),
            )
        )
    return found


def _items(samples: Sequence[Mapping[str, Any]], among: Collection[tuple[str, ...]]) -> int:
    """How many items have a request among these."""
    return sum(any(strings in among for strings in _requests(item)) for item in samples)


def _parts(score: str, value: float, values: list[Any]) -> dict[str, Any]:
    """The value, what it is the mean of (if it is one, or the exponential of one), and its standard error."""
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
        return alone  # an aggregation of its own; no standard error is claimed for it
    if set(numbers) <= {0.0, 1.0}:
        return {**alone, "per_item": "".join(f"{number:.0f}" for number in numbers), "stderr": stderr}
    return {**alone, "per_window": tuple(numbers), "stderr": stderr}


def _protocol(
    name: str, samples: Sequence[Mapping[str, Any]], results: Results, context: EvaluationContext
) -> TaskProtocol:
    asked = canonical_json([[sample["arguments"], str(sample["target"])] for sample in samples])
    cut = _items(samples, results.model.cut)
    return TaskProtocol(
        dataset=name,
        items_sha256=hashlib.sha256(asked.encode()).hexdigest(),
        tokenizer=context.loaded.tokenizer_sha256,
        items=len(samples),
        task_version=str(results.scores["versions"].get(name)),
        harness=f"lm-eval {importlib.metadata.version('lm_eval')}",
        fewshot=int(results.scores["n-shot"].get(name, 0)),
        chat_template=results.chat_template,
        forward_dtype=str(context.dtype).removeprefix("torch."),
        left_out=results.model.reader.left_out,
        cut=cut,
        window=results.model.max_length if cut else 0,
    )


def _unit(score: str) -> str:
    known = {"acc": "share", "acc_norm": "share", "exact_match": "share", "perplexity": "perplexity"}
    return known.get(score, "share" if score.startswith("pass@") else score)
