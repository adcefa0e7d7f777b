"""Tasks by name or file with their data, checked before a model is loaded."""

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
"""Keys of a task's definition; a member of a group without them only modifies a task defined elsewhere."""
SEED = 1234
"""Seed of few-shot examples and of sampled answers: lm-eval's own default."""


@dataclass(frozen=True)
class Selection:
    """The tasks and all settings that determine their items, as a cache key (see :class:`.Harness`)."""

    tasks: tuple[str, ...]
    include_path: tuple[str, ...] = ()
    data_dir: str | None = None
    num_fewshot: int | None = None
    max_new_tokens: int | None = None
    allow_code_execution: bool = False
    cache_dir: str | None = None


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data.

    ``shown`` names the scores that are reported: a group with a score of its own as one, any other group or
    tag by its tasks.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    shown: tuple[str, ...]


@cache
def load_tasks(selection: Selection) -> Loaded:
    """Return the tasks of a selection; loaded once per process, since task files and data take seconds.

    Raises:
        ConfigurationError: an unknown name, a task named twice, too few documents for few-shot examples, or a
            task that runs the model's code without permission.
        DataError: the data of a task cannot be loaded.
    """
    with quiet_harness(selection.allow_code_execution), local_data(selection.data_dir):
        manager = _manager(selection.tasks, selection.include_path, selection.cache_dir)
        for spec in selection.tasks:
            _check(manager, spec, selection)
        random.seed(0)  # lm-eval's default; tasks may draw while they are loaded
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
    """Return an index that contains all named tasks.

    lm-eval's own thousands of files are read only if a task is not found without them.
    """
    small = _index(include_path, cache_dir, False)
    known = (spec in small.task_index or _is_file(spec) for spec in tasks)
    if all(known) and all("task" in leaf for spec in tasks for leaf in _leaves(small, spec)):
        return small
    return _index(include_path, cache_dir, True)


@cache
def _index(include_path: tuple[str, ...], cache_dir: str | None, everything: bool) -> Any:
    """Return lm-eval's index of bundled tasks, ``include_path`` and, if ``everything``, its own tasks."""
    from lm_eval.tasks import TaskManager

    folders = [str(TASK_FILES), *include_path]
    metadata = {"cache_dir": cache_dir} if cache_dir else {}
    return TaskManager(include_path=folders, include_defaults=everything, metadata=metadata)


def _check(manager: Any, spec: str, selection: Selection) -> None:
    """Raise :class:`ConfigurationError` for an unknown task, or code execution without permission."""
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
    """Return lm-eval's tasks and groups of a name or file, or raise :class:`DataError`."""
    try:
        return manager.load([spec])
    except DataError:
        raise
    except Exception as error:  # the libraries pass on any error of the network or of the task's code
        found = {leaf.get("dataset_path") for leaf in _leaves(manager, spec)}
        sources = sorted(str(source) for source in found if source) or ["made by the task itself"]
        reason = next(iter(str(error).strip().splitlines()), "")
        raise DataError(
            f"task {spec!r}: cannot load its data ({', '.join(sources)}) or its metric: "
            f"{type(error).__name__}: {reason}\n"
            "Data are downloaded from the hub once, then read from the local cache. Without network: run "
            f"`hf download --repo-type dataset {sources[0]} --local-dir DIR/{sources[0]}` on a machine with "
            "network, copy DIR, set evaluation.data_dir=DIR. evaluation=bundled_tasks needs no hub."
        ) from error


def _leaves(manager: Any, spec: str | Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of every task behind ``spec`` (name, file, or settings), with functions by name.

    A name that is not in the index yields ``{}``.
    """
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
    """Return the names to report: top-level groups if all have scores of their own, else the tasks."""
    groups = part["groups"]
    children = {name for group in groups.values() for name in group.child_names}
    roots = [group for name, group in groups.items() if name not in children]
    if roots and all(group.has_aggregation for group in roots):
        return [group.name for group in roots]
    return list(part["tasks"])


def _settle(task: Any, selection: Selection) -> None:
    """Apply the selection to a task: few-shot count, length of generated texts, overflow of its metrics.

    A few-shot count of zero in the task stays zero, as in lm-eval. A perplexity beyond the range of floats is
    infinite, not an error.
    """
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
    """Check that there are enough documents to draw few-shot examples from.

    lm-eval itself fails in the middle of an evaluation, and draws from the items if a task names no others.

    Raises:
        ConfigurationError: there are too few documents.
    """
    shots, sampler = task.get_config("num_fewshot") or 0, getattr(task, "sampler", None)
    if not shots or sampler is None:  # a task in Python may make its own examples
        return
    split = task.fewshot_cfg.split
    named = split or task.fewshot_cfg.samples or task.has_training_docs() or task.has_validation_docs()
    itself = split is not None and split == task.config.test_split  # an item is never its own example
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
    """Return the lengths of a selection's requests, without those that certainly fit the window.

    Args:
        selection: the tasks.
        limit: maximum number of items per task, or None for all.
        chat_template: True for prompts in the chat template.
        reader: tokenizes the requests.

    Raises:
        UnsupportedError: the tokenizer cannot express a request; the message names the task.
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
    """Return True if ``spec`` is the path of a YAML file."""
    return Path(spec).suffix in (".yaml", ".yml") and Path(spec).expanduser().is_file()
