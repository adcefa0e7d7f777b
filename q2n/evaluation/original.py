"""What is kept of the unquantized model, so that a quantized one can be compared with it token by token.

Log-probabilities of all tokens would take gigabytes; the last hidden states and the head, from which they
follow exactly, take a hundredth of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from q2n.data.cache import cache_root, kept
from q2n.evaluation.reference import reference_identity
from q2n.records.fingerprint import fingerprint
from q2n.runtime.files import make_folder_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.evaluation.base import EvaluationContext

_FILE = "states.safetensors"


@dataclass(frozen=True)
class Original:
    """``states`` ``(n, T, D)``: normalised outputs of the last block; ``head`` ``(V, D)``: its weight."""

    states: Tensor
    head: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """``(m, V)`` of states ``(m, D)``, as the unquantized model computes them."""
        return torch.nn.functional.linear(rows, self.head.to(rows.device))


def kept_states(
    context: EvaluationContext,
    identity: Mapping[str, Any],
    key: Mapping[str, Any],
    compute: Callable[[], Tensor],
) -> Tensor:
    """The unquantized model's last hidden states ``(n, T, D)`` on some windows, from the cache folder if they
    are there.

    Args:
        key: what, beside model, code, libraries and hardware, decides the states.
        compute: called if the cache has no such states.
    """
    whole = reference_identity(identity)
    relevant = {name: part for name, part in whole.items() if name not in ("evaluation", "data")}
    folder = cache_root(context.cache_dir) / "original" / fingerprint({**relevant, **key})
    states = _read(folder)
    if states is None:
        states = compute().cpu().contiguous()
        computed = {"states": states}
        kept(
            lambda: make_folder_atomic(
                folder, lambda private: save_file(computed, private / _FILE), lambda it: _read(it) is not None
            )
        )
    return states


def _read(folder: Path) -> Tensor | None:
    try:
        return load_file(folder / _FILE)["states"]
    except (OSError, KeyError, SafetensorError):
        return None  # not there, or damaged: computed and written anew
