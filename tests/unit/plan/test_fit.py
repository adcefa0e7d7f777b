"""Models and methods that do not fit each other are refused before calibration."""

from types import SimpleNamespace

import pytest
import torch

from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.owq import OWQ
from q2n.exceptions import ConfigurationError, UnsupportedError
from q2n.options import construct

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GROUPS = (ATTENTION[:3], ATTENTION[3:], ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))


def adapter(hidden, intermediate):
    def linear(name):
        columns = intermediate if name.endswith("down_proj") else hidden
        return SimpleNamespace(weight=torch.empty(1, columns, device="meta"))

    groups = tuple(SimpleNamespace(linears=names) for names in GROUPS)
    return SimpleNamespace(blocks=[SimpleNamespace(groups=groups, linear=linear)])


@pytest.mark.parametrize(
    ("hidden", "intermediate", "expected"),
    [
        (4096, 14336, (6, 6, 6, 6, 2, 2, 8)),  # Llama-3-8B
        (8192, 28672, (12, 12, 12, 12, 4, 4, 14)),  # Llama-3-70B
        (4096, 11008, (6, 6, 6, 6, 2, 2, 6)),  # Llama-2-7B
    ],
)
def test_owq_budget_of_known_models(hidden, intermediate, expected):
    method = OWQ(bits=3, target_bit=3.01)
    names = [name for group in GROUPS for name in group]
    widths = [intermediate if name == "mlp.down_proj" else hidden for name in names]
    found = tuple(method.kept_count(name, width) for name, width in zip(names, widths, strict=True))
    assert found == expected
    method.check(adapter(hidden, intermediate))


def test_owq_budget_that_rounds_to_nothing_says_what_would_fit():
    with pytest.raises(UnsupportedError, match="target_rank") as caught:
        OWQ(bits=3, target_bit=3.01).check(adapter(256, 688))
    needed = float(str(caught.value).rsplit(">= ", 1)[1])
    OWQ(bits=3, target_bit=needed).check(adapter(256, 688))
    with pytest.raises(UnsupportedError):
        OWQ(bits=3, target_bit=needed - 0.002).check(adapter(256, 688))
    OWQ(bits=3, target_rank=1).check(adapter(256, 688))


def test_owq_cannot_keep_every_column():
    with pytest.raises(UnsupportedError, match="at most 63"):
        OWQ(bits=3, target_rank=64).check(adapter(64, 128))


@pytest.mark.parametrize(
    "budget", [{}, {"target_bit": 3.01, "target_rank": 2}, {"target_bit": 4.01}, {"target_bit": 3.0}]
)
def test_owq_budgets_are_given_once_and_in_range(budget):
    with pytest.raises(ConfigurationError, match="target_bit"):
        construct(OWQ, {"bits": 3, **budget}, "baseline")


def test_groups_wider_than_a_layer_are_refused():
    GPTQ(bits=3, group_size=64).check(adapter(64, 128))
    with pytest.raises(UnsupportedError, match=r"self_attn\.q_proj has only 64 columns; .* at most 64"):
        GPTQ(bits=3, group_size=128).check(adapter(64, 128))


def test_tables_of_whole_rows_have_no_groups():
    """The official LeanQuant accepts a group size and ignores it."""
    with pytest.raises(ConfigurationError, match=r"baseline\.group_size: no such key"):
        construct(LeanQuant, {"bits": 3, "group_size": 128}, "baseline")
