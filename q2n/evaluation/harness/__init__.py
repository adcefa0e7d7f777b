"""EleutherAI's lm-evaluation-harness on the model in memory."""

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
    """The scores lm-eval gives a model on tasks: its prompts, its rules, its metrics.

    The quantized model is scored where it is, without being saved and loaded again, so that what it does
    online to activations counts (the official release's route through saved weights loses that).
    """

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of tasks, groups or tags of lm-eval, bundled tasks, or paths of YAML files."""
    include_path: list[str] = Field(default_factory=list)
    """Folders whose task files are known by name, too."""
    data_dir: str | None = None
    """A folder with ``<owner>/<name>`` for each data set that is not to be fetched from the hub."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    apply_chat_template: bool = False
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    allow_code_execution: bool = False
    truncation: bool = False
    """Whether requests longer than the model's window lose their beginning, or are refused."""

    def identity(self) -> dict[str, Any]:
        return identify_tasks(self.tasks, self.include_path, self.data_dir)

    def prepare(self, cache_dir: str | None) -> None:
        load_tasks(self._selection(cache_dir))

    def examine(self, outline: Outline, cache_dir: str | None) -> list[TokenSet]:
        self._require_template(outline.tokenizer)
        reader = Reader.of(outline.config, outline.tokenizer)
        found = lengths(self._selection(cache_dir), self.limit or None, self.apply_chat_template, reader)
        require_fit(found, reader.window, self.truncation)
        return []

    def evaluate(self, context: EvaluationContext) -> list[Metric]:
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
                    bootstrap_iters=0,  # standard errors follow from the items
                    apply_chat_template=self.apply_chat_template,
                    fewshot_as_multiturn=self.apply_chat_template,
                    confirm_run_unsafe_code=self.allow_code_execution,
                )
            seconds = time.perf_counter() - began
        results = Results(scores, loaded, model, context, seconds, self.apply_chat_template)
        return [metric for name in loaded.shown for metric in results.metrics(name)]

    def _require_template(self, tokenizer: Any) -> None:
        if self.apply_chat_template and not tokenizer.chat_template:
            raise UnsupportedError(
                "evaluation.apply_chat_template=true: this model's tokenizer has no template"
            )

    def _selection(self, cache_dir: str | None) -> Selection:
        return Selection(
            tuple(self.tasks),
            tuple(str(Path(folder).expanduser()) for folder in self.include_path),
            self.data_dir,
            self.num_fewshot,
            self.max_new_tokens,
            self.allow_code_execution,
            cache_dir,
        )
