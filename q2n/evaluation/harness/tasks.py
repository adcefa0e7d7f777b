"""Tasks by name or file, with their data, checked before a model is loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from q2n.evaluation.base import within_range
from q2n.evaluation.harness.bundled import TASK_FILES
from q2n.evaluation.harness.requests import Length, Reader
from q2n.evaluation.harness.surroundings import local_data, quiet_harness, same_draws
from q2n.exceptions import ConfigurationError, DataError
from q2n.options import did_you_mean

DEFINES = frozenset({"group", "dataset_path", "custom_dataset"})
"""Keys that only a definition has: with others alone a member of a group changes a task defined elsewhere."""
SEED = 1234
"""lm-eval's own seed for few-shot examples and for what a task draws while it is loaded."""


@dataclass(frozen=True)
class Selection:
    """Which tasks, and all that decides what they come to."""

    tasks: tuple[str, ...]
    include_path: tuple[str, ...] = ()
    data_dir: str | None = None
    num_fewshot: int | None = None
    max_new_tokens: int | None = None
    allow_code_execution: bool = False
    cache_dir: str | None = None


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data. ``shown`` are the names whose scores are reported: of a group with a score of
    its own only that, of any other group or tag its tasks."""

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    shown: tuple[str, ...]


@cache
def load_tasks(selection: Selection) -> Loaded:
    """The tasks of a selection; loaded once a process, since reading task files and data takes seconds.

    Raises:
        ConfigurationError: an unknown name, a task twice, or one that runs the model's code without leave.
        DataError: the data of a task cannot be had.
    """
    with quiet_harness(selection.allow_code_execution), local_data(selection.data_dir):
        manager = _manager(selection.tasks, selection.include_path, selection.cache_dir)
        for spec in selection.tasks:
            _check(manager, spec, selection)
        random.seed(0)
        parts = [_load(manager, spec) for spec in selection.tasks]
    names = [name for part in parts for name in part["tasks"]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"evaluation.tasks: {', '.join(twice)} would be measured twice")
    loaded = Loaded(
        {name: task for part in parts for name, task in part["tasks"].items()},
        {name: group for part in parts for name, group in part["groups"].items()},
        tuple(name for part in parts for name in _shown(part)),
    )
    for name, task in loaded.tasks.items():
        _settle(task, selection)
        _require_examples(name, task)
    return loaded


def _manager(tasks: Sequence[str], include_path: tuple[str, ...], cache_dir: str | None) -> Any:
    """An index that knows everything the tasks name; lm-eval's own thousands of files are only read for one
    that is not found without them."""
    small = _index(include_path, cache_dir, False)
    known = (spec in small.task_index or _is_file(spec) for spec in tasks)
    if all(known) and all("task" in leaf for spec in tasks for leaf in _leaves(small, spec)):
        return small
    return _index(include_path, cache_dir, True)


@cache
def _index(include_path: tuple[str, ...], cache_dir: str | None, everything: bool) -> Any:
    """lm-eval's index of task files: the bundled ones, those of ``include_path``, and perhaps its own."""
    from lm_eval.tasks import TaskManager

    folders = [str(TASK_FILES), *include_path]
    metadata = {"cache_dir": cache_dir} if cache_dir else {}
    return TaskManager(include_path=folders, include_defaults=everything, metadata=metadata)


def _check(manager: Any, spec: str, selection: Selection) -> None:
    if spec not in manager.task_index and not _is_file(spec):
        raise ConfigurationError(
            f"evaluation.tasks: no task {spec!r}{did_you_mean(spec, manager.all_tasks)} (known: the tasks of "
            "lm-eval and of evaluation.include_path, and any path of a task's YAML file)"
        )
    if not selection.allow_code_execution and any(leaf.get("unsafe_code") for leaf in _leaves(manager, spec)):
        raise ConfigurationError(
            f"evaluation.tasks: {spec} runs code that the model has written; "
            "evaluation.allow_code_execution=true allows that (do it in a container)"
        )


def _load(manager: Any, spec: str) -> Any:
    try:
        return manager.load([spec])
    except DataError:
        raise
    except Exception as error:  # the libraries raise whatever their transports and the task's code raise
        found = {leaf.get("dataset_path") for leaf in _leaves(manager, spec)}
        sources = sorted(str(source) for source in found if source) or ["made by the task itself"]
        reason = next(iter(str(error).strip().splitlines()), "")
        raise DataError(
            f"task {spec!r}: cannot load its data ({', '.join(sources)}) or its metric: "
            f"{type(error).__name__}: {reason}\n"
            "With network the hub provides them, and once loaded they stay in the local cache. Without: "
            f"`hf download --repo-type dataset {sources[0]} --local-dir DIR/{sources[0]}` where there is "
            "network, then evaluation.data_dir=DIR. evaluation=bundled_tasks needs no hub."
        ) from error


