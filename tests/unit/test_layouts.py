"""The content of a data set belongs to the identity of all that is made from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from purifiers.core import files
from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.files import digest_of, remembered
from purifiers.core.spec import DatasetSpec
from purifiers.plan.graph import component_spec
from purifiers.plan.plan import Plan
from purifiers.stages import dataset as stage
from purifiers.stages._context import Context

PAPER = {
    "classifiers": {
        "small": {"component": "wide_resnet", "depth": 10, "widen_factor": 1, "first_stride": 2}
    },
    "trainings": {"natural": {"component": "natural", "epochs": 1}},
    "methods": {"noise": {"component": "random_sign", "eps": 0.1}},
    "attacks": {
        "pgd": {"component": "pgd", "eps": 0.1, "steps": 2, "step_size": 0.05},
        "snow": {"component": "common_corruption", "corruption": "snow", "source": "files"},
    },
}
CELL = {
    **{"classifier": "small", "training": "natural", "methods": ["noise"], "eot": 1},
    **{"attack": "pgd", "threat_model": "white_box", "gradient": "exact"},
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("PURIFYBENCH_DATA", str(folder))
    return folder


@pytest.fixture
def plan(toy_plan: Callable[..., Plan], tmp_path: Path) -> Callable[..., Plan]:
    """``plan(name, use, ...)``: the plan of one cell on the data set ``use``."""

    def plan(use: str, attack: str = "pgd", **entry: object) -> Plan:
        path = tmp_path / "workflow/scales/tiny.yaml"
        scale = yaml.safe_load(path.read_text())
        scale["datasets"]["mine"] = {"use": use, **entry}
        path.write_text(yaml.safe_dump(scale))
        cell = {**CELL, "dataset": "mine", "attack": attack}
        if attack == "snow":
            cell |= {"threat_model": "oblivious"}
            cell = {key: value for key, value in cell.items() if key not in ("eot", "gradient")}
        return toy_plan(PAPER, cell, {"row": {}}, {"column": {}})

    return plan


def write_images(folder: Path, shade: int = 90) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = np.full((8, 8), shade + number, np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def test_one_other_pixel_moves_every_run(plan, data):
    write_images(data / "mine")
    own = {"parameters": {"path": "mine", "shape": [1, 16, 16]}}
    before = plan("image_folder", **own)
    assert {run.stage for run in before.runs.values()} == {
        *("dataset", "classifier", "attack", "purify", "score")
    }
    assert set(plan("image_folder", **own).runs) == set(before.runs)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(data / "mine/test/dog/1.png")
    after = plan("image_folder", **own)
    assert len(after.runs) == len(before.runs) and not set(after.runs) & set(before.runs)


def test_all_images_are_used_unless_the_scale_names_a_number(plan, data):
    write_images(data / "mine")
    (data / "mine/train/cat/notes.txt").write_text("no image")
    (data / "mine/train/cat/.hidden.png").write_text("no image")
    own = {"parameters": {"path": "mine", "shape": [1, 16, 16]}}

    def sizes(made: Plan) -> tuple[int, int]:
        by_stage = {run.stage: run.spec for run in made.runs.values()}
        return by_stage["classifier"].train, by_stage["attack"].images.subset.n

    made = plan("image_folder", **own)
    assert sizes(made) == (6, 4)
    (run,) = (run for run in made.runs.values() if run.stage == "dataset")
    assert run.size_bytes == 16 * 16 * 10
    assert "@1x16x16" in next(iter(made.score_runs("toy/table_1")[0].cost))
    assert sizes(plan("image_folder", train=5, test=3, **own)) == (5, 3)
    with pytest.raises(UserError, match=r"mine.test is 5, but there are 4 images: lower it"):
        plan("image_folder", test=5, **own)
    with pytest.raises(UserError, match=r"mine: no train images in .*other/train/\*/\*, or set"):
        plan("image_folder", parameters={"path": "other"})


def write_official(data: Path) -> None:
    """The name of an official file: the loader refuses another content."""
    (data / "cifar-10-binary.tar.gz").write_bytes(b"x")


def test_official_files_move_nothing(plan, data, monkeypatch):
    absent = set(plan("cifar10", train=4, test=2).runs)
    (data / "cifar10").mkdir()
    for split in ("train", "test"):
        (data / "cifar10" / f"{split}.parquet").write_bytes(split.encode())
    copy = set(plan("cifar10", train=4, test=2).runs)
    assert not copy & absent
    (data / "cifar10").rename(data / "cifar10_jpeg")
    assert not set(plan("cifar10", train=4, test=2).runs) & absent
    write_official(data)
    assert set(plan("cifar10", train=4, test=2).runs) == absent


def test_files_with_declared_checksums_move_nothing(data, monkeypatch):
    from purifiers.core.data_layouts import content_of
    from purifiers.core.traits import DatasetTraits, Layout

    size = {"shape": (1, 8, 8), "classes": 2, "train": 4, "test": 2}
    traits = DatasetTraits(version=1, reads=(Layout(columns="set"),), **size)
    (data / "set").mkdir()
    paths = [data / "set" / f"{split}.parquet" for split in ("train", "test")]
    for path in paths:
        path.write_bytes(path.name.encode())
    official = tuple(digest_of(path) for path in paths)
    assert content_of(traits.replace(official=official), {}) is None
    assert content_of(traits.replace(official=official[:1]), {}) == content_of(traits, {})
    assert content_of(traits, {}) is not None


def test_the_files_of_cifar_10_c_are_part_of_an_attack(plan, data):
    def attacks() -> set[str]:
        made = plan("cifar10", attack="snow", train=4, test=2).runs.values()
        return {run.id for run in made if run.stage == "attack"}

    seen = [attacks()]
    (data / "CIFAR-10-C").mkdir()
    for content in (b"one", b"two"):
        for name in ("snow", "labels", "fog"):
            (data / "CIFAR-10-C" / f"{name}.npy").write_bytes(content)
        seen.append(attacks())
    (data / "CIFAR-10-C" / "fog.npy").write_bytes(b"not read")
    assert attacks() == seen[2]
    assert len(set.union(*seen)) == 3 and all(len(runs) == 1 for runs in seen)


def test_the_stage_reads_only_what_was_planned(data, tmp_path):
    write_images(data / "mine")
    own = {"path": "mine", "shape": [1, 16, 16]}
    spec = DatasetSpec(dataset=component_spec("dataset", "image_folder", own))
    context = Context(tmp_path / "runs", "cpu", 1, 16, 60.0)
    folder = RunFolder(context.runs_root, "dataset", "mine")
    folder.path.mkdir(parents=True)
    outcome = stage.run(folder, spec, context)
    assert outcome.summary["sizes"] == {"train": 6, "test": 4} and outcome.summary["classes"] == 2
    (data / "mine/train/cat/0.png").rename(data / "mine/train/cat/9.png")
    with pytest.raises(UserError, match=r"image_folder have changed since it was planned: plan ag"):
        stage.run(folder, spec, context)


def test_digests_outlive_the_process(tmp_path, monkeypatch):
    read: list[Path] = []
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path) or real(path))
    path = tmp_path / "set.bin"
    path.write_bytes(b"one")
    for _ in range(2):
        monkeypatch.setattr(files, "_digests", {})  # another process
        with remembered(tmp_path / "runs"):
            first = digest_of(path)
    assert len(read) == 1
    monkeypatch.setattr(files, "_digests", {})
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))  # as if copied with its old time
    with remembered(tmp_path / "runs"):
        assert digest_of(path) != first
    assert len(read) == 2
    monkeypatch.setattr(files, "_digests", {})
    (tmp_path / "runs" / files.STORE).write_text('{"damaged')
    with remembered(tmp_path / "runs"):
        assert digest_of(path) != first
    assert len(read) == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p.unlink(), p.mkdir()), "is a folder, expected a file"),
        (lambda p: (p.unlink(), p.symlink_to("gone.png")), "is a broken link to gone.png"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: (p.parent / "more").mkdir(), "more: is a folder in a class's folder"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_it(spoil, message, data):
    from purifiers.datasets.image_folder import ImageFolder

    write_images(data / "mine")
    spoil(data / "mine/train/cat/1.png")
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(path="mine").load("train", data)
    assert "\n" not in str(caught.value) and str(data / "mine/train/cat") in str(caught.value)
    if "class's" not in message:
        with pytest.raises(UserError, match=message):
            component_spec("dataset", "image_folder", {"path": "mine"})


def test_an_image_without_permission(data, monkeypatch):
    write_images(data / "mine")

    def refuse(path: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        UserError, match=r"cat/0\.png: cannot be read \(Permission denied\): correct"
    ):
        component_spec("dataset", "image_folder", {"path": "mine"})
