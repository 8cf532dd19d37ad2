"""Progress lines on stderr: work done, rate and time left."""

from __future__ import annotations

import sys
import time
from collections import deque

WINDOW = 60.0
"""Seconds over which the rate is measured; a slow start affects it no longer than this."""


def duration(seconds: float) -> str:
    """Format seconds: ``75`` -> ``1:15``; ``3700`` -> ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Count work done and report it at most every ``interval`` seconds.

    Args:
        label: begins every line.
        total: amount of work, in ``unit``.
        unit: name of the unit.
        done: amount that earlier starts have done.
        interval: seconds between two lines, at least.
        at_most: whether the work may end before ``total``; the time left is an upper bound then.
        quiet: print nothing.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "images",
        done: int = 0,
        interval: float = 10.0,
        at_most: bool = False,
        quiet: bool = False,
    ) -> None:
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self.done = done
        self.quiet = quiet
        self._bound = "at most " if at_most else ""
        self._marks = deque([(time.monotonic(), done)])  # time and done, at start and reports

    def add(self, amount: int, note: str = "") -> None:
        """Add ``amount`` to the work done, and report it if a line is due."""
        self.done += amount
        now = time.monotonic()
        if self.quiet or now - self._marks[-1][0] < self.interval:
            return
        start_time, start_done = self._marks[0]
        rate = (self.done - start_done) / max(now - start_time, 1e-9)
        left = "?"
        if rate > 0:
            left = self._bound + duration((self.total - self.done) / rate)
        tail = f", {note}" if note else ""
        print(
            f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s, "
            f"{left} left{tail}",
            file=sys.stderr,
            flush=True,
        )
        self._marks.append((now, self.done))
        while now - self._marks[0][0] > WINDOW:
            self._marks.popleft()
