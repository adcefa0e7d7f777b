"""Checkpoints between two blocks, from which another process resumes a cell.

A checkpoint is a folder with the finished blocks, the activations that enter the next block (computing them
again would not give the same bits), and a manifest with the size and digest of every file. The manifest is
replaced last and atomically, so a process killed at any moment leaves the former checkpoint or the new one.
Random generators are seeded per block (:func:`seed_block`), so their states need not be stored.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from q2n.exceptions import CheckpointError
from q2n.models.block_files import FinishedBlocks, read_tensors, seal, write_tensors
from q2n.records.fingerprint import canonical_json, plain
from q2n.runtime import signals as interruption
from q2n.runtime.files import sha256_text, write_json_atomic
from q2n.types import LayerReport

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock, ModelAdapter
    from q2n.pipeline.activations import ActivationStore

Resume = Literal["auto", "never", "required"]
Every = int | Literal["auto"]

MANIFEST = "manifest.json"
RULE = 1
"""Version of the manifest's format; it is raised when a field changes its meaning."""
AUTO_SECONDS = 60.0
"""With ``every='auto'``: least time between two checkpoints, in seconds."""
AUTO_SHARE = 20
"""With ``every='auto'``: least multiple of the last write time between two checkpoints (5 % overhead)."""

_REPORTS = TypeAdapter(tuple[LayerReport, ...])


@dataclass(frozen=True)
class Position:
    """State of the quantization between two blocks.

    Attributes:
        next_block: index of the next block.
        batches: micro-batches ``(B, T, D)`` that enter it; empty after the last block.
        reports: reports of all layers before it.
        structures: digests (:func:`structure`) of the blocks before it.
    """

    next_block: int
    batches: tuple[Tensor, ...]
    reports: tuple[LayerReport, ...] = ()
    structures: tuple[str, ...] = ()

    def after(self, batches: tuple[Tensor, ...], reports: Sequence[LayerReport], structure: str) -> Position:
        """Return the position after the next block.

        Args:
            batches: outputs of that block.
            reports: reports of its layers.
            structure: its digest.
        """
        return Position(
            self.next_block + 1, batches, (*self.reports, *reports), (*self.structures, structure)
        )


def seed_block(seed: int, block: int) -> None:
    """Seed every global generator for one block, so that its draws do not depend on earlier blocks."""
    import numpy as np
    import torch

    mixed = int(sha256_text(f"{seed} {block}")[:8], 16)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


