"""Context managers around lm-eval: no output, local data, permission to run code."""

from __future__ import annotations

import importlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch


@contextmanager
def local_data(data_dir: str | None) -> Iterator[None]:
    """Read data sets of the hub from ``data_dir/<owner>/<name>`` if that folder exists."""
    import datasets

    hub: Callable[..., Any] = datasets.load_dataset

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        local = Path(data_dir).expanduser() / path if data_dir else None
        return hub(str(local) if local is not None and local.is_dir() else path, *arguments, **options)

    with patch.object(datasets, "load_dataset", load):
        yield


@contextmanager
def same_draws() -> Iterator[None]:
    """Restore the random states of ``random`` and numpy afterwards, so that later draws do not change."""
    import numpy as np

    drawn, by_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(drawn)
        np.random.set_state(by_numpy)


@contextmanager
def quiet_harness(allow_code_execution: bool = False) -> Iterator[None]:
    """Silence progress bars, logs and warnings of lm-eval; permit generated code only if asked to."""
    import datasets

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(patch.dict(os.environ, HF_ALLOW_CODE_EVAL=str(int(allow_code_execution))))
        for name in ("lm_eval", "huggingface_hub", "datasets"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        for name in ("lm_eval.api.model", "lm_eval.api.task", "lm_eval.models.huggingface"):
            module = importlib.import_module(name)
            stack.enter_context(patch.object(module, "tqdm", partial(module.tqdm, disable=True)))
        if datasets.is_progress_bar_enabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield
