"""lm-eval on a model in memory: a standard task from a local copy of its data, checked by other means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub.constants
import lm_eval
import pytest
import torch
from helpers.commands import records
from helpers.runs import run as quantize
from helpers.runs import tiny

from q2n.baselines.quarot import QuaRot
from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.harness import Harness
from q2n.evaluation.harness.model import HarnessModel
from q2n.evaluation.harness.surroundings import quiet_harness
from q2n.evaluation.harness.tasks import load_tasks
from q2n.exceptions import ConfigurationError, DataError, UnsupportedError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
QUESTIONS = 24
WORDS = [
    "oven",
    "paint",
    "a wet cloth",
    "two spoons of sugar",
    "tape",
    "the other hand",
    "cold water",
    "glue",
]


def row(index):
    """Question ``index`` in the columns of the hub's baber/piqa."""
    first, second, third = (WORDS[(index * step + 1) % len(WORDS)] for step in (1, 3, 5))
    return {
        "goal": f"How do I clean {first} number {index}?",
        "sol1": f"Use {second} and wait for {index} minutes.",
        "sol2": f"Use {third}, then {second}.",
        "label": index % 3 % 2,
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with ``baber/piqa`` laid out as the hub lays it out."""
    folder = tmp_path_factory.mktemp("hub")
    for part, rows in {"train": 3, "validation": QUESTIONS}.items():
        path = folder / "baber" / "piqa" / "data" / f"{part}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list([row(index) for index in range(rows)]).to_parquet(path)
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    """No hub, and a data cache of this test's own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    load_tasks.cache_clear()


def context(loaded):
    return EvaluationContext(loaded, CPU, torch.float32, None, lambda done, stage: None)


@torch.no_grad()
def likelihood(loaded, before, after):
    """Log-likelihood of the text ``after`` by one forward pass of the whole and log-softmax in float64."""
    ids = loaded.tokenizer(before + after, return_tensors="pt").input_ids
    start = len(loaded.tokenizer(before).input_ids)
    logits = loaded.model(ids, use_cache=False).logits[0, :-1].double().log_softmax(dim=-1)
    targets = ids[0, 1:]
    return float(logits[torch.arange(len(targets)), targets][start - 1 :].sum())


def right_answers(loaded):
    """Which questions are answered rightly, raw and per character, as piqa's rules say."""
    raw, normed = "", ""
    for item in map(row, range(QUESTIONS)):
        choices = [item["sol1"], item["sol2"]]
        values = [likelihood(loaded, f"Question: {item['goal']}\nAnswer:", f" {text}") for text in choices]
        per_character = [value / len(text) for value, text in zip(values, choices, strict=True)]
        raw += str(int(values.index(max(values)) == item["label"]))
        normed += str(int(per_character.index(max(per_character)) == item["label"]))
    return {"acc": raw, "acc_norm": normed}


def option(hub, **changes):
    return Harness(**{"tasks": ["piqa"], "data_dir": str(hub), **changes})


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_scores_are_those_of_independent_likelihoods(hub, batch_size):
    loaded = tiny()
    metrics = {metric.name: metric for metric in option(hub, batch_size=batch_size).evaluate(context(loaded))}
    expected = right_answers(loaded)
    assert set(metrics) == set(expected)
    for name, answers in expected.items():
        metric = metrics[name]
        assert metric.per_item == answers
        share = answers.count("1") / QUESTIONS
        assert metric.value == pytest.approx(share)
        assert metric.stderr == pytest.approx((share * (1 - share) / (QUESTIONS - 1)) ** 0.5)
        assert (metric.count, metric.count_unit, metric.unit) == (QUESTIONS, "items", "share")
        assert not metric.lower_is_better
        assert metric.seconds > 0
        assert metric.tokens > 1000
        protocol = metric.protocol
        assert (protocol.dataset, protocol.items, protocol.fewshot) == ("piqa", QUESTIONS, 0)
        assert (protocol.task_version, protocol.chat_template) == ("1.0", False)
        assert protocol.harness.startswith("lm-eval 0.4")


def test_few_shot_examples_and_the_limit_are_part_of_the_protocol(hub):
    loaded = tiny()
    plain, shots, limited = (
        option(hub, **changes).evaluate(context(loaded))[0]
        for changes in ({}, {"num_fewshot": 2}, {"limit": 5})
    )
    assert (shots.protocol.fewshot, limited.count) == (2, 5)
    assert len({metric.protocol.items_sha256 for metric in (plain, shots, limited)}) == 3
    assert shots.tokens > 2 * plain.tokens
    assert limited.per_item == plain.per_item[:5]


def test_two_evaluations_are_equal(hub):
    first, second = (option(hub).evaluate(context(tiny())) for _ in range(2))
    untimed = [[metric.model_copy(update={"seconds": None}) for metric in part] for part in (first, second)]
    assert untimed[0] == untimed[1]


QUAROT = {"bits": 4, "group_size": -1, "seed": 0, "a_bits": 4, "k_bits": 4, "v_bits": 4}


def test_what_quarot_does_online_is_in_force():
    """Hadamard transforms, rounded activations and a rounded cache live in the modules; the harness's numbers
    are those of the adapter's own blocks, and not those of the same weights without them."""
    run = quantize(QuaRot(**QUAROT))
    loaded, adapter = run.loaded, run.loaded.adapter
    before, after = "How do I clean paint?", " Use two spoons of sugar."
    ids = loaded.tokenizer(before + after, return_tensors="pt").input_ids
    start = len(loaded.tokenizer(before).input_ids)
    with torch.no_grad(), quiet_harness():
        model = HarnessModel(context(loaded), "auto")
        ((found, _),) = model._loglikelihood_tokens(
            [((before, after), ids[0, :start].tolist(), ids[0, start:].tolist())]
        )
        adapter.prepare(ids.shape[1] - 1)
        hidden = adapter.embed(ids[:, :-1])
        for block in adapter.blocks:
            hidden = block.forward(hidden)
        own = adapter.lm_head(adapter.final_norm(hidden))[0].double().log_softmax(dim=-1)[start - 1 :]
        expected = float(own.gather(1, ids[0, start:, None]).sum())
        for block in adapter.blocks:
            for group in block.groups:
                for name in group.linears:
                    block.replace(name, block.linear(name))
        ((bare, _),) = model._loglikelihood_tokens(
            [((before, after), ids[0, :start].tolist(), ids[0, start:].tolist())]
        )
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(bare - expected) > 1e-2


def requests(loaded, pairs):
    """What lm-eval hands over for pairs of texts."""
    found = []
    for before, after in pairs:
        ids, start = loaded.tokenizer(before + after).input_ids, len(loaded.tokenizer(before).input_ids)
        found.append(((before, after), ids[:start], ids[start:]))
    return found


PAIRS = [(f"Clean the {word}?", f" Use {other}.") for word in WORDS[:3] for other in WORDS[3:6]]


def test_a_sliding_window_is_left_to_the_model():
    loaded = tiny("mistral")
    wide = HarnessModel(context(loaded), "auto")._loglikelihood_tokens(requests(loaded, PAIRS))
    loaded.model.config.sliding_window = 8
    narrow = HarnessModel(context(loaded), 4)._loglikelihood_tokens(requests(loaded, PAIRS))
    expected = [likelihood(loaded, *pair) for pair in PAIRS]
    assert [value for value, _ in narrow] == pytest.approx(expected, rel=1e-5)
    assert all(abs(one - other) > 1e-3 for (one, _), (other, _) in zip(wide, narrow, strict=True))


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    loaded = tiny()
    model = HarnessModel(context(loaded), "auto")
    pairs = [(f"{word}?", " Yes.") for word in WORDS]
    whole = model._loglikelihood_tokens(requests(loaded, pairs))
    score, sizes = HarnessModel._score, []

    def scarce(self, batch):
        sizes.append(len(batch.trees))
        if len(batch.trees) > 2:
            raise torch.OutOfMemoryError
        return score(self, batch)

    monkeypatch.setattr(HarnessModel, "_score", scarce)
    halves = model._loglikelihood_tokens(requests(loaded, pairs))
    assert [value for value, _ in halves] == pytest.approx([value for value, _ in whole], rel=1e-6)
    assert max(sizes) > 2
    monkeypatch.setattr(
        HarnessModel, "_score", lambda self, batch: (_ for _ in ()).throw(torch.OutOfMemoryError)
    )
    with pytest.raises(torch.OutOfMemoryError):
        model._loglikelihood_tokens(requests(loaded, pairs))


def test_the_harness_leaves_the_model_as_it_was(hub):
    loaded = tiny()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    option(hub).evaluate(context(loaded))
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.adapter.tied


def test_missing_data_is_an_error_before_anything_is_loaded(tmp_path):
    with pytest.raises(DataError, match=r"(?s)'piqa'.*baber/piqa.*hf download.*data_dir"):
        Harness(tasks=["piqa"], data_dir=str(tmp_path)).prepare(None)


def test_examples_are_counted_before_a_model_is_loaded(hub):
    option(hub, num_fewshot=3).prepare(None)
    with pytest.raises(ConfigurationError, match=r"num_fewshot=4: task 'piqa' has 3 documents .* most 3"):
        option(hub, num_fewshot=4).prepare(None)


def test_items_are_no_examples_of_a_task_that_names_none(tmp_path):
    rows = [{"question": str(number), "answer": str(number + 1)} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "next_number",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_target": "answer",
    }
    file = tmp_path / "next_number.yaml"
    file.write_text(json.dumps(task))
    Harness(tasks=[str(file)]).prepare(None)
    with pytest.raises(ConfigurationError, match="'next_number' has 0 documents to draw examples from"):
        Harness(tasks=[str(file)], num_fewshot=1).prepare(None)
    file.write_text(json.dumps({**task, "fewshot_split": "test"}))
    load_tasks.cache_clear()
    Harness(tasks=[str(file)], num_fewshot=4).prepare(None)
    with pytest.raises(ConfigurationError, match=r"5 documents .*itself is set aside\); at most 4"):
        Harness(tasks=[str(file)], num_fewshot=5).prepare(None)


def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"no task 'piqqa'; did you mean '?piqa"):
        Harness(tasks=["piqqa"]).prepare(None)


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_tasks_that_run_code_need_leave(task):
    with pytest.raises(ConfigurationError, match=r"allow_code_execution=true"):
        Harness(tasks=[task]).prepare(None)


