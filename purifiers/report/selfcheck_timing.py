"""Write the timing tables of a device from the measurements of a self-check."""

from __future__ import annotations

from pathlib import Path

from purifiers.core.artifacts import read_json
from purifiers.core.errors import UserError
from purifiers.report import attack_timing, purification_timing


def write_selfcheck(path: Path, folder: Path) -> list[Path]:
    """Write ``attacks_<device>`` and ``purification_<device>`` in the layout of the CPU's tables.

    Args:
        path: ``selfcheck.json`` of ``python -m purifiers selfcheck``.
        folder: where the tables go.

    Returns:
        The CSV files. A table without any measurement is not written.

    Raises:
        UserError: the file is missing, is not one of a self-check, or has no measurements.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run python -m purifiers selfcheck first")
    report = read_json(path)
    if not isinstance(report, dict) or "device" not in report or "lines" not in report:
        raise UserError(f"{path}: not a file of python -m purifiers selfcheck; run that first")
    attacks, loops = report.get("attacks", []), report.get("loops", [])
    if not attacks and not loops:
        raise UserError(f"{path}: its section speed did not run; raise --minutes and run it again")
    written = []
    if attacks:
        written.append(folder / f"attacks_{report['device']}.csv")
        attack_timing.write_attacks(attack_timing.tabulated(attacks), written[-1])
    if loops:
        written.append(folder / f"purification_{report['device']}.csv")
        purification_timing.write_loops(purification_timing.tabulated(loops), written[-1])
    return written
