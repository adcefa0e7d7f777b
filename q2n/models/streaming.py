"""Models larger than memory, whose blocks are read from safetensors when they are used.

Embeddings, head and final norm stay in memory; quantized blocks are written to files of their own. The model
is built without memory for its weights (torch's device ``meta``). Changes of a block's original weights (a
rotation of the whole model) are kept and applied whenever these weights are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from q2n.exceptions import ModelError
from q2n.models import attention
from q2n.models.block import Residency

if TYPE_CHECKING:
    from torch import Tensor, nn

    from q2n.models.block import DecoderBlock
    from q2n.models.block_files import FinishedBlocks

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCKS, HEAD, EMBEDDINGS = "model.layers.", "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class WeightFiles:
    """File of each tensor of a checkpoint."""

    places: Mapping[str, Path]

    @classmethod
    def find(cls, path: str, revision: str | None) -> WeightFiles:
        """Find the files of a folder, or of a repository of the hub, from which they are downloaded.

        Raises:
            OSError: there are no such files.
            SafetensorError: a file is damaged.
        """
        try:
            files = [cast(str, cached_file(path, SINGLE, revision=revision))]
        except OSError:  # not one file: an index lists several
            index = cast(str, cached_file(path, INDEX, revision=revision))
            files, _ = cast(Any, get_checkpoint_shard_files)(path, index, revision=revision)
        places: dict[str, Path] = {}
        for file in map(Path, files):
            with safe_open(file, framework="pt") as opened:
                places.update(dict.fromkeys(opened.keys(), file))
        return cls(places)

    def bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that all tensors together need in memory, in ``dtype``."""
        count = 0
        for file in set(self.places.values()):
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                count += sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
        return count * dtype.itemsize

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """Read tensors by name into memory of their own, in ``dtype``.

        Raises:
            ModelError: a tensor is missing, or its file is damaged.
        """
        wanted = list(names)
        missing = [name for name in wanted if name not in self.places]
        if missing:
            raise ModelError(f"the checkpoint lacks {len(missing)} weights: {', '.join(missing[:3])}, ...")
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(self.places[name] for name in wanted):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in (name for name in wanted if self.places[name] == file):
                        found[name] = opened.get_tensor(name).to(dtype, copy=True)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{file}: cannot be read: {error}") from error
        return found


class Streamed(Residency):
    """Residency of one block whose weights are in memory only while they are used."""

    in_memory = False

    def __init__(self, files: WeightFiles, index: int, dtype: torch.dtype) -> None:
        self._files, self._prefix, self._dtype = files, f"{BLOCKS}{index}.", dtype
        self._rewrites: list[Callable[[DecoderBlock], None]] = []
        self._finished: FinishedBlocks | None = None
        self._users = 0

    def enter(self, block: DecoderBlock, device: torch.device) -> None:
        """Read the final weights, or the original ones with all rewrites, if this is the first user."""
        if not self._users:
            if self._finished is not None:
                block.assign(self._finished.read(block.index))
            else:
                names = [self._prefix + name for name in block.tensors()]
                tensors = self._files.read(names, self._dtype)
                block.assign({name.removeprefix(self._prefix): tensors.pop(name) for name in names})
                for change in self._rewrites:
                    change(block)
            block.module.to(device)
        self._users += 1

    def leave(self, block: DecoderBlock, device: torch.device) -> None:
        """Free the weights after the last user."""
        self._users -= 1
        if not self._users:
            block.assign({name: it.detach().to("meta") for name, it in block.tensors().items()})

    @contextmanager
    def during_calls(self, block: DecoderBlock, device: torch.device) -> Iterator[None]:
        """Read the weights before each call of the module and free them after it, inside the block."""
        before = block.module.register_forward_pre_hook(lambda *_: self.enter(block, device))
        after = block.module.register_forward_hook(lambda *_: self.leave(block, device), always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def rewrite(self, block: DecoderBlock, change: Callable[[DecoderBlock], None]) -> None:
        """Keep ``change``, which is applied whenever the original weights are read."""
        self._rewrites.append(change)

    def finish(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        """Write the final weights to ``finished``, from which they are read from now on."""
        finished.write(block.index, block.tensors())
        self.restore(block, finished)

    def restore(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        """Read the weights from ``finished`` from now on."""
        self._finished = finished


def streamed_model(
    path: str, config: Any, files: WeightFiles, dtype: torch.dtype, revision: str
) -> nn.Module:
    """Build the model with all its weights except those of the blocks.

    Raises:
        ModelError: a weight is missing, or a part of the model cannot be built without its weights.
    """
    with torch.device("meta"):
        model = cast(Any, AutoModelForCausalLM).from_config(
            config, dtype=dtype, attn_implementation=attention.NAME
        )
    names = [name for name in model.state_dict() if not name.startswith(BLOCKS)]
    tied = config.tie_word_embeddings and HEAD not in files.places
    tensors = files.read((name for name in names if not (tied and name == HEAD)), dtype)
    if config.tie_word_embeddings and not tied:
        tied = torch.equal(tensors[HEAD], tensors[EMBEDDINGS])  # as transformers decides it
    if tied:
        tensors[HEAD] = tensors[EMBEDDINGS]
    model.load_state_dict(tensors, strict=False, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    _remake_tables(model, config)
    with suppress(OSError):  # most folders of a base model have none
        model.generation_config = GenerationConfig.from_pretrained(path, revision=revision)
    return cast("nn.Module", model)


def stream_blocks(blocks: Iterable[DecoderBlock], files: WeightFiles, dtype: torch.dtype) -> None:
    """Stream the weights of ``blocks`` from now on: they are read when a block is used.

    Raises:
        ModelError: a weight is missing.
    """
    for block in blocks:
        lacking = [name for name in block.tensors() if f"{BLOCKS}{block.index}.{name}" not in files.places]
        if lacking:
            raise ModelError(f"the checkpoint lacks weights of block {block.index}: {', '.join(lacking[:3])}")
        block.residency = Streamed(files, block.index, dtype)


def _remake_tables(model: nn.Module, config: Any) -> None:
    """Build the modules again whose tables are computed and not stored (rotary embeddings)."""
    stored = model.state_dict().keys()
    for name, module in list(model.named_modules()):
        owned = [f"{name}.{leaf}" for leaf, table in module.named_buffers(recurse=False) if table.is_meta]
        if any(table not in stored for table in owned):
            model.set_submodule(name, cast(Any, type(module))(config=config))
