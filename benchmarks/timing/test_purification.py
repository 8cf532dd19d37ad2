"""Speed of the suite's purification beside the plain loop, on the same weights.

Defense-GAN needs 2,000 gradients of a generator per image. Its plain loop does what
`kabkabm/defensegan` does, one restart after the other, with gradients of everything that is
trainable; the suite's takes all restarts at once and the gradients of the codes alone, and computes
the last deconvolution as a convolution.

PixelDefend decides one pixel after the other. Its plain loop is a pass of PixelCNN++ per pixel, in
single precision; the suite's computes nothing twice, in double precision. The passes cost the same
at every pixel, so a few are timed and scaled up.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import settings
import torch
from rounds import clock, machine
from torch import Tensor, nn

from purifiers.core.component import frozen
from purifiers.core.noise import normal
from purifiers.methods._pixel_cnn import PixelCnn
from purifiers.methods._pixel_cnn_decoding import decode, decode_naively
from purifiers.methods.defense_gan import DefenseGan

SHAPE = (1, 28, 28)
RESTARTS = 10
# name: (width, latent, descent steps, images); one image at a time is how Table 2 of the
# AID-Purifier paper was measured
CASES = {
    "paper-one": (64, 128, 20, 1),
    "paper-batch": (64, 128, 8, 4),
    "desk-one": (16, 32, 50, 1),
    "desk-batch": (16, 32, 10, 16),
}
LEAST = 2.0
"""Times that the suite has to be faster than the plain loop, on a processor."""
SIDE, REACH, MIXTURES = 32, 16, 10
# name: (blocks, filters, images, rows of 32 that the suite decodes, pixels of the plain loop); four
# rows bring every scale its share
PIXEL_CASES = {
    "narrow-one": (2, 40, 1, 32, 8),
    "narrow-batch": (2, 40, 16, 4, 2),
    "deep-one": (5, 40, 1, 32, 4),
    "paper-one": (5, 160, 1, 8, 1),
}
LEAST_CACHED = 10.0
"""The same, of cached decoding."""


def plain(method: DefenseGan) -> nn.Sequential:
    """The same generator, layer by layer, its parameters trainable."""
    source = method.generator
    layers: list[nn.Module] = [nn.Linear(*reversed(source.dense.weight.shape)), nn.ReLU()]
    layers[0].load_state_dict(source.dense.state_dict())
    layers.append(nn.Unflatten(1, source.first))
    for given in source.layers:
        inputs, outputs = given.weight.shape[:2]
        layer = nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, given.output_padding)
        layer.load_state_dict(given.state_dict())
        layers += [layer, nn.ReLU()]
    network = nn.Sequential(*layers[:-1], nn.Sigmoid()).to(source.dense.weight.device)
    return network.to(memory_format=torch.contiguous_format)


def sequential(method: DefenseGan, network: nn.Sequential, images: Tensor) -> Tensor:
    """The best of several restarts, one after the other."""
    best = torch.full((len(images),), math.inf, device=images.device)
    found = torch.zeros_like(images)
    for restart in range(method.restarts):
        start = normal(
            0, range(len(images)), (method.latent,), tag=f"defense_gan {restart}"
        ) / math.sqrt(method.latent)
        latent = start.to(images.device).requires_grad_(True)
        optimizer = torch.optim.SGD([latent], lr=method.learning_rate, momentum=method.momentum)
        for _ in range(method.steps):
            optimizer.zero_grad()
            (network(latent) - images).square().flatten(1).mean(dim=1).sum().backward()
            optimizer.step()
        with torch.no_grad():
            made = network(latent)
        error = (made - images).square().flatten(1).mean(dim=1)
        better = error < best
        found[better], best[better] = made[better], error[better]
    return found


def measured(
    rows: dict[str, Callable[[], Tensor]], device: str, benchmark: Any, pytestconfig: pytest.Config
) -> dict[str, list[float]]:
    """Seconds of each row in each round; every other round goes backwards."""
    now = clock(device)
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    turns = itertools.cycle([list(rows), list(reversed(rows))])

    def one_round() -> None:
        for row in next(turns):
            start = now()
            rows[row]()
            seconds[row].append(now() - start)

    rounds = pytestconfig.getoption("--rounds") or settings.ROUNDS
    benchmark.pedantic(one_round, rounds=rounds, iterations=1)
    return seconds


@pytest.mark.parametrize("case", CASES)
def test_defense_gan(case: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both give the same images, and the suite's at least ``LEAST`` times as fast."""
    device = pytestconfig.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.set_num_threads(1)
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
        "purifybench": lambda: method.purify(images, 0),
    }
    found = {row: run() for row, run in rows.items()}  # also warms up
    seconds = measured(rows, device, benchmark, pytestconfig)
    apart = float((found["plain loop"] - found["purifybench"]).abs().max())
    times = {row: statistics.median(taken) for row, taken in seconds.items()}
    faster = times["plain loop"] / times["purifybench"]
    benchmark.extra_info.update(
        purifier="defense_gan",
        case=case,
        width=width,
        latent=latent,
        steps=steps,
        restarts=RESTARTS,
        n_images=count,
        **machine(device),
        seconds=seconds,
        times_faster=faster,
        largest_difference=apart,
    )
    assert apart < 1e-3, f"the images differ by up to {apart:.2g}"
    assert device == "cuda" or faster > LEAST, f"only {faster:.2f} times as fast"


@pytest.mark.parametrize("case", PIXEL_CASES)
def test_pixel_defend(case: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Both choose the same levels, and the suite's at least ``LEAST_CACHED`` times as fast."""
    device = pytestconfig.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.set_num_threads(1)
    blocks, filters, count, decoded, pixels = PIXEL_CASES[case]
    torch.manual_seed(0)
    network = PixelCnn(3, scales=3, blocks=blocks, filters=filters, mixtures=MIXTURES, dropout=0.5)
    frozen(network.to(device))
    double = copy.deepcopy(network).double()
    levels = torch.randint(0, 256, (count, 3, SIDE, SIDE)).to(device)
    part = levels[:, :, :decoded]
    # also warms up; in the same precision, and past the first pixels
    first = decode(double, levels[:, :, :4, :4], REACH)
    same = torch.equal(first, decode_naively(double, levels[:, :, :4, :4], REACH))
    rows: dict[str, Callable[[], Tensor]] = {
        "plain loop": lambda: decode_naively(network, levels, REACH, pixels),
        "purifybench": lambda: decode(double, part, REACH),
    }
    taken = measured(rows, device, benchmark, pytestconfig)
    share = {"plain loop": pixels / SIDE**2, "purifybench": decoded / SIDE}
    seconds = {row: [value / share[row] for value in values] for row, values in taken.items()}
    times = {row: statistics.median(values) for row, values in seconds.items()}
    faster = times["plain loop"] / times["purifybench"]
    benchmark.extra_info.update(
        purifier="pixel_defend",
        case=case,
        blocks=blocks,
        filters=filters,
        n_images=count,
        **machine(device),
        seconds=seconds,
        measured_share=share,
        times_faster=faster,
    )
    assert same, "cached decoding chose other levels"
    assert device == "cuda" or faster > LEAST_CACHED, f"only {faster:.2f} times as fast"
