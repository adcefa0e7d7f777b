"""Parts of a record: frozen objects with typed fields, so that a file with wrong fields is noticed.

A field may be added with a default; any other change must raise ``SCHEMA_VERSION``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from q2n.records.fingerprint import fingerprint as digest
from q2n.records.fingerprint import plain
from q2n.types import LayerReport

SCHEMA_VERSION = 2

JsonTree = Annotated[dict[str, Any], BeforeValidator(plain)]
"""Plain JSON tree; made plain when the record is built, so that it equals the tree that is read back."""


LAYER_TIMES = ("solve_seconds", "correct_seconds")
"""Fields of a :class:`LayerReport` that are rounded to a microsecond."""


def _fields(report: Any) -> Any:
    # pydantic accepts a finished dataclass unchecked; a NumPy scalar inside would only fail when written
    fields = dataclasses.asdict(report) if isinstance(report, LayerReport) else report
    if not isinstance(fields, dict):
        return fields
    # digits below a microsecond are noise, which does not compress: it would need as much room as the errors
    times = {key: fields[key] for key in LAYER_TIMES if isinstance(fields.get(key), float)}
    return {**fields, **{key: round(value, 6) for key, value in times.items()}}


Layer = Annotated[LayerReport, BeforeValidator(_fields)]
""":class:`LayerReport` whose fields are checked, and times rounded, when the record is built."""


class Frozen(BaseModel):
    """Base of all objects that are written to disk as JSON: fixed fields, each checked when it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Protocol(Frozen):
    dataset: str

    _later: ClassVar[tuple[str, ...]] = ()
    """Fields that older records do not have."""

    def key(self) -> str:
        """Return a digest of 8 digits of all fields.

        Fields that older records lack count only where they are not empty, so that the key of an older record
        stays the same.
        """
        unsaid = {name for name in self._later if not getattr(self, name)}
        return digest(self.model_dump(exclude=unsaid))[:8]

    def parts(self) -> tuple[str, ...]:
        """Return the parts of the label after the data set or task."""
        raise NotImplementedError

    def label(self) -> str:
        """Return one line for people: ``wiki · 32 x 512 tokens · BOS none · float32``.

        For a task: ``piqa · 1838 items · 0-shot · version 1.0 · lm-eval 0.4.13 · float32``.
        """
        return " · ".join((self.dataset, *self.parts()))


class EvaluationProtocol(_Protocol):
    """Conditions that must agree before two perplexities may stand in one column.

    ``stride`` equal to ``seqlen`` means windows that do not overlap; ``bos`` is the rule for BOS tokens
    (``tokenizer``, ``each_window``, ``none``: see :mod:`q2n.data.text`). ``variant`` names the rule by which
    a data set of the hub is read (:mod:`q2n.data.hub`), empty where there is only one. ``positions`` is the
    model's context length where ``seqlen`` exceeds it; ``calibrated`` is True if the model was calibrated on
    this text.
    """

    text_sha256: str
    tokenizer: str
    seqlen: int = Field(ge=1)
    windows: int = Field(ge=1)
    bos: str
    loss_dtype: str
    forward_dtype: str
    stride: int = Field(ge=1)
    variant: str = ""
    positions: int | None = None
    calibrated: bool = False

    _later: ClassVar = ("positions", "calibrated")

    def parts(self) -> tuple[str, ...]:
        """Return windows, stride, variant, BOS rule, dtypes, and remarks that limit a comparison."""
        stride = () if self.stride == self.seqlen else (f"stride {self.stride}",)
        same = self.loss_dtype == self.forward_dtype
        dtype = self.loss_dtype if same else f"{self.forward_dtype}, loss {self.loss_dtype}"
        variant = (f"rule {self.variant}",) if self.variant else ()
        beyond = (f"beyond the model's {self.positions} positions",) if self.positions else ()
        seen = ("text also calibrated on",) if self.calibrated else ()
        length = f"{self.windows} x {self.seqlen} tokens"
        return (length, *stride, *variant, f"BOS {self.bos}", dtype, *beyond, *seen)


