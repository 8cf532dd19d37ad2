"""Speed of the suite's purification compared with a plain loop, on the same weights.

Defense-GAN needs 2,000 gradients of a generator per image. Its plain loop does what
`kabkabm/defensegan` does: one restart after the other, with gradients of all trainable parameters.
The suite runs all restarts at once, computes gradients of the codes alone, and computes the last
deconvolution as a convolution.

AID-Purifier needs ten gradients of its discriminator. Its plain loop does what
`yelobean/AIDPurifier` does: a pass of the classifier's first layers for each of its four taps, two
of them multiplied by zero, in contiguous layout. The suite runs one pass for all taps in use.

PixelDefend sets one pixel after the other. Its plain loop is a pass of PixelCNN++ per pixel, in
single precision. The suite caches every intermediate result, in double precision. Passes cost the
same at every pixel, so a few are timed and scaled up.

DiffPure runs its network once per step. Its plain loop does what `NVlabs/DiffPure` does with
`yang-song/score_sde_pytorch`: one image after the other, in contiguous layout. The suite runs all
images at once, and under EOT all draws. It is also compared with the network's passes alone.

ADP runs its network twice per step. Its plain loop does what `jmyoon1/adp` does, one run after the
other, here also one image after the other.

AToP runs its generator once per mask. Its plain loop does what `glin2022/atop` does for RT3, one
mask after the other, here also one image after the other. DiffPure and AToP are also measured with
the gradient through all of it, which an attack needs.

IDFR passes once through its denoiser and once, inside the classifier, through its restorer. Its
plain loop is the same networks in contiguous layout, one image after the other. The floor is a pass
of denoiser, encoder, restorer and head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import judge, measured
from torch import Tensor

from purifiers.classifiers.resnet18 import Resnet18
from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.component import Method, frozen
from purifiers.core.defence import Defence
from purifiers.core.heads import split
from purifiers.core.noise import derive_seed
from purifiers.core.target import FIRST_DRAW, as_target
from purifiers.methods._pixel_cnn import PixelCnn
from purifiers.methods._pixel_cnn_decoding import decode, decode_naively
from purifiers.methods.adp import Adp
from purifiers.methods.aid import Aid
from purifiers.methods.atop import Atop
from purifiers.methods.defense_gan import DefenseGan
from purifiers.methods.diff_pure import DiffPure
from purifiers.methods.idfr import Idfr
from purifiers.report.attack_timing import SUITE
from purifiers.timing.plain_diffusion import PlainNetwork, one_by_one
from purifiers.timing.plain_inpainting import contiguous, mask_by_mask
from purifiers.timing.plain_purification import beginnings, plain, repeated, sequential
from purifiers.timing.plain_score import PlainScore, run_by_run

LEAST = 2.0
"""Required speed-up over the plain loop, on a processor."""
SHAPE = (1, 28, 28)
RESTARTS = 10
# name: (width, latent, descent steps, images); Table 2 of the AID-Purifier paper was measured
# with one image at a time
CASES = {
    "paper-one": (64, 128, 20, 1),
    "paper-batch": (64, 128, 8, 4),
    "desk-one": (16, 32, 50, 1),
    "desk-batch": (16, 32, 10, 16),
}
# name: (depth and width of the residual network, stride of its first stage, width of the
# discriminator, images, required speed-up); WRN-34-10 and 1024 are the paper's. The plain loop
# passes twice through the network; with a large network, or one image, nothing else can be saved
AID_CASES = {
    "paper-one": (34, 10, 1, 1024, 1, 1.5),
    "middle-batch": (16, 4, 1, 1024, 16, 1.8),
    "desk-one": (10, 1, 2, 256, 1, 1.5),
    "desk-batch": (10, 1, 2, 256, 128, LEAST),
}
SIDE, REACH, MIXTURES = 32, 16, 10
# name: (blocks, filters, images, rows of 32 that the suite decodes, pixels of the plain loop);
# four rows include every scale in proportion
PIXEL_CASES = {
    "narrow-one": (2, 40, 1, 32, 8),
    "narrow-batch": (2, 40, 16, 4, 2),
    "deep-one": (5, 40, 1, 32, 4),
    "paper-one": (5, 160, 1, 8, 1),
}
# name: (width, blocks, multipliers, steps, images, required speed-up); with one image there is
# little to save. Steps cost the same, so a few do
DIFFUSION_CASES = {
    "paper-one": (128, 8, (1, 2, 2, 2), 1, 1, 0.8),
    "paper-batch": (128, 8, (1, 2, 2, 2), 1, 4, 1.2),
    "desk-one": (32, 2, (1, 2, 2), 4, 1, 1.0),
    "desk-batch": (32, 2, (1, 2, 2), 3, 16, LEAST),
}
# name: (width, blocks, multipliers, steps, draws of EOT, images)
EOT_CASES = {"desk-eot": (32, 2, (1, 2, 2), 2, 4, 4)}
# name: (width, blocks, iterations, draws, images, required speed-up); 128 and 2 are the paper's
SCORE_CASES = {
    "paper-batch": (128, 2, 1, 1, 4, 1.0),
    "desk-one": (16, 2, 4, 1, 1, 1.0),
    "desk-batch": (16, 2, 3, 2, 16, LEAST),
    "small-batch": (8, 1, 5, 3, 32, LEAST),
}
# name: (width, noise, masks, images, required speed-up); 48 is upstream's. One pass per mask costs
# the same alone, so that a wide network gains little
ATOP_CASES = {
    "paper-rt1": (48, 0.0, 1, 4, 1.0),
    "paper-rt2": (48, 0.25, 1, 4, 1.0),
    "paper-rt3": (48, 0.25, 4, 4, 1.0),
    "desk-rt2": (16, 0.25, 1, 32, 1.2),
    "desk-rt3": (16, 0.25, 4, 16, 1.2),
}
# name: (width of the ResNet-18, of the denoiser, images, required speed-up); the paper's are 64
# and 32
IDFR_CASES = {
    "paper-one": (64, 32, 1, 0.8),
    "paper-batch": (64, 32, 16, 1.0),
    "desk-batch": (16, 16, 64, LEAST),
}
IDFR_OVER_FLOOR = 1.1
MOST_OVER_FLOOR = 1.15
"""Largest time of ADP, AToP and DiffPure over that of its network's passes, on a processor."""
WITH_GRADIENT = "purifybench, with gradient"
LEAST_CACHED = 10.0
"""Required speed-up of cached decoding over the plain loop, on a processor."""


