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


def require(package: str, key: str) -> None:
    """Make sure of an optional package before anything starts.

    Raises:
        ConfigurationError: it is not installed; says how to get it.
    """
    if find_spec(package) is None:
        extra = PACKAGES[package]
        raise ConfigurationError(
            f"{key}: needs the package {package}, which is not installed: pip install 'q2n[{extra}]' "
            f"(in a checkout: .venv/bin/pip install -c constraints.txt -e '.[{extra}]')"
        )


def check(hydra: Mapping[str, Any]) -> None:
    """Whether the launcher and the sweeper that were chosen can be had.

    Args:
        hydra: the composed ``hydra`` section.

    Raises:
        ConfigurationError: see :func:`require`.
    """
    for part in ("launcher", "sweeper"):
        module, _, name = hydra[part].get("_target_", "").rpartition(".")
        if module == PLUGINS:
            package = getattr(getattr(import_module(module), name), "package", None)
            if package is not None:
                require(package, f"hydra/{part}={hydra['runtime']['choices'][f'hydra/{part}']}")


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
