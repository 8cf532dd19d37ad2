"""Compare the time and strength of attacks with other libraries, as a table and a chart.

A measurement is a file that ``benchmarks/timing`` writes: pytest-benchmark's JSON, one benchmark
per attack and victim, with the libraries' rows in its ``extra_info``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from purifiers.core.artifacts import read_json, write_text
from purifiers.core.errors import UserError
from purifiers.report.figures import FORMATS, save
from purifiers.report.tables import csv_text

FLOOR = "floor"
SUITE = "purifybench"

# Okabe & Ito's colours for other libraries, shades of one blue for the suite: distinct for
# colour-blind readers and in grey.
PEER_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#999999")
SUITE_COLOURS = ("#00324f", "#0072B2", "#56B4E9", "#bfe0f5")


def write_timing(measurements: Sequence[Path], out: Path) -> None:
    """Write the measurements as ``out`` (CSV), Markdown and a chart (png and svg) beside it.

    Raises:
        UserError: there are no measurements, a file is not one, or a benchmark lacks the floor.
    """
    write_attacks(timing_table(measurements), out)


def write_attacks(frame: pd.DataFrame, out: Path) -> None:
    """Write a table of :func:`tabulated` as ``out`` (CSV), Markdown and a chart beside it."""
    note = setup_note(frame)
    write_text(out.with_suffix(".md"), markdown(frame, note))
    picture = chart(frame)
    for kind in FORMATS:
        save(picture, out.with_suffix(f".{kind}"), f"Time of an attack over its floor\n{note}")
    write_text(out, csv_text(frame))


def timing_table(measurements: Sequence[Path]) -> pd.DataFrame:
    """Tabulate the measurements: one row per library, attack, victim and device.

    Columns: ``seconds`` (median over the rounds), ``over_floor`` (ratio to the median of the
    floor), ``robust_accuracy`` (fraction, computed in float32), ``norm_median`` (median distance
    in ``norm``; for L2 empty where more than half of the images are not broken), ``differ``
    (number of images that either this row or the strongest other library breaks, but not both),
    and the setup of the measurement.

    Raises:
        UserError: as :func:`write_timing`.
    """
    frame = tabulated(entry for path in measurements for entry in benchmarks(path))
    if frame.empty:
        raise UserError("no measurements: run pytest benchmarks/timing --benchmark-json=<file>")
    return frame


def tabulated(entries: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of :func:`timing_table` from measurements of :mod:`purifiers.timing.comparison`."""
    return pd.DataFrame([row for entry in entries for row in _rows(entry)])


def benchmarks(path: Path) -> list[dict[str, Any]]:
    """Read the ``extra_info`` of each benchmark of a file."""
    try:
        return [entry["extra_info"] for entry in read_json(path)["benchmarks"]]
    except (KeyError, TypeError):
        raise UserError(
            f"{path}: not a measurement of benchmarks/timing; remove it and measure again"
        ) from None


def _rows(benchmark: dict[str, Any]) -> list[dict[str, Any]]:
    medians = {row["library"]: statistics.median(row["seconds"]) for row in benchmark["rows"]}
    if FLOOR not in medians:
        raise UserError(
            f"{benchmark['attack']} on {benchmark['victim']} was measured without its floor: "
            "measure again"
        )
    return [
        {
            "library": row["library"],
            "attack": benchmark["attack"],
            "victim": benchmark["victim"],
            "device": benchmark["device"],
            "seconds": medians[row["library"]],
            "over_floor": medians[row["library"]] / medians[FLOOR],
            "robust_accuracy": row["kept"] / benchmark["n_images"] if "kept" in row else None,
            "norm_median": row.get("norm_median"),
            "rounds": len(row["seconds"]),
            "n_images": benchmark["n_images"],
            "norm": benchmark["norm"],
            "eps": benchmark["eps"],
            "differ": row.get("differ"),
            "flags": "; ".join(_flags(row, benchmark)),
            "version": row["version"],
            "torch": benchmark["torch"],
            "processor": benchmark["processor"],
            "data": benchmark["data"],
            "missing": ", ".join(benchmark["missing"]),
            "git": benchmark["git"],
        }
        for row in benchmark["rows"]
    ]


def _flags(row: dict[str, Any], benchmark: dict[str, Any]) -> list[str]:
    flags = []
    if _weaker(row, benchmark):
        flags.append("weaker than the strongest row")
    if row["library"].endswith("as is"):
        flags.append("parameters trainable")
    if row.get("black"):
        flags.append(f"{row['black']} black images do not count as broken")
    if len(row["seconds"]) < max(len(other["seconds"]) for other in benchmark["rows"]):
        flags.append("slow, fewer rounds")
    return flags


