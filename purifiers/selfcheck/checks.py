"""Checks, their outcomes, and sections that end at a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from purifiers.core.errors import UserError

PASS, FAIL, SKIP = "pass", "fail", "skip"


@dataclass(frozen=True)
class Outcome:
    """Result of one check.

    Attributes:
        status: ``PASS``, ``FAIL`` or ``SKIP``.
        reason: the numbers that decided, or why the check did not run.
        numbers: the same for programs.
    """

    status: str
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One thing to check.

    Attributes:
        name: shown on the screen.
        run: returns the outcome; an exception is a failure.
        group: passing checks of one group share a line on the screen; empty: a line of its own.
    """

    name: str
    run: Callable[[], Outcome]
    group: str = ""


@dataclass(frozen=True)
class Line:
    """A check of a section with its outcome."""

    section: str
    group: str
    name: str
    outcome: Outcome
    seconds: float = 0.0


def passed_if(condition: bool, reason: str, **numbers: Any) -> Outcome:
    """``PASS`` if ``condition`` holds, else ``FAIL``."""
    return Outcome(PASS if condition else FAIL, reason, numbers)


def run_section(
    section: str,
    checks: Iterable[Check],
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Line]:
    """Run checks one after the other; those that would start after the deadline are skipped.

    Args:
        deadline: in seconds of ``clock``.
    """
    for check in checks:
        started = clock()
        if started >= deadline:
            late = Outcome(SKIP, "not started: the section's time is over; raise --minutes")
            yield Line(section, check.group, check.name, late)
            continue
        yield Line(section, check.group, check.name, _outcome(check), clock() - started)


def _outcome(check: Check) -> Outcome:
    try:
        return check.run()
    except ModuleNotFoundError as error:
        return Outcome(SKIP, f"{error.name} is not installed")
    except UserError as error:
        return Outcome(FAIL, str(error))
    except Exception as error:  # one broken component must not end the whole check
        return Outcome(FAIL, " ".join(f"{type(error).__name__}: {error}".split())[:300])


def screen(lines: Iterable[Line]) -> str:
    """One line per check; passing checks of a group share one with the reason of the last."""
    shown: list[str] = []
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        key = (line.section, line.group or line.name)
        groups.setdefault(key, []).append(line)
    for (section, group), members in groups.items():
        good = [line for line in members if line.outcome.status == PASS]
        if len(members) == 1:
            good = []
            shown.append(_row(members[0].outcome.status, section, group, members[0].outcome.reason))
        elif good:
            last = max(good, key=lambda line: line.outcome.numbers.get("difference", 0.0))
            count = f"{len(good)} of {len(members)}; {last.name}: {last.outcome.reason}"
            shown.append(_row(PASS, section, group, count))
        for line in members if len(members) > 1 else ():
            if line.outcome.status != PASS:
                name = f"{group}: {line.name}"
                shown.append(_row(line.outcome.status, section, name, line.outcome.reason))
    return "\n".join(shown)


def _row(status: str, section: str, name: str, reason: str) -> str:
    return f"{status.upper() if status == FAIL else status:<5}{section:<11}{name:<36} {reason}"
