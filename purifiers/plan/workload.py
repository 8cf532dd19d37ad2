"""Share of the predicted work that is done, and the time left of the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from purifiers.core.artifacts import RunFolder
from purifiers.plan.plan import Plan
from purifiers.plan.throughput import Throughput

START_SECONDS = 5.0
"""Predicted seconds of a job besides its runs, which it mostly spends on imports; our choice."""
_PROGRESS = re.compile(r": (\d+)/(\d+) ")


@dataclass(frozen=True)
class PlannedRun:
    """A run that had not finished when its job was planned.

    Attributes:
        folder: the run's folder.
        seconds: predicted by the measured throughput of its networks.
    """

    folder: RunFolder
    seconds: float


@dataclass
class Workload:
    """Predicted work of the jobs of a plan, and how much of it is done.

    The prediction is that of ``make plan`` (:mod:`purifiers.plan.throughput`) and
    ``START_SECONDS`` per job. Only the ratios of predictions matter: the time left assumes that
    the remaining work is done at the average speed so far. Of a running job, the first seconds
    count as its start, and the run that it executes by the share in its last progress line.

    Attributes:
        runs: unfinished runs by job, in the order of execution.
        n_jobs: number of jobs to execute, also those without runs, which write tables.
        finished_jobs: number of jobs that have ended, with or without an error.
    """

    runs: dict[str, list[PlannedRun]]
    n_jobs: int = 0
    finished_jobs: int = 0
    _shares: dict[Path, float] = field(default_factory=dict)
    _starts: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Workload:
        """List the unfinished runs of a plan with their predicted seconds.

        Raises:
            UserError: nothing is measured on the device of the scale.
        """
        throughput = Throughput.load(plan.root)
        device = throughput.default_device(plan.scale.setting("device", "auto"))
        runs = {}
        for batch in {batch.id: batch for batch in plan.batches.values()}.values():
            folders = {run: RunFolder(plan.runs_root, run.stage, run.id) for run in batch.runs}
            runs[batch.id] = [
                PlannedRun(folder, throughput.seconds(run, device))
                for run, folder in folders.items()
                if not folder.complete()
            ]
        return cls(runs)

    def update(self, job: str, elapsed: float, line: str) -> None:
        """Look up which runs of a running job have finished.

        Args:
            elapsed: seconds since the job started.
            line: the last line of the job's log.
        """
        self._starts[job] = min(elapsed, START_SECONDS)
        for run in self.runs.get(job, ()):
            path = run.folder.path
            if self._shares.get(path, 0.0) == 1.0:
                continue
            if run.folder.complete():
                self._shares[path] = 1.0
            elif run.folder.id in line and (progress := _PROGRESS.search(line)):
                # below 1 until the record exists; a second phase of a fit begins at 0 again
                share = min(int(progress[1]) / max(int(progress[2]), 1), 0.99)
                self._shares[path] = max(share, self._shares.get(path, 0.0))

    def finish(self, job: str) -> None:
        """Count a job as done; after an error too, since its runs are not tried again."""
        self.finished_jobs += 1
        self._starts.pop(job, None)
        self._shares.update({run.folder.path: 1.0 for run in self.runs.get(job, ())})

    def counts(self, job: str) -> tuple[int, int]:
        """Number of finished runs of a job, and of all that it had to execute."""
        paths = [run.folder.path for run in self.runs.get(job, ())]
        return sum(self._shares.get(path) == 1.0 for path in paths), len(paths)

    def share(self) -> float:
        """Share of the predicted work that is done, in [0, 1]."""
        planned = [run for runs in self.runs.values() for run in runs]
        total = sum(run.seconds for run in planned) + START_SECONDS * self.n_jobs
        done = sum(run.seconds * self._shares.get(run.folder.path, 0.0) for run in planned)
        starts = START_SECONDS * self.finished_jobs + sum(self._starts.values())
        return (done + starts) / total if total else 0.0

    def seconds_left(self, elapsed: float) -> float | None:
        """Seconds until all jobs have ended; None before any work is done.

        Args:
            elapsed: seconds since the first job started.
        """
        share = self.share()
        return elapsed * (1 - share) / share if share else None
