"""Snakemake with the suite's logger, as `make reproduce` starts it; the output is no terminal."""

from __future__ import annotations

import os
import shutil
from typing import Any


def environment() -> dict[str, str]:
    """Where Snakemake finds the logger, as in the Makefile."""
    return {"PYTHONPATH": os.pathsep.join(["workflow/logger", os.environ.get("PYTHONPATH", "")])}


def test_a_failure_and_the_first_table(finished: Any) -> None:
    scale = finished.path / "workflow" / "scales" / "tiny.yaml"
    scale.write_text(f"{scale.read_text()}first: toy/table_2\n")
    shutil.rmtree(finished.runs / "score")
    shutil.rmtree(finished.path / "results" / "tables")
    images = finished.folder("attack", "*-madry-*") / "images.npy"
    images.rename(images.with_name("moved"))
    arguments = ("--cores", "2", "--logger", "purifybench")
    done = finished.snakemake(*arguments, **environment())
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "written: results/tables/tiny/toy/table_2.csv" in lines
    assert sum(line.startswith("failed: score-") for line in lines) == 1
    errors = [line for line in lines if line.startswith("error: score digits-wide_resnet-madry-")]
    assert len(errors) == len(set(errors)) > 0  # not from the job itself too
    assert all("missing or truncated" in line for line in errors)
    assert "\r" not in done.stdout and "\x1b" not in done.stdout
    logs = [path.read_text() for path in (finished.path / "results/logs/score").iterdir()]
    assert sum(errors[0] in text for text in logs) == 1

    images.with_name("moved").rename(images)
    done = finished.snakemake(*arguments, **environment())
    assert done.returncode == 0, done.stdout
    assert "written: results/tables/tiny/toy/README.md" in done.stdout.splitlines()
    assert "error" not in done.stdout
    again = finished.snakemake(*arguments, **environment())
    assert again.returncode == 0 and "Nothing to be done" in again.stdout
