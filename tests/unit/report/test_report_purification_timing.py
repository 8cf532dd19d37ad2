"""The table of purification and training beside plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.core.errors import UserError
from purifiers.report.purification_timing import write_speed

COMMON = {"device": "cpu", "processor": "a processor", "torch": "2", "git": "abc"}
PURIFIED = {
    **COMMON,
    **{"purifier": "defense_gan", "case": "paper-one", "n_images": 2},
    "seconds": {"plain loop": [6.0, 9.0, 7.0], "purifybench": [2.0, 1.0, 2.5]},
}
TRAINED = {
    **COMMON,
    **{"method": "adv_ae", "case": "desk", "n_images": 10},
    "seconds": {"plain loop": [8.0], "careful loop": [5.0], "purifybench": [4.0]},
}


def written(folder: Path, *found: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    source, out = folder / "found.json", folder / "purification.csv"
    source.write_text(json.dumps({"benchmarks": [{"extra_info": entry} for entry in found]}))
    write_speed([source], out)
    return pd.read_csv(out), out.with_suffix(".md").read_text()


def test_medians_and_ratios(tmp_path: Path) -> None:
    frame, text = written(tmp_path, PURIFIED, TRAINED)
    assert len(frame) == 5
    columns = ["task", "method", "case", "library", "seconds", "over_suite", "n_images", "rounds"]
    assert frame[columns].values.tolist() == [
        ["purification", "defense_gan", "paper-one", "plain loop", 7.0, 3.5, 2, 3],
        ["purification", "defense_gan", "paper-one", "purifybench", 2.0, 1.0, 2, 3],
        ["training", "adv_ae", "desk", "plain loop", 8.0, 2.0, 10, 1],
        ["training", "adv_ae", "desk", "careful loop", 5.0, 1.25, 10, 1],
        ["training", "adv_ae", "desk", "purifybench", 4.0, 1.0, 10, 1],
    ]
    assert "| | purifybench | plain loop | careful loop |" in text
    assert "| purification, defense_gan, paper-one, cpu | 1 (1.00) | 3.5 (3.50) |  |" in text
    assert "| training, adv_ae, desk, cpu | 0.4 (1.00) | 0.8 (2.00) | 0.5 (1.25) |" in text


def test_what_is_no_measurement_is_refused(tmp_path: Path) -> None:
    bare = {**PURIFIED, "seconds": {"plain loop": [1.0]}}
    with pytest.raises(UserError, match="purification of defense_gan was measured without"):
        written(tmp_path, bare)
    with pytest.raises(UserError, match="no measurements"):
        written(tmp_path)
    (tmp_path / "found.json").write_text("{}")
    with pytest.raises(UserError, match="not a measurement"):
        write_speed([tmp_path / "found.json"], tmp_path / "out.csv")
