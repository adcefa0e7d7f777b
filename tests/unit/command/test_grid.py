"""What becomes of the product of a sweep's axes: cells that make no sense are not run, and it is said."""

import itertools

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import OmegaConf

from q2n.cli import CONFIG_DIR
from q2n.command.grid import Grid, GridSweeper, combinations, foreign_settings
from q2n.command.preflight import preflight
from q2n.exceptions import ConfigurationError

SETTINGS = {"q2n=off": set(), "q2n=on": {"q2n.t", "q2n.lam"}, "q2n=bias": {"q2n.lam"}}


def has(option, key):
    return key in SETTINGS[option]


def product(*axes):
    return [list(cell) for cell in itertools.product(*axes)]


class Launcher:
    """Runs no cell; what it was given, by the number of the batch's first job."""

    def __init__(self):
        self.batches = {}

    def launch(self, cells, initial_job_idx):
        self.batches[initial_job_idx] = [list(cell) for cell in cells]
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=None) for _ in cells]


@pytest.fixture
def sweeper(tmp_path, monkeypatch):
    """A function that sweeps cells in batches, and returns these."""

    def sweep(cells, batch_size=None):
        monkeypatch.setattr(GridSweeper, "chosen", cells)
        made = GridSweeper(batch_size)
        made._config = OmegaConf.create({"bits": 3, "hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}})
        made._launcher, made._loader = Launcher(), None
        made.sweep(["bits=4,5"])
        assert OmegaConf.load(tmp_path / "sweep" / "multirun.yaml").bits == 3
        return made._launcher.batches

    return sweep


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
    command = preflight(CONFIG_DIR, ["-m", "baseline=gptq,quip", "group_size=32,64"])
    assert command.grid.remarks == [
        "not set where it is not read (equal cells run once): group_size is not read with baseline=quip"
    ]
    cells = product(["baseline=gptq", "baseline=quip"], ["group_size=32", "group_size=64"])
    assert command.to_run() == [*cells[:2], ["baseline=quip"]]
    assert command.to_run([(command.cells[2], ConfigurationError())]) == cells[:2]


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
        "left out: q2n.decomposition=partial q2n.rank_rule=adam_nscl: q2n: rank_rule=adam_nscl"
    )


@pytest.mark.parametrize("wrong", ["bits=2,33", "q2n.t=0.1,-1"])
def test_a_value_that_no_cell_can_use_stops_the_sweep(wrong):
    with pytest.raises(ConfigurationError, match=r"bits=33|q2n\.t=-1"):
        preflight(CONFIG_DIR, ["-m", wrong, "seed=0,1"])


def test_the_sweeper_runs_what_was_chosen(sweeper):
    cells = [["bits=2"], ["bits=3"], ["bits=4"]]
    assert sweeper(cells) == {0: cells}
    assert sweeper(cells, 2) == {0: cells[:2], 2: cells[2:]}
    assert sweeper([]) == {}
    assert sweeper(None) == {0: [["bits=4"], ["bits=5"]]}
    with pytest.raises(ConfigurationError, match="max_batch_size=0: must be at least 1"):
        sweeper(cells, 0)


def test_the_command_line_wins_over_the_axes_of_an_experiment():
    params = {"bits": "2,3", "q2n": "on,off", "seed": 0}
    found = combinations(params, ["seed=range(1,3)", "+q2n=off", "name=x"], None)
    assert found == product(["bits=2", "bits=3"], ["+q2n=off"], ["seed=1", "seed=2"], ["name=x"])
    with pytest.raises(ConfigurationError, match=r"q2n.t=interval\(0,1\): .* hydra/sweeper=optuna"):
        combinations({}, ["q2n.t=interval(0,1)"], None)


def test_options_that_fit_a_pattern_are_an_axis():
    command = preflight(CONFIG_DIR, ["-m", "model=glob(tiny_*,exclude=*qwen*)", "bits=2"])
    assert [list(cell.overrides) for cell in command.cells] == [["model=tiny_llama", "bits=2"]]


@pytest.mark.parametrize("given", [[], ["hydra/sweeper=basic"], ["hydra/sweeper=grid"]])
def test_every_name_of_the_grid_sweep_leaves_out_what_makes_no_sense(given):
    command = preflight(CONFIG_DIR, ["-m", *given, "q2n=on,off", "q2n.t=0.1,0.2"])
    assert command.complete
    assert len(command.cells) == 3
