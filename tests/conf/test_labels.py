"""What a cell is called and recorded as is what its solver does; settings that nothing reads are refused."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
import torch
from helpers.commands import ROOT
from helpers.layers import layer
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.exceptions import ConfigurationError
from q2n.options import ReadIf, ReadUnless, as_read, build, fields_of, unread
from q2n.quantization.formats.kept import KeptFormat
from q2n.quantization.formats.masked import MaskedFormat
from q2n.records.fingerprint import SOURCES, flatten
from q2n.records.identity import identify
from q2n.types import Statistic

BASELINES = sorted(path.stem for path in (CONFIG_DIR / "baseline").glob("*.yaml"))
COLUMNS, ROWS = 64, 32


def cells(*arguments):
    return preflight(CONFIG_DIR, arguments).cells


def cell(*arguments):
    (config,) = cells(*arguments)
    return config


def refers(baseline, key):
    return f"${{{key}}}" in (CONFIG_DIR / "baseline" / f"{baseline}.yaml").read_text()


def quantized(baseline):
    problem = layer(ROWS, COLUMNS)
    problem.stats.values[Statistic.TOKEN_SAMPLE] = torch.randn(64, COLUMNS, generator=torch.manual_seed(0))
    return baseline.quantize(problem)


def stored(baseline):
    """Average bits of a code, and scales of a row, as the format has them."""
    form = quantized(baseline).format
    if isinstance(form, KeptFormat):
        form = form.inner
    if isinstance(form, MaskedFormat):
        low = form.mask.double().mean().item()
        return low + (1 - low) * form.high.bits, form.low.scale.shape[1]
    scales = form.scale.shape[1] if getattr(form, "scale", torch.tensor(0)).ndim == 2 else 1
    return int(form.codes.max()).bit_length(), scales


def overrides(baseline):
    yield ("bits=2",)
    yield ("baseline.bits=4",)
    if refers(baseline, "group_size"):
        yield ("group_size=16",)
    if "group_size" in conf(baseline):
        yield ("baseline.group_size=16", *(("baseline.grid=uniform",) if baseline == "quip" else ()))
        yield ("baseline.bits=2", "baseline.group_size=-1")
    if baseline == "pbllm":
        yield ("baseline.low_frac=0.9",)
        yield ("baseline.bits=2.5", "baseline.high_bits=4")


def conf(option, group="baseline"):
    return OmegaConf.load(CONFIG_DIR / group / f"{option}.yaml")


@pytest.mark.parametrize(
    ("baseline", "given"), [(name, given) for name in BASELINES for given in overrides(name)]
)
def test_the_label_is_what_the_format_stores(baseline, given):
    config = cell(f"baseline={baseline}", *given)
    bits, scales = stored(config.baseline)
    # the share of salient weights is one of whole weights
    assert config.cell.bits == pytest.approx(bits, abs=0.02 if baseline == "pbllm" else 0)
    group = COLUMNS if config.cell.group_size == -1 else config.cell.group_size
    assert COLUMNS // group == scales
    assert f" {config.cell.bits:g} bit" in config.label
    assert ("group_size=16" in config.label.split()) == (config.cell.group_size == 16)
    tree = config.ref().configuration
    assert not SOURCES & tree.keys()
    assert tree["baseline"].get("bits", config.cell.bits) == config.cell.bits
    assert tree["baseline"].get("group_size", -1) == config.cell.group_size


def test_one_cell_has_one_name_whichever_key_it_was_set_by():
    one, other = cell("bits=2", "group_size=32"), cell("baseline.bits=2", "baseline.group_size=32")
    assert (one.key, one.label, one.cell) == (other.key, other.label, other.cell)
    assert one.label == "smollm2_135m gptq q2n=on 2 bit group_size=32"
    assert [config.label.split()[3:5] for config in cells("-m", "baseline.bits=2,3")] == [
        ["2", "bit"],
        ["3", "bit"],
    ]


def test_what_a_cell_does_not_read_is_no_part_of_it(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("text " * 1000)
    common = ["-m", "model=tiny_llama", "calibration=text", f"calibration.paths=[{text}]", "bits=2"]
    fixed, energy = cells(*common, "q2n.rank_rule=fixed,energy", "q2n.rank=0.5", "q2n.energy=0.9")
    assert fixed.label.split()[5:] == [
        "calibration=text", f"calibration.paths=[{text}]", "q2n.rank_rule=fixed", "q2n.rank=0.5"
    ]  # fmt: skip
    for config, own, others in (
        (fixed, {"rank": 0.5}, ("energy", "t", "nscl_a", "drop_first")),
        (energy, {"energy": 0.9, "drop_first": True}, ("rank", "t", "nscl_a", "index_rule")),
    ):
        for section in (config.tree["q2n"], config.ref(identify(config)).identity["config"]["q2n"]):
            assert own.items() <= section.items()
            assert not section.keys() & set(others)
        assert not any(item.startswith(f"q2n.{key}=") for key in others for item in config.overrides)


def test_combinations_that_come_out_equal_are_one_cell_and_it_is_said():
    arguments = ["-m", "baseline=gptq,quip,owq", "group_size=32,64", "bits=2,3"]
    command = preflight(CONFIG_DIR, arguments)
    assert [config.label.partition(" ")[2] for config in command.cells] == [
        *(f"gptq q2n=on {bits} bit group_size={size}" for size in (32, 64) for bits in (2, 3)),
        *(f"{name} q2n=on {bits} bit" for name in ("quip", "owq") for bits in (2, 3)),
    ]
    (remark,) = command.grid.remarks
    assert "group_size is not read with baseline=quip; group_size is not read with baseline=owq" in remark
    assert command.to_run() == [
        *(["baseline=gptq", f"group_size={size}", f"bits={bits}"] for size in (32, 64) for bits in (2, 3)),
        *([f"baseline={name}", f"bits={bits}"] for name in ("quip", "owq") for bits in (2, 3)),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["baseline=quip", "group_size=32"],
            "quip has one scale per tensor: group_size does not apply; "
            "baselines with groups: awq, composed, gptq, rtn",
        ),
        (["-m", "baseline=leanquant", "group_size=32,64"], "leanquant has a codebook per row: group_size"),
        (["baseline=quip", "baseline.grid=uniform", "group_size=32"], "set baseline.group_size"),
        *(
            (
                [f"baseline={name}", "group_size=32"],
                f"group_size: baseline={name} does not follow it: set bas",
            )
            for name in BASELINES
            if "group_size" in conf(name) and not refers(name, "group_size") and name != "quip"
        ),
        (["bits=2", "baseline.bits=3"], "bits: baseline=gptq does not follow it: set baseline.bits"),
        (["baseline=pbllm", "bits=2", "baseline.low_frac=0.9"], "bits: is read only with baseline.low_frac="),
        (["q2n.energy=0.9"], "q2n.energy: is read only with q2n.rank_rule=energy"),
        (["-m", "q2n.rank=0.5", "bits=2,3"], "q2n.rank: is read only with q2n.rank_rule=fixed"),
        (["q2n=groupwise", "q2n.t=0.2"], "q2n.t: is read only with q2n.objective=q2n"),
        (
            ["baseline=quarot", "baseline.kv_sym=true"],
            "baseline.kv_sym: is not read with baseline.k_bits=16 and baseline.v_bits=16",
        ),
    ],
)
def test_a_setting_that_no_cell_reads_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        preflight(CONFIG_DIR, arguments)


def other_value(field, value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [item + 1 for item in value]
    choices = getattr(field.annotation, "__args__", ())
    if isinstance(value, str):
        return next(choice for choice in choices if choice != value)
    return value / 2 + 0.25 if isinstance(value, float) else value + 8


def unread_cases():
    """Every marked field of a baseline or correction, with settings beside which it is not read."""
    for group in ("baseline", "q2n"):
        for path in sorted((CONFIG_DIR / group).glob("*.yaml")):
            fields = fields_of(OmegaConf.load(path)["_target_"])
            for name, field in fields.items():
                for mark in (item for item in field.metadata if isinstance(item, ReadIf)):
                    for key, values in mark.others.items():
                        choices = getattr(fields[key].annotation, "__args__", ())
                        other = next((item for item in choices if item not in values), None)
                        if isinstance(mark, ReadUnless):
                            yield group, path.stem, name, {k: v[0] for k, v in mark.others.items()}
                        elif isinstance(other, str):
                            yield group, path.stem, name, {key: other}


@pytest.mark.parametrize(("group", "option", "name", "settings"), list(unread_cases()))
def test_a_field_that_is_marked_unread_changes_nothing(group, option, name, settings):
    above = {"objective": "q2n"} if option == "groupwise" and "objective" not in settings else {}
    tree = {**resolved(group, option), **above, **settings}
    assert f"{group}.{name}" in unread({group: tree})
    changed = {**tree, name: other_value(fields_of(tree["_target_"])[name], tree[name])}
    problem = layer(ROWS, COLUMNS)
    problem.stats.values[Statistic.TOKEN_SAMPLE] = torch.randn(64, COLUMNS, generator=torch.manual_seed(0))
    pair = [build(item, group) for item in (tree, changed)]
    if group == "baseline":
        weights = [item.quantize(problem).weight for item in pair]
    else:
        base = build(resolved("baseline", "gptq"), "baseline").quantize(problem)
        judged = replace(problem, stats=replace(problem.stats, heldout=layer(ROWS, COLUMNS, 1).stats))
        weights = [item.correct(judged, base).weight for item in pair]
    assert torch.equal(*weights)


def resolved(group, option):
    """An option's section at 3 bits in groups of 16."""
    root = OmegaConf.create({group: conf(option, group), "bits": 3, "group_size": 16, "seed": 0})
    return OmegaConf.to_container(root, resolve=True)[group]


