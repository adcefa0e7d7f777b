"""A Slurm of one node in a temporary folder: munged, slurmctld and slurmd, with ports of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scancel")
CORES = 2
"""As many jobs of one core at a time; the machine may have fewer."""


def missing() -> str:
    """Why a Slurm cannot be started here; empty if it can."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "slurmctld and slurmd are started as root only"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The variables by which Slurm's commands find it; it ends with the context.

    Raises:
        RuntimeError: a daemon ended or the node did not come up; with the end of its log.
    """
    for name in ("state", "spool", "logs", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o755)  # munged wants its folders closed to others' writes
    (folder / "logs").chmod(0o700)
    configuration = folder / "slurm.conf"
    configuration.write_text(_settings(folder, socket.gethostname().partition(".")[0]))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    with contextlib.ExitStack() as stack:
        for name, command in _daemons(folder).items():
            log = stack.enter_context((folder / "logs" / f"{name}.out").open("w"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_end, process)
            _wait_for(folder, name, process, environment)
        yield environment


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _daemons(folder: Path) -> dict[str, list[str]]:
    key = folder / "munge" / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    munge = {
        "key-file": key,
        "socket": folder / "munge" / "socket",
        "pid-file": folder / "munge" / "pid",
        "log-file": folder / "logs" / "munged.log",
        "seed-file": folder / "munge" / "seed",
    }
    programs = {name: str(_program(name)) for name in ("munged", "slurmctld", "slurmd")}
    return {
        "munged": [
            programs["munged"],
            "--foreground",
            "--force",
            *(f"--{option}={path}" for option, path in munge.items()),
        ],
        "slurmctld": [programs["slurmctld"], "-D", "-i"],
        "slurmd": [programs["slurmd"], "-D"],
    }


def _settings(folder: Path, host: str) -> str:
    return f"""
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={_port()}
SlurmdPort={_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/logs/slurmctld.log
SlurmdLogFile={folder}/logs/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
KillWait=5
NodeName={host} CPUs={CORES} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _wait_for(folder: Path, name: str, process: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while not _ready(folder, name, environment):
        if process.poll() is not None or time.monotonic() > deadline:
            logs = [path.read_text()[-2000:] for path in sorted((folder / "logs").glob(f"{name}.*"))]
            raise RuntimeError(f"{name} did not come up:\n" + "\n".join(logs))
        time.sleep(0.2)


def _ready(folder: Path, name: str, environment: dict[str, str]) -> bool:
    if name == "munged":
        return (folder / "munge" / "socket").exists()
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
    )
    return asked.returncode == 0 and (name == "slurmctld" or asked.stdout.strip() == "idle")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
