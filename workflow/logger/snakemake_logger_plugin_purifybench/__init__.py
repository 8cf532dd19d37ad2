"""Snakemake's logger plugin of this suite: one line per running job, and one for the whole.

At a terminal these lines are redrawn in place, and failures, finished jobs and written tables
scroll above them. Elsewhere plain lines are printed: the whole at most every 30 s, each written
table and each failure. The time left is that of :class:`purifiers.plan.workload.Workload`, which
the Snakefile passes in a log record. The plugin only reads log records and the jobs' log files:
signals and the exit status are Snakemake's own.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from purifiers.core.progress import duration
from purifiers.plan.workload import Workload

REDRAW_SECONDS = 0.5
PLAIN_SECONDS = 30.0
"""Between two lines of the whole where the output is no terminal."""
PASSED_ON = ("Nothing to be done", "Will exit", "Shutting down", "Terminating")
"""Beginnings of Snakemake's messages below a warning that are shown."""
_TAIL_BYTES = 4096


@dataclass
class Job:
    """A running job.

    Attributes:
        name: stage and batch, or the table that it writes.
        log: its log file.
        table: whether it writes tables.
        start: length of the log before the job, in bytes; jobs of a batch append to it.
        started: monotonic time in seconds.
    """

    name: str
    log: Path
    table: bool
    start: int
    started: float = field(default_factory=time.monotonic)

    def lines(self, last_bytes: int | None = None) -> list[str]:
        """Lines that the job has written, of the last bytes only or all; blank ones left out."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.start, size - last_bytes if last_bytes else 0))
            text = file.read().decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()]


class LogHandler(LogHandlerBase):
    """Shows the state of a workflow; one thread of its own redraws it."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.stream = sys.stderr
        console = Console(file=self.stream, highlight=False, markup=False)
        terminal = self.stream.isatty() and not console.is_dumb_terminal
        self.live = Live(console=console, auto_refresh=False) if terminal else None
        self.workload = Workload({})
        self.jobs: dict[int, Job] = {}
        self.n_failed = 0
        self.started = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._redraw, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Take over what a record reports, and show what is not part of the redrawn lines."""
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        match getattr(record, "event", None):
            case _ if self.common_settings.dryrun:
                self._say(self.format(record))
            case None if hasattr(record, "workload"):
                self.workload.runs.update(record.workload.runs)
            case LogEvent.RUN_INFO:
                stats = record.stats  # type: ignore[attr-defined]
                self.workload.n_jobs = stats["total"] - stats.get("all", 0)
                self._begin()
            case LogEvent.JOB_INFO:
                job = _job(record)
                if job is not None:
                    self.jobs[record.jobid] = job  # type: ignore[attr-defined]
            case LogEvent.JOB_FINISHED:
                self._end_job(record.job_id, failed=False)  # type: ignore[attr-defined]
            case LogEvent.JOB_ERROR:
                self._end_job(record.jobid, failed=True)  # type: ignore[attr-defined]
            case LogEvent.ERROR if "CalledProcessError" in record.getMessage():
                pass  # the job's command; JOB_ERROR follows
            case _ if record.levelno >= logging.WARNING or record.getMessage().startswith(
                PASSED_ON
            ):
                self._say(self.format(record))

    def _begin(self) -> None:
        if self.thread.ident:  # it has been started
            return
        self.started = time.monotonic()
        if self.live:
            self.live.start()
            self.live.console.show_cursor(True)  # so that a kill leaves it visible
        self.thread.start()

    def _end_job(self, number: int, failed: bool) -> None:
        job = self.jobs.pop(number, None)
        if job is None:
            return
        self.workload.finish(job.name)
        took = duration(time.monotonic() - job.started)
        if failed:
            self.n_failed += 1
            self._say(f"failed: {job.name} after {took}, see {job.log}")
            written = job.lines()
            errors = [line for line in written if line.startswith("error: ")] or written[-1:]
            self._say("\n".join(errors))
        elif job.table:
            self._say(f"written: {job.name}")
        elif self.live:
            self._say(f"finished: {job.name} in {took}")
        if self.live:
            self.show()

    def _say(self, text: str) -> None:
        """Print lines above the redrawn ones."""
        if text and self.live:
            self.live.console.print(text, soft_wrap=True)
        elif text:
            print(text, file=self.stream, flush=True)

    def _redraw(self) -> None:
        while not self.ended.wait(REDRAW_SECONDS if self.live else PLAIN_SECONDS):
            self.acquire()
            try:
                if not self.ended.is_set():
                    self.show()
            finally:
                self.release()

    def show(self) -> None:
        """Redraw all lines at a terminal; print the one of the whole elsewhere."""
        rows = list(self.rows())
        if self.live:
            lines = [Text(row, no_wrap=True, overflow="ellipsis") for row in rows]
            self.live.update(Group(*lines), refresh=True)
        else:
            self._say(rows[0])

    def rows(self) -> Iterator[str]:
        """The line of the whole, then one per running job."""
        last = {number: (job.lines(_TAIL_BYTES) or [""])[-1] for number, job in self.jobs.items()}
        now = time.monotonic()
        for number, job in self.jobs.items():
            self.workload.update(job.name, now - job.started, last[number])
        yield self._whole(now)
        for number, job in self.jobs.items():
            finished, n_runs = self.workload.counts(job.name)
            runs = f"{finished}/{n_runs} runs, " if n_runs else ""
            row = f"{job.name:<20}  {runs}{duration(now - job.started)}  {last[number]}"
            yield row.rstrip()

    def _whole(self, now: float) -> str:
        work = self.workload
        line = f"{work.finished_jobs}/{work.n_jobs} jobs, {work.share():.0%} of the predicted work"
        seconds = work.seconds_left(now - self.started)
        bound = "at most " if self.n_failed else ""  # jobs that need a failed one are not run
        left = f"{bound}{duration(seconds)} left" if seconds is not None else "time left unknown"
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        return f"{line}, {left}{failed}"

    def close(self) -> None:
        """Print the last state of the whole and leave the terminal as it was."""
        self.acquire()
        try:
            if self.thread.ident and not self.ended.is_set():
                self.ended.set()
                if self.live:
                    self.live.transient = True  # its lines are erased
                    self.live.stop()
                    self.live = None
                took = duration(time.monotonic() - self.started)
                failed = f", {self.n_failed} failed" if self.n_failed else ""
                counts = f"{self.workload.finished_jobs}/{self.workload.n_jobs}"
                self._say(f"{counts} jobs in {took}{failed}")
        finally:
            self.release()
        super().close()


def _job(record: logging.LogRecord) -> Job | None:
    """The job that a record starts; None for one that runs nothing."""
    rule, outputs, logs = record.rule_name, record.output, record.log  # type: ignore[attr-defined]
    if not logs:
        return None
    log = Path(logs[0])
    batch = record.wildcards.get("batch")  # type: ignore[attr-defined]
    # the log of a batch is continued, that of a table is written anew
    start = log.stat().st_size if batch and log.exists() else 0
    return Job(batch or outputs[0], log, rule in ("document", "paper"), start)
