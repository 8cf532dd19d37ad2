"""Speed of the suite's purification beside the loop of the authors' code, on the same weights.

Defense-GAN is the one purifier whose time is all its own: 2,000 gradients of a generator per image.
The plain loop does what `kabkabm/defensegan` does, one restart after the other, with gradients of
everything that is trainable; the suite's takes all restarts at once and the gradients of the codes
alone, and computes the last deconvolution as a convolution.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import settings
import torch
from rounds import clock
from torch import Tensor, nn

from purifiers.core.component import frozen
from purifiers.core.noise import normal
from purifiers.core.provenance import git_commit, processor
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
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        processor=processor(),
        torch=torch.__version__,
        git=git_commit(),
        seconds=seconds,
        times_faster=faster,
        largest_difference=apart,
    )
    assert apart < 1e-3, f"the images differ by up to {apart:.2g}"
    assert device == "cuda" or faster > LEAST, f"only {faster:.2f} times as fast"
