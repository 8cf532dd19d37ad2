"""How far, how fast, how long still: one line on stderr every few seconds."""

from __future__ import annotations

import sys
import time
from collections import deque

WINDOW = 60.0
"""Seconds whose work is the rate: a phase that is slower than the rest is soon forgotten."""


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``; ``3700`` -> ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts work done and reports it at most every ``interval`` seconds.

    Args:
        label: what is being done.
        total: how much there is to do, in ``unit``.
        done: how much an earlier start has done already.
        at_most: the work may end before ``total``.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "images",
        done: int = 0,
        interval: float = 10.0,
        at_most: bool = False,
    ) -> None:
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self.done = done
        self._bound = "at most " if at_most else ""
        self._marks = deque([(time.monotonic(), done)])  # of the start and of each report

    def add(self, amount: int, note: str = "") -> None:
        """Count ``amount`` more."""
        self.done += amount
        now = time.monotonic()
        if now - self._marks[-1][0] < self.interval:
            return
        since, before = self._marks[0]
        rate = (self.done - before) / max(now - since, 1e-9)
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
