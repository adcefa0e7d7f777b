"""What a record is: frozen objects with every field typed, so that a file that does not fit is noticed.

A field may be added with a default; anything else raises ``SCHEMA_VERSION``.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from q2n.fingerprint import fingerprint as digest
from q2n.fingerprint import plain
from q2n.provenance import Provenance
from q2n.types import LayerReport

SCHEMA_VERSION = 1

Tree = Annotated[dict[str, Any], BeforeValidator(plain)]
"""A plain JSON tree; made plain when the record is built, so that it equals what is read back."""


def _fields(report: Any) -> Any:
    # pydantic takes a finished dataclass as it is; a NumPy scalar inside would only fail when written
    return dataclasses.asdict(report) if isinstance(report, LayerReport) else report


Layer = Annotated[LayerReport, BeforeValidator(_fields)]
"""A :class:`LayerReport` whose fields are checked when the record is built."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvaluationProtocol(_Frozen):
    """Everything that must agree before two perplexities may stand in one column.

    ``stride`` equal to ``seqlen`` means windows that do not overlap; ``bos`` says who put a BOS
    token where (``tokenizer``, ``each_window``, ``none``: see :mod:`q2n.data.text`).
    """

    dataset: str
    text_sha256: str
    tokenizer: str
    seqlen: int = Field(ge=1)
    windows: int = Field(ge=1)
    bos: str
    loss_dtype: str
    forward_dtype: str
    stride: int = Field(ge=1)

    def key(self) -> str:
        """Short digest of all fields."""
        return digest(self.model_dump())[:8]

    def parts(self) -> tuple[str, ...]:
        """The label's parts after the data set."""
        stride = () if self.stride == self.seqlen else (f"stride {self.stride}",)
        same = self.loss_dtype == self.forward_dtype
        dtype = self.loss_dtype if same else f"{self.forward_dtype}, loss {self.loss_dtype}"
        return (f"{self.windows} x {self.seqlen} tokens", *stride, f"BOS {self.bos}", dtype)

    def label(self) -> str:
        """For people: ``wiki · 32 x 512 tokens · BOS none · float32``."""
        return " · ".join((self.dataset, *self.parts()))


class Metric(_Frozen):
    """One measured number. ``per_window`` holds each window's mean negative log-likelihood; ``reference``
    is the unquantized model's value under the same protocol."""

    name: str
    dataset: str
    value: float
    unit: str
    count: int = Field(ge=0)
    count_unit: str = "windows"
    lower_is_better: bool
    protocol: EvaluationProtocol
    per_window: tuple[float, ...] = ()
    reference: float | None = None
    reference_per_window: tuple[float, ...] = ()


class Cell(_Frozen):
    """A cell's place in the tables: the labels of its choices. ``correction`` is the choice of ``q2n``."""

    model: str
    baseline: str
    correction: str
    bits: int | float
    group_size: int
    seed: int


class RunRecord(_Frozen):
    """A finished cell. ``bits_per_weight`` is the average over the quantized linears, scales included;
    ``identity`` is what ``fingerprint`` is the digest of."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str = Field(pattern=r"^[0-9a-f]{16}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    created: str
    status: Literal["finished"] = "finished"
    config: Tree
    overrides: tuple[str, ...] = ()
    cell: Cell
    identity: Tree
    provenance: Provenance
    layers: tuple[Layer, ...] = ()
    metrics: tuple[Metric, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    bits_per_weight: float

    @property
    def protocols(self) -> tuple[EvaluationProtocol, ...]:
        return tuple(dict.fromkeys(metric.protocol for metric in self.metrics))