def commands(text):
    """Arguments of every command of a page that is whole and asks for cells."""
    for line in re.findall(r"^(?:\.venv/bin/)?python run\.py (.*)$", text.replace("\\\n", " "), re.MULTILINE):
        if "..." not in line and "$" not in line and "--help" not in line:
            found = shlex.split(line, comments=True)
            slow = any(item.startswith("+experiment=") for item in found)
            yield pytest.param(found, marks=pytest.mark.slow if slow else (), id=" ".join(found))


PAGES = {
    page: list(commands(page.read_text())) for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}


@pytest.mark.parametrize("arguments", [given for found in PAGES.values() for given in found])
def test_the_labels_of_every_command_in_the_docs(arguments):
    """Each word of a label is what the cell's configuration has, and equal labels are equal cells."""
    of_the_reader = ("my_task", "capitals", "plain_ldlq", "next_token", "same_size")
    if any(name in item for item in arguments for name in of_the_reader):
        pytest.skip("of a file that the reader writes")
    if "hydra/sweeper=optuna" in arguments:
        pytest.importorskip("optuna")
    asked = cells(*arguments)
    assert asked
    assert len({config.label for config in asked}) == len(asked)
    for config in asked:
        model, baseline, q2n, bits, bit, *settings = config.label.split()
        choices = config.choices
        assert (model, baseline, q2n) == (choices["model"], choices["baseline"], f"q2n={choices['q2n']}")
        assert (float(bits), bit) == (config.baseline.code_bits, "bit")
        leaves = {**flatten(config.tree), **config.cell.model_dump(), **choices}
        for setting in settings:
            said = OverridesParser.create().parse_override(setting)
            assert leaves[said.key_or_group] == said.value()


def test_a_configuration_as_it_is_read():
    tree = {"q2n": {"_target_": "q2n.corrections.groupwise.GroupwiseScale", "t": 0.5}, "other": [{"a": 1}]}
    assert as_read(tree)["q2n"] == {
        "_target_": tree["q2n"]["_target_"], "objective": "output", "lam": 0.01, "skip": []
    }  # fmt: skip
    assert as_read(tree)["other"] == tree["other"]
    assert unread(tree) == {"q2n.t": "is read only with q2n.objective=q2n"}
    assert as_read({"_target_": "q2n.nowhere.Nothing", "x": 1}) == {"_target_": "q2n.nowhere.Nothing", "x": 1}
