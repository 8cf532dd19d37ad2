"""ADP (Yoon, Hwang & Lee 2021): noise, then follow a learned score back to the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from purifiers.core.choices import Augmentation
from purifiers.core.component import Method, default_indices
from purifiers.core.noise import generator, keys_on, normal_on
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, Images, MethodTraits, Network
from purifiers.methods import _adp_targets
from purifiers.methods._ncsn import ScoreNetwork

PROBE = 0.001
"""Length delta of the step that measures how the score changes, `jmyoon1/adp` (``lr_min``)."""


class Adp(Method):
    """Add noise of standard deviation sigma, then take at most N steps along the score.

    The network s approximates the score times the noise level: about minus the noise in units of
    its standard deviation. ADP uses s undivided (`jmyoon1/adp`; a norm of 25, appendix F, only
    makes sense so). All results are clipped to [0, 1].

    An adaptive step of image x has length lambda delta / (1 - rho), clipped to [``step_min``,
    ``step_max``], where rho = <s, s'> / <s, s> and s' = s(x + delta s). rho of 1 or more gives
    ``step_min``. An image stays as it is from its first step of at most ``step_stop`` on.

    Args:
        sigma: standard deviation of the noise, on the [0, 1] scale; .25 best against BPDA
            (appendix D.2).
        iterations: N; 10.
        step_rule: ``adaptive``, or ``geometric``: lengths from ``step_first`` to ``step_last``
            (appendix C).
        step_scale: lambda, ".05" (the paper's alpha).
        step_min, step_max, step_stop: see above; 1e-5, .1 and .001 in `jmyoon1/adp`.
        step_first, step_last: .08 and .0008, appendix C.
        detect: less noise for images whose score has a norm of at most ``detection_norm``:
            ``low_noise`` times sigma (appendix F; .2 in `jmyoon1/adp`).
        perturbation: images that the network is trained to return to: ``gaussian``, the originals;
            ``dct`` or ``augmix``, see :mod:`purifiers.methods._adp_targets`.
        width: channels of the network's first stage; 128.
        blocks: see :class:`purifiers.methods._ncsn.ScoreNetwork`; 2.
        score_sigma_max, score_sigma_min, score_levels: geometric noise levels of the training,
            Table 5.
        score_iterations, score_batch_size, score_learning_rate: of Adam without weight decay, Table
            5 and section A.3; `jmyoon1/adp` has a rate of 1e-4.
        augmentation: see :class:`purifiers.core.recipe.Recipe`; flips for colours (A.3).

    Gradients are recomputed step by step. Between the steps at most N + 3 images per draw and
    attacked image are kept, and one flag with each: 2.4 MB per attacked CIFAR image with 15 draws
    of 10 steps. To these come the activations of one step, for all draws of a batch.
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "width",
            "blocks",
            "iterations",
            "score_sigma_max",
            "score_levels",
            "score_iterations",
            "score_batch_size",
            "score_learning_rate",
        ),
        random=True,
        provides=("score",),
        states="iterations + 1",
        fit=Fit(
            uses_classifier=False,
            inference_only=(
                "sigma",
                "iterations",
                "step_rule",
                "step_scale",
                "step_min",
                "step_max",
                "step_stop",
                "step_first",
                "step_last",
                "detect",
                "detection_norm",
                "low_noise",
            ),
        ),
        network=Network(
            sized_by=("width", "blocks"),
            passes="2 * iterations",
            fit_passes="3 * score_iterations * score_batch_size / images",
        ),
        images=Images(side_multiple="2", norms=(("detection_norm", "detect"),)),
    )

    def __init__(
        self,
        *,
        sigma: NonNegative = 0.25,
        iterations: Count = 10,
        step_rule: Literal["adaptive", "geometric"] = "adaptive",
        step_scale: Positive = 0.05,
        step_min: Positive = 1e-5,
        step_max: Positive = 0.1,
        step_stop: NonNegative = 0.001,
        step_first: Positive = 0.08,
        step_last: Positive = 0.0008,
        detect: bool = False,
        detection_norm: Positive = 25.0,
        low_noise: NonNegative = 0.2,
        perturbation: Literal["gaussian", "dct", "augmix"] = "gaussian",
        width: Count = 128,
        blocks: Count = 2,
        score_sigma_max: Positive = 50.0,
        score_sigma_min: Positive = 0.008454,
        score_levels: Count = 232,
        score_iterations: Count = 300000,
        score_batch_size: Count = 128,
        score_learning_rate: Positive = 0.001,
        augmentation: Augmentation = "none",
    ) -> None:
        super().__init__()
        self.sigma, self.iterations, self.step_rule = sigma, iterations, step_rule
        self.step_scale, self.step_stop = step_scale, step_stop
        self.step_min, self.step_max = step_min, step_max
        self.step_first, self.step_last = step_first, step_last
        self.detect, self.detection_norm, self.low_noise = detect, detection_norm, low_noise
        self.perturbation = perturbation
        self.width, self.blocks = width, blocks
        self.levels = torch.logspace(
            torch.log10(torch.tensor(score_sigma_max)).item(),
            torch.log10(torch.tensor(score_sigma_min)).item(),
            score_levels,
        )
        self.recipe = Recipe(
            epochs=0,
            steps=score_iterations,
            batch_size=score_batch_size,
            learning_rate=score_learning_rate,
            optimizer="adam",
            augmentation=augmentation,
        )

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        network = ScoreNetwork(shape[0], self.width, self.blocks)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def own_pass(self, images: Tensor) -> Tensor:
        return self.score(images)

    def score(self, images: Tensor) -> Tensor:
        """The score times the noise level, (n, C, H, W)."""
        output: Tensor = self.network(images)
        return output

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Denoising score matching (equation 8), weighted by the squared noise level.

        1/2 |s + (x~ - t) / sigma|^2, summed over pixels, where x~ = c + sigma z, c is the centre of
        the noise and t the target. Both are the image for ``gaussian``. The noise level sigma of
        each image is drawn uniformly from the levels.
        """
        centre, target = _adp_targets.centre_and_target(self.perturbation, images, seed, indices)
        draw = generator(seed, "adp levels")
        chosen = torch.randint(len(self.levels), (len(images),), generator=draw)
        level = self.levels[chosen].to(images.device).view(-1, 1, 1, 1)
        noise = normal_on(keys_on(seed, indices.to(images.device), "adp"), images.shape[1:])
        residual = self.score(centre + level * noise) + noise + (centre - target) / level
        return 0.5 * residual.square().flatten(1).sum(dim=1).mean()

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Purified images of one run, float32 (n, C, H, W) in [0, 1]."""
        return self._run(images, seed, indices, self.iterations)

    def step(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Images after the noise and one step."""
        return self._run(images, seed, indices, 1)

    def states(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> list[Tensor]:
        """The noisy images, then the images after each step."""
        return list(self._states(images, seed, indices, self.iterations))

    def _run(
        self, images: Tensor, seed: int, indices: Sequence[int] | Tensor | None, iterations: int
    ) -> Tensor:
        *_, purified = self._states(images, seed, indices, iterations)
        return purified

    def _states(
        self, images: Tensor, seed: int, indices: Sequence[int] | Tensor | None, iterations: int
    ) -> Iterator[Tensor]:
        purified = self._noisy(images, seed, default_indices(images, indices))
        active = torch.ones(len(images), dtype=torch.bool, device=images.device)
        yield purified
        for number in range(iterations):
            if torch.is_grad_enabled() and purified.requires_grad:
                purified, active = checkpoint(
                    self._step, purified, active, number, use_reentrant=False
                )
            else:
                purified, active = self._step(purified, active, number)
            yield purified

    def _noisy(self, images: Tensor, seed: int, indices: Tensor) -> Tensor:
        if self.sigma == 0.0:
            return images
        level = images.new_full((len(images), 1, 1, 1), self.sigma)
        if self.detect:
            with torch.no_grad():
                attacked = self.score(images).flatten(1).norm(dim=1) > self.detection_norm
            level = torch.where(attacked.view(-1, 1, 1, 1), level, self.low_noise * level)
        keys = keys_on(seed, indices.to(images.device), "adp")
        noise = normal_on(keys, images.shape[1:])
        return (images + level * noise).clamp(0.0, 1.0)

    def _step(self, images: Tensor, active: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Images after a step, and which images still move."""
        score = self.score(images)
        if self.step_rule == "geometric":
            share = number / max(self.iterations - 1, 1)
            length = score.new_full(
                (len(images),), self.step_first * (self.step_last / self.step_first) ** share
            )
        else:
            length = self._adaptive_length(images, score)
            active = active & (length.detach() > self.step_stop)
        moved = (images + length.view(-1, 1, 1, 1) * score).clamp(0.0, 1.0)
        return torch.where(active.view(-1, 1, 1, 1), moved, images), active

    def _adaptive_length(self, images: Tensor, score: Tensor) -> Tensor:
        beside = self.score(images + PROBE * score)
        products = (score * beside).flatten(1).sum(dim=1)
        squares = score.square().flatten(1).sum(dim=1)
        change = 1.0 - products / squares.clamp_min(torch.finfo(squares.dtype).tiny)
        positive = change > 0  # upstream's negative quotient is clipped to the smallest step, too
        length = self.step_scale * PROBE / torch.where(positive, change, torch.ones_like(change))
        length = length.clamp(self.step_min, self.step_max)
        return torch.where(positive, length, torch.full_like(length, self.step_min))
