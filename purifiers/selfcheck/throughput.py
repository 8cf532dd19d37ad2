"""Throughput of networks, in the form in which ``workflow/throughput.yaml`` stores it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from purifiers.selfcheck.checks import Check, Outcome, passed_if
from purifiers.selfcheck.context import Context
from purifiers.stages.throughput import measured_passes, multiply_adds, stored, subject_of


def checks(context: Context) -> Iterator[Check]:
    """One check per network and precision; the network of the largest runs comes first."""
    for network in context.size.networks:
        for precision in context.size.precisions:
            title = f"{network.partition('(')[0]}, {precision}"
            yield Check(title, partial(_measure, context, network, precision))


def _measure(context: Context, network: str, precision: str) -> Outcome:
    subject = context.remembered(("subject", network), lambda: subject_of(network, context.device))
    rows = measured_passes(subject, context.device, precision)
    entry = context.measured.setdefault("throughput", {}).setdefault(
        network, {"macs": multiply_adds(subject, context.device), "measured": []}
    )
    entry["measured"] += map(stored, rows)
    fastest = min(rows, key=lambda row: row.seconds)
    reason = (
        f"forward {fastest.forward:.3g} s, forward and backward {fastest.both:.3g} s per image at "
        f"batch {fastest.batch}"
    )
    return passed_if(True, reason, seconds=fastest.seconds)
