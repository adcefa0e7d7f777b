"""Text and how it becomes tokens: cleanliness, splits, windows, and the release's sampling rules."""

import gzip
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from q2n.data import bundled
from q2n.data.bundled import SHARED_SENTENCE, BundledText, assign_sides
from q2n.data.clean import before_filter, paragraphs, without_tags
from q2n.data.local_files import packaged_file
from q2n.data.sources import (
    SOURCES,
    C4Calibration,
    HubCalibration,
    TextCalibration,
    WikiCalibration,
    text_source,
)
from q2n.data.text import encode_corpus, evaluation_windows, heldout_starts
from q2n.exceptions import DataError
from q2n.models.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
PLAIN = byte_tokenizer(add_bos=False)
VARIANTS = ("gptq", "new_eval", "pbllm")


def ids_of(text, tokenizer=TOKENIZER):
    return tokenizer(text)["input_ids"]


# --- held-out sequences -----------------------------------------------------------------------------------


def documents(tmp_path, count=40, length=37):
    """Files whose every token tells where it is from."""
    path = tmp_path / "documents.jsonl"
    generator = random.Random(0)
    texts = ["".join(generator.choices("abcdefgh", k=length)) for _ in range(count)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


@pytest.mark.parametrize(("nsamples", "seqlen", "seed"), [(1, 8, 0), (12, 16, 1), (30, 16, 2), (9, 100, 3)])
def test_held_out_crops_touch_no_calibration_crop_and_change_none(tmp_path, nsamples, seqlen, seed):
    calibration = TextCalibration(paths=[documents(tmp_path)], nsamples=nsamples, seqlen=seqlen, seed=seed)
    alone = calibration.tokens(TOKENIZER)
    assert alone.heldout is None
    both = calibration.tokens(TOKENIZER, heldout=50)
    assert both.tokens.equal(alone.tokens)
    assert both.heldout.shape == (50, seqlen)
    assert calibration.tokens(TOKENIZER, heldout=50).heldout.equal(both.heldout)
    assert calibration.tokens(TOKENIZER, heldout=7).heldout.equal(both.heldout[:7])
    other = TextCalibration(paths=calibration.paths, nsamples=nsamples, seqlen=seqlen, seed=seed + 9)
    assert not other.tokens(TOKENIZER, heldout=50).heldout.equal(both.heldout)


@pytest.mark.parametrize("length", [1, 3, 10])
def test_every_free_start_and_no_other_is_held_out(length):
    available = 60
    for seed in range(30):
        generator = random.Random(seed)
        taken = [generator.randint(0, available - length - 1) for _ in range(seed % 6)]
        free = {
            start
            for start in range(available - length)
            if all(abs(start - other) >= length for other in taken)
        }
        if free:
            assert set(heldout_starts(generator, taken, 2000, length, available, "x")) == free


def test_a_text_without_room_for_held_out_sequences_is_refused(tmp_path):
    calibration = TextCalibration(paths=[documents(tmp_path, count=3)], nsamples=2, seqlen=55)
    assert calibration.tokens(TOKENIZER).tokens.shape == (2, 55)
    with pytest.raises(DataError, match=r"leave no 55 tokens in a row to hold out.*calibration\.heldout=0"):
        calibration.tokens(TOKENIZER, heldout=1)


# --- bundled text -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


MARKUP = {
    "wiki": r"\{\{|\}\}|\[\[|\]\]|'{2,}|={2,}|</?[a-zA-Z]|&[a-z]+;|https?://|\{\||\|\}|\d+px|__[A-Z]+__"
    r"|^[\s*#:;|!]|^(?:File|Image|Category):|\balt=|\( *[,;)]|, *,|<ref|style=",
    "news": r"</?[a-zA-Z]|&[a-z]+;|^\s|\{|\}|\|",
}


@pytest.mark.parametrize("name", ["wiki", "news"])
def test_bundled_text_is_clean_large_and_split_by_article(name, cache):
    source = BundledText(name, cache)
    calibration, evaluation = source.documents("calibration"), source.documents("evaluation")
    both = calibration + evaluation
    left = [hit for text in both for hit in re.findall(MARKUP[name], text, re.MULTILINE)]
    assert left == []
    assert all(text == text.strip() and "  " not in text for text in both)
    assert not any(ord(character) < 32 and character != "\n" for text in both for character in text)

    assert len(set(both)) == len(both), "no article is on both sides, none twice"
    long = [
        {part for text in side for part in re.split(r"(?<=[.!?])\s+", text) if len(part) >= SHARED_SENTENCE}
        for side in (calibration, evaluation)
    ]
    assert not long[0] & long[1], "nor is a long sentence"
    share = sum(map(len, evaluation)) / sum(map(len, both))
    assert 0.1 < share < 0.5
    assert sum(map(len, both)) > {"wiki": 2_500_000, "news": 350_000}[name]


def test_wiki_text_reads_like_an_encyclopedia(cache):
    texts = BundledText("wiki", cache).documents("calibration") + BundledText("wiki", cache).documents(
        "evaluation"
    )
    lines = [line for text in texts for line in text.split("\n")]
    assert all(len(line.split()) >= 6 for line in lines)
    sentences = sum(line.rstrip("\"')\u201d\u2019")[-1:] in ".?!:;" for line in lines)
    assert sentences == len(lines)


def test_bundled_text_is_the_same_from_the_package_and_from_the_cache(cache, tmp_path):
    source = BundledText("news", cache)
    expected = source.documents("evaluation")
    bundled._articles.cache_clear()
    assert source.documents("evaluation") == expected
    (stored,) = (file for file in (Path(cache) / "text").iterdir() if "news" in file.name)
    content = json.loads(stored.read_text(encoding="utf-8"))
    content["articles"][0][0] += "x"
    stored.write_text(json.dumps(content), encoding="utf-8")
    bundled._articles.cache_clear()
    assert source.documents("evaluation") == expected, "a damaged cache is not believed"
    assert BundledText("news", str(tmp_path)).documents("evaluation") == expected
    assert len(list((tmp_path / "text").iterdir())) == 1


def test_the_identity_of_bundled_text_is_that_of_its_files(tmp_path, monkeypatch):
    source = BundledText("news", str(tmp_path))
    before = source.identity()
    assert before["text"] == "news"
    assert WikiCalibration().identity()["text"] == "wiki"
    real = packaged_file("gensim", "test_data/lee.cor")
    monkeypatch.setattr(bundled, "packaged_file", lambda *names: replace(real, sha256="0" * 64))
    assert source.identity() != before
    with pytest.raises(DataError, match="damaged"):
        source.documents("calibration")
    monkeypatch.setattr(bundled, "RULE", "another")
    assert source.identity()["rule"] == "another"
    monkeypatch.setattr(bundled, "packaged_file", lambda *names: None)
    with pytest.raises(DataError, match="pip install gensim"):
        source.identity()


def test_articles_with_a_sentence_in_common_stay_together():
    shared = "This long sentence stands in a report and again in the update of that report."
    alone = [
        f"Report number {number} has a sentence of its own that is long enough." for number in range(200)
    ]
    chain = [f"{shared} One.", f"{shared} {alone[0]}", f"{alone[0]} Three."]
    sides = assign_sides([*chain, *alone[1:], chain[0]])
    assert len(sides) == 3 + 199
    assert len({side for _, side in sides[:3]}) == 1
    evaluation = sum(side == "evaluation" for _, side in sides)
    assert 30 < evaluation < 90
    assert dict(assign_sides([*alone[1:], *chain][::-1]))[alone[7]] == dict(sides)[alone[7]]


def test_templates_that_carry_words_are_written_out():
    raw = (
        "{{As of|2014|5|lc=y}} it falls {{convert|16|in|cm}} or {{cvt|3|to|5|mi|km}} "
        "{{nowrap|in [[a|b]]}}<br/>of {{lang|fr|bon}} {{chem|H|2|O}} ''x''\n"
        "{| class=x\n| cell\n{|\n| inner\n|}\n|}\nafter\n"
        "<gallery>\nFile:a.jpg|caption\n</gallery>"
    )
    assert before_filter(raw) == (
        "as of May 2014 it falls 16 inches or 3 to 5 miles in [[a|b]] of bon H2O ''x''\n\n\nafter\n"
    )


def test_paragraphs_are_sentences_outside_appendices():
    filtered = "\n".join(
        [
            "== History ==",
            "  * The town (, ; old) was founded ( ) in 1200 , they say &amp; believe.",
            "Too short.",
            "No full stop at the end of this line",
            "File:a.jpg|This caption is long enough to pass for a sentence.",
            "== References ==",
            "This sentence belongs to the references and is not kept.",
            "=== Books ===",
            "Nor is this one, a level deeper in the same section.",
            "== Economy ==",
            "The economy of the town rests on <small>fish</small>, , and tourism.",
        ]
    )
    assert paragraphs(filtered).split("\n") == [
        "The town (old) was founded in 1200, they say & believe.",
        "The economy of the town rests on fish, and tourism.",
    ]
    assert without_tags(" a  <i>book</i>\tby\n Eco , 1980 &lt; ") == "a book by Eco, 1980 <"


# --- tokens -----------------------------------------------------------------------------------------------


def text_files(folder, characters=1000, name="a.txt"):
    path = folder / name
    generator = random.Random(0)
    path.write_text("".join(generator.choice("abcdef ghi") for _ in range(characters)), encoding="utf-8")
    return text_source("text", paths=[str(path)]), path.read_text(encoding="utf-8")


def test_calibration_crops_are_the_releases(tmp_path):
    source, text = text_files(tmp_path)
    ids = ids_of(text)
    taken = source.calibration_tokens(TOKENIZER, nsamples=6, seqlen=32, seed=5)
    random.seed(5)  # a module-wide generator, as the release uses it
    for row in taken.tokens.tolist():
        start = random.randint(0, len(ids) - 32 - 1)
        assert row == ids[start : start + 32]
    assert taken.tokens_available == len(ids) == 1001
    assert taken.source == f"'text' ({tmp_path}/a.txt)", "messages name the file"
    again = source.calibration_tokens(TOKENIZER, nsamples=6, seqlen=32, seed=5)
    assert again.tokens.equal(taken.tokens)
    assert again.text_sha256 == taken.text_sha256
    assert not source.calibration_tokens(TOKENIZER, 6, 32, 6).tokens.equal(taken.tokens)


def test_too_little_text_names_what_there_is_and_what_is_needed(tmp_path):
    source, _ = text_files(tmp_path, characters=99)
    with pytest.raises(DataError, match=r"has 100 tokens; nsamples=11 of seqlen=10 need 110"):
        source.calibration_tokens(TOKENIZER, 11, 10, 0)
    with pytest.raises(DataError, match=r"has 100 tokens; nsamples=1 of seqlen=100 need 101"):
        source.calibration_tokens(TOKENIZER, 1, 100, 0)
    assert source.calibration_tokens(TOKENIZER, 10, 10, 0).tokens.shape == (10, 10)
    with pytest.raises(DataError, match=r"has 100 tokens; one window needs 101"):
        evaluation_windows(source, TOKENIZER, 101)


def test_windows_do_not_overlap_and_drop_the_remainder(tmp_path):
    source, text = text_files(tmp_path)
    windows = evaluation_windows(source, TOKENIZER, 64)
    assert windows.tokens.shape == (1001 // 64, 64)
    assert windows.tokens.flatten().tolist() == ids_of(text)[: 15 * 64]
    assert windows.tokens_available == 1001
    for most, count in ((4, 4), (0, 15), (None, 15), (99, 15)):
        some = evaluation_windows(source, TOKENIZER, 64, most)
        assert some.tokens.equal(windows.tokens[:count])
        assert some.text_sha256 == windows.text_sha256
    assert evaluation_windows(source, TOKENIZER, 1001).tokens.shape == (1, 1001)


def test_bos_rules(tmp_path):
    source, text = text_files(tmp_path)
    bos, plain = TOKENIZER.bos_token_id, ids_of(text, PLAIN)
    once = evaluation_windows(source, TOKENIZER, 50, bos="tokenizer").tokens
    assert once.flatten().tolist() == [bos, *plain][:1000]
    none = evaluation_windows(source, TOKENIZER, 50, bos="none").tokens
    assert none.flatten().tolist() == plain
    each = evaluation_windows(source, TOKENIZER, 50, bos="each_window").tokens
    assert each.shape == (20, 50)
    assert each[:, 0].tolist() == [bos] * 20
    assert each[:, 1:].flatten().tolist() == plain[: 20 * 49]
    without = byte_tokenizer()
    without.bos_token = None
    with pytest.raises(DataError, match="no BOS token"):
        evaluation_windows(source, without, 50, bos="each_window")


# --- a user's files ---------------------------------------------------------------------------------------


def test_user_files_are_read_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    (tmp_path / "c.txt").write_text("[1] begins like a list, {2} like an object.\n")
    lines = [json.dumps({"text": text, "id": 1}, ensure_ascii=False) for text in ("x\u2028y", "", "ü")]
    (tmp_path / "d.JSONL").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    source = text_source(
        "text", paths=[str(tmp_path / name) for name in ("a.txt", "b.txt", "c.txt", "d.JSONL")]
    )
    expected = ["one\n\ntwo\n", "with a mark", (tmp_path / "c.txt").read_text(), "x\u2028y", "ü"]
    assert source.documents("calibration") == source.documents("evaluation") == expected


BAD_LINES = {
    "{": "b.jsonl:2: not JSON",
    "Plain text.": "b.jsonl:2: not JSON",
    "[1]": "b.jsonl:2: entry 1: not a JSON object",
    '"text"': "b.jsonl:2: not a JSON object",
    '{"url": "u", "txt": "a"}': "b.jsonl:2: not a JSON object with a field 'text'; its fields are url, txt",
    '{"text": 3}': "b.jsonl:2: the field 'text' is not a string",
    '{"text": "\\ud800"}': "b.jsonl:2: the field 'text' holds half of a surrogate pair",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "b.jsonl"
    path.write_text('{"text": "\\ud83d\\ude42"}\n' + line)
    with pytest.raises(DataError, match=BAD_LINES[line]):
        text_source("text", paths=[str(path)]).documents("calibration")


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a"])
@pytest.mark.parametrize("form", ["lines", "array", "indented", "one"])
def test_json_is_read_by_content_whatever_its_name_is(tmp_path, name, form):
    items = [{"text": "one {two}\n[three]", "url": "u"}, {"id": 1, "text": "\ufefffour\u2028"}]
    content = {
        "lines": "\n".join(map(json.dumps, items)),
        "array": json.dumps(items, indent=2),
        "indented": "\r\n".join(json.dumps(item, indent=1) for item in items),
        "one": json.dumps(items[0]),
    }[form]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf \n" + content.encode())
    expected = [item["text"] for item in items][: 1 if form == "one" else 2]
    assert text_source("text", paths=[str(tmp_path / name)]).documents("calibration") == expected


NO_TEXT = {
    "a.txt": (b" \n\t\n", "is empty"),
    "b.txt": (gzip.compress(b"some text"), "compressed by gzip"),
    "c.txt": ("text".encode("utf-16"), "UTF-16"),
    "d.txt": (b"te\0xt", "a binary file"),
    "e.txt": (b"PAR1....", "Parquet"),
    "f.txt": (b"<!DOCTYPE html><p>text", "HTML or XML"),
    "g.csv": (b"text,url\nx,y\n", "a table"),
    "h.json": (b"A text.", "h.json:1: not JSON"),
    "i.txt": (b'{"text": "x"}\n{"text": "y"', "i.txt:2: not JSON"),
    "j.txt": (b"{'text': 'x'}", "j.txt:1: not JSON"),
    "k.txt": (b'[{"text": "x"}, {"content": "y"}]', "k.txt:1: entry 2: .* its fields are content"),
    "l.txt": (b'\n\n{"text":\n"x"}\n\n{"content": "y"}', "l.txt:6: not a JSON object with a field 'text'"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_not_running_text_is_refused_by_name(tmp_path, name):
    content, message = NO_TEXT[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{message}" if message[1] != "." else message):
        text_source("text", paths=[str(tmp_path / name)]).documents("calibration")


@pytest.mark.parametrize(("path", "why"), [("", "a folder"), ("*.txt", "patterns are not expanded")])
def test_folders_and_patterns_are_refused(tmp_path, path, why):
    with pytest.raises(DataError, match=why):
        text_source("text", paths=[str(tmp_path / path)]).identity()


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8"):
        text_source("text", paths=[str(path)]).documents("calibration")
    for use in ("identity", "documents"):
        source = text_source("text", paths=[str(path), str(tmp_path / "b.txt"), str(tmp_path)])
        with pytest.raises(DataError, match=r"not found: .*b\.txt, .*"):
            source.identity() if use == "identity" else source.documents("calibration")


def test_the_identity_of_user_files_is_their_content(tmp_path):
    text_files(tmp_path, name="a.txt")
    text_files(tmp_path, name="b.txt")
    one, other = (text_source("text", paths=[str(tmp_path / name)]) for name in ("a.txt", "b.txt"))
    assert one.identity() == other.identity(), "the name does not matter"
    (tmp_path / "b.txt").write_text("x")
    assert one.identity() != other.identity()
    calibration = TextCalibration(paths=[str(tmp_path / "a.txt")], nsamples=2, seqlen=16)
    assert calibration.identity() == {**one.identity(), "sampling": "crops-1"}
    assert calibration.tokens(TOKENIZER).tokens.shape == (2, 16)


def test_sources_by_name():
    for name in SOURCES:
        assert text_source(name, paths=["x"]).name == name
    with pytest.raises(DataError, match="no text source 'wikitxt2'; did you mean 'wikitext2'"):
        text_source("wikitxt2")
    with pytest.raises(ValidationError):
        TextCalibration(paths=[])
    with pytest.raises(ValidationError):
        WikiCalibration(nsamples=0)


# --- the hub's data sets, from copies in a folder ---------------------------------------------------------


def sentences(seed, count, longest):
    generator = random.Random(seed)
    return [
        "".join(generator.choice("abcde fgh") for _ in range(generator.randint(0, longest)))
        for _ in range(count)
    ]


def parquet(path, column, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: rows, "other": list(range(len(rows)))}), path)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Folders with the layout of the three repositories, and the rows in them."""
    root = tmp_path_factory.mktemp("hub")
    rows = {}
    for seed, part in enumerate(("train", "validation", "test")):
        rows["wikitext2", part] = sentences(seed, 60, 120)
        rows["ptb", part] = sentences(10 + seed, 60, 120)
        rows["c4", part] = sentences(20 + seed, 1300, 60)
        parquet(
            root / "wikitext2" / "wikitext-2-raw-v1" / f"{part}-00000-of-00001.parquet",
            "text",
            rows["wikitext2", part],
        )
        parquet(root / "wikitext2" / "wikitext-103-raw-v1" / f"{part}-00000-of-00001.parquet", "text", ["no"])
        parquet(root / "ptb" / "penn_treebank" / part / "0000.parquet", "sentence", rows["ptb", part])
    (root / "c4" / "en").mkdir(parents=True)
    for part, shard in (("train", "00000-of-01024"), ("validation", "00000-of-00008")):
        with gzip.open(root / "c4" / "en" / f"c4-{part}.{shard}.json.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text, "url": "u"}) + "\n" for text in rows["c4", part])
    return root, rows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


JOINED = {
    # (text, variant): separator of calibration, part and separator of evaluation
    ("wikitext2", "gptq"): ("\n\n", "test", "\n\n"),
    ("wikitext2", "new_eval"): ("\n\n", "test", "\n\n"),
    ("wikitext2", "pbllm"): (" ", "test", "\n\n"),
    ("ptb", "gptq"): ("\n\n", "validation", "\n\n"),
    ("ptb", "new_eval"): (" ", "test", " "),
    ("ptb", "pbllm"): (" ", "test", " "),
}


@pytest.mark.parametrize(("name", "variant"), JOINED)
def test_wikitext2_and_ptb_are_joined_as_the_release_joins_them(copies, name, variant):
    root, rows = copies
    between, part, between_evaluation = JOINED[name, variant]
    calibration = HubCalibration(
        text=name, variant=variant, path=str(root / name), nsamples=5, seqlen=40, seed=3
    )
    ids = ids_of(between.join(rows[name, "train"]))
    random.seed(3)
    expected = []
    for _ in range(5):
        start = random.randint(0, len(ids) - 40 - 1)
        expected.append(ids[start : start + 40])
    assert calibration.tokens(TOKENIZER).tokens.tolist() == expected

    ids = ids_of(between_evaluation.join(rows[name, part]))
    count = len(ids) // 40
    windows = evaluation_windows(calibration.source(), TOKENIZER, 40)
    assert windows.tokens.tolist() == [ids[40 * k : 40 * k + 40] for k in range(count)]


def drawn(documents, count, length, seed, longer):
    """The loop of the release's ``get_c4``: a document at random until one is long enough, one crop of it."""
    random.seed(seed)
    crops = []
    for _ in range(count):
        while True:
            ids = ids_of(documents[random.randint(0, len(documents) - 1)])
            if longer(len(ids), length):
                break
        if len(ids) == length:  # here the release stops with an error
            crops.append(ids)
            continue
        start = random.randint(0, len(ids) - length - 1)
        crops.append(ids[start : start + length])
    return crops


def within(crops, text):
    """Whether one of the crops is a piece of the text."""
    ids = ids_of(text)
    starts = range(len(ids) - crops.shape[1] + 1)
    return any(row in [ids[start : start + crops.shape[1]] for start in starts] for row in crops.tolist())


@pytest.mark.parametrize("boundary", ["exclusive", "inclusive"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_c4_is_drawn_as_the_release_draws_it(copies, variant, boundary):
    root, rows = copies
    longer = int.__gt__ if boundary == "exclusive" else int.__ge__
    fields = {"variant": variant, "boundary": boundary, "path": str(root / "c4")}
    calibration = C4Calibration(nsamples=20, seqlen=55, seed=2, **fields)
    taken = calibration.tokens(TOKENIZER)
    assert taken.tokens.tolist() == drawn(rows["c4", "train"], 20, 55, 2, longer)

    more = calibration.tokens(TOKENIZER, heldout=6)
    assert more.tokens.equal(taken.tokens)
    used = [text for text in rows["c4", "train"] if within(taken.tokens, text)]
    held = [text for text in rows["c4", "train"] if within(more.heldout, text)]
    assert held
    assert not set(used) & set(held), "held-out crops are from other documents"
    assert (more.text_sha256, more.tokens_available) == (taken.text_sha256, taken.tokens_available)

    windows = evaluation_windows(calibration.source(), TOKENIZER, 55).tokens.tolist()
    documents = rows["c4", "validation"]
    if variant == "gptq":
        assert windows == drawn(documents, 256, 55, 0, longer)
    else:
        ids = ids_of(" ".join(documents[:1100]))[: 256 * 55]
        assert windows == [ids[55 * k : 55 * k + 55] for k in range(256)]


def test_the_two_boundaries_differ_on_documents_of_just_the_length(copies):
    source = text_source("c4", path=str(copies[0] / "c4"), boundary="inclusive")
    ends = source.calibration_tokens(TOKENIZER, 30, 61, 0).tokens
    assert ends.shape == (30, 61), "only documents of 60 characters and <s> serve"
    with pytest.raises(DataError, match=r"documents drawn has the 62 tokens needed \(the longest has 61\)"):
        replace(source, boundary="exclusive").calibration_tokens(TOKENIZER, 1, 61, 0)


def test_documents_of_the_wrong_part_are_not_touched(copies, tmp_path):
    """Evaluation needs no training shard, and the other way round."""
    source = copies[0] / "c4" / "en"
    (tmp_path / "en").mkdir()
    for shard in source.glob("*validation*"):
        (tmp_path / "en" / shard.name).write_bytes(shard.read_bytes())
    text = text_source("c4", path=str(tmp_path), variant="new_eval")
    assert evaluation_windows(text, TOKENIZER, 50, 3).tokens.shape == (3, 50)
    with pytest.raises(
        DataError, match=r"cannot load en/c4-train\.00000-of-01024\.json\.gz of .*\n.*bundled"
    ):
        text.calibration_tokens(TOKENIZER, 1, 8, 0)


def test_the_identity_of_a_copy_follows_its_files(tmp_path):
    folder = tmp_path / "penn_treebank"
    for part in ("train", "validation"):
        parquet(folder / part / "0000.parquet", "sentence", ["a b c", "d e f"])
    source = text_source("ptb", path=str(tmp_path))
    before = source.identity()
    assert before == text_source("ptb", path=str(tmp_path)).identity()
    assert "folder" in before
    (tmp_path / "README.md").write_text("notes")
    assert source.identity() == before
    parquet(folder / "train" / "0000.parquet", "sentence", ["a b c", "d e f", "g"])
    assert source.identity() != before
    assert replace(source, variant="pbllm").identity() != source.identity()
    with pytest.raises(DataError, match="holds none of en/c4-train"):
        text_source("c4", path=str(tmp_path)).identity()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", ["a"], r"1 rows with columns text \(string\).*as strings in the column 'sentence'"),
        ("sentence", [1, 2], r"columns sentence \(int64\)"),
        ("sentence", ["a", None], r"rows without text \(null\)"),
    ],
)
def test_a_copy_without_text_is_refused_by_its_columns(tmp_path, column, values, message):
    parquet(tmp_path / "penn_treebank" / "train" / "0000.parquet", column, values)
    with pytest.raises(DataError, match=message) as caught:
        text_source("ptb", path=str(tmp_path)).documents("calibration")
    assert str(tmp_path) in str(caught.value)


def test_the_crops_of_c4_are_drawn_once_until_a_file_or_the_tokenizer_changes(copies, monkeypatch):
    source = text_source("c4", path=str(copies[0] / "c4"))
    drawn_before = []
    draw = type(source).draw
    monkeypatch.setattr(type(source), "draw", lambda *a, **k: drawn_before.append(1) or draw(*a, **k))
    first = [evaluation_windows(source, TOKENIZER, 54).tokens for _ in range(3)]
    assert len(drawn_before) == 1
    assert first[0].equal(first[2])
    evaluation_windows(source, PLAIN, 54)
    assert len(drawn_before) == 2


def test_the_hub_itself_is_named_by_repository_and_revision():
    assert text_source("ptb").identity() == {
        "text": "ptb",
        "variant": "gptq",
        "hub": "ptb-text-only/ptb_text_only",
        "revision": "refs/convert/parquet",
    }
    assert text_source("c4", revision="abc").identity()["revision"] == "abc"
    assert text_source("wikitext2").identity()["revision"] == "main"


def test_without_the_hub_the_message_says_what_to_use(monkeypatch):
    def unreachable(*arguments, **keywords):
        raise ConnectionError("Couldn't reach the hub\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for name in ("wikitext2", "ptb", "c4"):
        with pytest.raises(DataError) as caught:
            text_source(name).calibration_tokens(TOKENIZER, 1, 8, 0)
        message = str(caught.value)
        assert f"text '{name}': cannot load " in message
        assert "ConnectionError: Couldn't reach the hub\nWithout the hub: the bundled texts" in message


def test_a_corpus_is_encoded_once_for_equal_tokenizers(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "q2n.data.text.encode", lambda tokenizer, text, special: calls.append(text) or [len(text), special]
    )
    text = "a text that no other test reads"
    first = encode_corpus(byte_tokenizer(), text)
    assert list(encode_corpus(byte_tokenizer(), text)) == list(first) == [len(text), 1]
    assert len(calls) == 1
    assert list(encode_corpus(byte_tokenizer(), text, special=False)) == [len(text), 0]
    assert list(encode_corpus(byte_tokenizer(add_bos=False), text)) == [len(text), 1]
    assert len(calls) == 3
