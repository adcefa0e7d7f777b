"""What becomes of the product of a sweep's axes: cells that make no sense are not run, and it is said."""

import itertools

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from q2n.cli import CONFIG_DIR
from q2n.command.grid import Grid, foreign_settings
from q2n.command.preflight import preflight
from q2n.exceptions import ConfigurationError

SETTINGS = {"q2n=off": set(), "q2n=on": {"q2n.t", "q2n.lam"}, "q2n=bias": {"q2n.lam"}}


def has(option, key):
    return key in SETTINGS[option]


def product(*axes):
    return [list(cell) for cell in itertools.product(*axes)]


def split(overrides, batch_size=None):
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), batch_size)


def test_an_option_without_the_settings_of_the_others_runs_once():
    cells = product(
        ["bits=2", "bits=3"], list(SETTINGS), ["q2n.t=0.1", "q2n.t=0.2"], ["q2n.lam=0", "q2n.lam=1"]
    )
    grid = Grid(foreign_settings(cells, ["q2n", "model"], has))
    found = [cell[1:] for cell in grid.cells(cells) if cell[0] == "bits=2"]
    assert grid.foreign == {"q2n=off": {"q2n.t", "q2n.lam"}, "q2n=bias": {"q2n.t"}}
    assert found[0] == ["q2n=off"]
    assert found[1:5] == product(["q2n=on"], ["q2n.t=0.1", "q2n.t=0.2"], ["q2n.lam=0", "q2n.lam=1"])
    assert found[5:] == product(["q2n=bias"], ["q2n.lam=0", "q2n.lam=1"])


@pytest.mark.parametrize("key", ["q2n.tt", "+q2n.t"])
def test_a_setting_that_no_option_has_stays_and_is_refused(key):
    cells = product(["q2n=off", "q2n=on"], [f"{key}=0.1"])
    assert foreign_settings(cells, ["q2n"], has) == {}
    with pytest.raises(HydraException, match="tt"):
        preflight(CONFIG_DIR, ["-m", "q2n=off,on", "q2n.tt=0.1"])


def test_the_only_option_of_a_group_is_held_to_its_settings():
    with pytest.raises(HydraException, match=r"q2n\.t"):
        preflight(CONFIG_DIR, ["-m", "q2n=off", "q2n.t=0.1,0.2"])


def test_equal_cells_run_once():
    assert Grid().cells(product(["bits=2", "bits=2", "bits=3"])) == [["bits=2"], ["bits=3"]]


def test_a_setting_is_taken_from_the_cells_that_do_not_read_it():
    cells = product(["baseline=gptq", "baseline=quip"], ["group_size=32", "group_size=64"])
    why = {"group_size": "group_size is not read with baseline=quip"}
    grid = Grid(unread={frozenset(cell): why for cell in cells if "baseline=quip" in cell})
    assert grid.cells(cells) == [*cells[:2], ["baseline=quip"]]
    assert grid.without([["baseline=quip"]]).cells(cells) == cells[:2]
    assert grid.remarks == [f"not set where it is not read (equal cells run once): {why['group_size']}"]


def test_values_that_exclude_each_other_are_left_out_with_the_rule():
    command = preflight(
        CONFIG_DIR, ["-m", "q2n.decomposition=eigh,partial", "q2n.rank_rule=prefix_suffix,adam_nscl"]
    )
    assert [(cell.tree["q2n"]["decomposition"], cell.tree["q2n"]["rank_rule"]) for cell in command.cells] == [
        ("eigh", "prefix_suffix"),
        ("eigh", "adam_nscl"),
        ("partial", "prefix_suffix"),
    ]
    (remark,) = command.grid.remarks
    assert remark.startswith(
        "left out: q2n.decomposition=partial q2n.rank_rule=adam_nscl: rank_rule=adam_nscl"
    )


@pytest.mark.parametrize("wrong", ["bits=2,33", "q2n.t=0.1,-1"])
def test_a_value_that_no_cell_can_use_stops_the_sweep(wrong):
    with pytest.raises(ConfigurationError, match=r"bits=33|q2n\.t=-1"):
        preflight(CONFIG_DIR, ["-m", wrong, "seed=0,1"])


def test_hydra_runs_what_was_checked():
    cells = product(["q2n=off", "q2n=on"], ["q2n.t=0.1", "q2n.t=0.2"])
    grid = Grid(foreign_settings(cells, ["q2n"], has)).without(
        [["q2n=on", "q2n.t=0.2", "hydra.verbose=true"]]
    )
    arguments = ["q2n=off,on", "q2n.t=0.1,0.2", "+hydra.job.env_set.X=1"]
    with grid.in_force():
        batches = split(arguments, 1)
    assert batches == [
        [["q2n=off", "+hydra.job.env_set.X=1"]],
        [["q2n=on", "q2n.t=0.1", "+hydra.job.env_set.X=1"]],
    ]
    assert [len(batch) for batch in split(arguments)] == [4]
