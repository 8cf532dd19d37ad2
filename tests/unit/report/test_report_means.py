"""Means over cells: their numbers, intervals, signs and claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from purifiers.plan.cells import Cell, Combine, ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.layout import weak_attack_notes
from purifiers.report.means_chart import draw_means, mean_rows
from purifiers.report.results import Results
from purifiers.report.shared_images import combined

Make = Callable[..., Any]
MEAN = Combine("mean", ("weak", "strong"))


@pytest.fixture
def row_of(a_document: Make, paper_scale: ScaleInfo, runs_root: Path) -> Callable[..., pd.Series]:
    def aggregated(cell: Cell) -> pd.Series:
        return aggregate(a_document(cell), paper_scale, Results(runs_root, {}.get)).iloc[0]

    return aggregated


@pytest.fixture
def mean(a_cell: Make, score: Make) -> Cell:
    for seed in (0, 1):
        score(f"weak{seed}", [1, 1, 1, 1], attack="fgsm")
        score(f"strong{seed}", [1, seed, 0, 0], attack="pgd")
    scores = (("weak0", "strong0"), ("weak1", "strong1"))
    return a_cell(scores=scores, seeds=(0, 1), combine=MEAN)


def test_by_hand(mean: Cell, row_of: Make) -> None:
    """All parts count, the interval is that of the four distinct images."""
    row = row_of(mean)
    assert row["reproduced"] == pytest.approx((100 + 25 + 100 + 50) / 4)
    assert (row["n_correct"], row["n"], row["images"]) == (11, 16, 4)
    assert (row["seed_low"], row["seed_high"]) == (62.5, 75.0)
    low, high = 100 * np.array(binomtest(275, 400).proportion_ci(method="wilson"))
    assert row["ci_high"] - row["ci_low"] > 5 * (high - low)
    assert (row["attack"], row["worst_attack"]) == ("mean of weak, strong", "")


def test_half_a_mean_is_not_run(a_cell: Make, score: Make, row_of: Make) -> None:
    score("weak0", [1, 1], attack="fgsm")
    row = row_of(a_cell(scores=(("weak0", "strong0"),), seeds=(0,), combine=MEAN))
    assert row["verdict"] == "not run" and pd.isna(row["reproduced"])


def test_a_mean_of_distances(mean: Cell, row_of: Make) -> None:
    row = row_of(replace(mean, metric="mean_l2", published=None))
    assert row["reproduced"] == pytest.approx(1.5)  # (0 + 1 + 2 + 3) / 4 in every run


def test_a_mean_has_the_signs_of_all_its_attacks(mean: Cell, row_of: Make) -> None:
    """These runs recorded no probe, which is told of adversaries and not of corruptions."""
    assert row_of(mean)["warnings"] == "not probed"
    assert row_of(replace(mean, model_free=True))["warnings"] == ""


def test_corruptions_are_not_counted_as_attacked_cells(
    mean: Cell, a_document: Make, smoke_scale: ScaleInfo, runs_root: Path
) -> None:
    for model_free in (False, True):
        document = a_document(replace(mean, model_free=model_free))
        frame = aggregate(document, smoke_scale, Results(runs_root, {}.get))
        assert bool(weak_attack_notes(document, frame)) is not model_free


def test_claims_compare_the_mean_image_by_image(mean: Cell, a_cell: Make) -> None:
    runs = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert np.array_equal(combined(mean, [runs])[0], [[0.5, 1.0, 0.0]])
    assert combined(a_cell(), [runs])[0] is runs


def test_the_worst_case_of_each_image(a_cell: Make, score: Make, row_of: Make) -> None:
    """Two attacks break different images: each leaves 2 of 3, both together leave 1."""
    score("one", [1, 1, 0], attack="fgsm")
    score("two", [0, 1, 1], attack="pgd")
    parts = {"scores": (("one", "two"),), "seeds": (0,)}
    row = row_of(a_cell(**parts, combine=Combine("worst_image", ("one", "two"))))
    assert (row["n_correct"], row["n"], row["worst_attack"]) == (1, 3, "")
    assert row["reproduced"] == pytest.approx(100 / 3)
    assert row_of(a_cell(**parts, combine=Combine("worst", ("one", "two"))))["n_correct"] == 2


def test_claims_compare_the_worst_case_image_by_image(a_cell: Make) -> None:
    runs = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    cell = a_cell(combine=Combine("worst_image", ("one", "two")))
    assert np.array_equal(combined(cell, [runs])[0], [[0.0, 1.0, 0.0]])


class TestPicture:
    """Two attacks on two rows under one seed: the means of two cells and their margin."""

    @pytest.fixture
    def rows(self, a_cell: Make, a_document: Make, score: Make, runs_root: Path) -> dict[str, Any]:
        score("jpeg_a", [1] * 30 + [0] * 10), score("jpeg_b", [1] * 20 + [0] * 20)
        score("idfr_a", [1] * 40), score("idfr_b", [1] * 30 + [0] * 10)
        cells = [
            a_cell(row=row, row_label=row, block=block, block_label=block, **fields)
            for block in ("vgg", "resnet")
            for row in ("jpeg", "idfr", "tvm")
            for fields in (
                {"column": "a", "scores": ((f"{row}_a",),), "seeds": (0,)},
                {"scores": ((f"{row}_a", f"{row}_b"),), "seeds": (0,), "combine": MEAN},
            )
            if (row, block) != ("jpeg", "resnet")
        ]
        document = a_document(*cells, plot="means")
        return {"document": document, "results": Results(runs_root, {}.get)}

    def test_means_and_margins(self, rows: dict[str, Any]) -> None:
        blocks = mean_rows(**rows)
        assert {block: [row.label for row in of] for block, of in blocks.items()} == {
            "vgg": ["jpeg", "idfr"],
            "resnet": ["idfr"],
        }
        jpeg, idfr = blocks["vgg"]
        assert (jpeg.mean.estimate, idfr.mean.estimate) == pytest.approx((62.5, 87.5))
        assert idfr.margin is None
        assert jpeg.margin.estimate == pytest.approx(25.0)
        # each image gains 0 or 50 points, half of them 50
        assert 25 - 8.5 < jpeg.margin.low < 25 - 6.5 < 25 + 6.5 < jpeg.margin.high < 25 + 8.5
        assert jpeg.mean.low < 62.5 - 9 and jpeg.mean.high > 62.5 + 9

    def test_the_picture(self, rows: dict[str, Any]) -> None:
        picture = draw_means(**rows)
        titles = [part.get_suptitle() for part in picture.subfigs]
        assert titles[0].startswith("vgg\nbest: idfr, +25.0 points over jpeg (95%: +1")
        assert titles[1] == "resnet\nbest: idfr"
        points = [[line.get_xdata()[0] for line in axes.lines] for axes in picture.axes]
        assert {62.5, 87.5} <= set(points[0]) and 25.0 in points[1]
        colours = {line.get_color() for part in (0, 2) for line in picture.axes[part].lines[-1:]}
        assert len(colours) == 1  # idfr's, though it is the only row of the second block

    def test_nothing_run(self, a_document: Make, a_cell: Make, runs_root: Path) -> None:
        cell = a_cell(scores=(("gone",),), seeds=(0,), combine=MEAN)
        assert draw_means(a_document(cell), Results(runs_root, {}.get)) is None
