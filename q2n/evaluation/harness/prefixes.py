"""Prefix trees: common prefixes of token sequences, run through the model once.

The choices of a question share the question, the questions on a passage share the passage, and all items of a
task share its few-shot examples. In a tree, every token attends to its ancestors only and its position is its
depth. The results equal those of separate sequences, since a decoder's output at a token depends on nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import starmap, takewhile
from operator import eq

import torch
from torch import Tensor

SHARED = 4
"""Minimum common prefix of two sequences in one tree (nearly all share a BOS)."""
NODES = 1024
"""Maximum nodes of a tree of several sequences: the cost of its attention grows with their square."""


@dataclass(frozen=True)
class Request:
    """A request for the log-likelihood of a continuation.

    Attributes:
        index: the caller's number of the request.
        tokens: context and continuation without the last token, which is predicted but not read.
        targets: the continuation.
    """

    index: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass
class PrefixTree:
    """Nodes of a prefix tree, parents before children.

    Attributes:
        tokens: token of each node.
        parents: parent of each node, -1 for the root.
        depths: position of each node in its sequence.
        places: each request with the nodes whose outputs predict its targets.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    places: list[tuple[Request, list[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def attends(self) -> Tensor:
        """Return the attention mask ``(N, N)``, bool: row ``i`` marks node ``i`` and its ancestors."""
        mask = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask


@dataclass(frozen=True)
class Batch:
    """Trees padded to the largest: ``ids`` and ``positions`` ``(B, N)``, ``mask`` ``(B, 1, N, N)`` bool."""

    trees: Sequence[PrefixTree]
    ids: Tensor
    positions: Tensor
    mask: Tensor


def grow(requests: Iterable[Request]) -> list[PrefixTree]:
    """Put requests into few trees; return larger trees first."""
    trees: list[PrefixTree] = []
    path: list[int] = []  # nodes of the previous request
    previous: tuple[int, ...] = ()
    for request in sorted(requests, key=lambda item: item.tokens):
        # Length of the common prefix: equal tokens up to the first difference.
        shared = sum(takewhile(bool, starmap(eq, zip(previous, request.tokens, strict=False))))
        if shared < SHARED or len(trees[-1]) + len(request.tokens) - shared > NODES:
            trees.append(PrefixTree())
            shared = 0
        del path[shared:]
        tree = trees[-1]
        for token in request.tokens[shared:]:
            tree.tokens.append(token)
            tree.parents.append(path[-1] if path else -1)
            tree.depths.append(len(path))
            path.append(len(tree) - 1)
        tree.places.append((request, path[-len(request.targets) :]))
        previous = request.tokens
    return sorted(trees, key=len, reverse=True)


def batches(trees: Sequence[PrefixTree], tokens: int, rows: int | None = None) -> Iterator[list[PrefixTree]]:
    """Yield batches of trees of similar size, at least one tree each.

    Args:
        trees: the trees, largest first, so that too large a batch fails at the start.
        tokens: maximum tokens per batch, padding included; without effect if ``rows`` is given.
        rows: maximum requests per batch, or None to count tokens.
    """
    batch: list[PrefixTree] = []
    for tree in trees:
        requests = sum(len(item.places) for item in (*batch, tree))
        if batch and (requests > rows if rows else (len(batch) + 1) * len(batch[0]) > tokens):
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def collate(trees: Sequence[PrefixTree]) -> Batch:
    """Pad trees to tensors; padding attends to itself, since a row that attends to nothing would be NaN."""
    size = max(map(len, trees))
    ids = torch.zeros(len(trees), size, dtype=torch.long)
    positions = torch.zeros_like(ids)
    mask = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    for row, tree in enumerate(trees):
        ids[row, : len(tree)] = torch.tensor(tree.tokens)
        positions[row, : len(tree)] = torch.tensor(tree.depths)
        mask[row, 0, : len(tree), : len(tree)] = tree.attends()
    return Batch(trees, ids, positions, mask)
