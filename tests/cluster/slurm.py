"""A Slurm of the tests' own on this machine: one node with GPUs that are only names."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """\
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0
DefMemPerCPU=500
MinJobAge=3600
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName=main Nodes={host} Default=YES State=UP MaxTime=INFINITE
"""


def missing() -> str:
    """Why Slurm cannot be started here; empty if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=path) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    return ""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm.

    Attributes:
        environment: variables with which its commands find it.
    """

    environment: dict[str, str]

    def __call__(self, *command: str) -> str:
        """Output of a command such as ``squeue``."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, *states: str) -> list[str]:
        """Ids of the jobs in some states; without states, of those that have not ended."""
        chosen = ("--states", ",".join(states)) if states else ()
        return self("squeue", "--noheader", "--format", "%i", *chosen).split()


@contextlib.contextmanager
def running_slurm(folder: Path, cpus: int = 8, gpus: int = 4) -> Iterator[Slurm]:
    """Start Slurm's daemons with all their files in a folder; end them afterwards.

    Args:
        cpus: number of CPUs that the node claims to have.
        gpus: number of its GPUs.
    """
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    content = CONFIGURATION.format(
        host=host, folder=folder, ports=_free_ports(2), cpus=cpus, gpus=gpus, memory=64000
    )
    path = folder / "slurm.conf"
    path.write_text(content)
    devices = [folder / f"gpu{number}" for number in range(gpus)]
    for device in devices:  # Slurm refuses two GPUs of one file
        device.symlink_to("/dev/null")
    lines = [f"NodeName={host} Name=gpu File={device}\n" for device in devices]
    (folder / "gres.conf").write_text("".join(lines))
    _keep_configuration(folder / "bin" / "srun", path)
    environment = {
        "SLURM_CONF": str(path),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
    }
    slurm = Slurm(environment)
    daemons = [
        ["munged", "--force", "--foreground"]
        + [f"--{key}={folder}/munge.{key.partition('-')[0]}" for key in ("socket", "pid-file")]
        + [f"--key-file={folder}/munge.key", f"--log-file={folder}/munge.log"]
        + [f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D", "-f", str(path)],
        ["slurmd", "-D", "-f", str(path)],
    ]
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("wb") as out:
                started.append(
                    subprocess.Popen(
                        command, env={**os.environ, **environment}, stdout=out, stderr=out
                    )
                )
            time.sleep(0.3)
        _wait_until_up(slurm, folder)
        yield slurm
    finally:
        with contextlib.suppress(AssertionError):
            if jobs := slurm.jobs():
                slurm("scancel", "--signal=KILL", "--full", *jobs)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _keep_configuration(program: Path, configuration: Path) -> None:
    """Put a ``srun`` first on the path that names the configuration again.

    The executor plugin removes it from the environment of its job steps; a real cluster's is at
    Slurm's default place.
    """
    srun = shutil.which("srun")
    program.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {srun} "$@"\n')
    program.chmod(0o755)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_until_up(slurm: Slurm, folder: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(AssertionError):
            if "idle" in slurm("sinfo", "--noheader", "--format", "%t"):
                return
        time.sleep(0.1)
    logs = [path.read_text(errors="replace")[-600:] for path in sorted(folder.glob("*.log"))]
    raise AssertionError("Slurm does not come up: " + "\n".join(logs))
