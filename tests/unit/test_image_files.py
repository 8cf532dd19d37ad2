"""Adversarial sets go out as one file and come back as the attack ``stored``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import purifiers
from purifiers.core.artifacts import sha256
from purifiers.core.errors import UserError
from purifiers.core.image_file import read_image_file
from purifiers.plan.graph import component_spec

EPS = 0.1


@pytest.fixture
def adversarial(victim):
    pgd = purifiers.attack("pgd", eps=EPS, steps=5, step_size=0.05)
    return pgd(victim.model, victim.images, victim.labels)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_set_comes_back_as_it_was(victim, adversarial, suffix, tmp_path):
    path = tmp_path / f"set{suffix}"
    indices = torch.arange(len(adversarial)).flip(0) + 1000
    purifiers.save_images(path, adversarial, victim.labels, indices, attack="pgd")
    content = read_image_file(path)
    assert np.array_equal(content.images, adversarial.numpy())
    assert content.provenance["attack"] == "pgd" and "torch" in content.provenance
    stored = purifiers.attack("stored", path=str(path), eps=EPS)
    chosen = torch.tensor([5, 2, 60])
    images, labels = victim.images[chosen], victim.labels[chosen]
    found = stored(victim.model, images, labels, indices=indices[chosen])
    assert torch.equal(found, adversarial[chosen])
    assert victim.accuracy(adversarial) < 0.5


def test_others_arrays_are_read(victim, tmp_path):
    path = tmp_path / "theirs.npz"
    pixels = (victim.images * 255).round().to(torch.uint8)
    np.savez(path, images=pixels.numpy())
    stored = purifiers.attack("stored", path=str(path))
    found = stored(victim.model, victim.images, victim.labels)
    assert torch.equal(found, pixels.float() / 255)


def test_others_parquet_is_read(victim, tmp_path):
    path = tmp_path / "theirs.parquet"
    pixels = (victim.images * 255).round().to(torch.uint8)
    table = pa.table({"image": list(pixels.flatten(1).numpy())})
    pq.write_table(table.replace_schema_metadata({"shape": "[1, 8, 8]"}), path)
    stored = purifiers.attack("stored", path=str(path))
    found = stored(victim.model, victim.images, victim.labels)
    assert torch.equal(found, pixels.float() / 255)
    pq.write_table(table, path)
    with pytest.raises(UserError, match=r"needs a column image, and its shape \[C, H, W\]"):
        read_image_file(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.05}, r"images leave the ball of eps 0\.05, by up to 0\.05"),
        ({"radius": 0.2}, r"images leave the ball of radius 0\.2"),
        ({"labels": np.zeros(64, np.int64)}, "labels are not those of the data set"),
        ({"indices": np.arange(64) + 1}, "has no image of index 0"),
        ({"indices": np.zeros(64, np.int64)}, "an index occurs twice"),
        ({"images": np.zeros((64, 1, 9, 9), np.float32)}, "expected .1, 8, 8."),
        ({"images": np.full((64, 1, 8, 8), 2, np.float32)}, r"leave \[0, 1\]"),
        ({"images": np.zeros((64, 8, 8))}, "images are float64"),
        ({"labels": np.zeros(3, np.int64)}, "64 images but labels of shape"),
    ],
)
def test_wrong_sets_are_refused(victim, adversarial, change, message, tmp_path):
    path = tmp_path / "set.npz"
    arrays = {"images": adversarial.numpy(), "labels": victim.labels.numpy()}
    ball = {key: value for key, value in change.items() if key in ("eps", "radius")}
    np.savez(path, **{**arrays, **{k: v for k, v in change.items() if k not in ball}})
    stored = purifiers.attack("stored", path=str(path), **ball)
    with pytest.raises(UserError, match=message) as caught:
        stored(victim.model, victim.images, victim.labels)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_what_is_no_set_is_refused(victim, adversarial, tmp_path):
    def refused(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            read_image_file(path)

    refused(tmp_path / "none.npz", "no such file")
    (tmp_path / "set.npz").write_bytes(b"nonsense")
    refused(tmp_path / "set.npz", "cannot be read as images")
    np.savez(tmp_path / "set.npz", images=np.array([{}], dtype=object))
    refused(tmp_path / "set.npz", "cannot be read as images")
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    refused(tmp_path / "set.parquet", "cannot be read as images")
    with pytest.raises(UserError, match=r"ends in .npz or .parquet"):
        purifiers.save_images(tmp_path / "set.h5", adversarial, victim.labels)
    with pytest.raises(UserError, match="no such file"):
        stored = purifiers.attack("stored", path=str(tmp_path / "none.npz"))
        stored(victim.model, victim.images, victim.labels)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize("size", [0, 1, 40, 0.3, 0.9, -1, "text"])
def test_damaged_sets_are_one_line(victim, adversarial, suffix, size, tmp_path):
    path = tmp_path / f"set.{suffix}"
    purifiers.save_images(path, adversarial, victim.labels)
    content = path.read_bytes()
    stop = int(size * len(content)) if isinstance(size, float) else size
    path.write_bytes(b"<html>not found</html>" if size == "text" else content[:stop])
    with pytest.raises(UserError, match=r"set\.\w+: cannot be read as images \(") as error:
        read_image_file(path)
    assert "\n" not in str(error.value) and "save_images" in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.array([0.5, 1.0])}, "labels are float64, expected whole numbers"),
        ({"labels": np.array([np.nan, 1.0])}, "labels are float64, expected whole numbers"),
        ({"labels": np.array(["cat", "dog"])}, "labels are <U3, expected whole numbers"),
        ({"indices": np.array([True, False])}, "indices are bool, expected whole numbers"),
        ({"labels": np.array([{}, {}])}, "allow_pickle=False"),
        (None, "a single array"),
    ],
)
def test_arrays_of_another_kind_are_one_line(arrays, message, tmp_path):
    path = tmp_path / "set.npz"
    images = np.zeros((2, 1, 4, 4), np.float32)
    with path.open("wb") as file:
        np.save(file, images) if arrays is None else np.savez(file, images=images, **arrays)
    with pytest.raises(UserError, match=message):
        read_image_file(path)


def test_whole_numbers_of_any_type_are_read(tmp_path):
    path = tmp_path / "set.npz"
    images = np.zeros((2, 1, 4, 4), np.float32)
    np.savez(path, images=images, labels=np.array([1.0, 2.0]), indices=np.array([4, 3], np.uint8))
    content = read_image_file(path)
    assert content.labels.tolist() == [1, 2] and content.indices.tolist() == [4, 3]


def test_provenance_is_json(victim, adversarial, tmp_path):
    path = tmp_path / "set.npz"
    purifiers.save_images(path, adversarial, victim.labels)
    with np.load(path) as arrays:
        assert json.loads(str(arrays["provenance"]))["device"] == "cpu"


def test_the_plan_holds_the_digest_of_the_file(victim, adversarial, tmp_path):
    path = tmp_path / "set.npz"
    purifiers.save_images(path, adversarial, victim.labels)
    first = component_spec("attack", "stored", {"path": str(path)})
    assert first.files == {str(path): sha256(path)}
    purifiers.save_images(path, adversarial, victim.labels, note="another")
    assert component_spec("attack", "stored", {"path": str(path)}) != first
