"""What is said where an engine is not installed, and what happens where Hydra's own plugins are."""

from __future__ import annotations

import importlib.util

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from q2n.exceptions import ConfigurationError
from q2n.launchers import base


@pytest.mark.parametrize(
    ("part", "name", "package"),
    [
        ("launcher", "JoblibLauncher", "joblib"),
        ("launcher", "RayLauncher", "ray"),
        ("launcher", "SlurmLauncher", "submitit"),
        ("sweeper", "OptunaSweeper", "optuna"),
    ],
)
def test_an_engine_that_is_not_installed_names_the_command_that_installs_it(part, name, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(base, "find_spec", lambda name: None if name == package else find(name))
    hydra = {"launcher": {}, "sweeper": {}, "runtime": {"choices": {f"hydra/{part}": "x"}}}
    hydra[part]["_target_"] = f"{base.PLUGINS}.{name}"
    with pytest.raises(
        ConfigurationError, match=rf"hydra/{part}=x: .*pip install 'q2n\[{base.PACKAGES[package]}\]'"
    ):
        base.check(hydra)


def test_options_of_installed_plugins_with_the_same_names_give_way(monkeypatch):
    Plugins.instance()  # as soon as it exists, plugins that are installed fill the store
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", {"hydra": {"launcher": {}}})
    store.store(group="hydra/launcher", name="joblib", node={"backend": None})
    store.store(group="hydra/launcher", name="another", node={"key": 1})
    base.own_names()
    assert list(store.repo["hydra"]["launcher"]) == ["another.yaml"]