GENERATION = """
task: counting
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 2.0
"""


def test_generated_answers_of_a_task_file(tmp_path):
    """The right answers of every other question are what greedy decoding, step by step, gives."""
    loaded = tiny()
    rows = []
    for index in range(4):
        question = f"Count to {index}:"
        ids = loaded.tokenizer(question, return_tensors="pt").input_ids
        with torch.no_grad():
            for _ in range(6):
                best = loaded.model(ids, use_cache=False).logits[0, -1].argmax()
                ids = torch.cat([ids, best[None, None]], dim=1)
        text = loaded.tokenizer.decode(ids[0, -6:], skip_special_tokens=True).split("\n")[0]
        rows.append({"question": question, "answer": text if index % 2 else "nothing of the kind"})
    data, file = tmp_path / "rows.jsonl", tmp_path / "counting.yaml"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    file.write_text(GENERATION.format(file=data), encoding="utf-8")
    (metric,) = Harness(tasks=[str(file)]).evaluate(context(loaded))
    assert (metric.name, metric.dataset, metric.per_item) == ("exact_match", "counting", "0101")
    assert metric.protocol.task_version == "2.0"
    assert metric.tokens > 0
    before = Harness(tasks=[str(file)]).identity()
    data.write_text(data.read_text() + "\n\n", encoding="utf-8")
    assert Harness(tasks=[str(file)]).identity() != before