class Checkpoint:
    """Checkpoint of one cell, with the folder of its finished blocks.

    It is a context manager around the computation. An interruption saves the position of the cell. After an
    error the last saved checkpoint remains.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        resume: Resume = "auto",
        every: Every = "auto",
        account: Callable[[], Mapping[str, Any]] = dict,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create the checkpoint of a cell without reading it.

        Args:
            folder: folder of the checkpoint.
            fingerprint: fingerprint of the cell.
            resume: ``auto`` uses a valid checkpoint, ``never`` discards it, ``required`` raises without one.
            every: blocks between two checkpoints, 0 for no checkpoints, or ``auto`` to limit the time for
                writing (:data:`AUTO_SHARE`).
            account: returns further data to store, as a JSON tree; see :attr:`account`.
            say: called with messages for the user.
        """
        self.finished = FinishedBlocks(folder)
        self.account: Mapping[str, Any] = {}
        """Data stored by the process that wrote the checkpoint; empty in a cell that is not resumed."""
        self.resumed_at: tuple[int, ...] = ()
        """Indices of the blocks at which the cell was resumed."""
        self._fingerprint = fingerprint
        self._resume = resume
        self._pace = _Pace(every)
        self._note = account
        self._say = say
        self._manifest: Mapping[str, Any] | None = None
        self._adapter: ModelAdapter | None = None
        self._position = Position(0, ())
        self._saved = 0
        self._said = False

    @property
    def folder(self) -> Path:
        """Folder of the checkpoint."""
        return self.finished.folder

    def __enter__(self) -> Checkpoint:
        """Look for a checkpoint, before any expensive work.

        Raises:
            CheckpointError: with ``resume='required'``: there is none, it is damaged, or it belongs to
                another cell.
        """
        if self._resume != "never":
            try:
                self._manifest = _verified(self.folder, self._fingerprint)
            except CheckpointError as error:
                self._refuse(error)
        if self._manifest is not None:
            self.account = self._manifest["account"]
        elif self._resume == "required":
            raise CheckpointError(f"resume=required: there is no checkpoint in {self.folder}")
        else:
            discard(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save the position on an interruption; remove a folder without a manifest."""
        if isinstance(error, KeyboardInterrupt):
            self._save()
        if not (self.folder / MANIFEST).exists():
            discard(self.folder)  # blocks without a manifest cannot be resumed from

    def restore(self, adapter: ModelAdapter, store: ActivationStore) -> Position | None:
        """Load the finished blocks into the model.

        Args:
            adapter: model, rewritten as before its calibration.
            store: storage of the activations.

        Returns:
            The position to resume from, or None if the cell starts from the beginning.

        Raises:
            CheckpointError: with ``resume='required'``: the checkpoint has other modules than the model.
        """
        self._adapter = adapter
        if self._manifest is None:
            return None
        done: int = self._manifest["next_block"]
        structures = tuple(self._manifest["structures"])
        if structures != tuple(structure(block) for block in adapter.blocks[:done]):
            self._refuse(CheckpointError("its blocks have modules or tensors that this model has not"))
            discard(self.folder)
            return None
        for block in adapter.blocks[:done]:
            size, digest = self._manifest["files"][self.finished.path(block.index).name]
            self.finished.seals[block.index] = (size, digest)
            block.restore(self.finished)
        batches = self._batches(store) if done < len(adapter.blocks) else ()
        reports = _REPORTS.validate_python(self._manifest["reports"])
        self._position, self._saved = Position(done, batches, reports, structures), done
        self.resumed_at = (*self._manifest["resumed_at"], done)
        self._say(f"resumed after block {done} of {len(adapter.blocks)}")
        return self._position

    def reached(self, position: Position) -> None:
        """Set the position, and save it if a checkpoint is due; an interruption saves the last position."""
        assert self._adapter is not None
        last = position.next_block == len(self._adapter.blocks)
        self._position = replace(position, batches=()) if last else position
        if self._pace.due(position.next_block - self._saved, last):
            self._save()

    def _refuse(self, error: CheckpointError) -> None:
        """Ignore the checkpoint with a message, or raise with ``resume='required'``."""
        if self._resume == "required":
            raise CheckpointError(f"resume=required: {self.folder}: {error}") from None
        self._manifest = None
        self._say(f"checkpoint not used, all blocks are computed: {self.folder}: {error}")

    def _batches(self, store: ActivationStore) -> tuple[Tensor, ...]:
        kept = read_tensors(self._activations(self._manifest["next_block"])) if self._manifest else {}
        return tuple(store.keep(kept[str(index)]) for index in range(len(kept)))

    def _activations(self, block: int) -> Path:
        return self.folder / f"activations-{block:05d}.safetensors"

    def _save(self) -> None:
        """Save the position if it is new; if the disk is full, the cell continues without the checkpoint."""
        if not self._pace.every or self._position.next_block == self._saved or self._adapter is None:
            return
        try:
            with interruption.shielded(), self._pace.timed():
                self._write(self._adapter, self._position)
        except OSError as error:
            if not self._said:  # once, not per block
                self._say(f"the cell continues without a new checkpoint: {error}")
            self._said = True

    def _write(self, adapter: ModelAdapter, position: Position) -> None:
        done = adapter.blocks[: position.next_block]
        for block in done:
            if block.index not in self.finished:
                self.finished.write(block.index, block.tensors())
        files = {self.finished.path(block.index).name: self.finished.seals[block.index] for block in done}
        if position.batches:
            path = self._activations(position.next_block)
            batches = {str(index): batch for index, batch in enumerate(position.batches)}
            files[path.name] = write_tensors(path, batches)
        manifest = {
            "rule": RULE,
            "fingerprint": self._fingerprint,
            "next_block": position.next_block,
            "structures": position.structures,
            "files": files,
            "reports": [asdict(report) for report in position.reports],
            "resumed_at": self.resumed_at,
            "account": self._note(),
        }
        write_json_atomic(self.folder / MANIFEST, plain({**manifest, "signature": _signature(manifest)}))
        self._saved = position.next_block
        for path in self.folder.glob("*.safetensors"):
            if path.name not in files:
                path.unlink()


class _Pace:
    """Schedule of checkpoints."""

    def __init__(self, every: Every) -> None:
        self.every = every
        self._last = time.monotonic()
        self._cost = 0.0

    def due(self, blocks: int, last: bool) -> bool:
        """Return True if a checkpoint is due.

        Args:
            blocks: number of blocks finished since the last checkpoint.
            last: True after the last block.
        """
        if self.every == "auto":
            return time.monotonic() - self._last >= max(AUTO_SECONDS, AUTO_SHARE * self._cost)
        return self.every > 0 and (last or blocks >= self.every)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Measure the time to write a checkpoint."""
        began = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - began


def structure(block: DecoderBlock) -> str:
    """Return a digest of a block's modules and of its tensors' names, shapes and dtypes.

    Biases are left out, since a correction may add them.
    """
    modules = [f"{name} {type(module).__qualname__}" for name, module in block.module.named_modules()]
    present = {name: it for name, it in block.tensors().items() if not name.endswith(".bias")}
    tensors = [f"{name} {tuple(it.shape)} {it.dtype}" for name, it in present.items()]
    return sha256_text("\n".join(modules + tensors))[:16]


def discard(folder: Path) -> None:
    """Delete a checkpoint if there is one."""
    with contextlib.suppress(OSError):
        (folder / MANIFEST).unlink()  # first, so that an interrupted deletion leaves no valid checkpoint
    shutil.rmtree(folder, ignore_errors=True)


def _verified(folder: Path, fingerprint: str) -> Mapping[str, Any] | None:
    """Return the manifest after checking all its files, or None if there is none.

    Raises:
        CheckpointError: the manifest or one of its files is damaged, or it belongs to another cell.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.pop("signature", None) != _signature(manifest):
        raise CheckpointError(f"{MANIFEST} is damaged: its signature is not that of its contents")
    if manifest["rule"] != RULE:
        raise CheckpointError(f"{MANIFEST} was written by another version of q2n (rule {manifest['rule']})")
    if manifest["fingerprint"] != fingerprint:
        raise CheckpointError(f"it is the checkpoint of another cell ({manifest['fingerprint']})")
    for name, expected in manifest["files"].items():
        try:
            found = seal(folder / name)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
        if found != tuple(expected):
            raise CheckpointError(f"{name} is damaged: its size or digest is not what {MANIFEST} says")
    return manifest


def _signature(manifest: Mapping[str, Any]) -> str:
    return sha256_text(canonical_json(manifest))
