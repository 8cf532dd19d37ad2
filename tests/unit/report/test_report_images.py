"""Each picture stands in its place, under what is said of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    AttackSpec,
    ComponentSpec,
    DatasetSpec,
    ImagesSpec,
    MethodSpec,
    PurifySpec,
    ScoreSpec,
    Spec,
    Subset,
)
from purifiers.plan.cells import Cell, Combine, Document, ImageGrid, ScaleInfo
from purifiers.plan.declarations import load_paper
from purifiers.plan.plan import Plan
from purifiers.report.images import RIGHT, WRONG, collect, grid
from purifiers.report.results import Results
from purifiers.report.write import write_document

ROOT = Path(__file__).resolve().parents[3]
Make = Callable[..., Any]
SUBSET = Subset(split="test", n=5, seed=0)
DIGITS = ComponentSpec(component="digits", version=1, parameters={})
FGSM = ComponentSpec(component="fgsm", version=1, parameters={"eps": 0.1})
IDENTITY = MethodSpec(component="identity", version=1, parameters={}, run=None)
INDICES = (1, 3, 4, 6, 9)  # of the split's ten images
LABELS = (0, 1, 2, 3, 4)
SHAPE = (1, 4, 4)
SHOWN = ("clean", "attacked", "difference", "purified")  # no method here has a random transform
CLEAN = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), dtype=np.uint8)


class Folders:
    """Finished runs as the stages leave them: one data set, attacks, purifications, scores."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._finish("digits-1", DatasetSpec(dataset=DIGITS), test_images=CLEAN)

    def _finish(self, run_id: str, spec: Spec, **arrays: Any) -> None:
        folder = RunFolder(self.root, spec.stage, run_id)
        folder.path.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(folder.path / f"{name}.npy", array)
        folder.finish(spec, [f"{name}.npy" for name in arrays], {"n": 5}, 1.0, {})

    @staticmethod
    def images(made_by: str | None = None, stage: str = "") -> ImagesSpec:
        return ImagesSpec(data="digits-1", subset=SUBSET, run=made_by, stage=stage)

    def made(
        self,
        stage: str,
        run_id: str,
        source: ImagesSpec,
        level: float,
        transformed: bool = False,
    ) -> np.ndarray:
        """Images of one level, a little lighter from one image to the next."""
        steps = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1) / 100
        made = np.full((5, *SHAPE), level, np.float32) + steps
        common: dict[str, Any] = {"images": source, "classifier": "cnn", "seed": 0}
        self._finish(
            run_id,
            PurifySpec(**common, method=IDENTITY)
            if stage == "purify"
            else AttackSpec(**common, methods=(), gradient="exact", attack=FGSM),
            images=made,
            **({"transformed": np.full(made.shape, 102, np.uint8)} if transformed else {}),
        )
        return made

    def score(self, run_id: str, images: ImagesSpec, says: Sequence[int], model: str) -> str:
        folder = RunFolder(self.root, "score", run_id)
        folder.path.mkdir(parents=True)
        right = [said == label for said, label in zip(says, LABELS, strict=True)]
        columns = {"index": INDICES, "label": LABELS, "prediction": says, "correct": right}
        pd.DataFrame(columns).to_parquet(folder.path / "scores.parquet")
        spec = ScoreSpec(images=images, classifier=model, attack=FGSM if images.run else None)
        counts = {"n_correct": sum(right), "n": 5}
        folder.finish(spec, ["scores.parquet"], counts, 1.0, {})
        return run_id


@pytest.fixture
def folders(runs_root: Path) -> Folders:
    return Folders(runs_root)


@pytest.fixture
def document(folders: Folders, a_cell: Make, a_document: Make) -> Document:
    """A classifier alone and behind two purifiers; its first image is misclassified."""
    f = folders
    f.made("attack", "a", f.images(), 0.2)
    f.made("purify", "p1", f.images("a", "attack"), 0.4)
    f.made("purify", "p2", f.images("p1", "purify"), 0.6)
    f.made("attack", "w", f.images(), 0.3)
    f.made("purify", "wp", f.images("w", "attack"), 0.7)
    f.score("clean", f.images(), (9, 1, 2, 3, 4), "cnn")
    f.score("bare", f.images("a", "attack"), (9, 9, 2, 9, 9), "cnn")
    f.score("chain", f.images("p2", "purify"), (9, 1, 9, 9, 9), "cnn")
    f.score("white", f.images("wp", "purify"), (9, 9, 9, 9, 9), "cnn")
    f.score("elsewhere", f.images("a", "attack"), (7, 7, 7, 7, 7), "other")

    def cell(run: str, row: str, column: str, **changes: Any) -> Cell:
        labels = {"row": row, "row_label": row, "column": column, "column_label": column}
        return a_cell(**labels, scores=((run,), ("later",)), seeds=(0, 1), **changes)

    return a_document(
        cell("clean", "none", "clean", attack="none"),
        cell("bare", "none", "pgd"),
        cell("elsewhere", "none", "transfer", threat_model="transfer"),
        cell("chain", "two", "pgd"),
        cell("white", "two", "pgd_white_box", threat_model="white_box"),
        cell("gone", "two", "cw"),
        cell("chain", "two", "worst", combine=Combine("worst", ("pgd", "cw"))),
        images=ImageGrid(2, ("two",), ()),
    )