def _weaker(row: dict[str, Any], benchmark: dict[str, Any]) -> bool:
    """Whether a row is weaker than the strongest row of its benchmark.

    L2: its median distance is over 1 % larger, or there is none. Other norms: it breaks over n/256
    (at least one) fewer images.
    """
    others = [other for other in benchmark["rows"] if "kept" in other]
    if "kept" not in row:
        return False
    if benchmark["norm"] == "l2":
        medians = [other["norm_median"] for other in others if other["norm_median"] is not None]
        own = row["norm_median"]
        return bool(medians) and (own is None or own > 1.01 * min(medians))
    fewest = min(other["kept"] for other in others)
    return bool(row["kept"] > fewest + max(1, benchmark["n_images"] // 256))


def setup_note(frame: pd.DataFrame) -> str:
    """Describe the setup in one line: rounds, processor, torch version, data, missing libraries."""
    parts = [f"median of {frame['rounds'].max()} alternated rounds"]
    parts.append(", ".join(dict.fromkeys(frame["processor"])))
    parts.append(f"torch {', '.join(dict.fromkeys(frame['torch']))}")
    noted = frame[frame["data"] != ""]
    parts += list(dict.fromkeys(noted["victim"] + " " + noted["data"]))
    if absent := ", ".join(sorted(set(filter(None, frame["missing"])))):
        parts.append(f"not installed: {absent}")
    return "; ".join(parts)


def markdown(frame: pd.DataFrame, note: str) -> str:
    """Format one table per victim and device: attacks as rows, libraries as columns."""
    lines = ["# Attacks: time relative to the floor", "", f"{note}.", ""]
    lines += [
        "Each cell: time / time of the floor, then in brackets the strength: robust accuracy for "
        "attacks at a fixed eps, median L2 distance for the others. *Italic*: weaker than the "
        "strongest row. –: more than half of the images not broken.",
        "",
    ]
    for (victim, device), panel in frame.groupby(["victim", "device"], sort=False):
        shown = panel[~panel["library"].isin([FLOOR]) & ~panel["library"].str.endswith("as is")]
        libraries = list(dict.fromkeys(shown["library"]))
        libraries.sort(key=lambda name: not name.startswith(SUITE))
        lines += [f"## {victim}, {device}", "", f"| | {' | '.join(libraries)} |"]
        lines.append("|:--" + "|--:" * len(libraries) + "|")
        for attack, group in shown.groupby("attack", sort=False):
            cells = {row["library"]: _cell(row) for row in group.to_dict("records")}
            texts = [cells.get(library, "") for library in libraries]
            lines.append(f"| {attack} | {' | '.join(texts)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: dict[Any, Any]) -> str:
    strength = row["robust_accuracy"] if row["norm"] == "linf" else row["norm_median"]
    shown = "–" if pd.isna(strength) else f"{strength:.3f}"
    text = f"{row['over_floor']:.2f} ({shown})"
    return f"*{text}*" if "weaker" in row["flags"] else text


def chart(frame: pd.DataFrame) -> Figure:
    """Draw the time of each attack relative to the floor, one panel per victim and device.

    The suite's bars are blue. A cross marks a row that is weaker than the strongest one. Rows
    measured with trainable parameters are hatched.
    """
    frame = frame[frame["library"] != FLOOR]
    names = [name.removesuffix(", as is") for name in dict.fromkeys(frame["library"])]
    colours = _colours(list(dict.fromkeys(names)))
    panels = list(frame.groupby(["victim", "device"], sort=False))
    picture = Figure(figsize=(12.0, 0.9 + 3.2 * len(panels)), layout="constrained")
    every_axes = picture.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, ((victim, device), panel) in zip(every_axes, panels, strict=True):
        _bars(axes, panel, colours)
        axes.set_title(f"{victim}, {device}", fontsize=9)
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    if frame["library"].str.endswith("as is").any():
        handles.append(Patch(facecolor="white", edgecolor="0.3", hatch="////", label="as is"))
    title = "1 is the floor; × weaker than the strongest row"
    picture.legend(
        handles=handles,
        title=title,
        fontsize=7,
        title_fontsize=7,
        loc="outside lower center",
        ncols=6,
    )
    return picture


def _colours(libraries: list[str]) -> dict[str, str]:
    ours = [name for name in libraries if name.startswith(SUITE)]
    others = [name for name in libraries if not name.startswith(SUITE)]
    suite = {name: SUITE_COLOURS[k % len(SUITE_COLOURS)] for k, name in enumerate(ours)}
    return suite | {name: PEER_COLOURS[k % len(PEER_COLOURS)] for k, name in enumerate(others)}


def _bars(axes: Axes, panel: pd.DataFrame, colours: dict[str, str]) -> None:
    attacks = list(dict.fromkeys(panel["attack"]))
    x, middles = 0.0, []
    order = list(colours)
    for attack in attacks:
        group = panel[panel["attack"] == attack].to_dict("records")
        group.sort(key=lambda row: order.index(row["library"].removesuffix(", as is")))
        middles.append(x + (len(group) - 1) / 2)
        for row in group:
            trainable = row["library"].endswith("as is")
            colour = colours[row["library"].removesuffix(", as is")]
            hatch = "////" if trainable else None
            height = row["over_floor"]
            axes.bar(x, height - 1, 0.9, 1.0, color=colour, hatch=hatch, edgecolor="white")
            parts = [f"{height:.2g}", *(["×"] if "weaker" in row["flags"] else [])]
            text = "\n".join(reversed(parts) if height >= 1 else parts)
            side = "bottom" if height >= 1 else "top"
            axes.annotate(text, (x, height), ha="center", va=side, fontsize=6)
            x += 1
        x += 1
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.margins(x=0.01, y=0.15)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(middles, attacks, fontsize=8)
    axes.set_ylabel("time / floor", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
