"""Validated configuration of one cell, built from Hydra's before anything heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import AfterValidator, Field, StringConstraints

from q2n.baselines.base import Bits, GroupSize
from q2n.exceptions import ConfigurationError
from q2n.models.loaded import Streaming
from q2n.models.spec import ModelSpec
from q2n.options import as_read, build, construct, did_you_mean, option, unread
from q2n.records.fingerprint import NEUTRAL_KEYS, SOURCES, canonical_json, flatten, relevant
from q2n.records.known_values import known_values
from q2n.records.schema import Cell, CellRef

if TYPE_CHECKING:
    from q2n.data.sources import CalibrationOption
    from q2n.diagnostics.base import Diagnostics
    from q2n.evaluation.base import Evaluation
    from q2n.tracking.base import Tracking
    from q2n.types import Baseline, Correction

GROUPS = ("model", "baseline", "q2n", "calibration", "evaluation", "diagnostics", "tracking")

LABELLED = ("model=", "baseline=", "q2n=", "bits=")
"""Overrides that the first words of a cell's label stand for."""

AXES = r"^baseline\.(?=(bits|group_size)=)"
"""Prefix that a label omits: ``bits=2`` and ``baseline.bits=2`` are one cell."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
        raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
    return value


@option
class Scalars:
    """Top-level keys of ``conf/config.yaml``."""

    name: Name
    bits: Bits
    group_size: GroupSize
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Annotated[str, AfterValidator(_device)]
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    results_dir: Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
    cache_dir: str | None
    cache_limit: Annotated[float, Field(ge=0)]
    objective: str | None
    force: bool
    resume: Literal["auto", "never", "required"]
    checkpoint_every: Literal["auto"] | Annotated[int, Field(ge=0)]
    retry: Literal["all", "failed", "none"]
    streaming: Streaming
    allow_beyond_context: bool = False
    allow_calibration_text: bool = False
    plan: bool
    sanity: Literal["stop", "warn", "off"]
    known: str | None


class RunConfig:
    """Configuration of one cell: the scalars, one built object per group, and the resolved tree it reads.

    ``choices`` has the chosen option of each group (``{"q2n": "on", ...}``): the labels in tables. ``asked``
    are the command line's overrides, ``overrides`` the ones that the cell reads. ``unread`` are the settings
    that the cell does not read, by dotted key, with the reason (empty for a top-level key that no option
    refers to).
    """

    def __init__(
        self,
        tree: Mapping[str, Any],
        choices: Mapping[str, str],
        overrides: tuple[str, ...],
        sources: Collection[str] = SOURCES,
    ) -> None:
        known = [*Scalars.__dataclass_fields__, *GROUPS]
        complaints = [
            f"{key}: no such key{did_you_mean(key, known)} (keys: {', '.join(known)})"
            for key in tree
            if key not in known
        ]
        if complaints:
            raise ConfigurationError("\n".join(complaints))
        self.tree = {key: value for key, value in as_read(tree).items() if key not in SOURCES}
        self.unread = {**unread(tree), **dict.fromkeys(sorted(SOURCES - set(sources)), "")}
        self.choices = dict(choices)
        self.asked = overrides
        self.overrides = tuple(item for item in overrides if key_of(item) not in self.unread)
        self.scalars = construct(
            Scalars, {key: value for key, value in tree.items() if key not in GROUPS}, ""
        )
        known_values(self.scalars.known)  # reports a mistake in the file before the first cell runs
        self.model: ModelSpec = build(tree.get("model"), "model")
        self.baseline: Baseline = build(tree.get("baseline"), "baseline")
        self.correction: Correction = build(tree.get("q2n"), "q2n")
        self.calibration: CalibrationOption = build(tree.get("calibration"), "calibration")
        self.evaluation: Evaluation = build(tree.get("evaluation"), "evaluation")
        self.diagnostics: Diagnostics = build(tree.get("diagnostics"), "diagnostics")
        self.tracking: Tracking = build(tree.get("tracking"), "tracking")
        if self.correction.heldout and not self.heldout:
            raise ConfigurationError(
                f"calibration.heldout=0: q2n={choices.get('q2n')} is chosen on held-out sequences and needs "
                f"at least one; calibration.heldout=null uses {self.correction.heldout}"
            )

    @classmethod
    def from_hydra(cls, composed: DictConfig, hydra: Any) -> RunConfig:
        """Validate a configuration that Hydra has composed.

        Args:
            composed: the configuration; its section ``hydra``, if it has one, is removed.
            hydra: Hydra's own section.

        Raises:
            ConfigurationError: a key is missing, unknown or out of range, or an interpolation fails.
        """
        choices, overrides = hydra.runtime.choices, tuple(hydra.overrides.task)
        with open_dict(composed):
            composed.pop("hydra", None)
        try:
            tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            written = OmegaConf.to_container(composed, resolve=False)
        except OmegaConfBaseException as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            rule = "is required" if isinstance(error, MissingMandatoryValue) else first
            raise ConfigurationError(f"{error.full_key or 'configuration'}: {rule}") from None
        assert isinstance(tree, dict)
        named = {str(key): value for key, value in tree.items()}
        return cls(named, choices, overrides, _sources(cast(dict[str, Any], written), as_read(named)))

    def unread_settings(self) -> dict[str, str]:
        """Return the overrides that the cell does not read, by key, each with the reason as a sentence."""
        otherwise = f"is not read with baseline={self.choices['baseline']}"
        keys = (key_of(override) for override in self.asked)
        return {key: f"{key} {self.unread[key] or otherwise}" for key in keys if key in self.unread}

    @property
    def heldout(self) -> int:
        """Number of held-out calibration sequences, as configured or as correction and diagnostics need."""
        chosen = self.calibration.heldout
        return max(self.correction.heldout, self.diagnostics.heldout) if chosen is None else chosen

    @property
    def cell(self) -> Cell:
        """Place of the cell in the tables."""
        bits = self.baseline.code_bits
        return Cell(
            model=self.model.name,
            baseline=self.choices["baseline"],
            correction=self.choices["q2n"],
            bits=int(bits) if float(bits).is_integer() else bits,
            group_size=self.baseline.columns_per_scale,
            seed=self.scalars.seed,
        )

    @property
    def key(self) -> str:
        """Digest of the configuration alone (:attr:`CellRef.key`)."""
        return self.ref().key

    def ref(self, identity: Mapping[str, Any] | None = None) -> CellRef:
        """Return the reference by which notes, failures and plans name the cell.

        Args:
            identity: the cell's identity, or None if weights and text have not been looked up.
        """
        return CellRef(
            name=self.scalars.name,
            label=self.label,
            axes=self.cell,
            configuration=self.tree,
            identity=dict(identity or {"config": relevant(self.tree)}),
        )

    @property
    def label(self) -> str:
        """Label for progress lines: ``smollm2_135m gptq q2n=on 3 bit seed=1 q2n.t=0.05``.

        After the bits come the overrides that can change a number.
        """
        choice = self.choices.get
        words = [f"{choice('model')} {choice('baseline')} q2n={choice('q2n')} {self.cell.bits:g} bit"]
        for override in self.overrides:
            setting = re.sub(AXES, "", override.lstrip("+~"))
            key = re.split("[=.@/]", setting, maxsplit=1)[0]
            if not setting.startswith(LABELLED) and key not in {*NEUTRAL_KEYS, "experiment"}:
                words.append(setting)
        return " ".join(words)


def key_of(override: str) -> str:
    """Return the key that an override sets or deletes: ``q2n.t`` of ``+q2n.t=0.1``."""
    return override.lstrip("+~").partition("=")[0]


def _sources(written: Mapping[str, Any], read: Mapping[str, Any]) -> set[str]:
    """Return the :data:`SOURCES` that keys of ``read`` refer to in the unresolved tree ``written``."""
    keys = flatten(read).keys()
    texts = [canonical_json(value) for key, value in flatten(written).items() if key in keys]
    references = {name for text in texts if "${" in text for name in re.findall(r"[A-Za-z_]+", text)}
    return references & SOURCES
