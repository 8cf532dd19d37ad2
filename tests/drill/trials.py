"""One trial: a fault, what the same command makes of it afterwards, and the verdict."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from workspace import Workspace

Outcome = Literal["continued", "refused", "unclear", "repeated", "wrong", "not tried"]
"""What became of a fault.

``continued``: the next command ended with the undisturbed results, to the byte. ``refused``: it
ended with a line that names the place, and after following the line's advice with those results.
``unclear``: a traceback, no such line, or advice that does not help. ``repeated``: the undisturbed
results, but a kill undid more than a checkpoint interval of work. ``wrong``: it ended well with
other results. ``not tried``: the machine does not allow the fault; the message gives the reason.
"""
GOOD = ("continued", "refused", "not tried")
_ADVICE = re.compile(r"(?:remove|delete) (?!it\b|the folder\b)(\S+?)[;,]? and ")
_IT = re.compile(r"(\S+results/\S+): .*(?:remove|delete) (?:it|the folder)\b")
_ERROR = re.compile(r"^(?:error|.*Error): .*", re.MULTILINE)


@dataclass(frozen=True)
class Trial:
    """A fault and its outcome.

    Attributes:
        kind: kind of the fault, a row of the report.
        place: stage or file that it met.
        outcome: see :data:`Outcome`.
        message: the line that refused it, the end of the output of an unclear one, or a reason.
    """

    kind: str
    place: str
    outcome: Outcome
    message: str = ""


def ends(workspace: Workspace, expected: dict[str, bytes], kind: str, place: str) -> Trial:
    """Start the command again, follow one advice, and judge.

    Args:
        expected: the results of an undisturbed workspace that must be found again.
    """
    done = workspace.snakemake()
    if done.returncode == 0:
        return Trial(kind, place, _compared(workspace, expected))
    if "Traceback (most recent call last)" in done.stdout:
        return Trial(kind, place, "unclear", done.stdout[-2000:])
    message = next(iter(_ERROR.findall(done.stdout)), "")
    if not message:
        return Trial(kind, place, "unclear", done.stdout[-2000:])
    follow(workspace, message)
    again = workspace.snakemake()
    if again.returncode != 0:
        return Trial(kind, place, "unclear", f"{message}\nafterwards: {again.stdout[-2000:]}")
    outcome = _compared(workspace, expected)
    return Trial(kind, place, "wrong" if outcome == "wrong" else "refused", message)


def reports(
    workspace: Workspace,
    path: Path,
    original: bytes,
    kind: str,
    place: str,
    restore: Callable[[], object] | None = None,
) -> Trial:
    """Write the tables again from what is there, follow one advice, and judge a damaged file.

    With all runs there, a CSV is written again by the workflow; other files by ``report``.

    Args:
        path: the file.
        original: its content before the damage.
        restore: restores the file from elsewhere, where that is the advice; else
            :func:`follow` removes what the message names.
    """
    papers = [folder.name for folder in sorted(path.parents[1].iterdir())]
    arguments = ("purifiers", "report", "--scale", "tiny", *papers)
    message = ""
    by_workflow = path.suffix == ".csv" and restore is None
    for attempt in ("first", "last"):
        done = workspace.snakemake() if by_workflow else workspace.run(*arguments)
        output = done.stdout + done.stderr
        if done.returncode == 0:
            same = path.exists() and path.read_bytes() == original
            good: Outcome = "refused" if message else "continued"
            return Trial(kind, place, good if same else "wrong", message)
        lines = _ERROR.findall(output)
        if attempt == "last" or not lines or "Traceback (most recent call last)" in output:
            break
        message = lines[0]
        if restore is None:
            follow(workspace, message)
        else:
            restore()
    return Trial(kind, place, "unclear", f"{message}\n{output[-2000:]}")


def follow(workspace: Workspace, message: str) -> None:
    """Remove what an error message says to remove."""
    for named in (*_ADVICE.findall(message), *_IT.findall(message)):
        path = workspace.path / named
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _compared(workspace: Workspace, expected: dict[str, bytes]) -> Outcome:
    results = workspace.results()
    same = all(results.get(name) == content for name, content in expected.items())
    return "continued" if same else "wrong"


def started(workspace: Workspace) -> subprocess.Popen[str]:
    """Start the command."""
    return workspace.start("snakemake", "--config", "scale=tiny")


def copied(finished: Workspace, path: Path) -> Workspace:
    """A fresh copy at ``path``, in place of an earlier one."""
    shutil.rmtree(path, ignore_errors=True)
    return finished.copy(path)


def jobs_of(head: int) -> list[psutil.Process]:
    """The processes below the head that execute runs."""
    jobs = []
    for child in psutil.Process(head).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words[1:4] == ["-m", "purifiers", "run"]:
            jobs.append(child)
    return jobs


def working(head: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait for the head's first job; nothing if it ends before."""
    while head.poll() is None:
        if jobs := jobs_of(head.pid):
            return jobs
        time.sleep(0.01)
    return []
