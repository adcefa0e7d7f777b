"""What a search looks for, what it optimises, and how a command goes on with the study of an earlier one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from helpers.records import make_metric, make_record
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from q2n.cells.run import objective
from q2n.exceptions import ConfigurationError, StoppedEarly
from q2n.launchers.optuna import STOPPED, OptunaSweeper, open_storage, trial_of
from q2n.launchers.space import search

LOG = "q2n.t=tag(log,interval(0.01,0.3))"


def test_the_ends_of_every_axis_are_composed_before_anything_runs():
    space = search({}, [LOG, "q2n.lam=range(0,0.5,step=0.25)", "bits=2,3", "seed=1"])
    assert space.fixed == ("seed=1",)
    base = ["seed=1", "q2n.t=0.01", "q2n.lam=0.0", "bits=2"]
    assert space.extremes() == [
        base,
        ["seed=1", "q2n.t=0.3", "q2n.lam=0.0", "bits=2"],
        ["seed=1", "q2n.t=0.01", "q2n.lam=0.25", "bits=2"],
        ["seed=1", "q2n.t=0.01", "q2n.lam=0.0", "bits=3"],
    ]


def test_the_command_line_wins_over_the_experiment_file():
    space = search({"q2n.t": "interval(0,1)", "q2n.lam": "interval(0,1)"}, ["q2n.t=0.1"])
    assert [axis.get_key_element() for axis in space.axes] == ["q2n.lam"]
    assert space.fixed == ("q2n.t=0.1",)


@pytest.mark.parametrize(
    ("axis", "complaint"),
    [
        ("q2n.t=interval(0.3,0.1)", "q2n.t=interval.* empty"),
        ("q2n.t=tag(log,interval(0,1))", "must begin above 0"),
        ("q2n.t=0.1", "nothing to search"),
    ],
)
def test_a_search_that_cannot_be_is_refused(axis, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        search({}, [axis])


def test_the_grammar_of_hydra_becomes_distributions():
    distributions = pytest.importorskip("optuna.distributions")
    axes = [
        LOG,
        "q2n.lam=range(0,0.5,step=0.1)",
        "bits=int(interval(2,4))",
        "seed=range(3,9,2)",
        "q2n=on,off",
    ]
    assert search({}, axes).distributions() == {
        "q2n.t": distributions.FloatDistribution(0.01, 0.3, log=True),
        "q2n.lam": distributions.FloatDistribution(0.0, 0.4, step=0.1),
        "bits": distributions.IntDistribution(2, 4),
        "seed": distributions.IntDistribution(3, 7, step=2),
        "q2n": distributions.CategoricalDistribution(["on", "off"]),
    }


def test_the_objective_is_the_first_metric_or_the_one_that_was_asked_for():
    accuracy = make_metric(0.6, "piqa", name="acc", lower_is_better=False)
    record = make_record(metrics=(make_metric(21.0), make_metric(29.0, "news"), accuracy))
    assert objective(record, None, "minimize") == 21.0
    assert objective(record, "news/perplexity", None) == 29.0
    assert objective(record, "piqa/acc", "maximize") == 0.6
    assert objective(make_record(metrics=()), None, "minimize") is None
    with pytest.raises(ConfigurationError, match="did you mean 'news/perplexity'"):
        objective(record, "new/perplexity", None)
    with pytest.raises(ConfigurationError, match="worst piqa/acc; use maximize"):
        objective(record, "piqa/acc", "minimize")


class Launcher:
    """Runs no cell: ``value`` says what each returns."""

    def __init__(self, value):
        self.value, self.cells = value, []

    def launch(self, cells, initial_job_idx):
        assert initial_job_idx == len(self.cells)
        self.cells += [dict(item.split("=", 1) for item in cell) for cell in cells]
        returned = [JobReturn(status=JobStatus.COMPLETED) for _ in cells]
        for result, cell in zip(returned, self.cells[-len(cells) :], strict=True):
            result.return_value = self.value(cell)
        return returned


@pytest.fixture
def command(tmp_path):
    """A function that gives the command ``q2n.t=... n_trials=...`` and returns its launcher."""
    pytest.importorskip("optuna")
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 2})
    config = {"results_dir": str(tmp_path), "name": "main", "hydra": {"sweep": {"dir": str(tmp_path)}}}

    def give(value, n_trials=4, n_jobs=1, axis=LOG):
        sweeper = OptunaSweeper("minimize", n_trials, n_jobs, sampler, None)
        sweeper._config, sweeper._launcher = OmegaConf.create(config), Launcher(value)
        sweeper._loader = SimpleNamespace(load_sweep_config=lambda config, overrides: config)
        sweeper.sweep([axis, "bits=3"])
        return sweeper._launcher

    return give


def distance(cell):
    return abs(float(cell["q2n.t"]) - 0.1)


def test_a_search_leaves_its_best_and_a_second_command_goes_on_with_it(command, tmp_path):
    first = command(distance)
    assert len(first.cells) == 4
    assert all(cell["bits"] == "3" for cell in first.cells)
    found = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert found.best_value == min(map(distance, first.cells))
    again = command(distance, n_trials=6)
    old, new = again.cells[:4], again.cells[4:]
    assert [cell["q2n.t"] for cell in old] == [cell["q2n.t"] for cell in first.cells]
    assert not any("hydra.sweeper.trial" in cell for cell in old)  # finished: nobody may stop them now
    assert [cell["hydra.sweeper.trial"] for cell in new] == ["4", "5"]
    assert not {cell["q2n.t"] for cell in new} & {cell["q2n.t"] for cell in old}


def test_another_search_has_a_study_of_its_own(command):
    command(distance)
    other = command(distance, axis="q2n.t=interval(0.01,0.3)")
    assert [cell["hydra.sweeper.trial"] for cell in other.cells] == ["0", "1", "2", "3"]


def test_a_trial_that_was_killed_is_asked_for_again_and_one_that_failed_is_not(command):
    seen = []

    def killed(cell):
        seen.append(cell["q2n.t"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return None if len(seen) == 1 else distance(cell)  # the first one fails

    with pytest.raises(KeyboardInterrupt):
        command(killed)
    again = command(distance)
    assert [cell["q2n.t"] for cell in again.cells[:2]] == seen[1:]  # the finished one, then the killed one
    assert seen[0] not in {cell["q2n.t"] for cell in again.cells}
    assert len(again.cells) == 4


def test_one_command_at_a_time_works_on_a_study(command):
    def second(cell):
        with pytest.raises(ConfigurationError, match="another command runs this study"):
            command(distance)
        return distance(cell)

    command(second, n_trials=1)


def section(storage, trial, direction="minimize"):
    """``hydra.sweeper`` as a worker has it."""
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 1}
    return OmegaConf.create(
        {"storage": storage, "study_name": "s", "trial": trial, "direction": direction, "pruner": pruner}
    )


def layers(*errors):
    return [SimpleNamespace(block=index, error_after=error) for index, error in enumerate(errors)]


@pytest.mark.parametrize(("direction", "good", "bad"), [("minimize", 0.1, 0.3), ("maximize", 0.1, 0.3)])
def test_a_trial_with_larger_errors_is_stopped_whatever_the_direction(direction, good, bad, tmp_path):
    optuna = pytest.importorskip("optuna")
    where = str(tmp_path / "s.journal")
    study = optuna.create_study(study_name="s", storage=open_storage(where), direction=direction)
    watch = trial_of(section(where, study.ask().number, direction))
    for blocks in (1, 2, 3):
        watch(layers(*[good] * blocks))
    study.tell(0, 1.0)
    better, worse = (trial_of(section(where, study.ask().number, direction)) for _ in range(2))
    for blocks in (1, 2, 3):
        better(layers(*[good / 2] * blocks))
    worse(layers(bad))  # the pruner is told to wait for the second block
    with pytest.raises(StoppedEarly, match=r"after block 2, mean relative output error 0\.3"):
        worse(layers(bad, bad))
    assert STOPPED in study.trials[2].user_attrs
    assert study.trials[1].user_attrs == {}


def test_layers_without_a_relative_error_are_left_out_of_the_mean(tmp_path):
    optuna = pytest.importorskip("optuna")
    where = str(tmp_path / "s.journal")
    study = optuna.create_study(study_name="s", storage=open_storage(where))
    watch = trial_of(section(where, study.ask().number))
    watch(layers(None))
    watch(layers(None, 0.5, 0.25))
    assert study.trials[0].intermediate_values == {2: 0.375}


def test_a_cell_of_no_search_has_no_trial():
    assert trial_of(OmegaConf.create({"max_batch_size": None})) is None
    assert trial_of(section("x", None)) is None
