"""EleutherAI's lm-evaluation-harness (lm-eval) on the model in memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from q2n.data.text import TokenSet
from q2n.evaluation.base import Evaluation, EvaluationContext
from q2n.evaluation.harness.identity import identify_tasks
from q2n.evaluation.harness.requests import Reader, require_fit
from q2n.evaluation.harness.results import Results
from q2n.evaluation.harness.surroundings import quiet_harness
from q2n.evaluation.harness.tasks import SEED, Selection, lengths, load_tasks
from q2n.exceptions import UnsupportedError
from q2n.models.loaded import Outline
from q2n.options import option
from q2n.records.schema import Metric


@option
class Harness(Evaluation):
    """Scores of lm-eval's tasks, with lm-eval's prompts, rules and metrics.

    The quantized model is scored in memory, not saved and loaded again, so online operations on activations
    are included (the official code scores saved weights and loses these operations).
    """

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of lm-eval's tasks, groups or tags, names of bundled tasks, or paths of YAML files."""
    include_path: list[str] = Field(default_factory=list)
    """Folders of task files that can be named in ``tasks``."""
    data_dir: str | None = None
    """Folder with copies of data sets, ``<owner>/<name>``, used in place of the hub; None: hub only."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Few-shot examples per item, or None for each task's own number."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Maximum number of items per task, or 0 for all."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Requests per forward pass, or ``auto`` for a number of tokens that is halved when memory runs out."""
    apply_chat_template: bool = False
    """Prompts in the chat template of the tokenizer."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Maximum length of generated answers, or None for each task's own number."""
    allow_code_execution: bool = False
    """Permission for tasks that run code written by the model."""
    truncation: bool = False
    """Truncation of prompts on the left if a request exceeds the model's window; False: an error."""

    def identity(self) -> dict[str, Any]:
        """Return the identity of tasks and local data (:func:`identify_tasks`)."""
        return identify_tasks(self.tasks, self.include_path, self.data_dir)

    def prepare(self, cache_dir: str | None) -> None:
        """Load the tasks and their data; see :func:`load_tasks` for the errors."""
        load_tasks(self._selection(cache_dir))

    def examine(self, outline: Outline, cache_dir: str | None) -> list[TokenSet]:
        """Check that all requests fit the model's window; return nothing, since tasks have no text windows.

        Raises:
            UnsupportedError: the tokenizer lacks a chat template, or cannot express a request.
            ConfigurationError: a request exceeds the window and may not or cannot be truncated.
        """
        self._require_template(outline.tokenizer)
        reader = Reader.of(outline.config, outline.tokenizer)
        found = lengths(self._selection(cache_dir), self.limit or None, self.apply_chat_template, reader)
        require_fit(found, reader.window, self.truncation)
        return []

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
        """Return the scores of all tasks and groups, with the whole model on ``context.device``.

        Raises:
            NumericalError: a score of the unquantized model is not a number.
        """
        import torch

        from q2n.models.quiet import quiet_transformers

        self._require_template(context.loaded.tokenizer)
        loaded = load_tasks(self._selection(context.cache_dir))
        devices = [] if context.device.type == "cpu" else [context.device]
        with quiet_harness(self.allow_code_execution), quiet_transformers(), torch.random.fork_rng(devices):
            from lm_eval import evaluate

            from q2n.evaluation.harness.model import HarnessModel

            torch.manual_seed(SEED)  # for tasks that sample their answers
            for task in loaded.tasks.values():
                task.set_fewshot_seed(seed=SEED)
            began = time.perf_counter()
            with context.loaded.adapter.on(context.device):
                model = HarnessModel(context, self.batch_size, self.truncation)
                scores = evaluate(
                    model,
                    {"tasks": loaded.tasks, "groups": loaded.groups},
                    limit=self.limit or None,
                    bootstrap_iters=0,  # standard errors are computed from the items (results.py)
                    apply_chat_template=self.apply_chat_template,
                    fewshot_as_multiturn=self.apply_chat_template,
                    confirm_run_unsafe_code=self.allow_code_execution,
                )
            seconds = time.perf_counter() - began
        results = Results(scores, loaded, model, context, seconds, self.apply_chat_template)
        return [metric for name in loaded.shown for metric in results.metrics(name)]

    def _require_template(self, tokenizer: Any) -> None:
        """Raise :class:`UnsupportedError` if a chat template is asked for and the tokenizer has none."""
        if self.apply_chat_template and not tokenizer.chat_template:
            raise UnsupportedError(
                "evaluation.apply_chat_template=true: this model's tokenizer has no chat template"
            )

    def _selection(self, cache_dir: str | None) -> Selection:
        """Return the settings that determine tasks and data, as a cache key."""
        return Selection(
            tuple(self.tasks),
            tuple(str(Path(folder).expanduser()) for folder in self.include_path),
            self.data_dir,
            self.num_fewshot,
            self.max_new_tokens,
            self.allow_code_execution,
            cache_dir,
        )