def _leaves(manager: Any, spec: str | Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of every task that ``spec`` (name, file, or settings) comes to; functions stay text. A
    name that is not in the index comes to nothing, ``{}``."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if isinstance(spec, str):
        entry = manager.task_index.get(spec)
        if entry is not None and entry.cfg is None:  # a tag
            for name in sorted(entry.tags):
                yield from _leaves(manager, name)
            return
        spec = load_yaml(spec, resolve_func=False) if entry is None else cast(Mapping[str, Any], entry.cfg)
    if "group" not in spec:
        yield spec
        return
    for member in spec.get("task") or ():
        name = member if isinstance(member, str) else member.get("task", member.get("group"))
        if name in manager.task_index:
            yield from _leaves(manager, name)
        elif isinstance(member, str) or DEFINES.isdisjoint(member):
            yield {}
        else:
            yield from _leaves(manager, member)


def _shown(part: Mapping[str, Any]) -> list[str]:
    groups = part["groups"]
    children = {name for group in groups.values() for name in group.child_names}
    roots = [group for name, group in groups.items() if name not in children]
    if roots and all(group.has_aggregation for group in roots):
        return [group.name for group in roots]
    return list(part["tasks"])


def _settle(task: Any, selection: Selection) -> None:
    """Few-shot count by lm-eval's rule: a task that sets it to zero keeps it. Length of generated texts. A
    perplexity beyond the range of floats is infinite, not an error."""
    aggregation = task.aggregation
    task.aggregation = lambda: {name: within_range(rule) for name, rule in aggregation().items()}
    own = task.get_config("num_fewshot")
    if own is None or (own and selection.num_fewshot is not None):
        task.set_config(key="num_fewshot", value=selection.num_fewshot or 0)
    if selection.max_new_tokens is not None and task.get_config("output_type") == "generate_until":
        task.set_config(
            key="generation_kwargs", value={"max_gen_toks": selection.max_new_tokens}, update=True
        )


def _require_examples(name: str, task: Any) -> None:
    """Count the documents that few-shot examples are drawn from: lm-eval notices too few of them in the
    middle of an evaluation, and draws from the items themselves where a task names no others.

    Raises:
        ConfigurationError: there are too few.
    """
    shots, sampler = task.get_config("num_fewshot") or 0, getattr(task, "sampler", None)
    if not shots or sampler is None:  # a task in Python that makes its examples itself
        return
    split = task.fewshot_cfg.split
    named = split or task.fewshot_cfg.samples or task.has_training_docs() or task.has_validation_docs()
    itself = split is not None and split == task.config.test_split  # never its own example
    pool = len(sampler.fewshot_indices or sampler.df) if named else 0
    if shots + itself > pool:
        raise ConfigurationError(
            f"evaluation.num_fewshot={shots}: task {name!r} has {pool} documents to draw examples from"
            f"{' (the item itself is set aside)' if itself else ''}; at most {max(0, pool - itself)} examples"
        )


@lru_cache(maxsize=8)
def lengths(
    selection: Selection, limit: int | None, chat_template: bool, reader: Reader
) -> tuple[Length, ...]:
    """What the requests of a selection need of a model's window, those left out that are sure to fit.

    Raises:
        UnsupportedError: a request cannot be written in the reader's tokens; names the task.
        ConfigurationError, DataError: see :func:`load_tasks`.
    """
    from lm_eval.models.huggingface import HFLM

    loaded = load_tasks(selection)
    tokenizer = SimpleNamespace(tokenizer=reader.tokenizer, chat_template_args={})
    chat = partial(HFLM.apply_chat_template, tokenizer) if chat_template else None
    found: list[Length] = []
    with quiet_harness(selection.allow_code_execution), same_draws():
        for task in loaded.tasks.values():
            task.set_fewshot_seed(seed=SEED)
            task.build_all_requests(
                limit=limit,
                apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template,
                chat_template=chat,
            )
            found += filter(None, map(reader.length, task.instances))
    return tuple(found)


def _is_file(spec: str) -> bool:
    return Path(spec).suffix in (".yaml", ".yml") and Path(spec).expanduser().is_file()