class TaskProtocol(_Protocol):
    """Conditions that must agree before two scores of a task may stand in one column.

    ``items_sha256`` is the digest of every item with the prompts and answers given to the model, few-shot
    examples and generation settings included. Every context begins with the special tokens that the tokenizer
    puts before a text; ``left_out`` is the text of those that it would append. ``cut`` is the number of items
    that lost the beginning of a prompt longer than the model's ``window`` (both 0 where nothing was cut).
    """

    items_sha256: str
    tokenizer: str
    items: int = Field(ge=1)
    task_version: str
    harness: str
    fewshot: int = Field(ge=0)
    chat_template: bool
    forward_dtype: str
    left_out: str = ""
    cut: int = Field(default=0, ge=0)
    window: int = Field(default=0, ge=0)

    _later: ClassVar = ("left_out", "cut", "window")

    @property
    def windows(self) -> int:
        """Number of items, under the name that :class:`EvaluationProtocol` has for its windows."""
        return self.items

    def parts(self) -> tuple[str, ...]:
        """Return items, shots, chat template, task version, harness, dtype, and remarks on the prompts."""
        chat = ("chat template",) if self.chat_template else ()
        rule = f"version {self.task_version}"
        bare = (f"without the tokenizer's {self.left_out}",) if self.left_out else ()
        cut = (f"{self.cut} cut to {self.window} tokens",) if self.cut else ()
        shots, dtype = f"{self.fewshot}-shot", self.forward_dtype
        return (f"{self.items} items", shots, *chat, rule, self.harness, dtype, *bare, *cut)


AnyProtocol = EvaluationProtocol | TaskProtocol


_EXPONENTIAL = re.compile(r"perplexity( \(.*\))?$")


class Metric(Frozen):
    """One measured number, and the values whose mean it is.

    ``per_window`` has the value of each window or item: for a perplexity its mean negative log-likelihood.
    ``weights`` is the number of predictions in each of these means, empty if all have equally many.
    ``per_item`` has one character per item for a share of right answers, ``1`` for right; then ``count_unit``
    is ``items``. ``difference`` is how two values are compared: by their ``ratio``, if the value is the
    exponential of the mean of its parts, or in its ``unit``, if it is the mean itself; another aggregation
    has no parts. ``reference`` is the unquantized model's value under the same protocol; ``stderr`` has the
    unit of ``value``. ``tokens`` and ``seconds`` are those of the measurement. ``special_tokens`` is the text
    that stood before every context, or None if unknown. ``undefined`` counts the windows or items on which
    the model's output is not a number: the loss is infinite there, and a continuation has no probability.
    """

    name: str
    dataset: str
    value: float
    unit: str
    count: int = Field(ge=0)
    count_unit: str = "windows"
    lower_is_better: bool
    difference: Literal["ratio", "unit"]
    protocol: AnyProtocol
    per_window: tuple[float, ...] = ()
    weights: tuple[int, ...] = ()
    per_item: str = Field(default="", pattern="^[01]*$")
    stderr: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    special_tokens: str | None = None
    undefined: int = Field(default=0, ge=0)
    reference: float | None = None
    reference_per_window: tuple[float, ...] = ()
    reference_per_item: str = Field(default="", pattern="^[01]*$")

    @model_validator(mode="before")
    @classmethod
    def _of_before_the_field(cls, fields: Any) -> Any:
        """Add the field ``difference`` to records that lack it.

        In these records scores named perplexity were exponentials of a mean, and all others means.
        """
        if isinstance(fields, Mapping) and "difference" not in fields:
            return {
                **fields,
                "difference": "ratio" if _EXPONENTIAL.match(str(fields.get("name"))) else "unit",
            }
        return fields

    @property
    def parts(self) -> tuple[float, ...]:
        """Values per window or item by which two cells are compared; empty if there are none."""
        return tuple(float(mark) for mark in self.per_item) or self.per_window

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for record and tables about limits of a comparison with this number."""
        protocol = self.protocol
        cut = (
            f"{protocol.cut} of {protocol.items} items of {protocol.dataset} are longer than the model's "
            f"window of {protocol.window} tokens and lost their beginning"
            if isinstance(protocol, TaskProtocol) and protocol.cut
            else ""
        )
        undefined = (
            f"{self.dataset} {self.name}: the quantized model's output is not a number on {self.undefined} "
            f"of {self.count} {self.count_unit}; they count as infinite loss, or as no probability"
            if self.undefined
            else ""
        )
        return tuple(note for note in (cut, undefined) if note)

    def measures_as(self, other: Metric) -> bool:
        """Tell whether both are the same quantity under the same protocol."""
        ours, theirs = ((item.name, item.dataset, item.protocol) for item in (self, other))
        return ours == theirs

    def with_reference(self, reference: Metric) -> Metric:
        """Return this metric with the unquantized model's value and parts added."""
        return self.model_copy(
            update={
                "reference": reference.value,
                "reference_per_window": reference.per_window,
                "reference_per_item": reference.per_item,
            }
        )


