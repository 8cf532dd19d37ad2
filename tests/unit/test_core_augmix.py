"""AugMix against Pillow, operation by operation, and its mixtures against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from purifiers.core.augmix import OPERATIONS, AugMix, operated

LEVEL = 2.6
AFFINE = {
    "shear_x": lambda s: (1, 0.3 * s * LEVEL / 10, 0, 0, 1, 0),
    "shear_y": lambda s: (1, 0, 0, 0.3 * s * LEVEL / 10, 1, 0),
    "translate_x": lambda s: (1, 0, s * int(LEVEL * 32 / 30), 0, 1, 0),
    "translate_y": lambda s: (1, 0, 0, 0, 1, s * int(LEVEL * 32 / 30)),
}


def scene(seed: int) -> np.ndarray:
    """A colour image of 32x32 with a gradient, a flat part and noise."""
    draw = np.random.RandomState(seed)
    y, x = np.mgrid[:32, :32]
    image = np.stack([60 + 3 * x, 200 - 4 * y, 90 + x + 2 * y], axis=-1)
    image[8:20, 8:20] = 130
    return np.clip(image + draw.randint(-20, 21, image.shape), 3, 240).astype(np.uint8)


def by_pillow(name: str, image: Image.Image, sign: int) -> Image.Image:
    match name:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "posterize":
            return ImageOps.posterize(image, 4 - int(LEVEL * 4 / 10))
        case "solarize":
            return ImageOps.solarize(image, 256 - int(LEVEL * 256 / 10))
        case "rotate":
            return image.rotate(sign * int(LEVEL * 30 / 10), resample=Image.Resampling.BILINEAR)
    return image.transform(
        (32, 32), Image.Transform.AFFINE, AFFINE[name](sign), Image.Resampling.BILINEAR
    )


def tensors(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_pillow(name, sign):
    image = scene(0)
    numbers = torch.tensor([OPERATIONS.index(name)])
    result = operated(tensors(image), numbers, torch.tensor([LEVEL]), torch.tensor([float(sign)]))
    expected = tensors(np.asarray(by_pillow(name, Image.fromarray(image), sign)))
    assert (expected != tensors(image)).float().mean() > 0.03
    difference = (result - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.005


def test_a_flat_image_stays_under_tones():
    """Pillow leaves a channel of one grey level alone."""
    flat = torch.full((2, 1, 8, 8), 77.0)
    numbers = torch.tensor([OPERATIONS.index("autocontrast"), OPERATIONS.index("equalize")])
    assert torch.equal(operated(flat, numbers, torch.ones(2), torch.ones(2)), flat)


def test_each_image_has_its_own_operation():
    images = [scene(n) for n in range(len(OPERATIONS))]
    numbers = torch.arange(len(OPERATIONS))
    level, sign = torch.full((len(numbers),), LEVEL), torch.ones(len(numbers))
    together = operated(tensors(*images), numbers, level, sign)
    for n, image in enumerate(images):
        alone = operated(tensors(image), numbers[n : n + 1], level[:1], sign[:1])
        assert torch.equal(together[n : n + 1], alone)


def test_a_mixture_stays_in_range_and_its_share_is_uniform():
    """White images: solarised to black they become 1 - m, posterised to 240 more than 0.94."""
    images, indices = torch.rand(600, 1, 8, 8), torch.arange(600)
    mixed = AugMix()(images, 0, indices)
    assert mixed.dtype == torch.float32 and mixed.min() >= 0.0 and mixed.max() <= 1.0
    white = AugMix(width=1, depth=1, severity=0.1)(torch.ones_like(images), 0, indices)
    solarised = white[:, 0, 4, 4][white[:, 0, 4, 4] < 0.94]
    assert 40 <= len(solarised) <= 95  # about 0.94 * 600 / 9
    assert abs(float(solarised.mean()) - 0.47) < 0.12 and float(solarised.min()) < 0.1


def test_the_index_decides_and_not_the_batch():
    images = torch.rand(5, 3, 16, 16)
    indices = torch.tensor([4, 9, 2, 77, 0])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    every = AugMix()(images, 3, indices, "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(AugMix()(images[3:], 3, indices[3:], "a"), every[3:])
    for other in (AugMix()(images, 4, indices, "a"), AugMix()(images, 3, indices, "b")):
        assert not torch.equal(other, every)


def test_depth_and_width_are_used():
    """With depth 2 each chain has two operations: more change than with one."""
    images = tensors(*(scene(n) for n in range(40))) / 255
    indices = torch.arange(40)
    change = [
        float((AugMix(width=1, depth=depth)(images, 0, indices) - images).abs().mean())
        for depth in (1, 3)
    ]
    assert change[1] > 1.2 * change[0] > 0.0
    assert not torch.equal(AugMix(width=2)(images, 0, indices), AugMix()(images, 0, indices))
