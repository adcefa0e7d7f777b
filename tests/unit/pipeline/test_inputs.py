"""What is known early is said early: text, tokenizer and context length, before any weight is read."""

import json
import random
import re
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import SHAPES
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoTokenizer

from q2n.cells.run import run_cell
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.data.bundled import BundledText
from q2n.data.overlap import RUN, overlap
from q2n.evaluation.harness import Harness
from q2n.exceptions import DataError, ModelError, UnsupportedError
from q2n.models.loaded import context_length
from q2n.models.quiet import quiet_transformers
from q2n.models.spec import HubModel, TinyModel
from q2n.models.tiny import byte_tokenizer
from q2n.pipeline.inputs import SAME_TEXT, read_inputs

SMALL = [
    "baseline.group_size=32",
    "dtype=float32",
    "bits=3",
    "q2n=off",
    "calibration.nsamples=2",
    "evaluation.windows=2",
]
SEQLEN = ["calibration.seqlen=32", "evaluation.seqlen=64"]


def prose(seed, words=400):
    draw = random.Random(seed)
    letters = "abcdefghijklmnoprstuvw"
    made = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(words)]
    return " ".join(made).capitalize() + "."


@pytest.fixture
def texts(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(prose(name))
    return tmp_path


def config(folder, *overrides, calibration="a.txt", evaluation="b.txt"):
    (made,) = preflight(
        CONFIG_DIR,
        [
            *("model=tiny_llama", *SMALL, *SEQLEN, "calibration=text", "evaluation.datasets=[text]"),
            f"calibration.paths=[{folder / calibration}]",
            f"evaluation.paths=[{folder / evaluation}]",
            *(f"results_dir={folder}/results", f"cache_dir={folder}/cache", *overrides),
        ],
    ).cells
    return made


def saved(folder, tokenizer=None, **fields):
    """A model's folder whose weights are none of this model's: they cannot be loaded."""
    settings = CONFIG_MAPPING["llama"](
        **{"vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2, **fields}
    )
    settings.save_pretrained(folder)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


# --- before the weights -----------------------------------------------------------------------------------

MISTAKES = {
    "too little calibration text": (
        ["calibration.nsamples=2000"],
        r"calibration text 'text' \(.*a\.txt\) has",
    ),
    "too little evaluation text": (["evaluation.seqlen=4000"], r"evaluation text 'text' \(.*b\.txt\) has"),
    "no field": (["calibration.paths=[{folder}/c.jsonl]"], r"c\.jsonl:1: .*its fields are content"),
    "empty": (["evaluation.paths=[{folder}/d.txt]"], r"d\.txt: is empty"),
    "the same text": (
        ["evaluation.paths=[{folder}/a.txt]"],
        r"(?s)a\.txt.* 100 % .*allow_calibration_text=true",
    ),
    "beyond the context": (
        ["calibration.nsamples=1", "evaluation.windows=1", "evaluation.seqlen=129", "+model.limit"],
        r"evaluation: seqlen=129 is beyond the 128 positions of .*allow_beyond_context=true",
    ),
    "calibration beyond the context": (
        ["calibration.nsamples=1", "calibration.seqlen=200", "+model.limit"],
        r"calibration: seqlen=200 is beyond the 128 positions",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_before_weights_are_read(texts, mistake, monkeypatch):
    monkeypatch.setattr(TinyModel, "load", lambda *arguments: pytest.fail("weights were read"))
    (texts / "c.jsonl").write_text(json.dumps({"content": prose(3)}) + "\n")
    (texts / "d.txt").write_text("\n")
    overrides, message = MISTAKES[mistake]
    overrides = [item.format(folder=texts) for item in overrides]
    if "+model.limit" in overrides:
        folder = saved(texts / "model", max_position_embeddings=128)
        overrides = [*overrides[:-1], "model=path", f"model.path={folder}"]
    outcome = run_cell(config(texts, *overrides))
    assert outcome.decision == "failed"
    assert re.search(message, outcome.failure.message)


def test_a_finished_cell_is_reused_without_reading_text(texts, monkeypatch):
    first = run_cell(config(texts))
    assert first.decision == "computed"
    monkeypatch.setattr("q2n.pipeline.cell.read_inputs", lambda *arguments: pytest.fail("text was read"))
    assert run_cell(config(texts)).decision == "reused"


# --- context length ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
        ({"rope_type": "linear", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            64,
        ),
    ],
)
def test_the_context_length_is_what_the_configuration_extends_it_to(rope, expected):
    with quiet_transformers():
        made = CONFIG_MAPPING["llama"](
            max_position_embeddings=64, rope_parameters={"rope_theta": 10000.0, **rope}
        )
    assert context_length(made) == expected
    assert context_length(object()) is None, "a model without such a limit"


def test_going_beyond_the_context_is_in_record_and_protocol(texts, monkeypatch):
    monkeypatch.setattr("q2n.models.tiny.CONTEXT", 128)
    allowed = ["allow_beyond_context=true", "calibration.seqlen=150", "evaluation.seqlen=130"]
    record = run_cell(config(texts, *allowed)).record
    assert [note.partition(" of ")[0] for note in record.notes] == [
        "calibration sequences",
        "evaluation sequences",
    ]
    (metric,) = record.metrics
    assert metric.protocol.positions == 128
    assert "beyond the model's 128 positions" in metric.protocol.label()
    assert metric.reference is not None
    within = run_cell(config(texts, "allow_beyond_context=true")).record
    assert within.notes == ()
    assert within.metrics[0].protocol.positions is None


# --- tokenizers -------------------------------------------------------------------------------------------


def padded():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[PAD]"])
    return tokenizer


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    folder = saved(tmp_path / "model", padded())
    for use in (HubModel(path=str(folder)).outline, lambda: HubModel(path=str(folder)).load(torch.float32)):
        with pytest.raises(ModelError, match=r"260 entries \(largest id 259\), its embedding 259 rows"):
            use()


def test_a_folder_without_a_tokenizer_is_refused_as_that(tmp_path):
    folder = saved(tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=rf"{folder}: contains no tokenizer \(none of tokenizer.json, "):
        HubModel(path=str(folder)).outline()


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path):
    folder = saved(tmp_path / "model")
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    special = {"<s>": 0, "</s>": 1, "<pad>": 2}
    path.write_text(json.dumps({**rules, "model": {**rules["model"], "vocab": special}}))
    assert AutoTokenizer.from_pretrained(folder)("a text", add_special_tokens=False)["input_ids"] == []
    with pytest.raises(ModelError, match="turns text into no tokens"):
        HubModel(path=str(folder)).outline()


def test_ids_of_a_template_must_have_a_row(texts, monkeypatch):
    outline = TinyModel(name="x", **SHAPES["llama"]).outline()
    outline.config.vocab_size = 100  # the byte tokenizer's ids of lower-case letters are below, others above
    monkeypatch.setattr(TinyModel, "outline", lambda self, cache_dir=None: outline)
    (texts / "b.txt").write_text("~" * 500)
    with pytest.raises(ModelError, match=r"makes id \d+ of 'text' \(.*txt\), its embedding has 100 rows"):
        read_inputs(config(texts))


def test_a_chat_template_is_looked_for_before_the_weights():
    outline = TinyModel(name="x", **SHAPES["llama"]).outline()
    with pytest.raises(UnsupportedError, match="no chat template"):
        Harness(tasks=["piqa"], apply_chat_template=True).examine(outline, None)
    assert Harness(tasks=["q2n_wiki_cloze"], limit=1).examine(outline, None) == []


# --- evaluation text that is calibration text ---------------------------------------------------------------


def test_overlap_is_the_share_of_the_shorter_text_that_the_longer_has():
    one, other = prose(1, 2000), prose(2, 2000)
    assert overlap(one, one) == 1
    assert overlap(one, other) == 0
    assert overlap(one + other, one) == overlap(one, one + other) == 1
    assert overlap(other, textwrap.fill(other.upper(), 50).replace(" ", "\u2003")) == 1
    half = one[: len(one) // 2] + prose(3, 1000)
    assert 0.4 < overlap(half, one) < 0.6
    assert overlap(one[:RUN], one) == overlap("", one) == overlap("", "") == 0


def test_long_texts_are_compared_by_a_sample():
    one, other = prose(1, 100_000), prose(2, 100_000)
    assert overlap(one, other + one) == 1
    assert overlap(one, other) == 0
    assert overlap(one[: len(one) // 10] + other, one + prose(4, 1000)) == pytest.approx(0.1, abs=0.02)


def test_the_sides_of_the_bundled_texts_have_nothing_in_common(tmp_path):
    for name in ("wiki", "news"):
        sides = ("\n\n".join(BundledText(name).documents(side)) for side in ("calibration", "evaluation"))
        assert overlap(*sides) < SAME_TEXT / 20


def _copy(folder):
    return "a.txt", (folder / "a.txt").read_text()


def _lines(folder):
    text = (folder / "a.txt").read_text()
    return "c.jsonl", "\n".join(json.dumps({"text": text[i : i + 500]}) for i in range(0, len(text), 500))


def _wrapped(folder):
    return "c.txt", textwrap.fill((folder / "a.txt").read_text(), 60)


def _part(folder):
    return "c.txt", (folder / "a.txt").read_text()[:500]


def _among_others(folder):
    return "c.txt", prose(5, 2000) + (folder / "a.txt").read_text() + prose(6, 2000)


@pytest.mark.parametrize("form", [_copy, _lines, _wrapped, _part, _among_others])
def test_calibration_text_is_known_by_content(texts, form):
    name, content = form(texts)
    (texts / name).write_text(content)
    sides = {"calibration": "a.txt", "evaluation": name, "overrides": ["evaluation.windows=0"]}
    if form is _among_others:  # the windows of evaluation are what counts of it
        few = config(texts, calibration="a.txt", evaluation=name)
        assert not read_inputs(few).calibrated
    overrides = sides.pop("overrides")
    with pytest.raises(DataError, match=rf"{name}.*have \d+ % of the shorter one in common"):
        read_inputs(config(texts, *overrides, **sides))
    swapped = {"calibration": name, "evaluation": "a.txt"}
    with pytest.raises(DataError, match="allow_calibration_text=true"):
        read_inputs(config(texts, *overrides, "calibration.nsamples=1", **swapped))
    allowed = read_inputs(config(texts, *overrides, "allow_calibration_text=true", **sides))
    assert len(allowed.calibrated) == 1
    assert "is calibration text" in allowed.notes[0]


def test_what_learns_nothing_from_text_may_be_measured_on_it(texts):
    same = {"evaluation": "a.txt"}
    assert not read_inputs(config(texts, "baseline=rtn", **same)).calibrated
    for learning in (["baseline=rtn", "q2n=on"], ["baseline=awq"], ["baseline=smoothquant"]):
        with pytest.raises(DataError, match="is calibration text"):
            read_inputs(config(texts, *learning, **same))


def test_a_number_on_calibration_text_stands_apart_and_says_so(texts):
    clean = run_cell(config(texts)).record
    leaked = run_cell(config(texts, "allow_calibration_text=true", calibration="b.txt")).record
    assert clean.metrics[0].protocol != leaked.metrics[0].protocol
    assert "text also calibrated on" in leaked.metrics[0].protocol.label()
    assert leaked.metrics[0].reference == clean.metrics[0].reference
    assert Path(texts / "b.txt").name in leaked.notes[0]
    assert clean.notes == ()
