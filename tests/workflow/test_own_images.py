"""A folder of own images in a table: all are used, and changed ones are other runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TABLE = "results/tables/tiny/toy/table_2.csv"
SCALE = "  image_folder: {use: image_folder, parameters: {path: mine, shape: [1, 8, 8]}}\n"


def write_images(folder: Path) -> None:
    """A dark and a bright class: 20 and 12 training, 6 and 4 test images."""
    for split, name, count, shade in (
        *(("train", "dark", 20, 20), ("train", "light", 12, 200)),
        *(("test", "dark", 6, 20), ("test", "light", 4, 200)),
    ):
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(np.full((10, 8), shade + number, np.uint8))
            image.save(folder / split / name / f"{number}.png")


def test_a_table_of_own_images(workspace: Any, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "mine")
    scale = workspace.path / "workflow" / "scales" / "tiny.yaml"
    scale.write_text(scale.read_text() + SCALE)
    paper = workspace.path / "benchmarks" / "toy"
    recipes = (paper / "paper.yaml").read_text()
    digits = "  digits: {eps: 0.15, step: 0.05}\n"
    assert digits in recipes
    recipes = recipes.replace(digits, digits + digits.replace("digits", "image_folder"))
    (paper / "paper.yaml").write_text(recipes)
    table = (paper / "table_2.yaml").read_text()
    (paper / "table_2.yaml").write_text(table.replace("dataset: digits", "dataset: image_folder"))
    environment = {"PURIFYBENCH_DATA": str(tmp_path / "data")}

    done = workspace.snakemake(TABLE, **environment)
    assert done.returncode == 0, done.stdout
    rows = list(csv.DictReader((workspace.path / TABLE).read_text().splitlines()))
    assert {row["images"] for row in rows} == {"10"}
    assert all(0 <= float(row["reproduced"]) <= 100 for row in rows)

    (tmp_path / "data/mine/train/light/11.png").unlink()
    done = workspace.snakemake(TABLE, **environment)
    assert done.returncode == 0, done.stdout
    stages = ("dataset", "classifier", "attack", "score")
    assert [len(list((workspace.runs / s).glob("image_folder-*"))) for s in stages] == [2, 2, 2, 4]
