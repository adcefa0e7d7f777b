"""Parts of a record: frozen objects with every field typed, so that a file that does not fit is noticed.

A field may be added with a default; anything else raises ``SCHEMA_VERSION``.
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
"""A plain JSON tree; made plain when the record is built, so that it equals what is read back."""


LAYER_TIMES = ("solve_seconds", "correct_seconds")
"""Fields of a :class:`LayerReport` that are kept to a microsecond."""


def _fields(report: Any) -> Any:
    # pydantic takes a finished dataclass as it is; a NumPy scalar inside would only fail when written
    fields = dataclasses.asdict(report) if isinstance(report, LayerReport) else report
    if not isinstance(fields, dict):
        return fields
    # below a microsecond is noise, which nothing packs: in a file it would take as much room as the errors
    times = {key: fields[key] for key in LAYER_TIMES if isinstance(fields.get(key), float)}
    return {**fields, **{key: round(value, 6) for key, value in times.items()}}


Layer = Annotated[LayerReport, BeforeValidator(_fields)]
"""A :class:`LayerReport` whose fields are checked, and times rounded, when the record is built."""


class Frozen(BaseModel):
    """Base of everything that is written to disk as JSON: fixed fields, each checked when it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Protocol(Frozen):
    dataset: str

    _later: ClassVar[tuple[str, ...]] = ()
    """Fields that older records do not have."""

    def key(self) -> str:
        """Short digest of all fields; those that older records do not have count only where they say
        something, so that it is the same for older records."""
        unsaid = {name for name in self._later if not getattr(self, name)}
        return digest(self.model_dump(exclude=unsaid))[:8]

    def parts(self) -> tuple[str, ...]:
        """The label's parts after the data set or task."""
        raise NotImplementedError

    def label(self) -> str:
        """One line for people, as ``wiki · 32 x 512 tokens · BOS none · float32`` or
        ``piqa · 1838 items · 0-shot · version 1.0 · lm-eval 0.4.13 · float32``."""
        return " · ".join((self.dataset, *self.parts()))


class EvaluationProtocol(_Protocol):
    """Everything that must agree before two perplexities may stand in one column.

    ``stride`` equal to ``seqlen`` means windows that do not overlap; ``bos`` says who put a BOS
    token where (``tokenizer``, ``each_window``, ``none``: see :mod:`q2n.data.text`). ``variant`` names the
    rule by which a data set of the hub is read (:mod:`q2n.data.hub`); empty where there is only one.
    ``positions`` is the model's context length where ``seqlen`` exceeds it; ``calibrated`` tells that the
    model was calibrated on this text.
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
        stride = () if self.stride == self.seqlen else (f"stride {self.stride}",)
        same = self.loss_dtype == self.forward_dtype
        dtype = self.loss_dtype if same else f"{self.forward_dtype}, loss {self.loss_dtype}"
        variant = (f"rule {self.variant}",) if self.variant else ()
        beyond = (f"beyond the model's {self.positions} positions",) if self.positions else ()
        seen = ("text also calibrated on",) if self.calibrated else ()
        length = f"{self.windows} x {self.seqlen} tokens"
        return (length, *stride, *variant, f"BOS {self.bos}", dtype, *beyond, *seen)


class TaskProtocol(_Protocol):
    """Everything that must agree before two scores of a task may stand in one column.

    ``items_sha256`` is the digest of every item with the prompts and answers the model was really given,
    few-shot examples and generation settings included. Before every context stand the special tokens that the
    tokenizer puts before a text; ``left_out`` are those that it would append, as text. ``cut`` items lost the
    beginning of a prompt that is longer than the model's ``window`` (0 where nothing was cut).
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
        """Number of items (the name that :class:`EvaluationProtocol` has for it)."""
        return self.items

    def parts(self) -> tuple[str, ...]:
        chat = ("chat template",) if self.chat_template else ()
        rule = f"version {self.task_version}"
        bare = (f"without the tokenizer's {self.left_out}",) if self.left_out else ()
        cut = (f"{self.cut} cut to {self.window} tokens",) if self.cut else ()
        shots, dtype = f"{self.fewshot}-shot", self.forward_dtype
        return (f"{self.items} items", shots, *chat, rule, self.harness, dtype, *bare, *cut)


AnyProtocol = EvaluationProtocol | TaskProtocol


