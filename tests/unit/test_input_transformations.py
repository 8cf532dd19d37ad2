"""JPEG, bit depth, median, non-local means and total variation, against libraries and by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor

from purifiers.core.component import Method, build
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.straight_through import with_gradient_of
from purifiers.methods import _squeezers as squeezers
from purifiers.methods._split_bregman import inpaint
from purifiers.methods.feature_squeezing import FeatureSqueezing
from purifiers.methods.jpeg import Jpeg, compress, soft_compress
from purifiers.methods.tvm import Tvm


def picture(channels: int = 3, side: int = 32, count: int = 2) -> Tensor:
    """Smooth random images with a little noise, on 256 levels."""
    draw = torch.Generator().manual_seed(side + channels)
    coarse = torch.rand(count, channels, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    noise = 0.02 * torch.randn(smooth.shape, generator=draw)
    return ((smooth + noise).clamp(0, 1) * 255).round() / 255


def gradient(function: Any, images: Tensor) -> Tensor:
    """Gradient of a weighted sum of the output."""
    leaf = images.clone().requires_grad_(True)
    output = function(leaf)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (result,) = torch.autograd.grad((weights * output).sum(), leaf)
    return result


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 21)])
@pytest.mark.parametrize("quality", [1, 75, 100])
def test_jpeg_is_pillows(channels: int, side: int, quality: int) -> None:
    images = picture(channels, side)
    expected = []
    for image in images:
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        shown = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        shown.save(buffer, "JPEG", quality=quality)  # 4:2:0 is Pillow's default
        decoded = np.asarray(Image.open(buffer)).reshape(side, side, channels)
        expected.append(torch.tensor(decoded).permute(2, 0, 1) / 255)
    assert torch.equal(Jpeg(quality=quality).purify(images), torch.stack(expected))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [25, 75])
def test_the_differentiable_jpeg_is_close_to_pillows(channels: int, quality: int) -> None:
    images = picture(channels)
    exact, soft = compress(images, quality), soft_compress(images, quality)
    assert soft.shape == exact.shape
    error, change = ((soft - exact).abs().mean(), (images - exact).abs().mean())
    assert error < 2.5 / 255 and error < 0.5 * change


def test_jpeg_has_kornias_gradient_and_pillows_values() -> None:
    images, method = picture(), Jpeg(quality=50)
    leaf = images.clone().requires_grad_(True)
    assert torch.equal(method.purify(leaf), method.purify(images))
    expected = gradient(lambda x: soft_compress(x, 50), images)
    assert torch.equal(gradient(method.purify, images), expected)
    identity = torch.linspace(-1, 1, images.numel()).view_as(images)
    assert (expected - identity).abs().mean() > 0.1 * identity.abs().mean()


def test_an_attacker_may_choose_the_identitys_gradient() -> None:
    images = picture()
    defence = Defence(lambda x: x.flatten(1), [Jpeg(quality=50)], gradient="bpda")
    assert torch.equal(gradient(defence, images), gradient(lambda x: x.flatten(1), images))


def test_bits_by_hand() -> None:
    values = torch.tensor([0.0, 0.16, 0.17, 0.49, 0.51, 1.0]).view(1, 1, 1, 6)
    two = torch.tensor([0.0, 0.0, 1 / 3, 1 / 3, 2 / 3, 1.0]).view(1, 1, 1, 6)
    assert torch.allclose(squeezers.reduce_bits(values, 2), two)
    assert squeezers.reduce_bits(values, 1).flatten().tolist() == [0, 0, 0, 0, 1, 1]
    images = picture()
    assert torch.allclose(squeezers.reduce_bits(images, 8), images)
    leaf = images.clone().requires_grad_(True)
    (passed,) = torch.autograd.grad(squeezers.reduce_bits(leaf, 1).sum(), leaf)
    assert torch.equal(passed, torch.ones_like(images))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_median_is_scipys(side: int) -> None:
    images = picture(side=9)
    expected = ndimage.median_filter(images.numpy(), (1, 1, side, side), mode="reflect")
    assert np.array_equal(squeezers.median(images, side).numpy(), expected)
    followed = squeezers.median(images.requires_grad_(True), side)
    assert followed.requires_grad and np.array_equal(followed.detach().numpy(), expected)


def test_medians_gradient_goes_to_the_pixel_taken() -> None:
    images = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    leaf = images.clone().requires_grad_(True)
    centre = squeezers.median(leaf, 3)[0, 0, 2, 3]
    (passed,) = torch.autograd.grad(centre, leaf)
    assert torch.equal(passed, (images == centre).float())


@pytest.mark.parametrize("channels", [1, 3])
def test_non_local_means_is_scikit_images_per_image(channels: int) -> None:
    images = picture(channels, side=16)
    smooth = squeezers.non_local_means(images, 13, 3, 4 / 255)
    for image, result in zip(images.permute(0, 2, 3, 1).numpy(), smooth, strict=True):
        # scikit-image confuses the axes of grey images whose channel comes first
        shown, axis = (image, -1) if channels == 3 else (image[..., 0], None)
        expected = denoise_nl_means(shown, 3, 6, 4 / 255, fast_mode=True, channel_axis=axis)
        expected = np.moveaxis(expected.reshape(image.shape), -1, 0)
        assert np.allclose(result, expected, atol=1e-6)
    assert (smooth - images).abs().max() > 1 / 255


def test_squeezers_are_applied_in_order() -> None:
    images = picture(side=16)
    method = FeatureSqueezing(bits=3, median=3, nlm_search=5)
    expected = squeezers.median(squeezers.reduce_bits(images, 3), 3)
    expected = squeezers.non_local_means(expected, 5, 3, 4 / 255)
    assert torch.equal(method.purify(images), expected)
    assert torch.equal(FeatureSqueezing(bits=None, median=1).purify(images), images)


def energy(z: Tensor, images: Tensor, kept: Tensor, weight: float) -> float:
    down = torch.zeros_like(z)
    across = torch.zeros_like(z)
    down[..., :-1, :] = z.diff(dim=-2)
    across[..., :-1] = z.diff(dim=-1)
    total = torch.hypot(down, across).sum()
    return float(0.5 * (kept * (z - images)).square().sum() + weight * total)


def test_total_variation_of_two_halves_in_closed_form() -> None:
    """Each half moves towards the other by weight * height / (its number of kept pixels)."""
    height, width, weight = 8, 12, 0.05
    images = torch.full((1, 1, height, width), 0.2)
    images[..., width // 2 :] = 0.9
    kept = torch.ones_like(images)
    kept[..., ::2, :4] = 0  # 16 of the left half's 48
    solved = inpaint(images, kept, weight, 600)
    left, right = weight * height / 32, weight * height / 48
    assert torch.allclose(solved[..., : width // 2], torch.tensor(0.2 + left), atol=2e-3)
    assert torch.allclose(solved[..., width // 2 :], torch.tensor(0.9 - right), atol=2e-3)


def test_dropped_pixels_of_a_constant_image_are_restored() -> None:
    images = torch.full((2, 3, 10, 7), 0.4)
    kept = (torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    assert torch.allclose(inpaint(images, kept, 0.03, 300), images, atol=1e-3)
    wild = torch.where(kept == 1, images, torch.tensor(0.9))
    assert torch.equal(inpaint(wild, kept, 0.03, 50), inpaint(images, kept, 0.03, 50))


def test_without_drops_it_is_scikit_images_chambolle() -> None:
    images = picture()
    kept = torch.ones_like(images)
    solved = inpaint(images, kept, 0.03, 800)
    for image, result in zip(images.numpy(), solved, strict=True):
        theirs = torch.stack(
            [
                torch.from_numpy(denoise_tv_chambolle(channel, 0.03, eps=1e-9, max_num_iter=3000))
                for channel in image
            ]
        )
        assert (result - theirs).abs().max() < 4e-3
        ours, lowest = (energy(z, torch.from_numpy(image), kept[0], 0.03) for z in (result, theirs))
        assert abs(ours / lowest - 1) < 1e-3
    assert torch.allclose(inpaint(images, kept, 1e-7, 20), images, atol=1e-5)


def test_a_hundred_iterations_are_near_the_minimum() -> None:
    images = picture()
    kept = (torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    best, usual = (inpaint(images, kept, 0.03, steps) for steps in (2000, 100))
    assert (usual - best).abs().mean() < 2e-3
    lowest = energy(best, images, kept, 0.03)
    assert energy(usual, images, kept, 0.03) < 1.1 * lowest
    nearby = best + 0.01 * torch.randn(best.shape, generator=torch.Generator().manual_seed(2))
    assert lowest < energy(nearby, images, kept, 0.03)


def test_tvm_drops_by_seed_and_index_alone() -> None:
    images = picture(count=3)
    method = Tvm(iterations=10)
    whole = method.purify(images, 5, [4, 9, 7])
    assert torch.equal(method.purify(images[1:2], 5, [9]), whole[1:2])
    assert not torch.equal(method.purify(images, 6, [4, 9, 7]), whole)
    assert torch.equal(Tvm(drop=0.0).purify(images, 1), Tvm(drop=0.0).purify(images, 2))
    nothing = Tvm(drop=0.0, weight=1e-7).purify(images)
    assert torch.allclose(nothing, images, atol=1e-5)


def test_a_surrogate_lends_its_gradient_only() -> None:
    leaf = torch.tensor([0.3, 0.7], requires_grad=True)
    output = with_gradient_of(leaf.detach().round(), 3 * leaf)
    assert output.tolist() == [0.0, 1.0]
    (passed,) = torch.autograd.grad(output.sum(), leaf)
    assert passed.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (Jpeg, {"quality": 0}, "Jpeg: quality is 0, but takes a whole number from 1 to 100"),
        (Jpeg, {"quality": 101}, "Jpeg: quality is 101, but takes a whole number from 1 to 100"),
        (FeatureSqueezing, {"bits": 0}, "bits is 0, but takes a whole number from 1 to 8 or null"),
        (FeatureSqueezing, {"bits": 9}, "bits is 9, but takes a whole number from 1 to 8 or null"),
        (FeatureSqueezing, {"nlm_search": 4}, "nlm_search is 4, but takes an odd whole number"),
        (FeatureSqueezing, {"nlm_patch": 2}, "nlm_patch is 2, but takes an odd whole number"),
        (FeatureSqueezing, {"nlm_strength": 0}, "nlm_strength is 0: choose a number above 0"),
        (Tvm, {"weight": 0}, "weight is 0, but takes a number above 0"),
        (Tvm, {"drop": 1}, r"drop is 1, but takes a number in \[0, 1\)"),
    ],
)
def test_wrong_numbers_are_one_line(cls: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build(cls, **parameters)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("parameters", [{"median": 7}, {"nlm_search": 7}])
def test_windows_larger_than_the_images_are_refused(parameters: dict[str, int]) -> None:
    (name,) = parameters
    method = FeatureSqueezing(**parameters)
    with pytest.raises(UserError, match=f"{name} is 7, larger than 9x6 images: lower it$"):
        method.purify(torch.rand(1, 1, 9, 6))


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        (Jpeg(), (2, 8, 8), r"^jpeg takes images of 1 or 3 channels; these have 2: "),
        (
            FeatureSqueezing(median=9),
            (1, 8, 8),
            "median is 9, larger than 8x8",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused_when_bound(
    method: Method, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        method.bind(None, shape)