def test_written_code_runs_only_with_leave(tmp_path, monkeypatch):
    """A task marked as unsafe whose rule tells what lm-eval's code runner would have been told."""
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    data, file = tmp_path / "rows.jsonl", tmp_path / "code.yaml"
    data.write_text(
        "\n".join(json.dumps({"question": f"{n}:", "answer": "x"}) for n in range(2)), encoding="utf-8"
    )
    (tmp_path / "rules.py").write_text(
        "import os\ndef allowed(doc, results):\n"
        "    return {'exact_match': float(os.environ['HF_ALLOW_CODE_EVAL'] == '1')}\n",
        encoding="utf-8",
    )
    unsafe = "unsafe_code: true\nprocess_results: !function rules.allowed\n"
    file.write_text(unsafe + GENERATION.format(file=data), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"code\.yaml runs code that the model has written"):
        Harness(tasks=[str(file)]).prepare(None)
    (metric,) = Harness(tasks=[str(file)], allow_code_execution=True).evaluate(context(tiny()))
    assert metric.per_item == "11"
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


def test_a_chat_template_must_be_there(hub):
    with pytest.raises(UnsupportedError, match="apply_chat_template"):
        option(hub, apply_chat_template=True).evaluate(context(tiny()))
    loaded = tiny()
    loaded.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    chat = option(hub, apply_chat_template=True).evaluate(context(loaded))[0]
    plain = option(hub).evaluate(context(loaded))[0]
    assert chat.protocol.chat_template
    assert chat.protocol.items_sha256 != plain.protocol.items_sha256


