"""The table of attacks beside other libraries."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.__main__ import main
from purifiers.core.errors import UserError
from purifiers.report.attack_timing import markdown, setup_note, timing_table, write_timing

FOUND: dict[str, Any] = {
    **{"attack": "PGD-20", "norm": "linf", "victim": "mnist", "device": "cpu", "eps": 0.06},
    **{"n_images": 128, "data": "", "missing": [], "torch": "2", "git": "abc", "processor": "X"},
    "rows": [
        {"library": "floor", "seconds": [2.0, 1.0, 3.0], "version": ""},
        {
            **{"library": "foolbox", "seconds": [3.0, 3.0, 90.0], "version": "3"},
            **{"kept": 64, "norm_median": 0.06, "differ": 0, "black": 0},
        },
        {
            **{"library": "foolbox, as is", "seconds": [30.0], "version": "3"},
            **{"kept": 66, "norm_median": 0.06, "differ": 2, "black": 0},
        },
        {
            **{"library": "purifybench", "seconds": [1.0, 1.5, 0.5], "version": "1"},
            **{"kept": 65, "norm_median": 0.06, "differ": 1, "black": 0},
        },
    ],
}


def nearest(*medians: float | None) -> dict[str, Any]:
    """A measurement of an L2 attack with these medians, the suite's last."""
    found = {**copy.deepcopy(FOUND), "attack": "C&W", "norm": "l2", "data": "recompressed"}
    for row, median in zip(found["rows"][1:], medians, strict=True):
        row["norm_median"] = median
    found["rows"][1]["black"] = 12
    return found


def stored(folder: Path, *found: dict[str, Any]) -> list[Path]:
    """Files as pytest-benchmark leaves them."""
    paths = [folder / f"{number}.json" for number in range(len(found))]
    for path, one in zip(paths, found, strict=True):
        path.write_text(json.dumps({"benchmarks": [{"extra_info": one}]}))
    return paths


def test_times_are_medians_over_the_floors_median(tmp_path: Path) -> None:
    frame = timing_table(stored(tmp_path, FOUND)).set_index("library")
    assert dict(frame["seconds"]) == {
        **{"floor": 2.0, "foolbox": 3.0, "foolbox, as is": 30.0, "purifybench": 1.0}
    }
    assert dict(frame["over_floor"]) == {
        **{"floor": 1.0, "foolbox": 1.5, "foolbox, as is": 15.0, "purifybench": 0.5}
    }
    assert dict(frame["rounds"]) == {
        **{"floor": 3, "foolbox": 3, "foolbox, as is": 1, "purifybench": 3}
    }


def test_strength_is_a_fraction_and_the_floor_has_none(tmp_path: Path) -> None:
    frame = timing_table(stored(tmp_path, FOUND)).set_index("library")
    assert frame["robust_accuracy"]["foolbox"] == 0.5
    assert frame["robust_accuracy"]["purifybench"] == 65 / 128
    assert pd.isna(frame["robust_accuracy"]["floor"])


def test_flags_say_what_is_weak_slow_or_not_frozen(tmp_path: Path) -> None:
    frame = timing_table(stored(tmp_path, FOUND)).set_index("library")
    assert frame["flags"]["foolbox"] == ""
    assert frame["flags"]["purifybench"] == ""  # one image of 128 is within what is allowed
    assert frame["flags"]["foolbox, as is"] == (
        "weaker than the strongest row; parameters trainable; slow, fewer rounds"
    )


def test_a_nearest_example_is_weak_beyond_one_percent(tmp_path: Path) -> None:
    paths = stored(tmp_path, nearest(1.0, 1.009, 1.02), nearest(1.0, None, 0.9))
    flags = timing_table(paths)["flags"].tolist()
    weak = ["weaker" in flag for flag in flags]
    assert weak == [False, False, False, True, False, True, True, False]
    assert "12 black images" in flags[1]


def test_what_is_different_about_the_data_is_told_everywhere(tmp_path: Path) -> None:
    frame = timing_table(stored(tmp_path, FOUND, nearest(1.0, 1.0, 1.0)))
    assert set(frame["data"]) == {"", "recompressed"}
    assert "mnist recompressed" in setup_note(frame)
    assert "mnist recompressed" in markdown(frame, setup_note(frame))


def test_markdown_has_a_column_per_library_without_floor_and_as_is(tmp_path: Path) -> None:
    frame = timing_table(stored(tmp_path, FOUND, nearest(1.0, 1.0, None)))
    lines = markdown(frame, "").splitlines()
    assert "| | purifybench | foolbox |" in lines
    assert "| PGD-20 | 0.50 (0.508) | 1.50 (0.500) |" in lines
    assert "| C&W | *0.50 (–)* | 1.50 (1.000) |" in lines


def test_every_file_is_written_and_the_same_twice(tmp_path: Path) -> None:
    paths = stored(tmp_path, FOUND, {**FOUND, "victim": "cifar10", "missing": ["adv-lib"]})
    made = []
    for name in ("first", "second"):
        out = tmp_path / name / "attacks.csv"
        write_timing(paths, out)
        files = {path.suffix: path.read_bytes() for path in out.parent.iterdir()}
        assert set(files) == {".csv", ".md", ".png", ".svg"}
        made.append(files)
    assert made[0] == made[1]
    frame = pd.read_csv(io.BytesIO(made[0][".csv"]))
    assert list(frame.columns[:9]) == [
        *("library", "attack", "victim", "device", "seconds", "over_floor"),
        *("robust_accuracy", "norm_median", "rounds"),
    ]
    assert b"not installed: adv-lib" in made[0][".md"]


def test_a_measurement_without_floor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without its floor"):
        timing_table(stored(tmp_path, {**FOUND, "rows": FOUND["rows"][1:]}))


def test_another_file_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"papers": []}')
    assert main(["timing", str(tmp_path / "attacks.csv"), str(path)]) == 2
    assert "not a measurement" in capsys.readouterr().err
    assert not (tmp_path / "attacks.csv").exists()