def pictures(document: Document, root: Path) -> tuple[Figure, dict[str, np.ndarray]]:
    asked = document.images
    assert asked
    cells = [cell for cell in document.cells if cell.row in asked.rows and cell.column != "worst"]
    strips, left_out = collect(document, cells, Results(root, lambda _: None))
    picture = grid(strips, left_out)
    shown = {
        str(image.get_gid()): np.asarray(image.get_array()) for image in picture.axes[0].images
    }
    return picture, shown


def above(picture: Figure, gid: str) -> tuple[str, str] | None:
    """Text and colour of what stands over a picture."""
    axes = picture.axes[0]
    image = next(image for image in axes.images if image.get_gid() == gid)
    left, right, _, top = image.get_extent()
    for text in axes.texts:
        x, y = text.get_position()
        if left < x < right and top - 0.1 < y < top:
            return text.get_text(), str(text.get_color())
    return None


def test_pixels_are_those_of_the_runs(document: Document, runs_root: Path) -> None:
    _, shown = pictures(document, runs_root)
    rows, columns = ("two/pgd", "two/pgd_white_box"), (3, 4)
    assert set(shown) == {f"{r}/{i}/{kind}" for r in rows for i in columns for kind in SHOWN}
    for index, place in ((3, 1), (4, 2)):  # the first that the undefended classifier has right
        clean = CLEAN[index, 0] / np.float32(255)
        np.testing.assert_array_equal(shown[f"two/pgd/{index}/clean"], clean)
        for name, level in (("pgd/{}/attacked", 0.2), ("pgd_white_box/{}/attacked", 0.3)):
            np.testing.assert_allclose(shown["two/" + name.format(index)], level + place / 100)
        np.testing.assert_allclose(shown[f"two/pgd/{index}/purified"], 0.6 + place / 100)
        change = 0.2 + place / 100 - clean
        expected = 0.5 + change / (2 * np.abs(change).max())
        np.testing.assert_allclose(shown[f"two/pgd/{index}/difference"], expected, atol=1e-6)


def test_a_random_transform_is_shown_before_what_it_becomes(
    document: Document, folders: Folders, runs_root: Path
) -> None:
    folders.made("purify", "p3", folders.images("a", "attack"), 0.5, transformed=True)
    folders.score("noisy", folders.images("p3", "purify"), (9, 1, 2, 3, 4), "cnn")
    noisy = replace(document.cells[3], column="noisy", scores=(("noisy",),), seeds=(0,))
    strips, _ = collect(document, [document.cells[3], noisy], Results(runs_root, lambda _: None))
    images = grid(strips, {}).axes[0].images
    left = {str(image.get_gid()): image.get_extent()[0] for image in images}
    assert "two/pgd/3/transformed" not in left
    for index in (3, 4):
        places = [left[f"two/noisy/{index}/{kind}"] for kind in (*SHOWN[:3], "transformed")]
        assert sorted(places) == places < [*places[1:], left[f"two/noisy/{index}/purified"]]
    pixels = next(i for i in images if i.get_gid() == "two/noisy/4/transformed").get_array()
    np.testing.assert_allclose(np.asarray(pixels), np.full(SHAPE[1:], 102 / 255), atol=1e-6)


def test_pictures_stand_from_left_to_right(document: Document, runs_root: Path) -> None:
    picture, _ = pictures(document, runs_root)
    place = {image.get_gid(): image.get_extent() for image in picture.axes[0].images}
    lefts = [place[f"two/pgd/{index}/{kind}"][0] for index in (3, 4) for kind in SHOWN]
    assert lefts == sorted(lefts) and len(set(lefts)) == 8
    assert place["two/pgd/3/clean"][3] < place["two/pgd_white_box/3/clean"][3]


def test_predictions_are_those_of_the_same_pixels(document: Document, runs_root: Path) -> None:
    picture, _ = pictures(document, runs_root)
    assert above(picture, "two/pgd/3/clean") == ("1 ✓", RIGHT)
    assert above(picture, "two/pgd/3/attacked") == ("9 ✗", WRONG)
    assert above(picture, "two/pgd/3/purified") == ("1 ✓", RIGHT)
    assert above(picture, "two/pgd/4/attacked") == ("2 ✓", RIGHT)
    assert above(picture, "two/pgd/4/purified") == ("9 ✗", WRONG)
    assert above(picture, "two/pgd_white_box/3/attacked") is None  # no run has classified it
    assert above(picture, "two/pgd_white_box/3/purified") == ("9 ✗", WRONG)


