"""A user's own network in a table: another checkpoint at the same path is never overlooked."""

from __future__ import annotations

import csv
from typing import Any

import torch
from torch import nn

TABLE = "results/tables/tiny/toy/table_2.csv"
SOURCE = """
from torch import nn

def make(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, classes))
"""


def store(workspace: Any, bias: float) -> None:
    """Weights that always answer 0 (``bias`` > 0), or never (< 0)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    for parameter in network.parameters():
        parameter.data.zero_()
    network[1].bias.data[0] = bias
    torch.save(network.state_dict(), workspace.path / "net.pt")


def accuracy(workspace: Any) -> float:
    rows = csv.DictReader((workspace.path / TABLE).read_text().splitlines())
    (clean,) = (row for row in rows if row["column"] == "clean")
    return float(clean["reproduced"])


def test_a_new_checkpoint_at_the_same_path_is_a_new_run(workspace: Any) -> None:
    papers = workspace.path / "benchmarks" / "toy"
    recipes = (papers / "paper.yaml").read_text()
    recipes = recipes.replace(
        "classifiers:\n", "classifiers:\n  own: {component: file, path: net.py, weights: net.pt}\n"
    ).replace("trainings:\n", "trainings:\n  pretrained: {component: pretrained}\n")
    (papers / "paper.yaml").write_text(recipes)
    table = (papers / "table_2.yaml").read_text()
    table = table.replace(
        "classifier: small, training: natural", "classifier: own, training: pretrained"
    )
    (papers / "table_2.yaml").write_text(table)
    (workspace.path / "net.py").write_text(SOURCE)
    store(workspace, 1.0)

    done = workspace.snakemake(TABLE)
    assert done.returncode == 0, done.stdout
    always = accuracy(workspace)
    assert always > 0

    store(workspace, -1.0)
    done = workspace.snakemake(TABLE)
    assert done.returncode == 0, done.stdout
    assert len(list((workspace.runs / "classifier").glob("digits-file-pretrained-s0-*"))) == 2
    assert accuracy(workspace) != always
