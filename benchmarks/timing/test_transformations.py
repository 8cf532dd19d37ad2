"""Speed of input transformations compared with a plain loop over the images.

JPEG's plain loop converts, encodes and decodes one image at a time, as
`facebookarchive/adversarial_image_defenses` does; the suite converts a batch at once. The median's
is SciPy on one image at a time. Both loops give the same images.

The plain loop of total variation is scikit-image's ``denoise_tv_bregman`` on one image at a time,
on images without dropped pixels, because no library has the problem with a mask. Its rule for
gradients differs from Goldstein & Osher's, so that the images agree to half of what either
changes. The suite draws and drops pixels too.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from plain import judge, measured
from scipy import ndimage
from skimage.restoration import denoise_tv_bregman
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from purifiers.core.component import Method
from purifiers.methods.feature_squeezing import FeatureSqueezing
from purifiers.methods.jpeg import Jpeg
from purifiers.methods.tvm import Tvm
from purifiers.report.attack_timing import SUITE

# name: (channels, side, images)
CASES = {"grey": (1, 28, 128), "colour": (3, 32, 128), "large": (3, 64, 64)}
QUALITY, SIDE, WEIGHT, ITERATIONS = 75, 2, 0.03, 100
LEAST = 0.5
"""Required speed-up over the plain loop, on a processor: the libraries do the same work in both."""


def smooth(channels: int, side: int, count: int) -> Tensor:
    """Images of 256 levels without much noise, like photographs."""
    torch.manual_seed(0)
    coarse = torch.rand(count, channels, side // 4, side // 4)
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    noisy = images + 0.02 * torch.randn(images.shape)
    return (noisy.clamp(0.0, 1.0) * 255).round() / 255


def one_jpeg(image: Tensor) -> Tensor:
    buffer = io.BytesIO()
    to_pil_image((255 * image).round().byte()).save(buffer, "JPEG", quality=QUALITY)
    return to_tensor(Image.open(buffer))


def one_median(image: Tensor) -> Tensor:
    return torch.from_numpy(ndimage.median_filter(image.numpy(), (1, SIDE, SIDE), mode="reflect"))


def one_tvm(image: Tensor) -> Tensor:
    # scikit-image confuses the axes of grey images whose channel comes first
    last = image.permute(1, 2, 0).numpy()
    limits = {"max_num_iter": ITERATIONS, "eps": 0.0}
    restored = denoise_tv_bregman(last, 1 / WEIGHT, **limits, channel_axis=-1)
    return torch.from_numpy(restored.reshape(last.shape)).permute(2, 0, 1)


METHODS: dict[str, tuple[Method, Callable[[Tensor], Tensor]]] = {
    "jpeg": (Jpeg(quality=QUALITY), one_jpeg),
    "median": (FeatureSqueezing(bits=None, median=SIDE), one_median),
    "tvm": (Tvm(weight=WEIGHT, iterations=ITERATIONS), one_tvm),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_transformation(
    name: str, case: str, device: str, benchmark: Any, pytestconfig: pytest.Config
) -> None:
    """The suite is at least ``LEAST`` times as fast as the plain loop, with the same images."""
    method, one = METHODS[name]
    images = smooth(*CASES[case])
    on_device = images.to(device)
    rows: dict[str, Callable[[], Tensor]] = {
        "plain loop": lambda: torch.stack([one(image) for image in images]),
        SUITE: lambda: method.purify(on_device),
    }
    expected = rows["plain loop"]()  # also warms up
    compared = Tvm(drop=0.0, weight=WEIGHT, iterations=ITERATIONS) if name == "tvm" else method
    result = compared.purify(on_device).cpu()
    if name == "tvm":
        difference = float((result - expected).abs().mean())
        assert difference < 0.5 * float((result - images).abs().mean())
    else:
        difference = float((result - expected).abs().max())
        assert difference < 1e-6, f"the images differ by up to {difference:.2g}"
    seconds = measured(rows, device, benchmark, pytestconfig)
    details = {"purifier": name, "case": case, "n_images": len(images)}
    judge(benchmark, device, seconds, LEAST, **details, largest_difference=difference)
