"""Token sequences that begin alike, run through the model once up to where they part.

The choices of a question share the question, the questions on a passage the passage, all items of a task its
few-shot examples. Written as a tree in which every token attends to its ancestors only and has its depth as
its position, they give the same numbers as one by one: a decoder's output at a token depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import starmap, takewhile
from operator import eq

import torch
from torch import Tensor

SHARED = 4
"""Tokens that two sequences must share to be put into one tree (nearly all share a BOS)."""
NODES = 1024
"""Nodes at most of a tree of more than one sequence: attention in it costs the square of them."""


@dataclass(frozen=True)
class Request:
    """The log-likelihood of ``targets`` after ``tokens[: -(len(targets) - 1)]``: ``tokens`` is context and
    continuation without its last token, ``targets`` the continuation; ``index`` is the caller's."""

    index: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass
class PrefixTree:
    """Nodes in an order in which parents come first. ``parents`` are -1 at a root; ``places`` has for every
    request the nodes whose outputs predict its targets."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    places: list[tuple[Request, list[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def attends(self) -> Tensor:
        """``(N, N)`` bool: row ``i`` marks node ``i`` and its ancestors."""
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
    """Every request in one of few trees, larger trees first."""
    trees: list[PrefixTree] = []
    path: list[int] = []  # nodes of the request before this one
    previous: tuple[int, ...] = ()
    for request in sorted(requests, key=lambda item: item.tokens):
        # The length of their common beginning: equal tokens up to the first that differ.
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
    """Runs of trees of similar size: at most ``rows`` requests, or at most ``tokens`` with padding; at least
    one tree. Sorted largest first, so that what does not fit into memory fails at once."""
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
    """Padded tensors. Padding attends to itself alone: a row that attends to nothing would be NaN."""
    size = max(map(len, trees))
    ids = torch.zeros(len(trees), size, dtype=torch.long)
    positions = torch.zeros_like(ids)
    mask = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    for row, tree in enumerate(trees):
        ids[row, : len(tree)] = torch.tensor(tree.tokens)
        positions[row, : len(tree)] = torch.tensor(tree.depths)
        mask[row, 0, : len(tree), : len(tree)] = tree.attends()
    return Batch(trees, ids, positions, mask)
