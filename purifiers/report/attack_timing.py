"""Attacks beside those of other libraries: measurements to a table and a chart.

A measurement is what ``benchmarks/timing`` leaves: pytest-benchmark's JSON, one benchmark per
attack and victim, with the libraries' rows in its ``extra_info``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
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

# Okabe & Ito's colours for other libraries, one blue from dark to light for the suite: apart for
# colour-blind readers and in grey.
PEER_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#999999")
SUITE_COLOURS = ("#00324f", "#0072B2", "#56B4E9", "#bfe0f5")


def write_timing(measurements: Sequence[Path], out: Path) -> None:
    """Write ``out`` (CSV), and beside it the same as Markdown and as a chart (png and svg).

    Raises:
        UserError: a file is not a measurement, or one of them lacks the floor.
    """
    frame = timing_table(measurements)
    note = told(frame)
    write_text(out.with_suffix(".md"), markdown(frame, note))
    picture = chart(frame)
    for kind in FORMATS:
        save(picture, out.with_suffix(f".{kind}"), f"Time of an attack over its floor\n{note}")
    write_text(out, csv_text(frame))


def timing_table(measurements: Sequence[Path]) -> pd.DataFrame:
    """One row per library, attack, victim and device.

    Columns ``seconds`` (median over the rounds), ``over_floor`` (the ratio of two medians),
    ``robust_accuracy`` (fraction, judged in float32), ``norm_median`` (of ``norm``; for L2 empty
    where half of the images or more are not broken), ``differ`` (images that are broken by this
    row or by the strongest other library, and not by both) and what was measured with what.

    Raises:
        UserError: as :func:`write_timing`.
    """
    rows = [row for path in measurements for found in benchmarks(path) for row in _rows(found)]
    if not rows:
        raise UserError("no measurements: run pytest benchmarks/timing --benchmark-json=<file>")
    return pd.DataFrame(rows)


def benchmarks(path: Path) -> list[dict[str, Any]]:
    """What the measurements of a file tell."""
    try:
        return [found["extra_info"] for found in read_json(path)["benchmarks"]]
    except (KeyError, TypeError):
        raise UserError(
            f"{path}: not a measurement of benchmarks/timing; remove it and measure again"
        ) from None


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    medians = {row["library"]: statistics.median(row["seconds"]) for row in found["rows"]}
    if FLOOR not in medians:
        raise UserError(f"{found['attack']} on {found['victim']} was measured without its floor")
    return [
        {
            "library": row["library"],
            "attack": found["attack"],
            "victim": found["victim"],
            "device": found["device"],
            "seconds": medians[row["library"]],
            "over_floor": medians[row["library"]] / medians[FLOOR],
            "robust_accuracy": row["kept"] / found["n_images"] if "kept" in row else None,
            "norm_median": row.get("norm_median"),
            "rounds": len(row["seconds"]),
            "n_images": found["n_images"],
            "norm": found["norm"],
            "eps": found["eps"],
            "differ": row.get("differ"),
            "flags": "; ".join(_flags(row, found)),
            "version": row["version"],
            "torch": found["torch"],
            "processor": found["processor"],
            "data": found["data"],
            "missing": ", ".join(found["missing"]),
            "git": found["git"],
        }
        for row in found["rows"]
    ]


def _flags(row: dict[str, Any], found: dict[str, Any]) -> list[str]:
    flags = []
    if _weaker(row, found):
        flags.append("weaker than the strongest row")
    if row["library"].endswith("as is"):
        flags.append("parameters trainable")
    if row.get("black"):
        flags.append(f"{row['black']} black images do not count as broken")
    if len(row["seconds"]) < max(len(other["seconds"]) for other in found["rows"]):
        flags.append("slow, fewer rounds")
    return flags


def _weaker(row: dict[str, Any], found: dict[str, Any]) -> bool:
    """Beyond one image in 256 (at least one), or beyond 1 % in the median L2 distance."""
    others = [other for other in found["rows"] if "kept" in other]
    if "kept" not in row:
        return False
    if found["norm"] == "l2":
        medians = [other["norm_median"] for other in others if other["norm_median"] is not None]
        own = row["norm_median"]
        return bool(medians) and (own is None or own > 1.01 * min(medians))
    fewest = min(other["kept"] for other in others)
    return bool(row["kept"] > fewest + max(1, found["n_images"] // 256))


def told(frame: pd.DataFrame) -> str:
    """One line: how it was measured, on what, and what is different about the data."""
    parts = [f"median of {frame['rounds'].max()} alternated rounds"]
    parts.append(", ".join(dict.fromkeys(frame["processor"])))
    parts.append(f"torch {', '.join(dict.fromkeys(frame['torch']))}")
    noted = frame[frame["data"] != ""]
    parts += list(dict.fromkeys(noted["victim"] + " " + noted["data"]))
    if absent := ", ".join(sorted(set(filter(None, frame["missing"])))):
        parts.append(f"not installed: {absent}")
    return "; ".join(parts)


def markdown(frame: pd.DataFrame, note: str) -> str:
    """A table per victim and device: time over floor and strength, libraries as columns."""
    lines = ["# Attacks: time over floor", "", f"{note}.", ""]
    lines += [
        "Each cell: time / time of the floor, then in brackets what is left: the robust accuracy "
        "at a fixed eps, the median L2 distance otherwise. *Slanted*: weaker than the strongest "
        "row. –: more than half of the images not broken.",
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
    left = row["robust_accuracy"] if row["norm"] == "linf" else row["norm_median"]
    shown = "–" if pd.isna(left) else f"{left:.3f}"
    text = f"{row['over_floor']:.2f} ({shown})"
    return f"*{text}*" if "weaker" in row["flags"] else text


def chart(frame: pd.DataFrame) -> Figure:
    """A panel per victim and device: for each attack a bar per library, up or down from the floor.

    The suite is blue. A cross stands at a row that is weaker than the strongest one, and rows
    whose parameters were trainable are hatched.
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
    told = "1 is the floor; × weaker than the strongest row"
    picture.legend(
        handles=handles,
        title=told,
        fontsize=7,
        title_fontsize=7,
        loc="outside lower center",
        ncols=6,
    )
    return picture


