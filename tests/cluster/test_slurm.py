"""The commands of docs/cluster.md on a real Slurm, with jobs that are cancelled, time out and lose
their head. The results are those of a run on one machine, to the bit."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
HASTE = "--slurm-init-seconds-before-status-checks 1"
# The scale computes on the processor; its jobs hold GPUs, which are only names here.
WITH_GPU = "--set-resources classifier:gpu=1 purifier:gpu=1"


def documented() -> list[str]:
    """The commands of docs/cluster.md, without their comments."""
    block = re.search(r"```\n(.+?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    assert block
    return [line.partition(" #")[0].strip() for line in block[1].splitlines()]


def prepare(workspace: Any, slurm: Any) -> None:
    """Execute all documented commands but the last, with these tests' environment."""
    programs = Path(sys.executable).parent
    activate = workspace.path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'export PATH="{programs}:$PATH"\n')
    shutil.copy(ROOT / "Makefile", workspace.path)
    shell = "\n".join(["set -e", *documented()[:-1]]).replace("paper", "tiny")
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=workspace.path,
        # make uses such an environment as it is
        env={**os.environ, **slurm.environment, "CONDA_PREFIX": str(programs.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digits" in done.stdout and "toy/table_1" in done.stdout  # of `data` and of `plan`


def start(workspace: Any, slurm: Any) -> subprocess.Popen[str]:
    """Start the last documented command, with earlier looks at its jobs."""
    command = documented()[-1].replace("paper", "tiny")
    output = (workspace.path / "head.log").open("a")
    return subprocess.Popen(
        ["bash", "-c", f"source .venv/bin/activate\nexec {command} {HASTE} {WITH_GPU}"],
        cwd=workspace.path,
        env={**os.environ, **slurm.environment},
        stdout=output,
        stderr=output,
        text=True,
    )


def wait_for(what: str, ready: Any, head: subprocess.Popen[str], log: Path) -> Any:
    """Return what ``ready`` returns as soon as it is true, while the head runs."""
    end = time.monotonic() + 180
    while not (result := ready()):
        assert head.poll() is None and time.monotonic() < end, f"no {what}: {log.read_text()}"
        time.sleep(0.1)
    return result


def test_a_table_through_slurm(workspace: Any, undisturbed: Any, slurm: Any) -> None:
    scale = workspace.path / "workflow" / "scales" / "tiny.yaml"
    together = "classifier: 1, purifier: 1"
    assert together in scale.read_text()
    scale.write_text(scale.read_text().replace(together, together.replace("1", "run")))
    log = workspace.path / "head.log"
    prepare(workspace, slurm)

    def jobs(stage: str, count: int, state: str = "all") -> Any:
        """Ids of a stage's jobs, once there are so many."""

        def ready() -> list[str]:
            lines = slurm("squeue", "--noheader", f"--states={state}", "--format", "%i %k")
            found = [line.split()[0] for line in lines.splitlines() if f"rule_{stage}_" in line]
            return sorted(found, key=int) if len(found) >= count else []

        return ready

    head = start(workspace, slurm)
    try:
        # two trainings at a time, each on a GPU of its own; the data set was prepared without one
        cancelled, late = wait_for("trainings", jobs("classifier", 2, "RUNNING"), head, log)
        gpus = {request(slurm, job, r"GRES=gpu:1\(IDX:(\d)\)") for job in (cancelled, late)}
        assert len(gpus) == 2
        (first,) = slurm.jobs("COMPLETED")
        assert "gres" not in slurm("scontrol", "show", "job", "--detail", first)

        # one is cancelled, one reaches its time limit: both are tried again, with larger requests
        slurm("scancel", cancelled)
        computing(late).suspend()
        slurm("scontrol", "update", f"JobId={late}", "EndTime=now")
        *_, again = wait_for("second attempts", jobs("classifier", 4), head, log)
        assert {cancelled: "CANCELLED", late: "TIMEOUT"}.items() <= states(slurm).items()
        for attempt, job in enumerate((cancelled, again), start=1):
            assert request(slurm, job, r"TimeLimit=(\S+)") == f"00:{attempt}0:00"
            assert request(slurm, job, r"mem=(\d+)M") == str(12002 * attempt)

        # the head is killed; a job that lives on is not executed a second time
        orphan, *_ = wait_for("purifier", jobs("purifier", 1, "RUNNING"), head, log)
        sleeping = computing(orphan)  # before its first checkpoint: it may end soon after
        wait_for("work", lambda: [*workspace.runs.glob("purifier/*/checkpoint")], head, log)
        sleeping.suspend()
        head.send_signal(signal.SIGKILL)
        head.wait()
        before = {
            path: path.read_text() for path in (workspace.path / "results/logs").rglob("*.log")
        }
        head = start(workspace, slurm)
        held = rf"error: \S+: Slurm job {orphan} on \S+ executes this run already"
        wait_for("duplicate's error", lambda: re.search(held, log.read_text()), head, log)
        sleeping.resume()
        assert head.wait(timeout=300) == 0, log.read_text()
        for path, text in before.items():
            assert path.read_text().startswith(text), f"{path} was emptied"
    finally:
        head.kill()
        head.wait()
    expected, found = undisturbed.results(), workspace.results()
    assert expected.keys() == found.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def computing(job: str) -> Any:
    """The process of a job that computes, as soon as there is one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                computes = words[1:4] == ["-m", "purifiers", "run"]
                if computes and process.environ().get("SLURM_JOB_ID") == job:
                    return process
        time.sleep(0.02)
    raise AssertionError(f"job {job} does not compute")


def states(slurm: Any) -> dict[str, str]:
    """State of every job."""
    lines = slurm("squeue", "--noheader", "--states=all", "--format", "%i %T").splitlines()
    return dict(line.split() for line in lines)


def request(slurm: Any, job: str, pattern: str) -> str:
    """What the pattern finds in the description of a job."""
    described = slurm("scontrol", "show", "job", "--detail", job)
    found = re.search(pattern, described)
    assert found, f"{pattern}: {described}"
    return found[1]


def test_the_profile_names_the_documented_command() -> None:
    assert f"#   {documented()[-1]}\n" in (ROOT / "profiles/slurm/config.yaml").read_text()
