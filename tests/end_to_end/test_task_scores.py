"""Answers to the requests of tasks, one by one, against plain transformers code."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.runs import tiny
from helpers.special_tokens import AROUND, BEFORE, ROLLING, with_tokens

from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.harness import Harness
from q2n.evaluation.harness.model import HarnessModel
from q2n.evaluation.harness.surroundings import quiet_harness
from q2n.evaluation.harness.tasks import Selection, load_tasks
from q2n.exceptions import ConfigurationError, UnsupportedError
from q2n.models.loaded import Outline

CPU = torch.device("cpu")
CHOICES, WORD, WRITTEN = "q2n_wiki_cloze", "q2n_wiki_lastword", "q2n_wiki_recite"


def context(loaded, **changes):
    return EvaluationContext(loaded, CPU, torch.float32, None, lambda done, stage: None, **changes)


def requests(task, limit=3, **changes):
    """The requests of a task's first items."""
    with quiet_harness():
        (made,) = load_tasks(Selection((task,), **changes)).tasks.values()
        made.build_all_requests(limit=limit)
    return made.instances


def windowed(loaded, window):
    loaded.model.config.max_position_embeddings = window
    return loaded


def bare(loaded, text):
    return loaded.tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def plain(loaded, before, asked, window=10**6):
    """Log-likelihood and greediness of the ids ``asked`` after the ids ``before``."""
    ids = torch.tensor([(before + asked)[-(window + 1) :]])
    logits = loaded.model(ids[:, :-1], use_cache=False).logits[0, -len(asked) :].float()
    targets = ids[0, -len(asked) :]
    found = logits.log_softmax(dim=-1)[torch.arange(len(asked)), targets].double().sum()
    return float(found), bool((logits.argmax(dim=-1) == targets).all())


def assert_answers(found, expected):
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [hit for _, hit in found] == [hit for _, hit in expected]


