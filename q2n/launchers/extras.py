"""Engines are optional: which package each one needs, and what to say where it is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from q2n.exceptions import ConfigurationError

PLUGINS = "hydra_plugins.q2n_engines"
PACKAGES = {"joblib": "joblib", "ray": "ray", "submitit": "slurm", "optuna": "optuna"}
"""The extra of q2n that installs a package."""

OPTIONS = {
    "launcher": ("joblib", "ray", "submitit_local", "submitit_slurm"),
    "sweeper": ("basic", "grid", "optuna"),
}
"""This project's options below ``conf/hydra``."""


def check(hydra: Mapping[str, Any]) -> None:
    """Make sure of the packages that the chosen launcher and sweeper need, before anything starts.

    Args:
        hydra: the composed ``hydra`` section.

    Raises:
        ConfigurationError: a package is not installed; says how to get it.
    """
    for part in OPTIONS:
        module, _, name = hydra[part].get("_target_", "").rpartition(".")
        if module != PLUGINS:
            continue
        package = getattr(getattr(import_module(module), name), "package", None)
        if package is not None and find_spec(package) is None:
            choice, extra = hydra["runtime"]["choices"][f"hydra/{part}"], PACKAGES[package]
            raise ConfigurationError(
                f"hydra/{part}={choice}: needs the package {package}, which is not installed: "
                f"pip install 'q2n[{extra}]' "
                f"(in a checkout: .venv/bin/pip install -c constraints.txt -e '.[{extra}]')"
            )


def own_names() -> None:
    """Let this project's options stand for themselves where Hydra's plugins of the same names are installed.

    Hydra would validate ``conf/hydra/launcher/joblib.yaml`` against the option ``joblib`` that the package
    hydra-joblib-launcher puts into its store, and refuse it.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # finds the plugins, which fill the store
    stored = ConfigStore.instance().repo.get("hydra", {})
    for part, names in OPTIONS.items():
        for name in names:
            stored.get(part, {}).pop(f"{name}.yaml", None)