@pytest.mark.parametrize("case", CASES)
def test_defense_gan(case: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both give the same images, and the suite is at least ``LEAST`` times as fast."""
    width, latent, steps, count = CASES[case]
    torch.manual_seed(0)
    method = DefenseGan(width=width, latent=latent, steps=steps, restarts=RESTARTS)
    method.bind(None, SHAPE)
    frozen(method.to(device))
    network = plain(method)
    with torch.no_grad():
        images = method.generator(torch.randn(count, latent).to(device))
        images = (images + 0.1 * torch.randn(images.shape).to(device)).clamp(0.0, 1.0)
    rows: dict[str, Callable[[], Tensor]] = {
        "plain loop": lambda: sequential(method, network, images),
        SUITE: lambda: method.purify(images, 0),
    }
    purified = {row: run() for row, run in rows.items()}  # also warms up
    seconds = measured(rows, device, benchmark, pytestconfig)
    difference = float((purified["plain loop"] - purified[SUITE]).abs().max())
    assert difference < 1e-3, f"the images differ by up to {difference:.2g}"
    sizes = {"width": width, "latent": latent, "steps": steps, "restarts": RESTARTS}
    details = {"purifier": "defense_gan", "case": case, "n_images": count, **sizes}
    judge(benchmark, device, seconds, LEAST, **details, largest_difference=difference)


@pytest.mark.parametrize("case", AID_CASES)
def test_aid(case: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both give the same images in double precision, and the suite is faster."""
    depth, widen_factor, stride, width, count, least = AID_CASES[case]
    torch.manual_seed(0)
    shape = (3, SIDE, SIDE)
    classifier = WideResnet(shape, 10, depth=depth, widen_factor=widen_factor, first_stride=stride)
    frozen(classifier.to(device, memory_format=torch.channels_last))
    method = Aid(variant="upstream", width=width)
    method.bind(classifier, shape)
    frozen(method.to(device))
    parts = beginnings(classifier)
    images = torch.rand(count, *shape).to(device)
    rows: dict[str, Callable[[], Tensor]] = {
        "plain loop": lambda: repeated(method, parts, images),
        SUITE: lambda: method.purify(images.contiguous(memory_format=torch.channels_last)),
    }
    # double precision, because rounding decides the sign of a small gradient
    precise = copy.deepcopy(method).double()
    precise.classifier.double()
    few_images = images[:2].double()
    expected = repeated(precise, beginnings(precise.classifier), few_images)
    difference = float((precise.purify(few_images) - expected).abs().max())
    assert difference < 1e-9, f"the images differ by up to {difference:.2g}"
    seconds = measured(rows, device, benchmark, pytestconfig)
    sizes = {"depth": depth, "widen_factor": widen_factor, "first_stride": stride, "width": width}
    details = {"purifier": "aid", "case": case, "n_images": count, **sizes}
    judge(benchmark, device, seconds, least, **details)


def diffusion(sizes: dict[str, Any], device: str) -> DiffPure:
    """DiffPure of these sizes with random weights, also where training begins with zeros."""
    torch.manual_seed(0)
    method = DiffPure(**sizes)
    method.bind(None, (3, SIDE, SIDE))
    for parameter in method.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return frozen(method.to(device))


@pytest.mark.parametrize("case", DIFFUSION_CASES)
def test_diff_pure(case: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both give the same images from the same noise; the suite's passes are most of its time."""
    width, blocks, multipliers, steps, count, least = DIFFUSION_CASES[case]
    sizes = {"width": width, "blocks": blocks, "multipliers": multipliers, "steps": steps}
    method = diffusion(sizes, device)
    network = PlainNetwork(method).to(device)
    images = torch.rand(count, 3, SIDE, SIDE).to(device)
    state = images.contiguous(memory_format=torch.channels_last)

    def passes() -> Tensor:
        for _ in range(steps):
            noise = method.own_pass(state)
        return noise

    rows: dict[str, Callable[[], Tensor]] = {
        "floor": passes,
        "plain loop": lambda: one_by_one(method, network, images, 0),
        SUITE: lambda: method.purify(images, 0),
    }
    purified, seconds = with_gradient(rows, method, images, device, benchmark, pytestconfig)
    difference = float((purified["plain loop"] - purified[SUITE]).abs().max())
    assert difference < 1e-4, f"the images differ by up to {difference:.2g}"
    details = {"purifier": "diff_pure", "case": case, "n_images": count, **sizes}
    judge(benchmark, device, seconds, least, **details, largest_difference=difference)
    over = min(seconds[SUITE]) / min(seconds["floor"])  # the rounds that were disturbed least
    assert device == "cuda" or over < MOST_OVER_FLOOR, f"{over:.2f} times the network's passes"


@pytest.mark.parametrize("case", EOT_CASES)
def test_diff_pure_under_eot(
    case: str, device: str, benchmark: Any, pytestconfig: pytest.Config
) -> None:
    """Both give the same mean logits from the same noise; the plain loop is one draw at a time."""
    width, blocks, multipliers, steps, draws, count = EOT_CASES[case]
    sizes = {"width": width, "blocks": blocks, "multipliers": multipliers, "steps": steps}
    method = diffusion(sizes, device)
    network = PlainNetwork(method).to(device)
    classifier = frozen(Resnet18((3, SIDE, SIDE), 10, width=16).to(device))
    defence = Defence(classifier, [method], eot_samples=draws)
    images = torch.rand(count, 3, SIDE, SIDE).to(device)

    def draw_by_draw() -> Tensor:
        firsts = [FIRST_DRAW * number for number in range(1, draws + 1)]
        purified = [one_by_one(method, network, images, 0, first) for first in firsts]
        logits = [classifier(image) for one in purified for image in one.split(1)]
        return torch.cat(logits).view(draws, count, -1).mean(dim=0)

    rows: dict[str, Callable[[], Tensor]] = {
        "plain loop": draw_by_draw,
        SUITE: lambda: as_target(defence)(images, torch.arange(count)),  # from the first draw on
    }
    with torch.no_grad():
        logits = {row: run() for row, run in rows.items()}  # also warms up
        seconds = measured(rows, device, benchmark, pytestconfig)
    difference = float((logits["plain loop"] - logits[SUITE]).abs().max())
    assert difference < 1e-4, f"the logits differ by up to {difference:.2g}"
    details = {"purifier": "diff_pure", "case": case, "n_images": count, **sizes}
    details |= {"eot_samples": draws, "largest_difference": difference}
    judge(benchmark, device, seconds, LEAST, **details)


@pytest.mark.parametrize("case", ATOP_CASES)
def test_atop(case: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both give the same images; the suite's passes are most of its time."""
    width, noise, masks, count, least = ATOP_CASES[case]
    torch.manual_seed(0)
    method = Atop(width=width, noise=noise, masks=masks, fine_tune=False, gan_weight=0.0)
    method.bind(None, (3, SIDE, SIDE))
    frozen(method.to(device))
    images = torch.rand(count, 3, SIDE, SIDE).to(device)
    state = images.contiguous(memory_format=torch.channels_last)
    generator = contiguous(method)

    def passes() -> Tensor:
        for _ in range(masks):
            filled = method.own_pass(state)
        return filled

    rows: dict[str, Callable[[], Tensor]] = {
        "floor": passes,
        "plain loop": lambda: mask_by_mask(method, generator, images, 0),
        SUITE: lambda: method.purify(state, 0),
    }
    purified, seconds = with_gradient(rows, method, state, device, benchmark, pytestconfig)
    difference = float((purified["plain loop"] - purified[SUITE]).abs().max())
    assert difference < 1e-4, f"the images differ by up to {difference:.2g}"
    details = {"purifier": "atop", "case": case, "n_images": count}
    details |= {"width": width, "noise": noise, "masks": masks}
    judge(benchmark, device, seconds, least, **details, largest_difference=difference)
    over = min(seconds[SUITE]) / min(seconds["floor"])
    assert device == "cuda" or over < MOST_OVER_FLOOR, f"{over:.2f} times the network's passes"


def with_gradient(
    rows: dict[str, Callable[[], Tensor]],
    method: Method,
    images: Tensor,
    device: str,
    benchmark: Any,
    pytestconfig: pytest.Config,
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Purified images of each row, and its seconds; also those of a gradient through ``method``."""
    with torch.no_grad():
        purified = {row: run() for row, run in rows.items()}  # also warms up
    timed = {row: torch.no_grad()(run) for row, run in rows.items()}
    timed[WITH_GRADIENT] = lambda: gradient(method, images)
    timed[WITH_GRADIENT]()
    return purified, measured(timed, device, benchmark, pytestconfig)


def gradient(method: Method, images: Tensor) -> Tensor:
    """Gradient of the purified images' sum, as an attack computes it."""
    leaf = images.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(method.purify(leaf, 0).sum(), leaf)
    return slope


def all_move(method: Adp, images: Tensor) -> bool:
    with torch.no_grad():
        noisy, *_, last = method.states(images, 0)
    return bool((noisy != last).flatten(1).any(dim=1).all())


@pytest.mark.parametrize("case", SCORE_CASES)
def test_adp(case: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both give the same images from the same noise; the suite's passes are most of its time."""
    width, blocks, iterations, draws, count, least = SCORE_CASES[case]
    torch.manual_seed(0)
    method = Adp(width=width, blocks=blocks, iterations=iterations)
    method.bind(None, (3, SIDE, SIDE))
    frozen(method.to(device))
    images = torch.rand(count, 3, SIDE, SIDE).to(device)
    state = images.contiguous(memory_format=torch.channels_last)
    if not all_move(method, state):  # a random score may grow along itself; then it is turned round
        for parameter in method.network.last.parameters():
            parameter.data.neg_()
    assert all_move(method, state), "an image that stops at once tells nothing"
    network = PlainScore(method).to(device)

    def passes() -> Tensor:
        for _ in range(2 * iterations * draws):
            score = method.own_pass(state)
        return score

    def suite() -> Tensor:
        return torch.stack([method.purify(state, derive_seed(0, draw)) for draw in range(draws)])

    rows: dict[str, Callable[[], Tensor]] = {
        "floor": passes,
        "plain loop": lambda: run_by_run(method, network, images, 0, draws),
        SUITE: suite,
    }
    with torch.no_grad():
        purified = {row: run() for row, run in rows.items()}  # also warms up
        seconds = measured(rows, device, benchmark, pytestconfig)
    difference = float((purified["plain loop"] - purified[SUITE]).abs().max())
    assert difference < 1e-3, f"the images differ by up to {difference:.2g}"
    sizes = {"width": width, "blocks": blocks, "iterations": iterations, "draws": draws}
    details = {"purifier": "adp", "case": case, "n_images": count, **sizes}
    judge(benchmark, device, seconds, least, **details, largest_difference=difference)
    over = min(seconds[SUITE]) / min(seconds["floor"])
    assert device == "cuda" or over < MOST_OVER_FLOOR, f"{over:.2f} times the network's passes"


@pytest.mark.parametrize("case", IDFR_CASES)
def test_idfr(case: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both give the same logits; the suite's passes are most of its time."""
    classifier_width, width, count, least = IDFR_CASES[case]
    torch.manual_seed(0)
    shape = (3, SIDE, SIDE)
    classifier = Resnet18(shape, 10, width=classifier_width)
    frozen(classifier.to(device, memory_format=torch.channels_last))
    method = Idfr(width=width)
    method.bind(classifier, shape)
    frozen(method.to(device))
    network = frozen(method.equipped(classifier))
    encoder, head = split(classifier, shape)
    plain_parts = [
        copy.deepcopy(part) for part in (method.denoiser, encoder, method.restorer, head)
    ]
    for part in plain_parts:
        part.to(memory_format=torch.contiguous_format)
    images = torch.rand(count, *shape).to(device)
    state = images.contiguous(memory_format=torch.channels_last)

    def one_at_a_time() -> Tensor:
        logits = []
        for image in images.split(1):
            for part in plain_parts:
                image = part(image)
            logits.append(image)
        return torch.cat(logits)

    rows: dict[str, Callable[[], Tensor]] = {
        "floor": lambda: head(method.restorer(encoder(method.denoiser(state)))),
        "plain loop": one_at_a_time,
        SUITE: lambda: network(method.purify(state)),
    }
    with torch.no_grad():
        logits = {row: run() for row, run in rows.items()}  # also warms up
        seconds = measured(rows, device, benchmark, pytestconfig)
    difference = float((logits["plain loop"] - logits[SUITE]).abs().max())
    assert difference < 1e-3, f"the logits differ by up to {difference:.2g}"
    details = {"purifier": "idfr", "case": case, "n_images": count}
    details |= {"classifier_width": classifier_width, "width": width}
    judge(benchmark, device, seconds, least, **details, largest_difference=difference)
    over = min(seconds[SUITE]) / min(seconds["floor"])
    assert device == "cuda" or over < IDFR_OVER_FLOOR, f"{over:.2f} times the network's passes"


@pytest.mark.parametrize("case", PIXEL_CASES)
def test_pixel_defend(case: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both choose the same levels, and the suite is at least ``LEAST_CACHED`` times as fast."""
    blocks, filters, count, decoded, pixels = PIXEL_CASES[case]
    torch.manual_seed(0)
    network = PixelCnn(3, scales=3, blocks=blocks, filters=filters, mixtures=MIXTURES, dropout=0.5)
    frozen(network.to(device))
    double = copy.deepcopy(network).double()
    levels = torch.randint(0, 256, (count, 3, SIDE, SIDE)).to(device)
    part = levels[:, :, :decoded]
    # also a warm-up; in the same precision, and beyond the first pixels
    first = decode(double, levels[:, :, :4, :4], REACH)
    same = torch.equal(first, decode_naively(double, levels[:, :, :4, :4], REACH))
    rows: dict[str, Callable[[], Tensor]] = {
        "plain loop": lambda: decode_naively(network, levels, REACH, pixels),
        SUITE: lambda: decode(double, part, REACH),
    }
    raw_seconds = measured(rows, device, benchmark, pytestconfig)
    share = {"plain loop": pixels / SIDE**2, SUITE: decoded / SIDE}
    seconds = {row: [value / share[row] for value in values] for row, values in raw_seconds.items()}
    assert same, "cached decoding chose other levels"
    details = {"purifier": "pixel_defend", "case": case, "n_images": count}
    sizes = {"blocks": blocks, "filters": filters, "measured_share": share}
    judge(benchmark, device, seconds, LEAST_CACHED, **details, **sizes)