def _colours(libraries: list[str]) -> dict[str, str]:
    ours = [name for name in libraries if name.startswith(SUITE)]
    others = [name for name in libraries if not name.startswith(SUITE)]
    made = {name: SUITE_COLOURS[k % len(SUITE_COLOURS)] for k, name in enumerate(ours)}
    return made | {name: PEER_COLOURS[k % len(PEER_COLOURS)] for k, name in enumerate(others)}


def _bars(axes: Axes, panel: pd.DataFrame, colours: dict[str, str]) -> None:
    attacks = list(dict.fromkeys(panel["attack"]))
    place, middles = 0.0, []
    order = list(colours)
    for attack in attacks:
        group = panel[panel["attack"] == attack].to_dict("records")
        group.sort(key=lambda row: order.index(row["library"].removesuffix(", as is")))
        middles.append(place + (len(group) - 1) / 2)
        for row in group:
            trainable = row["library"].endswith("as is")
            colour = colours[row["library"].removesuffix(", as is")]
            hatch = "////" if trainable else None
            height = row["over_floor"]
            axes.bar(place, height - 1, 0.9, 1.0, color=colour, hatch=hatch, edgecolor="white")
            parts = [f"{height:.2g}", *(["×"] if "weaker" in row["flags"] else [])]
            text = "\n".join(reversed(parts) if height >= 1 else parts)
            side = "bottom" if height >= 1 else "top"
            axes.annotate(text, (place, height), ha="center", va=side, fontsize=6)
            place += 1
        place += 1
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.margins(x=0.01, y=0.15)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(middles, attacks, fontsize=8)
    axes.set_ylabel("time / floor", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
