"""Tasks by name or file, with their data, checked before a model is loaded."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from q2n.exceptions import ConfigurationError, DataError
from q2n.options import did_you_mean

BUNDLED = Path(__file__).parent / "tasks"
"""Task files that come with the package."""
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
    with quiet_harness(selection.allow_code_execution), _local_data(selection.data_dir):
        manager = _manager(selection)
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
    for task in loaded.tasks.values():
        _settle(task, selection)
    return loaded


def _manager(selection: Selection) -> Any:
    """lm-eval's index of task files; its own thousands are only read if they are asked for."""
    from lm_eval.tasks import TaskManager

    folders = [str(BUNDLED), *selection.include_path]
    metadata = {"cache_dir": selection.cache_dir} if selection.cache_dir else {}
    small = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if all(spec in small.all_subtasks or _is_single(spec) for spec in selection.tasks):
        return small
    return TaskManager(include_path=folders, metadata=metadata)


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
            f"task {spec!r}: cannot load its data ({', '.join(sources)}): {type(error).__name__}: {reason}\n"
            "With network the hub provides it, and once loaded it stays in the local cache. Without: "
            f"`hf download --repo-type dataset {sources[0]} --local-dir DIR/{sources[0]}` where there is "
            "network, then evaluation.data_dir=DIR. evaluation=bundled_tasks needs no hub."
        ) from error


def _leaves(manager: Any, spec: str | Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of every task that ``spec`` (name, file, or settings) comes to; functions stay text."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if isinstance(spec, str):
        entry = manager.task_index.get(spec)
        if entry is not None and entry.cfg is None:  # a tag
            for name in sorted(entry.tags):
                yield from _leaves(manager, name)
            return
        spec = entry.cfg if entry is not None else load_yaml(spec, resolve_func=False)
    if "group" not in spec:
        yield spec
        return
    for member in spec.get("task") or ():
        name = member if isinstance(member, str) else member.get("task", member.get("group"))
        yield from _leaves(manager, name if name in manager.task_index else member)


def _shown(part: Mapping[str, Any]) -> list[str]:
    groups = part["groups"]
    children = {name for group in groups.values() for name in group.child_names}
    roots = [group for name, group in groups.items() if name not in children]
    if roots and all(group.has_aggregation for group in roots):
        return [group.name for group in roots]
    return list(part["tasks"])


def _settle(task: Any, selection: Selection) -> None:
    """Few-shot count by lm-eval's rule: a task that sets it to zero keeps it. Length of generated texts."""
    own = task.get_config("num_fewshot")
    if own is None or (own and selection.num_fewshot is not None):
        task.set_config(key="num_fewshot", value=selection.num_fewshot or 0)
    if selection.max_new_tokens is not None and task.get_config("output_type") == "generate_until":
        task.set_config(
            key="generation_kwargs", value={"max_gen_toks": selection.max_new_tokens}, update=True
        )


def _is_file(spec: str) -> bool:
    return Path(spec).suffix in (".yaml", ".yml") and Path(spec).expanduser().is_file()


def _is_single(spec: str) -> bool:
    """Whether it is the file of one task; that of a group may name any of lm-eval's."""
    return _is_file(spec) and "\ngroup:" not in "\n" + Path(spec).expanduser().read_text(encoding="utf-8")


@contextmanager
def _local_data(data_dir: str | None) -> Iterator[None]:
    """Inside, a data set of the hub is read from ``data_dir/<owner>/<name>`` if that folder is there."""
    import datasets

    hub: Callable[..., Any] = datasets.load_dataset

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        local = Path(data_dir).expanduser() / path if data_dir else None
        return hub(str(local) if local is not None and local.is_dir() else path, *arguments, **options)

    with patch.object(datasets, "load_dataset", load):
        yield


@contextmanager
def quiet_harness(allow_code_execution: bool = False) -> Iterator[None]:
    """No bars, log lines or warnings of lm-eval inside; leave to run generated code only if that is given."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        leave = {"HF_ALLOW_CODE_EVAL": "1" if allow_code_execution else "0"}
        stack.enter_context(patch.dict(os.environ, leave))
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        _silence_bars(stack)
        yield


def _silence_bars(stack: ExitStack) -> None:
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    modules: Sequence[Any] = (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface)
    for module in modules:
        stack.enter_context(patch.object(module, "tqdm", partial(module.tqdm, disable=True)))
    if datasets.is_progress_bar_enabled():
        datasets.disable_progress_bars()
        stack.callback(datasets.enable_progress_bars)