_EXPONENTIAL = re.compile(r"perplexity( \(.*\))?$")


class Metric(Frozen):
    """One measured number and what it is the mean of.

    ``per_window`` holds each window's (or item's) value: for a perplexity its mean negative log-likelihood.
    ``weights`` says how many predictions each of them is the mean of; empty: equally many. ``per_item`` is
    what a share of right answers is made of, one character an item, ``1`` for right; then ``count_unit`` is
    ``items``. ``difference`` of two values: their ``ratio``, where the value is the exponential of the mean
    of its parts, or in its ``unit``, where it is the mean itself; an aggregation of its own has no parts.
    ``reference`` is the unquantized model's value under the same protocol; ``stderr`` has the unit
    of ``value``. ``tokens`` and ``seconds`` say what the measurement took. ``special_tokens`` stood before
    every context, as text (None: not noted). On ``undefined`` windows or items the model's output is not a
    number: the loss is infinite there, a continuation has no probability.
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
        """Records of before the field ``difference``: the scores called perplexity were exponentials of a
        mean, all others means."""
        if isinstance(fields, Mapping) and "difference" not in fields:
            return {
                **fields,
                "difference": "ratio" if _EXPONENTIAL.match(str(fields.get("name"))) else "unit",
            }
        return fields

    @property
    def parts(self) -> tuple[float, ...]:
        """The values, one a window or item, that two cells are compared by; empty if there are none."""
        return tuple(float(mark) for mark in self.per_item) or self.per_window

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for record and tables about what makes this number hard to compare."""
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
        """This metric with the unquantized model's value and parts beside its own."""
        return self.model_copy(
            update={
                "reference": reference.value,
                "reference_per_window": reference.per_window,
                "reference_per_item": reference.per_item,
            }
        )


class Reuse(Frozen):
    """Results that a cell found of one stage: ``found`` of its ``parts`` (blocks, layers, matrices), which
    once took ``saved_seconds`` to make."""

    key: str
    parts: int
    found: int
    saved_seconds: float


class ReuseTally:
    """Counts what a cell finds of each stage while it runs."""

    def __init__(self) -> None:
        self._stages: dict[str, Reuse] = {}

    def note(self, stage: str, key: str, found: bool, seconds: float = 0.0) -> None:
        """Count one part of ``stage``: it was ``found``, which saved ``seconds``, or had to be made."""
        known = self._stages.get(stage, Reuse(key=key, parts=0, found=0, saved_seconds=0.0))
        self._stages[stage] = Reuse(
            key=key,
            parts=known.parts + 1,
            found=known.found + found,
            saved_seconds=known.saved_seconds + (seconds if found else 0.0),
        )

    @property
    def reused(self) -> dict[str, Reuse]:
        """Stages of which anything was found."""
        return {stage: reuse for stage, reuse in self._stages.items() if reuse.found}


class Cell(Frozen):
    """A cell's place in the tables: the labels of its choices. ``correction`` is the choice of ``q2n``."""

    model: str
    baseline: str
    correction: str
    bits: int | float
    group_size: int
    seed: int


class CellRef(Frozen):
    """A cell wherever it is spoken of: in notes, failures, outcomes and plans.

    ``name`` is the experiment its record belongs to, ``label`` what progress lines call it, ``axes`` its
    place in the tables. ``identity`` is everything that can change its number; before weights and text have
    been looked up, only the configuration.
    """

    name: str
    label: str
    axes: Cell
    configuration: JsonTree
    identity: JsonTree

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the identity: the folder of the record."""
        return digest(self.identity)

    @cached_property
    def key(self) -> str:
        """Digest of the configuration alone, known before anything is looked up."""
        return digest({"config": self.configuration})


class Provenance(Frozen):
    """Origin of a number (:func:`q2n.records.provenance.collect`). Any part that cannot be known is
    ``None``, never a guess."""

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
    """A finished cell. ``bits_per_weight`` is the average over the quantized linears, scales included;
    ``identity`` is what ``fingerprint`` is the digest of. ``resumed_at`` are the blocks at which another
    process went on from a checkpoint: the times are then those of several processes. ``work_seconds`` shares
    out the stage ``quantize`` of ``seconds`` by kind of work (:mod:`q2n.runtime.clock`)."""

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
        return tuple(dict.fromkeys(metric.protocol for metric in self.metrics))
