"""How far, how fast, how long still: one line on stderr every few seconds."""

from __future__ import annotations

import sys
import time


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
    """

    def __init__(
        self, label: str, total: int, unit: str = "images", done: int = 0, interval: float = 10.0
    ) -> None:
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self.done = self._start_done = done
        self._start = self._last = time.monotonic()

    def add(self, amount: int, note: str = "") -> None:
        """Count ``amount`` more."""
        self.done += amount
        now = time.monotonic()
        if now - self._last < self.interval:
            return
        self._last = now
        rate = (self.done - self._start_done) / max(now - self._start, 1e-9)
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        tail = f", {note}" if note else ""
        print(
            f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s, "
            f"{left} left{tail}",
            file=sys.stderr,
            flush=True,
        )