GROUP = """
group: both
task: [first, second]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
metadata:
  version: 3
"""
MEMBER = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: goal
doc_to_choice: "{{{{[sol1, sol2]}}}}"
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_a_group_with_a_score_is_shown_as_one_with_all_its_items(tmp_path):
    for name, count in {"first": 5, "second": 9}.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(json.dumps(row(index)) for index in range(count)), encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(MEMBER.format(name=name, file=data), encoding="utf-8")
    (tmp_path / "both.yaml").write_text(GROUP, encoding="utf-8")
    folder = str(tmp_path)
    loaded = tiny()
    members = Harness(tasks=["first", "second"], include_path=[folder]).evaluate(context(loaded))
    (whole,) = Harness(tasks=["both"], include_path=[folder]).evaluate(context(loaded))
    assert whole.per_item == members[0].per_item + members[1].per_item
    assert (whole.dataset, whole.count, whole.protocol.task_version) == ("both", 14, "3")
    assert whole.value == pytest.approx(whole.per_item.count("1") / 14)
    with pytest.raises(ConfigurationError, match=r"first.* twice"):
        Harness(tasks=["first", "both"], include_path=[folder]).prepare(None)


@pytest.mark.slow
def test_zero_shot_from_the_command_line_without_a_hub(hub, tmp_path):
    """The whole way: a quantized tiny model, the record, and the same accuracy from its answers.

    The task is lm-eval's own file, included in one of the user's so that its whole index is not read again.
    """
    own = tmp_path / "piqa.yaml"
    own.write_text(f"include: {Path(lm_eval.__file__).parent}/tasks/piqa/piqa.yaml\n", encoding="utf-8")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    arguments = [
        *("model=tiny_llama", "baseline=rtn", "q2n=off", "group_size=32", "evaluation=zero_shot"),
        *(f"evaluation.tasks=[{own}]", f"evaluation.data_dir={hub}", "calibration=news"),
        *("calibration.nsamples=4", "calibration.seqlen=64"),
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "results").values()
    metrics = {metric["name"]: metric for metric in record["metrics"]}
    assert set(metrics) == {"acc", "acc_norm"}
    for metric in metrics.values():
        assert len(metric["per_item"]) == len(metric["reference_per_item"]) == QUESTIONS
        assert metric["value"] == pytest.approx(metric["per_item"].count("1") / QUESTIONS)
    assert metrics["acc"]["reference"] == pytest.approx(right_answers(tiny())["acc"].count("1") / QUESTIONS)