class Reuse(Frozen):
    """Results of one stage that a cell has reused.

    ``found`` of the ``parts`` (blocks, layers, matrices) were in the cache, which saved ``saved_seconds``.
    """

    key: str
    parts: int
    found: int
    saved_seconds: float


class ReuseTally:
    """Counts the results of each stage that a cell reuses while it runs."""

    def __init__(self) -> None:
        self._stages: dict[str, Reuse] = {}

    def note(self, stage: str, key: str, found: bool, seconds: float = 0.0) -> None:
        """Count one part of ``stage``: it was ``found``, which saved ``seconds``, or had to be computed."""
        known = self._stages.get(stage, Reuse(key=key, parts=0, found=0, saved_seconds=0.0))
        self._stages[stage] = Reuse(
            key=key,
            parts=known.parts + 1,
            found=known.found + found,
            saved_seconds=known.saved_seconds + (seconds if found else 0.0),
        )

    @property
    def reused(self) -> dict[str, Reuse]:
        """Stages of which at least one part was found."""
        return {stage: reuse for stage, reuse in self._stages.items() if reuse.found}


class Cell(Frozen):
    """Place of a cell in the tables: the labels of its options; ``correction`` is the option of ``q2n``."""

    model: str
    baseline: str
    correction: str
    bits: int | float
    group_size: int
    seed: int


class CellRef(Frozen):
    """Reference to a cell in notes, failures, outcomes and plans.

    ``name`` is the experiment of its record, ``label`` its name in progress lines, ``axes`` its place in the
    tables. ``identity`` is everything that can change its number, or only the configuration as long as
    weights and text have not been looked up.
    """

    name: str
    label: str
    axes: Cell
    configuration: JsonTree
    identity: JsonTree

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the identity, the name of the record's folder."""
        return digest(self.identity)

    @cached_property
    def key(self) -> str:
        """Digest of the configuration alone, known before weights and text are looked up."""
        return digest({"config": self.configuration})


class Provenance(Frozen):
    """Origin of a number (:func:`q2n.records.provenance.collect`); unknown parts are None, never a guess."""

    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    python: str = ""
    platform: str = ""
    cpu: str = ""
    threads: int | None = None
    device: str = ""
    dtype: str = ""
    seeds: dict[str, int] = Field(default_factory=dict)
    weights: str = ""


class RunRecord(Frozen):
    """Finished cell.

    ``bits_per_weight`` is the average over the quantized linears, scales included. ``fingerprint`` is the
    digest of ``identity``. ``resumed_at`` are the blocks at which another process resumed from a checkpoint:
    the times are then sums over several processes. ``work_seconds`` divides the stage ``quantize`` of
    ``seconds`` by kind of work (:mod:`q2n.runtime.clock`).
    """

    schema_version: int = SCHEMA_VERSION
    fingerprint: str = Field(pattern=r"^[0-9a-f]{16}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    created: str
    status: Literal["finished"] = "finished"
    config: JsonTree
    overrides: tuple[str, ...] = ()
    cell: Cell
    identity: JsonTree
    provenance: Provenance
    layers: tuple[Layer, ...] = ()
    metrics: tuple[Metric, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    work_seconds: dict[str, float] = Field(default_factory=dict)
    reused: dict[str, Reuse] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    resumed_at: tuple[int, ...] = ()
    bits_per_weight: float
    notes: tuple[str, ...] = ()

    @property
    def protocols(self) -> tuple[AnyProtocol, ...]:
        """Protocols of the metrics, each once."""
        return tuple(dict.fromkeys(metric.protocol for metric in self.metrics))
