"""Continuations scored in trees against one forward pass each."""

import torch
from helpers.folders import KINDS, model_folder
from helpers.runs import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.harness.model import HarnessModel
from q2n.evaluation.harness.prefixes import NODES, SHARED, Request, batches, collate, grow
from q2n.models.spec import HubModel

SEQUENCES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=12),
        st.lists(st.integers(0, 2), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=12,
)


def requests(pairs):
    """Requests of ``(context, continuation)`` pairs of token ids."""
    return [
        Request(index, tuple((context + after)[:-1]), tuple(after))
        for index, (context, after) in enumerate(pairs)
    ]


def path(tree, node):
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = tree.parents[node]
    return nodes[::-1]


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_every_request_is_a_path_of_one_tree(pairs):
    asked = requests(pairs)
    trees = grow(asked)
    found = [(tree, request, nodes) for tree in trees for request, nodes in tree.places]
    assert sorted(request.index for _, request, _ in found) == list(range(len(pairs)))
    for tree, request, nodes in found:
        whole = path(tree, nodes[-1])
        assert tuple(tree.tokens[node] for node in whole) == request.tokens
        assert nodes == whole[-len(request.targets) :]
        assert [tree.depths[node] for node in whole] == list(range(len(whole)))
        mask = tree.attends()
        assert mask[nodes[-1]].nonzero()[:, 0].tolist() == sorted(whole)


def test_a_common_beginning_is_there_once():
    question = list(range(10, 40))
    trees = grow(requests([(question, [50 + choice, 60]) for choice in range(4)]))
    assert [len(tree) for tree in trees] == [len(question) + 4]


def test_trees_are_cut_where_they_get_too_large():
    beginning = list(range(100))
    pairs = [(beginning, [*range(1000 * item, 1000 * item + 101)]) for item in range(1, 30)]
    trees = grow(requests(pairs))
    assert all(len(tree) <= NODES for tree in trees)
    assert sum(len(tree.places) for tree in trees) == len(pairs)


def test_batches_keep_their_limits():
    trees = grow(requests([([item] * (SHARED + item), [1]) for item in range(2, 40)]))
    by_tokens = list(batches(trees, 100))
    assert [tree for batch in by_tokens for tree in batch] == trees
    assert all(len(batch) * len(batch[0]) <= 100 for batch in by_tokens if len(batch) > 1)
    assert [len(batch) for batch in batches(trees, 1, rows=4)] == [4] * 9 + [2]


def test_outputs_are_those_of_each_sequence_by_itself():
    for family in ("llama", "qwen2", "qwen3", "mistral"):
        model = tiny(family).model
        generator = torch.Generator().manual_seed(0)
        stem = torch.randint(3, 259, (20,), generator=generator).tolist()
        pairs = [
            (stem[:cut], torch.randint(3, 259, (5,), generator=generator).tolist())
            for cut in (3, 8, 8, 20, 20)
        ]
        batch = collate(grow(requests(pairs)))
        with torch.no_grad():
            hidden = model.model(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
            ).last_hidden_state
            for row, tree in enumerate(batch.trees):
                for request, nodes in tree.places:
                    alone = model.model(torch.tensor([request.tokens]), use_cache=False).last_hidden_state
                    torch.testing.assert_close(
                        hidden[row, nodes], alone[0, -len(nodes) :], rtol=1e-4, atol=1e-5
                    )


@torch.no_grad()
def test_a_score_does_not_depend_on_longer_requests_beside_it(tmp_path):
    """A longrope model rotates all of a batch as its longest sequence needs it."""
    folder = model_folder(tmp_path, **KINDS["longrope"])
    context = EvaluationContext(
        HubModel(path=str(folder)).load(torch.float32),
        torch.device("cpu"),
        torch.float32,
        None,
        lambda *_: None,
    )
    generator = torch.Generator().manual_seed(0)
    stem = torch.randint(3, 259, (90,), generator=generator).tolist()
    asked = [(("", str(size)), stem[:size], stem[size : size + 4]) for size in (10, 20, 25, 40, 80)]
    with context.loaded.adapter.on(context.device):
        model = HarnessModel(context, "auto", truncation=False)
        together = model._loglikelihood_tokens(asked)
        alone = [model._loglikelihood_tokens([request])[0] for request in asked]
    for (found, _), (expected, _) in zip(together, alone, strict=True):
        assert abs(found - expected) < 1e-4
