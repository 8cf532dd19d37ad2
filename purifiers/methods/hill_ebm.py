"""EBM defence (Hill et al. 2021): long-run Langevin dynamics on a convergent energy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core.component import Method, default_indices
from purifiers.core.errors import UserError
from purifiers.core.noise import generator, keys_on, normal_on
from purifiers.core.phase import Phase
from purifiers.core.ranges import Count, NonNegative, Positive, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.straight_through import with_gradient_of
from purifiers.core.taps import device_of
from purifiers.core.training_images import Pixels
from purifiers.core.traits import Fit, Images, MethodTraits, Network

SLOPE = 0.05
"""Of LeakyReLU (`point0bar1/ebm-defense`, as all constants here unless stated otherwise)."""
HALVINGS = 3
SECOND = "sgd"
"""Name of the second training."""


class Energy(nn.Module):
    """U of images (n, C, H, W) in [-1, 1], (n,); low for images of the data.

    A convolution 3x3, three 4x4 of stride 2 that double the channels, and one that covers what is
    left of the image. Upstream has 32x32 images, of which 4x4 is left: 693,569 parameters. Of
    28x28 images 3x3 is left, of 16x16 images 2x2; this extension is our choice.

    Args:
        shape: (C, H, W), at least 8x8.
        width: channels of the first layer; 32.
    """

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels = [width * 2**number for number in range(HALVINGS + 1)]
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, 1, 1), nn.LeakyReLU(SLOPE)]
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        left = (shape[1] // 2**HALVINGS, shape[2] // 2**HALVINGS)
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, left))

    def forward(self, pixels: Tensor) -> Tensor:
        energies: Tensor = self.layers(pixels).flatten(1).squeeze(1)
        return energies

    def slope(self, pixels: Tensor) -> Tensor:
        """Gradient of U by the pixels, (n, C, H, W)."""
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return gradient


class HillEbm(Method):
    """x <- x - grad U(x) + eps z, repeated, with x in [-1, 1].

    The fit maximises the likelihood of the density exp(-U / T), T = eps^2 / 2, of which this is the
    Langevin dynamics. Its loss is (U(data) - U(chains)) / T, means over a batch. The chains are
    drawn from a persistent bank, which starts as uniform noise, take ``langevin_steps`` steps and
    return to the bank. The bank is part of the fit's checkpoints, not of the weights. Its start is
    the same in all fits.

    U is piecewise linear in x, so that its second derivative is 0 almost everywhere: the exact
    gradient through any number of steps is the identity, and BPDA differs from it only where the
    result is clipped to [0, 1]. No step is kept in memory. Upstream does not clip.

    Args:
        steps: of the purification; 1500.
        width: channels of U's first layer; 32.
        eps: of the dynamics, on the scale [-1, 1]; .01.
        data_noise: standard deviation of the noise on training images, on the same scale; .02.
        langevin_steps: per training step; 100.
        chains: images in the bank; None: one per training image, as upstream.
        adam_steps, sgd_steps: training steps with Adam, then with SGD; 125,000 each.
        batch_size: images and chains per training step; 100.
        learning_rate: Adam's; 1e-4.
        sgd_learning_rate: for the difference of the energies itself, so that the loss has this
            times T; 5e-5.
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "steps",
            "width",
            "langevin_steps",
            "chains",
            "adam_steps",
            "sgd_steps",
            "batch_size",
            "learning_rate",
            "sgd_learning_rate",
        ),
        random=True,
        provides=("score",),
        fit=Fit(uses_classifier=False, inference_only=("steps",)),
        network=Network(
            sized_by=("width",),
            passes="3 * steps",
            fit_passes="(adam_steps + sgd_steps) * batch_size * (3 * langevin_steps + 6) / images",
        ),
        images=Images(square_above=7),  # 2^3 - 1: three halvings leave a pixel
    )

    def __init__(
        self,
        *,
        steps: Count = 1500,
        width: Count = 32,
        eps: Positive = 0.01,
        data_noise: NonNegative = 0.02,
        langevin_steps: Count = 100,
        chains: Count | None = None,
        adam_steps: Count = 125_000,
        sgd_steps: Whole = 125_000,
        batch_size: Count = 100,
        learning_rate: Positive = 1e-4,
        sgd_learning_rate: Positive = 5e-5,
    ) -> None:
        super().__init__()
        self.steps, self.width = steps, width
        self.eps, self.data_noise = eps, data_noise
        self.langevin_steps, self.chains = langevin_steps, chains
        self.temperature = eps**2 / 2.0
        self.recipe = Recipe(
            epochs=0,
            steps=adam_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer="adam",
        )
        self.second_recipe: Recipe | None = None
        if sgd_steps:
            self.second_recipe = Recipe(
                epochs=0,
                steps=sgd_steps,
                batch_size=batch_size,
                learning_rate=sgd_learning_rate * self.temperature,
            )
        self.bank: Tensor | None
        self._shape: tuple[int, ...] = ()

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Build U for the shape of the images."""
        self._shape = tuple(shape)
        self.register_buffer("bank", None)
        self.energy = Energy(shape, self.width)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fit_on(self, classifiers: Sequence[nn.Module], images: int) -> None:
        """Create the bank of chains; the classifiers are not used."""
        size = (self.chains or images, *self._shape)
        bank = 2.0 * torch.rand(size, generator=generator("hill_ebm", "bank")) - 1.0
        self.bank = bank.to(device_of(self.energy))

    def end_fit(self) -> None:
        """Drop the bank."""
        self.bank = None

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Energy of the data above that of the chains, in units of T; moves the chains.

        Raises:
            UserError: there is no bank.
        """
        if self.bank is None:
            raise UserError("hill_ebm: no bank of chains; call fit_on before fitting")
        rows = torch.randperm(len(self.bank), generator=generator(seed, "hill_ebm chains"))
        rows = rows[: len(images)].to(images.device)
        chains = self._descend(self.bank[rows], self.langevin_steps, seed, rows)
        self.bank[rows] = chains
        noise = normal_on(keys_on(seed, indices.to(images.device), "hill_ebm data"), self._shape)
        data = 2.0 * images - 1.0 + self.data_noise * noise
        difference: Tensor = self.energy(data).mean() - self.energy(chains).mean()
        return difference / self.temperature

    def next_phase(self, pixels: Pixels, labels: npt.NDArray) -> Phase | None:
        """The training with SGD, which continues the same chains."""
        if self.second_recipe is None:
            return None
        return Phase(SECOND, self, self.fit_loss, pixels, labels, self.second_recipe)

    def own_pass(self, images: Tensor) -> Tensor:
        return self.energy(2.0 * images - 1.0)

    def score(self, images: Tensor) -> Tensor:
        """Gradient of the log-density -U / T by the images in [0, 1], (n, C, H, W)."""
        return -2.0 / self.temperature * self.energy.slope(2.0 * images - 1.0)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Images after all Langevin steps, clipped to [0, 1]."""
        return self._run(images, self.steps, seed, indices)

    def step(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Images after one Langevin step."""
        return self._run(images, 1, seed, indices)

    def _run(
        self, images: Tensor, steps: int, seed: int, indices: Sequence[int] | Tensor | None
    ) -> Tensor:
        rows = default_indices(images, indices).to(images.device)
        moved = self._descend(2.0 * images.detach() - 1.0, steps, seed, rows)
        return with_gradient_of((moved + 1.0) / 2.0, images).clamp(0.0, 1.0)

    @torch.no_grad()
    def _descend(self, pixels: Tensor, steps: int, seed: int, rows: Tensor) -> Tensor:
        """Take Langevin steps; the noise of a row depends on the seed and its number."""
        keys, values = keys_on(seed, rows, "hill_ebm"), pixels[0].numel() if len(pixels) else 0
        for number in range(steps):
            noise = normal_on(keys, pixels.shape[1:], first=number * values)
            pixels = pixels - self.energy.slope(pixels) + self.eps * noise
        return pixels
