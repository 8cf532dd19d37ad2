"""PixelDefend (Song et al. 2018): the most likely image within eps, pixel after pixel."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from purifiers.core.choices import Precision, Schedule
from purifiers.core.component import Method
from purifiers.core.errors import UserError
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, Positive, Share, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.step_count import StepCount
from purifiers.core.traits import Fit, Images, MethodTraits, Network
from purifiers.methods._pixel_cnn import PixelCnn, log_likelihood
from purifiers.methods._pixel_cnn_decoding import decode

BETAS = (0.95, 0.9995)
"""Adam's betas (`microsoft/PixelDefend`)."""
HALVED_EVERY = 138_629
"""Steps after which upstream's factor .999995 per step has halved the learning rate."""
CHUNK = 128
"""Images decoded together on a processor, so that activations stay in its cache; our choice."""


class PixelDefend(Method):
    """Fit PixelCNN++ to clean images, then replace each value by the most likely one within eps.

    Values are set in raster order, red before green before blue, each given those already set
    (section 4.2, Algorithm 1). Images are rounded to 8 bits first (upstream truncates). eps is a
    whole number of levels, rounded down. The lowest of equally likely levels is chosen.

    Defaults are those of `microsoft/PixelDefend`. Upstream bins the mixture into 256 levels of
    width 2/256; here the bins are those of PixelCNN++, of width 2/255 around the levels. Upstream's
    option to leave likely images unchanged is omitted. Decoding uses double precision, so that
    rounding, which depends on the batch, does not decide between levels.

    Args:
        eps: largest change; 16/255 is the CIFAR-10 example of upstream's README.
        scales, blocks, filters, mixtures, dropout: of the network, see
            :class:`purifiers.methods._pixel_cnn.PixelCnn`. Upstream has 40 filters for grey images.
        learning_rate: of Adam. With ``schedule: step`` it is halved every 138,629 steps, which
            approximates upstream's .999995 per step.
        batch_size: upstream's 12 on each of 4 GPUs.
        average: decay of the running average of the weights, which purifies the images. The first
            steps have a larger weight: step n has a decay of at most (1 + n) / (10 + n), our choice
            for short trainings. The very last step is not included.
        validation, early_stopping: a share of the images is held out, and the fit ends after so
            many epochs without fewer bits per dimension on them, computed with the averaged
            weights. The weights of the best epoch are kept. 0 and 0 as upstream, which always
            trains all epochs; see :class:`purifiers.core.recipe.Recipe`.
        precision: of the fit, see there.

    Raises:
        UserError: a count below 1, or a dropout or an average outside [0, 1).
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "scales",
            "blocks",
            "filters",
            "mixtures",
            "dropout",
            "learning_rate",
            "schedule",
            "batch_size",
            "epochs",
            "validation",
            "early_stopping",
            "precision",
        ),
        joined_later=("validation", "early_stopping", "precision"),
        differentiable=False,
        fit=Fit(uses_classifier=False, inference_only=("eps",)),
        # measured on a processor: a single image costs 13 passes, each of a large batch 5
        # (results/tables/timing/purification.md)
        network=Network(
            sized_by=("scales", "blocks", "filters", "mixtures"),
            passes="10",
            fit_passes="3 * epochs",
        ),
        images=Images(channels=(1, 3), side_multiple="2 ** (scales - 1)"),
    )

    averaged: Tensor

    def __init__(
        self,
        *,
        eps: Length = "16/255",
        scales: Count = 3,
        blocks: Count = 5,
        filters: Count = 160,
        mixtures: Count = 10,
        dropout: Share = 0.5,
        learning_rate: Positive = 1e-3,
        schedule: Schedule = "step",
        batch_size: Count = 48,
        epochs: Positive = 5000,
        average: Share = 0.9995,
        validation: Share = 0.0,
        early_stopping: Whole = 0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.eps, self.average = eps, average
        self.scales, self.blocks, self.filters = scales, blocks, filters
        self.mixtures, self.dropout = mixtures, dropout
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_decay=0.5,
            schedule=schedule,
            optimizer="adam",
            betas=BETAS,
            validation=validation,
            early_stopping=early_stopping,
            precision=precision,
        )

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Build the network for images of this shape.

        Raises:
            UserError: neither one nor three channels, or sides that cannot be halved often enough.
        """
        self.network = PixelCnn(
            shape[0],
            scales=self.scales,
            blocks=self.blocks,
            filters=self.filters,
            mixtures=self.mixtures,
            dropout=self.dropout,
        )
        # buffers, so that a checkpoint stores them
        self.register_buffer("averaged", parameters_to_vector(self.network.parameters()).detach())
        self._fitted = StepCount(self, "steps")

    def fit_on(self, classifiers: Sequence[nn.Module], images: int) -> None:
        super().fit_on(classifiers, images)
        self._fitted.begin()
        trained = images * (1.0 - self.recipe.validation)
        steps = math.ceil(trained / self.recipe.batch_size) * self.recipe.epochs
        halvings = range(1, int(steps / HALVED_EVERY) + 1)
        milestones = tuple(number * HALVED_EVERY / steps for number in halvings)
        self.recipe = replace(self.recipe, milestones=milestones)

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Bits per dimension: negative mean log-probability of the levels, base 2.

        In evaluation mode those of the averaged weights, with which images are purified.
        """
        if self.training:
            self._keep_average()
        network = self.network if self.training else self._averaged_network()
        return -log_likelihood(network, _levels(images)).mean() / math.log(2.0)

    def own_pass(self, images: Tensor) -> Tensor:
        return log_likelihood(self.network, _levels(images))

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Most likely images within eps.

        Raises:
            UserError: the images require a gradient.
        """
        if torch.is_grad_enabled() and images.requires_grad:
            raise UserError("pixel_defend: its choices have no gradient; attack it with bpda")
        network = self._averaged_network().double()
        reach = math.floor(255.0 * self.eps + 1e-6)
        chunk = CHUNK if images.device.type == "cpu" else max(1, len(images))
        with torch.no_grad():
            parts = [decode(network, part, reach) for part in _levels(images).split(chunk)]
        return torch.cat(parts).float() / 255.0

    def _averaged_network(self) -> PixelCnn:
        """A frozen copy with the averaged weights, in evaluation mode."""
        network = copy.deepcopy(self.network).requires_grad_(False).eval()
        vector_to_parameters(self.averaged, network.parameters())
        return network

    def _keep_average(self) -> None:
        decay = min(self.average, (1 + self._fitted.value) / (10 + self._fitted.value))
        newest = parameters_to_vector(self.network.parameters()).detach()
        self.averaged.lerp_(newest, 1.0 - decay)
        self._fitted.advance()


def _levels(images: Tensor) -> Tensor:
    """Round [0, 1] to the nearest of 256 levels, int64."""
    return (255.0 * images.detach()).round().long()
