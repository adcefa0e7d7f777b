"""The bundled tasks' items: always the same, from the evaluation side only, one right answer each."""

import hashlib
import json
from collections import Counter

import pytest

from q2n.data.bundled import BundledText
from q2n.evaluation.harness.bundled import (
    CHOICE_WORDS,
    CHOICES,
    COMMON_WORDS,
    ITEMS,
    cloze_items,
    items,
    last_word_items,
    passages,
)
from q2n.exceptions import DataError

TEXTS = ("wiki", "news")


def documents(text, side="evaluation"):
    return BundledText(text).documents(side)


def digest(found):
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


DIGESTS = {
    ("wiki", "cloze"): ("84ce678717516e2b", ITEMS),
    ("wiki", "lastword"): ("5aad44ce3a507a4a", ITEMS),
    ("news", "cloze"): ("d87d9e1cf0bf0d3a", ITEMS),
    ("news", "lastword"): ("bdc4f2db7832c06a", 507),  # all the news have
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["cloze", "lastword"])
def test_the_items_are_these(text, kind):
    found = items(text, kind)
    assert (digest(found), len(found)) == DIGESTS[text, kind]


@pytest.mark.parametrize("text", TEXTS)
def test_one_choice_goes_on_with_the_passage_and_the_others_do_not(text):
    articles = [" ".join(document.split()) for document in documents(text)]
    for item in items(text, "cloze"):
        right = item["choices"][item["answer"]]
        article = articles[item["article"]]
        assert f"{item['passage']} {right}" in article
        assert len(set(item["choices"])) == CHOICES
        assert all(len(choice.split()) == CHOICE_WORDS for choice in item["choices"])
        for choice in item["choices"]:
            if choice != right:
                assert choice not in article
                assert any(choice in other for other in articles)


@pytest.mark.parametrize("text", TEXTS)
def test_right_answers_are_spread_and_wrong_ones_are_right_elsewhere(text):
    found = items(text, "cloze")
    places = Counter(item["answer"] for item in found)
    assert all(abs(places[place] / len(found) - 1 / CHOICES) < 0.06 for place in range(CHOICES))
    everywhere = list(cloze_items(documents(text)))
    right = {item["choices"][item["answer"]] for item in everywhere}
    assert all(set(item["choices"]) <= right for item in found)


@pytest.mark.parametrize("text", TEXTS)
def test_a_last_word_has_been_in_its_passage_and_is_no_common_word(text):
    words = Counter(word.casefold() for document in documents(text) for word in document.split())
    frequent = {word for word, _ in words.most_common(COMMON_WORDS // 3)}
    articles = [" ".join(document.split()) for document in documents(text)]
    for item in items(text, "lastword"):
        assert item["word"].casefold() in item["passage"].casefold()
        assert item["word"].casefold() not in frequent
        assert f"{item['passage']} {item['word']}" in articles[item["article"]]


@pytest.mark.parametrize("text", TEXTS)
def test_no_passage_is_in_the_calibration_articles(text):
    calibration = " ".join(" ".join(documents(text, "calibration")).split())
    for kind in ("cloze", "lastword"):
        assert not [item for item in items(text, kind) if item["passage"] in calibration]


def test_passages_are_the_articles_sentences():
    found = passages(documents("news"))
    together = {" ".join(passage.text.split()) for passage in found}
    for document in documents("news")[:20]:
        assert all(part in " ".join(document.split()) for part in together if part[:60] in document)
    assert len(together) == len(found)


def test_the_order_of_the_articles_does_not_matter_to_passages():
    forwards, backwards = passages(documents("news")), passages(documents("news")[::-1])
    assert [item.sentences for item in forwards] == [item.sentences for item in backwards]


def test_too_few_articles_are_an_error_and_not_an_endless_search():
    sentence = "The quick brown fox jumps over the lazy dog and then sleeps."
    with pytest.raises(DataError, match="too few"):
        list(cloze_items([" ".join([sentence] * 4)]))
    assert list(last_word_items(["Short."])) == []


@pytest.mark.slow
def test_reciting_is_right_where_the_sixteen_words_are_those_of_the_passage():
    """The prompt shows them once, and stops before them the second time."""
    from q2n.evaluation.harness.tasks import Selection, load_tasks

    task = load_tasks(Selection(("q2n_wiki_recite",))).tasks["q2n_wiki_recite"]
    (rule,) = task._filters
    words_only, first = (make() for make in rule.filters)

    def score(item, answer):
        (filtered,) = first.apply(words_only.apply([[answer]], [item]), [item])
        return task.process_results(item, [filtered])["exact_match"]

    for item in items("wiki", "lastword"):
        prompt, target = task.doc_to_text(item), task.doc_to_target(item)
        words = item["passage"].split()
        assert prompt.count(item["passage"]) == 1
        assert prompt.endswith(f'"{" ".join(words[:-18])}')
        assert target == " ".join(words[-18:-2])
        wrong = " ".join([*words[-18:-3], "wrong"])
        assert [score(item, text) for text in (f" {target} and so on", f" {wrong}", " short")] == [1, 0, 0]