def test_nothing_is_purified_where_there_is_no_purifier(
    document: Document, runs_root: Path
) -> None:
    cells = [cell for cell in document.cells if cell.row == "none" and cell.column != "clean"]
    strips, _ = collect(document, cells, Results(runs_root, lambda _: None))
    shown = {str(image.get_gid()) for image in grid(strips, {}).axes[0].images}
    assert {gid for gid in shown if gid.endswith("purified")} == set() and len(shown) == 12
    assert [strip.predictions["attacked"].tolist() for strip in strips] == [[9, 2], [7, 7]]
    assert "clean" not in strips[1].predictions  # the other classifier has no clean run


def test_what_is_missing_is_told(document: Document, runs_root: Path) -> None:
    (runs_root / "purify/wp/images.npy").write_bytes(b"cut short")
    picture, shown = pictures(document, runs_root)
    assert {gid.rsplit("/", 2)[0] for gid in shown} == {"two/pgd"}
    note = " ".join(picture.axes[0].texts[-1].get_text().split())
    assert "Left out, its images are not stored: two / pgd_white_box." in note
    assert "Left out, not run: two / cw." in note


@pytest.mark.parametrize("path", ["dataset/digits-1", "purify/p1", "attack/a"])
def test_a_run_that_is_gone_leaves_its_row_out(
    document: Document, runs_root: Path, path: str
) -> None:
    (runs_root / path / "run.json").unlink()
    cells = [cell for cell in document.cells if cell.row == "two" and cell.column == "pgd"]
    strips, left_out = collect(document, cells, Results(runs_root, lambda _: None))
    assert strips == [] and left_out == {"two / pgd": "its images are not stored"}


def test_the_files(
    document: Document,
    a_document: Make,
    runs_root: Path,
    tmp_path: Path,
    smoke_scale: ScaleInfo,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for stale in ("table_3_images_svhn.png", "table_30_images.png"):
        (out / stale).write_bytes(b"of an older run")
    write_document(document, smoke_scale, runs_root, out, lambda _: None)
    first = (out / "table_3_images.png").read_bytes()
    assert first.startswith(b"\x89PNG") and b"tIME" not in first
    assert not (out / "table_3_images_svhn.png").exists()
    write_document(document, smoke_scale, runs_root, out, lambda _: None)
    assert (out / "table_3_images.png").read_bytes() == first

    nothing = a_document(*document.cells)
    write_document(nothing, smoke_scale, runs_root, out, lambda _: None)
    assert {path.name for path in out.glob("*.png")} == {"table_30_images.png"}


def test_blocks_of_the_same_runs_share_a_picture(
    document: Document,
    a_document: Make,
    runs_root: Path,
    tmp_path: Path,
    smoke_scale: ScaleInfo,
) -> None:
    def block(name: str, columns: Sequence[str]) -> list[Cell]:
        cells = [cell for cell in document.cells if cell.column in columns]
        return [replace(cell, block=name, block_label=name) for cell in cells]

    several = a_document(
        *block("svhn", ["clean", "pgd"]),
        *block("cifar10", ["clean", "pgd"]),
        *block("cifar100", ["clean", "pgd_white_box"]),
        *block("tinyimagenet", ["clean", "cw"]),
        images=document.images,
    )
    out = tmp_path / "out"
    write_document(several, smoke_scale, runs_root, out, lambda _: None)
    names = {path.name for path in out.glob("*.png")}
    assert names == {"table_3_images_svhn.png", "table_3_images_cifar100.png"}


def test_every_declared_picture_is_readable(plans: dict[str, Plan]) -> None:
    """At most twelve rows of images in a picture; each block has a picture of its own."""
    asked = {
        f"{paper.id}/{stem}": content["images"]
        for paper in plans["smoke"].papers.values()
        for stem, content in paper.documents.items()
        if "images" in content
    }
    assert {"advae/table_1", "advae/table_4", "aid/table_3"} <= set(asked)
    for name in asked:
        document = plans["smoke"].documents[name]
        rows, columns = (asked[name].get(axis, []) for axis in ("rows", "columns"))
        assert document.images == ImageGrid(asked[name]["each"], tuple(rows), tuple(columns))
        in_block = Counter(
            cell.block
            for cell in document.cells
            if cell.row in (rows or [cell.row]) and cell.column in (columns or [cell.column])
        )
        assert max(in_block.values()) <= 12, name


def test_unknown_rows_are_refused(tmp_path: Path) -> None:
    schemas, folder = tmp_path / "workflow/schemas", tmp_path / "benchmarks/advae"
    schemas.mkdir(parents=True)
    folder.mkdir(parents=True)
    for path in (ROOT / "workflow/schemas").iterdir():
        (schemas / path.name).write_text(path.read_text())
    (folder / "paper.yaml").write_text((ROOT / "benchmarks/advae/paper.yaml").read_text())
    asked = {"each": 2, "rows": ["pdg"]}
    table = {"table": "1", "title": "t", "where": "w", "images": asked, "rows": [{"id": "pgd"}]}
    table |= {"columns": [{"id": "clean"}], "blocks": [{"id": "mnist"}]}
    (folder / "table_1.yaml").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"table_1.yaml: images.rows: there is no row 'pdg'.*'pgd'"):
        load_paper(tmp_path, "advae")
