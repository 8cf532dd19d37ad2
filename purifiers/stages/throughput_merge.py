"""Merge the throughput that a self-check measured into ``workflow/throughput.yaml``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from purifiers.core.artifacts import read_json, write_text
from purifiers.core.errors import UserError
from purifiers.plan.throughput import Measurement
from purifiers.stages.throughput import HEAD, NETWORK_KEY, file_text, stored

AGAIN = "run python -m purifiers selfcheck --section throughput again"


def merge_selfcheck(source: Path, path: Path) -> list[str]:
    """Add the measured rows to ``path``.

    They replace the rows of the same network, device kind and precision, also those that were
    entered by hand. All other rows stay. Nothing is written if a row is refused.

    Args:
        source: ``selfcheck.json`` of ``python -m purifiers selfcheck``.
        path: YAML file of the measurements.

    Returns:
        One line of text per network.

    Raises:
        UserError: ``source`` is missing, damaged or not of a self-check, has no throughput, or a
            measurement cannot be right.
    """
    kind, measured = _checked(source)
    entries: dict[str, dict[str, Any]] = {}
    if path.exists():
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    lines = []
    for network, (macs, rows) in measured.items():
        entry = entries.setdefault(network, {"macs": macs, "measured": []})
        if entry["macs"] != macs:
            raise UserError(
                f"{source}: {network}: {macs} multiply-adds, but {entry['macs']} in {path}; "
                f"{AGAIN} at this commit"
            )
        precisions = {row.precision for row in rows}
        kept = [
            row
            for row in entry["measured"]
            if row["device"] != kind or row.get("precision", "float32") not in precisions
        ]
        replaced = len(entry["measured"]) - len(kept)
        entry["measured"] = kept + [stored(row) for row in rows]
        lines.append(f"{network}: {len(rows)} rows of {kind}, {replaced} replaced")
    write_text(path, HEAD + file_text(entries))
    return lines


def _checked(source: Path) -> tuple[str, dict[str, tuple[int, list[Measurement]]]]:
    """Device kind, and per network its multiply-adds and measurements."""
    if not source.exists():
        raise UserError(f"{source}: no such file; run python -m purifiers selfcheck first")
    report = read_json(source)
    if not isinstance(report, dict) or not {"kind", "lines", "counts"} <= report.keys():
        raise UserError(f"{source}: not a file of python -m purifiers selfcheck; run that first")
    kind, content = report["kind"], report.get("throughput")
    if not content:
        raise UserError(f"{source}: its section throughput measured nothing; {AGAIN}")
    if not isinstance(kind, str) or not isinstance(content, dict):
        raise UserError(f"{source}: kind or throughput is damaged; {AGAIN}")
    return kind, {network: _entry(source, kind, network, content[network]) for network in content}


def _entry(source: Path, kind: str, network: str, entry: Any) -> tuple[int, list[Measurement]]:
    where = f"{source}: {network}"
    macs, rows = (entry.get("macs"), entry.get("measured")) if isinstance(entry, dict) else (0, [])
    if not (_is_whole(macs) and isinstance(rows, list) and rows and NETWORK_KEY.fullmatch(network)):
        raise UserError(f"{where}: needs a network's key, macs and measured; {AGAIN}")
    measurements = []
    for row in rows:
        if problem := next(_problems(row, kind), ""):
            raise UserError(f"{where}: {row}: {problem}; {AGAIN}")
        measurements.append(Measurement(**row))
        if fault := measurements[-1].fault():
            batch = f"{row.get('precision', 'float32')}, {row.get('batch')} images"
            raise UserError(
                f"{where} on {kind}, {batch}: {fault}; end other programs on the device and {AGAIN}"
            )
    return macs, measurements


def _problems(row: Any, kind: str) -> Iterator[str]:
    """Why this is no measurement on the device kind."""
    if not isinstance(row, dict):
        yield "no measurement"
        return
    if unknown := row.keys() - {field.name for field in fields(Measurement)}:
        yield f"unknown {', '.join(sorted(unknown))}"
    if row.get("device") != kind:
        yield f"device is not the file's {kind}"
    if not isinstance(row.get("precision", ""), str):
        yield "precision is not a name"
    for name in ("forward", "both"):
        value = row.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            yield f"{name} is not a number of seconds"
    if row.get("batch") is not None and not _is_whole(row["batch"]):
        yield "batch is not a number of images"


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
