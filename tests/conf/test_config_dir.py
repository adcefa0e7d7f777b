"""``--config-dir`` adds a folder of options to those of conf/, before the first cell as in Hydra itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import SearchPathException

from q2n.cli import CONFIG_DIR
from q2n.command.preflight import config_folders, preflight
from q2n.exceptions import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def extra(tmp_path):
    folder = tmp_path / "extra"
    (folder / "baseline").mkdir(parents=True)
    text = (CONFIG_DIR / "baseline" / "gptq.yaml").read_text()
    (folder / "baseline" / "mine.yaml").write_text(text)
    (folder / "baseline" / "broken.yaml").write_text(text.replace("percdamp: 0.01", "percdamp: -1.0"))
    # Of two files of one name Hydra takes the one of the main folder.
    (folder / "baseline" / "rtn.yaml").write_text("nothing: valid\n")
    return folder


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--config-dir", str(folder), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_options_of_both_folders_make_cells(extra):
    arguments = ["-m", f"--config-dir={extra}", "baseline=mine,rtn,gptq", "bits=2,3"]
    assert config_folders(CONFIG_DIR, arguments) == [CONFIG_DIR, extra]
    assert len(preflight(CONFIG_DIR, arguments).cells) == 6
    assert len(preflight(CONFIG_DIR, ["baseline=mine", "-cd", str(extra)]).cells) == 1
    assert config_folders(CONFIG_DIR, ["baseline=rtn"]) == [CONFIG_DIR]


def test_a_relative_folder_is_that_of_the_working_directory(extra, monkeypatch):
    monkeypatch.chdir(extra.parent)
    assert len(preflight(CONFIG_DIR, ["--config-dir", "extra", "baseline=mine"]).cells) == 1


def test_a_mistake_in_the_added_folder_is_found_before_the_first_cell(extra):
    with pytest.raises(ConfigurationError, match=r"baseline\.percdamp=-1"):
        preflight(CONFIG_DIR, ["-m", "--config-dir", str(extra), "baseline=mine,broken"])


def test_a_folder_that_is_not_there(extra):
    with pytest.raises(SearchPathException, match="nowhere: there is no such folder"):
        preflight(CONFIG_DIR, ["--config-dir", str(extra / "nowhere")])
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["baseline=mien"], ["baseline=mien: no such option", "mine"]),
        (
            ["baseline=mine", "baseline.percdmp=1"],
            ["no such key in baseline=mine", "did you mean 'percdamp'"],
        ),
    ],
)
def test_messages_know_the_added_options(extra, arguments, expected):
    done = run(extra, *arguments)
    assert done.returncode == 2
    for part in expected:
        assert part in done.stderr


def test_hydra_shows_what_was_checked(extra):
    done = run(extra, "baseline=mine", "--cfg", "job", "--package", "baseline")
    assert done.returncode == 0, done.stderr
    assert "q2n.baselines.gptq.GPTQ" in done.stdout


@pytest.fixture
def other(extra):
    (extra / "other.yaml").write_text("defaults: [config, _self_]\nbits: 4\nname: mine\n")
    return extra


@pytest.mark.parametrize("given", [["--config-name", "other"], ["-cn", "other.yaml"]])
def test_the_root_that_is_named_is_the_one_that_is_checked(other, given):
    (cell,) = preflight(CONFIG_DIR, ["--config-dir", str(other), *given]).cells
    assert (cell.scalars.name, cell.scalars.bits) == ("mine", 4)
    with pytest.raises(ConfigurationError, match=r"--config-name=othr: .* did you mean 'other'"):
        preflight(CONFIG_DIR, ["--config-dir", str(other), "--config-name=othr"])


def test_the_main_folder_that_is_named_is_the_one_that_is_checked(other, monkeypatch):
    """A relative one is meant from the folder the command is given in."""
    monkeypatch.chdir(other.parent)
    main = other.parent / "main"
    main.symlink_to(CONFIG_DIR)
    arguments = ["--config-path", "main", "--config-dir", "extra", "--config-name", "other"]
    assert config_folders(CONFIG_DIR, arguments) == [main, other]
    (cell,) = preflight(CONFIG_DIR, arguments).cells
    assert cell.scalars.name == "mine"
    with pytest.raises(SearchPathException, match=r"--config-path=.*nowhere: there is no such folder"):
        preflight(CONFIG_DIR, ["--config-path", "nowhere"])


def test_a_root_that_makes_a_sweep_of_every_command(other):
    """``hydra.mode`` says so as ``-m`` does."""
    root = other / "other.yaml"
    root.write_text(root.read_text() + "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n")
    command = preflight(CONFIG_DIR, ["--config-dir", str(other), "--config-name", "other", "q2n=on,off"])
    assert command.multirun
    assert len(command.cells) == 4


def test_messages_know_the_root_that_is_named(other):
    done = run(other, "--config-name", "other", "bitz=2")
    assert done.returncode == 2
    assert "bitz: no such key; did you mean 'bits'" in done.stderr
    assert "group_size" in done.stderr


def test_a_pickled_configuration_is_refused():
    with pytest.raises(ConfigurationError, match="--experimental-rerun"):
        preflight(CONFIG_DIR, ["--experimental-rerun", "config.pickle"])
