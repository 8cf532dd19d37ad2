"""Common corruptions: what each does to an image, CIFAR-10-C's own files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from purifiers.attacks._corruptions import MADE, brightness, contrast, pixelate, saturate
from purifiers.attacks.common_corruption import CommonCorruption
from purifiers.core.choices import CHOICES
from purifiers.core.component import build
from purifiers.core.errors import UserError

CORRUPTIONS = CHOICES["Corruption"]
RANDOM = np.random.RandomState(0)
NAMES = sorted(MADE)


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def images(request: pytest.FixtureRequest) -> Tensor:
    """Six smooth 32x32 images in whole 255ths."""
    channels = request.param
    draw = torch.Generator().manual_seed(0)
    small = torch.rand((6, channels, 8, 8), generator=draw)
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear")
    return (large * 255).round() / 255


def corrupted(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    attack = build(CommonCorruption, corruption=name, severity=severity)
    return attack(None, images, torch.zeros(len(images), dtype=torch.int64), seed)


def test_nineteen_corruptions_and_five_severities() -> None:
    assert len(CORRUPTIONS) == 19
    assert all(len(constants) == 5 for _, constants in MADE.values())


@pytest.mark.parametrize("name", NAMES)
def test_images_in_whole_255ths_that_severity_moves(name: str, images: Tensor) -> None:
    made = [corrupted(images, name, severity) for severity in (1, 5)]
    for moved in made:
        assert torch.allclose(moved * 255, (moved * 255).round(), atol=1e-4)
    first, last = ((moved - images).abs().mean() for moved in made)
    assert last > 0.004
    # upstream's elastic transform is strongest in its affine map at severity 1
    assert last > first or name == "elastic_transform"


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_structure_stays_where_only_structure_is_lost(name: str) -> None:
    flat = torch.full((1, 3, 32, 32), 102 / 255)
    moved = (corrupted(flat, name, 5) - flat).abs().max()
    smooths = ("blur", "contrast", "pixelate", "elastic", "jpeg")
    # values are cut off, so that a rounding error may cost one 255th
    assert (moved < 1.01 / 255) == any(part in name for part in smooths)


def test_noise_has_its_spread() -> None:
    flat = torch.full((4, 3, 32, 32), 0.5)
    for name, spread in (("gaussian_noise", 0.10), ("speckle_noise", 0.5 * 0.2)):
        assert corrupted(flat, name, 5).std() == pytest.approx(spread, rel=0.05)
    photons = corrupted(flat, "shot_noise", 5).std()
    assert photons == pytest.approx((0.5 / 50) ** 0.5, rel=0.05)  # Poisson: variance = mean
    hit = corrupted(flat, "impulse_noise", 5)
    assert ((hit == 0) | (hit == 1)).float().mean() == pytest.approx(0.07, abs=0.01)


def test_noise_belongs_to_the_image_the_seed_and_the_severity() -> None:
    flat = torch.full((3, 1, 16, 16), 0.5)
    attack = CommonCorruption(corruption="gaussian_noise", severity=4)
    labels = torch.zeros(3, dtype=torch.int64)
    made = attack(None, flat, labels, 1, [5, 6, 7])
    assert torch.equal(attack(None, flat[:2], labels[:2], 1, [7, 5]), made[[2, 0]])
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made, attack(None, flat, labels, 2, [5, 6, 7]))
    other = CommonCorruption(corruption="gaussian_noise", severity=5)(
        None, flat, labels, 1, [5] * 3
    )
    pair = [(image - 0.5).flatten() for image in (made[0], other[0])]
    assert abs(float(torch.corrcoef(torch.stack(pair))[0, 1])) < 0.3


def test_colours_in_closed_form() -> None:
    pixel = np.array([[[0.2, 0.4, 0.8]]])
    # value .8 -> 1 at the same hue and saturation
    assert np.allclose(brightness(pixel, 0.2, RANDOM), pixel / 0.8)
    assert np.allclose(brightness(np.zeros((1, 1, 1)), 0.3, RANDOM), 0.3)
    # saturation (.8 - .2) / .8 = .75 -> .375: halfway to grey
    assert np.allclose(saturate(pixel, (0.5, 0), RANDOM), [[[0.5, 0.6, 0.8]]])
    assert np.allclose(saturate(np.full((1, 1, 3), 0.5), (1, 0.2), RANDOM), [[[0.5, 0.4, 0.4]]])
    grey = saturate(np.full((1, 1, 1), 0.5), (1, 0.2), RANDOM)
    assert np.allclose(grey, 0.299 * 0.5 + 0.701 * 0.4)
    two = np.array([[[0.2], [0.6]]])
    assert np.allclose(contrast(two, 0.5, RANDOM), [[[0.3], [0.5]]])


def test_pixelate_takes_means_of_boxes() -> None:
    board = np.indices((4, 4)).sum(axis=0)[..., None] % 2 * 1.0
    assert np.allclose(pixelate(board, 0.5, RANDOM), 0.5, atol=1 / 255)


@pytest.mark.parametrize("name", ["fog", "frost", "motion_blur", "snow", "spatter"])
def test_what_no_library_makes_is_refused_with_its_file(name: str) -> None:
    with pytest.raises(UserError, match=f"CIFAR-10-C/{name}.npy"):
        CommonCorruption(corruption=name)
    CommonCorruption(corruption=name, source="files")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"corruption": "gaussian_blurr"}, "did you mean 'gaussian_blur'"),
        ({"severity": 6}, "severity is 6, but takes a whole number from 1 to 5"),
        ({"source": "web"}, "choose one of made, files"),
    ],
)
def test_wrong_parameters(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CommonCorruption(**wrong)


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as CIFAR-10-C's, of 8 images: pixel = 20 * severity + image."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    pixels = np.zeros((40, 32, 32, 3), np.uint8)
    pixels += (20 * (np.arange(40) // 8 + 1) + np.arange(40) % 8)[:, None, None, None].astype("u1")
    pixels[..., 2] += 100
    np.save(folder / "frost.npy", pixels)
    np.save(folder / "labels.npy", np.tile(np.arange(8, dtype=np.uint8), 5))
    monkeypatch.setenv("PURIFYBENCH_DATA", str(tmp_path))
    return folder


def test_official_files_by_index_and_severity(official: Path) -> None:
    attack = CommonCorruption(corruption="frost", severity=3, source="files")
    made = attack(None, torch.rand(2, 3, 32, 32), torch.tensor([6, 1]), 0, [6, 1])
    assert torch.equal(
        (made * 255).round()[:, :, 0, 0], torch.tensor([[66, 66, 166], [61, 61, 161]])
    )


@pytest.mark.parametrize(
    ("images", "labels", "index"),
    [
        ((1, 3, 32, 32), 5, 6),  # another order
        ((1, 1, 28, 28), 6, 6),  # another data set
        ((1, 3, 32, 32), 0, 8),  # an index that belongs to the next severity
    ],
)
def test_official_files_of_other_images_are_refused(
    official: Path, images: tuple[int, ...], labels: int, index: int
) -> None:
    attack = CommonCorruption(corruption="frost", severity=1, source="files")
    with pytest.raises(UserError, match="not those of these images"):
        attack(None, torch.rand(images), torch.tensor([labels]), 0, [index])


def test_missing_and_foreign_files(official: Path) -> None:
    attack = CommonCorruption(corruption="snow", severity=1, source="files")
    with pytest.raises(UserError, match=r"snow\.npy is missing"):
        attack(None, torch.rand(1, 3, 32, 32), torch.tensor([0]))
    np.save(official / "snow.npy", np.zeros((4, 2), np.float32))
    with pytest.raises(UserError, match="not a file of CIFAR-10-C"):
        attack(None, torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_the_planner_knows_what_cannot_be_made() -> None:
    """The list in the traits and the functions do not drift apart."""
    from purifiers.core import registry

    (note,) = registry.describe("attack", "common_corruption").traits.refused
    refused = set(note.when["corruption"])
    assert not refused & set(MADE)
    assert json.loads(json.dumps(sorted(refused | set(MADE)))) == list(CORRUPTIONS)