@pytest.mark.parametrize("batch_size", ["auto", pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("task", [CHOICES, WORD])
def test_log_likelihoods_are_those_of_the_model(task, around, batch_size):
    """Nothing stands between context and continuation, and nothing of the continuation is lost."""
    loaded, asked = with_tokens(tiny(), around), requests(task)
    expected = [
        plain(loaded, BEFORE[around] + bare(loaded, before), bare(loaded, after))
        for before, after in (request.args for request in asked)
    ]
    assert_answers(HarnessModel(context(loaded), batch_size).loglikelihood(asked), expected)


@pytest.mark.parametrize("around", ["bos", "both"])
@pytest.mark.parametrize("task", [CHOICES, WORD])
def test_what_is_longer_than_the_window_loses_its_beginning_and_is_counted(task, around):
    loaded, asked = with_tokens(tiny(), around), requests(task, 6)
    pairs = [[bare(loaded, text) for text in request.args] for request in asked]
    lengths = {
        request.args: len(BEFORE[around] + before + after)
        for request, (before, after) in zip(asked, pairs, strict=True)
    }
    window = sorted(lengths.values())[len(lengths) // 2] - 1  # what is read of the longer half is too long
    expected = [plain(loaded, BEFORE[around] + before, after, window) for before, after in pairs]
    windowed(loaded, window)
    model = HarnessModel(context(loaded), "auto")
    assert_answers(model.loglikelihood(asked), expected)
    assert model.cut == {strings for strings, tokens in lengths.items() if tokens > window + 1}
    assert 0 < len(model.cut) < len(asked)
    assert model.lengths == {strings: min(tokens, window + 1) for strings, tokens in lengths.items()}
    with pytest.raises(ConfigurationError, match=r"evaluation\.truncation=true"):
        HarnessModel(context(loaded), "auto", truncation=False).loglikelihood(asked)


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_log_likelihoods_in_a_sliding_window(batch_size):
    loaded, asked = with_tokens(tiny("mistral"), "both"), requests(CHOICES)
    loaded.model.config.sliding_window = 64
    expected = [
        plain(loaded, [0, *bare(loaded, before)], bare(loaded, after))
        for before, after in (request.args for request in asked)
    ]
    assert_answers(HarnessModel(context(loaded), batch_size).loglikelihood(asked), expected)


TEXTS = [
    "The river runs past the old mill.",
    "Under two stone bridges it reaches the sea, and is no more." * 4,
]


def rolling_task(folder):
    data, file = folder / "texts.jsonl", folder / "texts.yaml"
    data.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    file.write_text(ROLLING.format(file=data), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("around", AROUND)
def test_a_text_is_predicted_window_by_window(around, tmp_path):
    """lm-eval's windows: each predicts up to 60 tokens after one of the window before it, which is a BOS
    (EOS) for the first; a BOS that the tokenizer puts before a text is predicted like the text."""
    file = rolling_task(tmp_path)
    loaded = windowed(with_tokens(tiny(), around), 60)
    asked, model = requests(file), HarnessModel(context(loaded), 3, truncation=False)
    if around == "no special tokens":
        with pytest.raises(UnsupportedError, match=r"task texts: .*neither a BOS nor an EOS"):
            model.loglikelihood_rolling(asked)
        return
    expected = []
    for text in TEXTS:
        ids = BEFORE[around] + bare(loaded, text)
        stand_in = loaded.tokenizer.bos_token_id
        starts = range(0, len(ids), 60)
        rows = [([stand_in] if start == 0 else ids[:start], ids[start : start + 60]) for start in starts]
        # the last window is filled up with what comes before
        total = [plain(loaded, before[-(61 - len(after)) :], after)[0] for before, after in rows]
        expected.append(sum(total))
    assert model.loglikelihood_rolling(asked) == pytest.approx(expected, rel=1e-5)
    assert not model.cut


@torch.no_grad()
def written(loaded, ids, room, until=("\n",)):
    made = loaded.model.generate(torch.tensor([ids]), max_new_tokens=room, do_sample=False, pad_token_id=2)[
        0, len(ids) :
    ]
    text = loaded.tokenizer.decode(made, skip_special_tokens=True)
    for stop in until:
        text = text.split(stop)[0]
    return text


@pytest.mark.parametrize("window", [600, pytest.param(4096, marks=pytest.mark.slow)])
@pytest.mark.parametrize("around", AROUND)
def test_generated_answers_are_those_of_the_model(around, window):
    loaded, asked = windowed(with_tokens(tiny(), around), window), requests(WRITTEN)
    model = HarnessModel(context(loaded), 2)
    with quiet_harness():
        answers = model.generate_until(asked)
    for request, answer in zip(asked, answers, strict=True):
        ids = (BEFORE[around] + bare(loaded, request.args[0]))[-(window - 40) :]
        assert answer == written(loaded, ids, 40, ["\n", *filter(None, [loaded.tokenizer.eos_token])])
        assert model.lengths[request.args[0],] == len(ids) + len(bare(loaded, answer))
    assert bool(model.cut) == (window == 600)


def test_scores_do_not_depend_on_what_a_tokenizer_appends():
    option = Harness(tasks=[CHOICES, WORD], limit=6)
    found = {around: option.evaluate(context(with_tokens(tiny(), around))) for around in ("bos", "both")}
    for one, other in zip(found["bos"], found["both"], strict=True):
        assert (one.value, one.parts, one.tokens) == (other.value, other.parts, other.tokens)
        assert one.special_tokens == other.special_tokens == "<s>"
        assert (one.protocol.left_out, other.protocol.left_out) == ("", "</s>")
        assert "without the tokenizer's </s>" in other.protocol.label()


def outline(loaded):
    return Outline("tiny", loaded.model.config, loaded.tokenizer)


def test_what_does_not_fit_the_window_is_refused_before_the_weights_are_read():
    loaded = windowed(with_tokens(tiny(), "bos"), 64)
    message = (
        rf"task {CHOICES}: 6 items need up to \d+ tokens, the model's window has 64\n(?s:.)*truncation=true"
    )
    with pytest.raises(ConfigurationError, match=message) as raised:
        Harness(tasks=[CHOICES, WORD], limit=6).examine(outline(loaded), None)
    assert len(str(raised.value).splitlines()) == 3, "a line per task, and what to do"
    assert Harness(tasks=[CHOICES, WORD], limit=6, truncation=True).examine(outline(loaded), None) == []
    for task, window in ((CHOICES, 16), (WRITTEN, 40)):
        with pytest.raises(ConfigurationError, match=r"cannot be cut off"):
            Harness(tasks=[task], limit=6, truncation=True).examine(outline(windowed(loaded, window)), None)


def test_what_is_cut_is_in_the_record():
    loaded = windowed(with_tokens(tiny(), "bos"), 200)
    (metric,) = Harness(tasks=[CHOICES], limit=6, truncation=True).evaluate(context(loaded))
    (whole,) = Harness(tasks=[CHOICES], limit=6).evaluate(context(with_tokens(tiny(), "bos")))
    cut = metric.protocol.cut
    assert 0 < cut < 6
    assert metric.protocol.window == 200
    assert f"{cut} cut to 200 tokens" in metric.protocol.label()
    assert metric.notes[0].startswith(
        f"{cut} of 6 items of {CHOICES} are longer than the model's window of 200"
    )
    assert metric.tokens < whole.tokens
    assert (whole.protocol.cut, whole.protocol.window, whole.notes) == (0, 0, ())
    assert not metric.measures_as(whole)


def test_requests_without_a_context_need_a_token_to_stand_for_it(tmp_path):
    option = Harness(tasks=[rolling_task(tmp_path)])
    assert option.examine(outline(with_tokens(tiny(), "eos")), None) == []
    with pytest.raises(UnsupportedError, match=r"task texts: .*neither a BOS nor an EOS"):
        option.examine(outline(with_tokens(tiny(), "no special tokens")), None)


MEMBER = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: ["yes", "no", "perhaps"]
doc_to_target: answer
metric_list:
{metrics}
"""
METRIC = "  - metric: {}\n    aggregation: mean\n    higher_is_better: true"
GROUP = """
group: {name}
task: [{members}]
aggregate_metric_list:
  - metric: acc
    weight_by_size: {weighted}
"""
SIZES = {"first": 5, "second": 9, "third": 7}


@pytest.mark.parametrize("weighted", ["true", "false"])
def test_a_group_counts_the_items_its_score_is_made_of(weighted, tmp_path):
    """The group holds a group; one member of that has no ``acc`` and is no part of the score."""
    for name, size in SIZES.items():
        data = tmp_path / f"{name}.jsonl"
        rows = [{"question": f"Is {name} {i}?", "answer": i % 3} for i in range(size)]
        data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        metrics = [
            METRIC.format(metric) for metric in (["acc_norm"] if name == "third" else ["acc", "acc_norm"])
        ]
        (tmp_path / f"{name}.yaml").write_text(
            MEMBER.format(name=name, file=data, metrics="\n".join(metrics)), encoding="utf-8"
        )
    for name, members in {"outer": "first, inner", "inner": "second, third"}.items():
        (tmp_path / f"{name}.yaml").write_text(
            GROUP.format(name=name, members=members, weighted=weighted), encoding="utf-8"
        )
    folder = {"include_path": [str(tmp_path)]}
    loaded = with_tokens(tiny(), "bos")
    members = Harness(tasks=["first", "second"], **folder).evaluate(context(loaded))
    first, second = (metric for metric in members if metric.name == "acc")
    (whole,) = Harness(tasks=["outer"], **folder).evaluate(context(loaded))
    assert (whole.name, whole.count, whole.protocol.items) == ("acc", 14, 14)
    assert whole.tokens == first.tokens + second.tokens
    right = [metric.per_item.count("1") for metric in (first, second)]
    shares = [right[0] / 5, right[1] / 9]
    expected = sum(right) / 14 if weighted == "true" else sum(shares) / 2
    assert whole.value == pytest.approx(expected)
    if weighted == "true":
        assert whole.per_item == first.per_item + second.per_item
    (limited,) = Harness(tasks=["outer"], limit=6, **folder).evaluate(context(loaded))
    assert limited.count == 5 + 6
